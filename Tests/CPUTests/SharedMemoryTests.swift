// Memory that several vCPUs, or threads of the machine, reach at once: what must be one access, and what must be seen.
import CHost
import CPU
import Foundation
import GuestMemory
import Synchronization
import Testing

@Suite("Shared memory") struct SharedMemoryTests {
    /// What a test and its other thread tell each other.
    private final class Progress: Sendable {
        let rounds = Atomic(0)
        let isOver = Atomic(false)
        let found = Atomic(0)
    }

    /// Runs `round` on another thread until `body` is done; `body` begins after the first one.
    private func beside(
        _ progress: Progress, _ round: @escaping @Sendable () -> Void, _ body: () throws -> Void
    ) rethrows {
        let other = Thread {
            while !progress.isOver.load(ordering: .acquiring) {
                round()
                progress.rounds.add(1, ordering: .relaxed)
            }
        }
        other.start()
        while progress.rounds.load(ordering: .relaxed) == 0 { sched_yield() }
        defer { progress.isOver.store(true, ordering: .releasing) }
        try body()
    }

    // MARK: Accessed and dirty bits

    enum Paging { case twoLevels, pae, fourLevels }
    enum Access: CaseIterable { case load, store, fetch }

    /// Every entry on the way to linear 0x40_0000: where it is and what it is.
    static let entries: [(paging: Paging, place: UInt64, entry: UInt64)] = [
        (.twoLevels, 0x10004, 0x11007), (.twoLevels, 0x11000, 0x20_0007), (.pae, 0x11010, 0x12007),
        (.pae, 0x12000, 0x20_0007), (.fourLevels, 0x10000, 0x11007), (.fourLevels, 0x11000, 0x12007),
        (.fourLevels, 0x12010, 0x13007), (.fourLevels, 0x13000, 0x20_0007),
    ]

    private func enter(_ paging: Paging, _ rig: PagingRig) throws {
        switch paging {
        case .twoLevels:
            try rig.put32(0x11007, 0x10004)
            try rig.put32(0x20_0007, 0x11000)
            rig.enter(long: false, cr4: 0)
        case .pae:
            try rig.put64(0x11001, 0x10020)
            try rig.put64(0x12007, 0x11010)
            try rig.put64(0x20_0007, 0x12000)
            rig.enter(long: false, cr4: PagingRig.pae)
            try rig.v.writeCR3(0x10020)
        case .fourLevels:
            try rig.longTables(0x20_0007)
            rig.enter(long: true, cr4: PagingRig.pae)
        }
    }

    @Test(
        "A and D are never set in an entry that has gone meanwhile (SDM 3A 4.8)",
        arguments: entries.indices, Access.allCases)
    func entryThatGoes(n: Int, access: Access) throws {
        let (paging, place, entry) = Self.entries[n]
        let rig = try PagingRig()
        try enter(paging, rig)
        let size: UInt32 = paging == .twoLevels ? 4 : 8
        let host = UnsafeMutableRawPointer(rig.memory.base + Int(place))
        func exchange(_ value: UInt64) -> UInt64 {
            var flags: UInt32 = 0
            return roost_alu_atomic(UInt32(ROOST_ALU_XCHG), size, host, value, &flags)
        }
        let walk: @Sendable () -> Void = {
            rig.v.flushPage(0x40_0000)
            switch access {
            case .load: _ = rig.read(0x40_0000)
            case .store: _ = rig.write(0x40_0000)
            case .fetch: _ = rig.fetch(0x40_0000)
            }
        }
        var random: UInt64 = 1
        var revived = 0
        beside(Progress(), walk) {
            for _ in 0..<2000 {
                random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                _ = exchange(entry)
                for _ in 0..<(random >> 60) { roost_pause() }
                _ = exchange(0)
                for _ in 0..<64 where roost_load_sized(size, host) != 0 { revived += 1 }
            }
        }
        #expect(revived == 0)
    }

    // MARK: Code

    /// MOV EAX, 1; HLT as an integer, and MOV EAX, 2; HLT.
    private static let one: UInt64 = 0xF4_0000_0001_B8
    private static let two: UInt64 = 0xF4_0000_0002_B8

    /// Instructions that change the code at RDI, with RAX, RBX, RCX and RDX, and what EAX is then.
    static let changes: [(code: [UInt8], registers: [UInt64], result: UInt64)] = [
        ([0x48, 0x89, 0x07], [two, 0, 0, 0], 2),  // mov [rdi], rax
        ([0x48, 0x01, 0x0F], [0, 0, 0x100, 0], 2),  // add [rdi], rcx
        ([0xF0, 0x48, 0x01, 0x0F], [0, 0, 0x100, 0], 2),  // lock add [rdi], rcx
        ([0xF0, 0xFE, 0x47, 0x01], [0, 0, 0, 0], 2),  // lock inc byte [rdi+1]
        ([0xF0, 0x48, 0x0F, 0xBA, 0x2F, 0x09], [0, 0, 0, 0], 3),  // lock bts qword [rdi], 9
        ([0xF0, 0x48, 0x0F, 0xC1, 0x07], [0x100, 0, 0, 0], 2),  // lock xadd [rdi], rax
        ([0x48, 0x87, 0x07], [two, 0, 0, 0], 2),  // xchg [rdi], rax
        ([0xF0, 0x48, 0x0F, 0xB1, 0x0F], [one, 0, two, 0], 2),  // lock cmpxchg [rdi], rcx
        // lock cmpxchg8b [rdi]
        ([0xF0, 0x0F, 0xC7, 0x0F], [one & 0xFFFF_FFFF, two & 0xFFFF_FFFF, two >> 32, one >> 32], 2),
        ([0xF0, 0x48, 0x0F, 0xC7, 0x0F], [one, two, 0, 0], 2),  // lock cmpxchg16b [rdi]
        // movq xmm0, rax; movdqa [rdi], xmm0
        ([0x66, 0x48, 0x0F, 0x6E, 0xC0, 0x66, 0x0F, 0x7F, 0x07], [two, 0, 0, 0], 2),
    ]

    @Test("Code that one vCPU changes is told of after the change, not before it", arguments: changes.indices)
    func changedCode(n: Int) throws {
        let place: UInt64 = 0x7_0000
        let first = try CodeRig()
        let memory = first.system.memory
        let second = try CodeRig(id: 1, memory: memory)
        let group = VCPUGroup([first.system.cpu, second.system.cpu], memory: memory)
        defer { withExtendedLifetime((group, first.interpreter, second.interpreter)) {} }
        #expect(try second.run([0xB8, 1, 0, 0, 0], at: place) == nil)
        #expect(second.v.gpr[0] == 1)
        // What the second vCPU would decode when it is told.
        let told = Mutex<[UInt64]>([])
        memory.onCodeWritten(vcpu: 1) { [unowned memory] page in
            if page != place >> 12 { return }
            let host = UnsafeRawPointer(memory.base + Int(place))
            told.withLock { $0.append(host.load(as: UInt64.self)) }
        }
        defer { memory.onCodeWritten(vcpu: 1, nil) }
        first.s.pointee.cr4 |= 0x600
        first.v.updateMode()
        let change = Self.changes[n]
        for (register, value) in zip([0, 3, 1, 2], change.registers) { first.v.gpr[register] = value }
        first.v.gpr[7] = place
        #expect(try first.run(change.code) == nil)
        let changed = Self.one & ~0xFF00 | change.result << 8
        #expect(first.system.get64(place) == changed)
        #expect(told.withLock { $0 } == [changed])
        #expect(second.goOn(at: place) == nil)
        #expect(second.v.gpr[0] == change.result)
    }

    // MARK: Vectors

    /// Where vectors are stored: a page of data, one of code, and a page of data while another place is watched.
    static let places: [(place: UInt64, isWatched: Bool)] = [
        (CodeRig.data, false), (CodeRig.code + 0x800, false), (CodeRig.data, true),
    ]

    private func vectorRig(_ n: Int) throws -> (rig: CodeRig, rounds: UInt32) {
        let rig = try CodeRig()
        rig.s.pointee.cr4 |= 0x600
        if Self.places[n].isWatched {
            rig.s.pointee.dr.1 = 0x6_0000
            rig.s.pointee.dr.7 = 0x408 | 0xD << 20
        }
        rig.v.armDebug()
        rig.v.gpr[7] = Self.places[n].place
        return (rig, Self.places[n].isWatched ? 20_000 : 100_000)
    }

    private func counting(_ rounds: UInt32) -> [UInt8] {
        [0xB9, UInt8(truncatingIfNeeded: rounds), UInt8(truncatingIfNeeded: rounds >> 8), UInt8(rounds >> 16), 0]
    }

    @Test("A vector store of 16 aligned bytes is one access (SDM 3A 9.1.1)", arguments: places.indices)
    func vectorStore(n: Int) throws {
        let (rig, rounds) = try vectorRig(n)
        let place = Self.places[n].place
        // mov ecx, rounds; pxor xmm0, xmm0; pcmpeqd xmm1, xmm1
        // loop: movdqa [rdi], xmm0; movdqa [rdi], xmm1; dec ecx; jnz loop
        let code =
            counting(rounds) + [
                0x66, 0x0F, 0xEF, 0xC0, 0x66, 0x0F, 0x76, 0xC9, 0x66, 0x0F, 0x7F, 0x07, 0x66, 0x0F, 0x7F, 0x0F, 0xFF,
                0xC9, 0x75, 0xF4,
            ]
        let progress = Progress()
        let memory = rig.system.memory
        let look: @Sendable () -> Void = {
            var seen: (UInt64, UInt64) = (0, 0)
            roost_load16(&seen, memory.base + Int(place))
            if seen.0 != seen.1 { progress.found.add(1, ordering: .relaxed) }
        }
        var vector: UInt8?
        try beside(progress, look) { vector = try rig.run(code) }
        #expect(vector == nil)
        #expect(rig.v.gpr[1] == 0)
        #expect(progress.found.load(ordering: .relaxed) == 0)
    }

    @Test("A vector load of 16 aligned bytes is one access (SDM 3A 9.1.1)", arguments: places.indices)
    func vectorLoad(n: Int) throws {
        let (rig, rounds) = try vectorRig(n)
        let place = Self.places[n].place
        // mov ecx, rounds; loop: movdqa xmm0, [rdi]; movq rax, xmm0; psrldq xmm0, 8; movq rdx, xmm0; cmp rax, rdx; jne torn;
        // dec ecx; jnz loop; hlt; torn: ud2
        let code =
            counting(rounds) + [
                0x66, 0x0F, 0x6F, 0x07, 0x66, 0x48, 0x0F, 0x7E, 0xC0, 0x66, 0x0F, 0x73, 0xD8, 0x08, 0x66, 0x48, 0x0F,
                0x7E, 0xC2, 0x48, 0x39, 0xD0, 0x75, 0x05, 0xFF, 0xC9, 0x75, 0xE4, 0xF4, 0x0F, 0x0B,
            ]
        let memory = rig.system.memory
        let change: @Sendable () -> Void = {
            for value in [0, ~0] as [UInt64] {
                var both = (value, value)
                roost_store16(memory.base + Int(place), &both)
            }
        }
        var vector: UInt8?
        try beside(Progress(), change) { vector = try rig.run(code) }
        #expect(vector == nil)
        #expect(rig.v.gpr[1] == 0)
    }
}
