// What the vCPUs of one machine must tell one another: that a page has become code, so that none of them may store to it
// unnoticed, and that code has changed.
//
// Each vCPU has TLBs and decoded blocks of its own. Before one of them decodes from a page, the others drop their right to
// store there: they are asked, and waited for, as long as they run guest code. Who isn't running does it before it runs
// again. From then on each store to that page takes the slow path, which sees the flag.
internal import CHost
public import GuestMemory
internal import Glibc
internal import HostOS
internal import Synchronization

/// All vCPUs of a machine that has several.
public final class VCPUGroup: Sendable {
    /// What one of them is asked for.
    private struct Requests {
        var pages: [UInt64] = []
        /// There were too many to keep: all pages of code.
        var all = false
        var count: UInt64 = 0
    }

    private final class Member: Sendable {
        let cpu: VirtualCPU
        let requests = Mutex(Requests())
        /// Requests that have been carried out.
        let done = Atomic<UInt64>(0)
        /// The vCPU may be using its TLBs.
        let isInside = Atomic<Bool>(false)

        init(_ cpu: VirtualCPU) { self.cpu = cpu }
    }

    private let members: [Member]
    private let memory: GuestMemory
    /// One of them is marking a page.
    private let isMarking = Atomic<Bool>(false)

    /// Brings vCPUs together, whose identifiers are 0, 1, 2 …; before any of them runs.
    public init(_ cpus: [VirtualCPU], memory: GuestMemory) {
        members = cpus.map(Member.init)
        self.memory = memory
        for cpu in cpus { cpu.group = self }
    }

    /// A vCPU's thread is about to use its TLBs.
    func enter(_ id: Int) {
        members[id].isInside.store(true, ordering: .sequentiallyConsistent)
        carryOut(members[id])
    }

    /// It no longer does.
    func leave(_ id: Int) { members[id].isInside.store(false, ordering: .sequentiallyConsistent) }

    /// Marks a page as code; when this returns, no vCPU can store to it unnoticed.
    func share(_ page: UInt64, by id: Int) {
        while isMarking.exchange(true, ordering: .acquiring) {
            carryOut(members[id])
            sched_yield()
        }
        defer { isMarking.store(false, ordering: .releasing) }
        let flags = members[id].cpu.state.pointee.page_flags + Int(page)
        let old = roost_set_flags(flags, 1)
        if old & 1 != 0 { return }
        if old & PageFlags.directWritable.rawValue != 0 {
            // Stubs that may write to it are stopped below, and corrected before they run again.
            roost_clear_flags(flags, PageFlags.directWritable.rawValue)
            directStatesChanged()
        }
        members[id].cpu.vcpu.protectCodePage(page)
        protect(page, by: id)
    }

    /// Takes the right to store to a page from all other vCPUs, and returns when none of them has it.
    private func protect(_ page: UInt64, by id: Int) {
        var tickets: [(Member, UInt64)] = []
        for member in members where member !== members[id] {
            let ticket = member.requests.withLock { requests in
                // A vCPU that doesn't run may not look at them for long.
                if requests.pages.count < 256 { requests.pages.append(page) } else { requests.all = true }
                requests.count &+= 1
                return requests.count
            }
            tickets.append((member, ticket))
            roost_attention_set(member.cpu.state, ROOST_ATTENTION_KICK)
            let running = roost_direct_running(member.cpu.state)
            if running != 0 { StubProcess.kick(running - 1) }
        }
        for (member, ticket) in tickets {
            while member.isInside.load(ordering: .sequentiallyConsistent)
                && member.done.load(ordering: .acquiring) < ticket
            {
                // Two may be waiting for each other.
                carryOut(members[id])
                sched_yield()
            }
        }
    }

    private func carryOut(_ member: Member) {
        let (pages, all, count) = member.requests.withLock { requests in
            defer {
                requests.pages.removeAll(keepingCapacity: true)
                requests.all = false
            }
            return (requests.pages, requests.all, requests.count)
        }
        if pages.isEmpty { return }
        if all {
            member.cpu.vcpu.protectCodePages()
        } else {
            for page in pages { member.cpu.vcpu.protectCodePage(page) }
        }
        member.done.store(count, ordering: .releasing)
    }

    /// Which 64-byte pieces of a page any vCPU has decoded from, a bit each; what was stored before is seen by who decodes
    /// from pieces that are not among them.
    func chunks(_ page: Int) -> UInt64 {
        atomicMemoryFence(ordering: .sequentiallyConsistent)
        var result: UInt64 = 0
        for member in members where member.cpu.state.pointee.blocks != nil {
            result |= member.cpu.vcpu.blocks.pointee.chunks[page]
        }
        return result
    }

    /// A vCPU has changed code; `ran`: stubs may be executing it.
    func tellCodeWritten(_ page: UInt64, by id: Int, ran: Bool) {
        memory.tellCodeWritten(page, except: id)
        if !ran { return }
        for member in members where member !== members[id] {
            let running = roost_direct_running(member.cpu.state)
            if running != 0 { StubProcess.kick(running - 1) }
        }
    }

    /// A page that stubs map has changed between data and code: all of them are to look.
    func directStatesChanged() { roost_increment(memory.directChanges) }
}

extension VCPU {
    /// The group, where the machine has several vCPUs.
    @inline(__always)
    var hasGroup: Bool { s.pointee.group != nil }

    /// Runs `body` with the group and this vCPU's number in it.
    func withGroup<Result>(_ body: (VCPUGroup, Int) -> Result) -> Result? {
        guard let raw = s.pointee.group else { return nil }
        // SAFETY: `VirtualCPU.group` keeps it alive.
        return Unmanaged<VCPUGroup>.fromOpaque(raw)._withUnsafeGuaranteedRef {
            body($0, Int(s.pointee.apic_id))
        }
    }

    /// A page that stubs map has changed between data and code.
    func directStatesChanged() {
        let told: Void? = withGroup { group, _ in group.directStatesChanged() }
        if told == nil { s.pointee.direct_generation &+= 1 }
    }

    /// Marks a page as code: no vCPU can store to it unnoticed from now on.
    func shareCodePage(_ page: UInt64) {
        let shared: Void? = withGroup { group, id in group.share(page, by: id) }
        if shared != nil { return }
        _ = roost_set_flags(s.pointee.page_flags + Int(page), 1)
        protectCodePage(page)
    }
}
