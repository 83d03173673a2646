// The threads on which devices do what would hold up a virtual CPU.
package import Devices
internal import HostOS
internal import Synchronization

/// Threads that carry out jobs, and drain the queues of disks.
///
/// One thread does all that comes as long as requests are quick, as those are that the host's cache answers: it takes them
/// in batches while the driver needn't notify, and lets a batch finish with one interrupt. Others are woken for what
/// waits for the host's disk. A single thread keeps the order.
package final class WorkerThreads: BlockServer, Worker {
    private let pool: Pool

    /// At most `width` threads, which begin when they are needed.
    package init(name: String, width: Int = 1) { pool = Pool(name: name, width: width) }

    deinit { pool.stop() }

    package func run(_ job: @escaping @Sendable () -> Void) { pool.add([.job(job)]) }

    package func wake(_ source: BlockSource) { pool.add([.source(source)]) }

    /// Carries out requests and lets each finish, on threads that have time.
    func perform(_ jobs: [BlockJob], of source: BlockSource) { pool.add(jobs.map { .request($0, source) }) }

    /// What transfers have taken lately.
    var pace: Pace { pool.pace }
}

/// What the threads share; they keep it as long as they run.
private final class Pool: Sendable {
    enum Work: Sendable {
        case job(@Sendable () -> Void)
        case source(BlockSource)
        case request(BlockJob, BlockSource)
    }

    private struct Contents: Sendable {
        var work: [Work] = []
        /// The first that wasn't taken.
        var next = 0
        /// Threads that sleep, the last to fall asleep at the end.
        var idle: [WakeFlag] = []
        var started = 0
        var isStopped = false
    }

    private let name: String
    private let width: Int
    private let contents = Mutex(Contents())
    let pace = Pace()

    init(name: String, width: Int) {
        self.name = name
        self.width = width
    }

    // MARK: From other threads

    func add(_ work: [Work]) {
        let (sleepers, newcomers) = contents.withLock { contents -> ([WakeFlag], Int) in
            contents.work += work
            let sleepers = contents.idle.suffix(work.count)
            contents.idle.removeLast(sleepers.count)
            let newcomers = min(width - contents.started, work.count - sleepers.count)
            contents.started += newcomers
            return (Array(sleepers), newcomers)
        }
        for sleeper in sleepers { sleeper.raise() }
        for _ in 0..<newcomers { start() }
    }

    func stop() {
        let sleepers = contents.withLock { contents in
            contents.isStopped = true
            defer { contents.idle = [] }
            return contents.idle
        }
        for sleeper in sleepers { sleeper.raise() }
    }

    private func start() {
        do { try HostThread.detached(name: name) { [self] in serve() } } catch {
            // Without threads, whoever brings work does it.
            let isLast = contents.withLock { contents in
                contents.started -= 1
                return contents.started == 0
            }
            while isLast, let work = take() { perform(work) }
        }
    }

    // MARK: On the threads

    private func serve() {
        let flag = WakeFlag()
        while true {
            if let work = take() {
                perform(work)
                continue
            }
            let (isStopped, sleeps) = contents.withLock { contents in
                let sleeps = contents.next == contents.work.count && !contents.isStopped
                if sleeps { contents.idle.append(flag) }
                return (contents.isStopped, sleeps)
            }
            if isStopped { return }
            if sleeps { flag.wait() }
        }
    }

    private func take() -> Work? {
        contents.withLock { contents in
            guard contents.next < contents.work.count else { return nil }
            defer {
                contents.next += 1
                if contents.next == contents.work.count || contents.next == 1024 {
                    contents.work.removeFirst(contents.next)
                    contents.next = 0
                }
            }
            return contents.work[contents.next]
        }
    }

    private func perform(_ work: Work) {
        switch work {
        case .job(let job): job()
        case .request(let job, let source): source.finish([pace.perform(job, of: source)])
        case .source(let source): drain(source)
        }
    }

    private func drain(_ source: BlockSource) {
        var batch = CompletionBatch()
        while true {
            var jobs = source.take(64)[...]
            if jobs.isEmpty {
                batch.finish(source)
                if source.rests() { return }
                continue
            }
            while let job = jobs.first {
                if width > 1, pace.isSlow(job) {
                    batch.finish(source)
                    add(jobs.map { .request($0, source) } + (source.rests() ? [] : [.source(source)]))
                    return
                }
                jobs.removeFirst()
                batch.append(pace.perform(job, of: source))
                if batch.isRipe { batch.finish(source) }
            }
        }
    }
}
