// Threads that work for devices: order, number, and their end.
import Foundation
import Machine
import Synchronization
import Testing

@Suite struct WorkerThreadsTests {
    /// Threads of this process by name.
    private func threads(_ name: String) -> Int {
        let tasks = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/task")) ?? []
        return tasks.count { task in
            (try? String(contentsOfFile: "/proc/self/task/\(task)/comm", encoding: .utf8)) == name + "\n"
        }
    }

    private func waitFor(_ isTrue: () -> Bool) async throws {
        for _ in 0..<5000 where !isTrue() { try await Task.sleep(nanoseconds: 1_000_000) }
    }

    @Test func `one thread keeps the order`() async throws {
        let workers = WorkerThreads(name: "test-one")
        let seen = Mutex<[Int]>([])
        let done = DispatchSemaphore(value: 0)
        for number in 0..<3000 { workers.run { seen.withLock { $0.append(number) } } }
        workers.run { done.signal() }
        try await waitFor { done.wait(timeout: .now()) == .success }
        #expect(seen.withLock { $0 } == Array(0..<3000))
        #expect(threads("test-one") == 1)
    }

    @Test func `several threads work at the same time, and no more than there may be`() async throws {
        let workers = WorkerThreads(name: "test-three", width: 3)
        let counts = Mutex((inside: 0, most: 0, done: 0))
        let go = DispatchSemaphore(value: 0)
        for _ in 0..<9 {
            workers.run {
                counts.withLock {
                    $0.inside += 1
                    $0.most = max($0.most, $0.inside)
                }
                go.wait()
                counts.withLock {
                    $0.inside -= 1
                    $0.done += 1
                }
            }
        }
        try await waitFor { counts.withLock { $0.most } == 3 }
        for _ in 0..<9 { go.signal() }
        try await waitFor { counts.withLock { $0.done } == 9 }
        #expect(counts.withLock { $0.most } == 3)
        #expect(counts.withLock { $0.done } == 9)
    }

    @Test func `threads end with their owner, after what they were given`() async throws {
        let done = Mutex(0)
        do {
            let workers = WorkerThreads(name: "test-end", width: 2)
            for _ in 0..<100 { workers.run { done.withLock { $0 += 1 } } }
        }
        try await waitFor { done.withLock { $0 } == 100 && threads("test-end") == 0 }
        #expect(done.withLock { $0 } == 100)
        #expect(threads("test-end") == 0)
    }
}
