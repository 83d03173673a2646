// Generated host code for vector instructions, found by everything that the code depends on.
//
// Invariants: a cache belongs to one vCPU and is used by its thread only; `entries` has `capacity` slots, at most three
// quarters in use; every `code` points into `memory`'s executable mapping.
package import HostOS

/// How an instruction is carried out.
enum ThunkKind: UInt8, BitwiseCopyable {
    /// By generated code.
    case thunk
    /// A load that replaces the register's low 16 bytes, or a store of its low bytes: no code needed.
    case load, store
    /// VMASKMOV, VPMASKMOV, MASKMOVQ and MASKMOVDQU, gathers, VZEROUPPER and VZEROALL.
    case maskedMove, byteMaskedMove, gather, zeroUpper, zeroAll
}

/// What is known of an instruction once it was seen.
struct ThunkEntry: BitwiseCopyable {
    /// 0: free.
    var key: UInt64 = 0
    var code: UnsafeRawPointer?
    var kind = ThunkKind.thunk
    /// Bytes of the memory operand, 0 for none.
    var memorySize: UInt8 = 0
    /// The alignment that the memory operand must have, less one.
    var alignmentMask: UInt8 = 0
    var writesMemory = false
    /// Depends on and changes MXCSR.
    var floating = false
    /// Uses MMX registers.
    var mmx = false
    /// Uses XMM registers.
    var xmm = false
}

/// A vCPU's generated code.
package final class ThunkCache {
    static let capacity = 8192
    static let codeSize = 2 << 20
    /// No thunk is longer.
    static let longest = 256

    private let memory: CodeMemory
    private let entries: UnsafeMutablePointer<ThunkEntry>
    private var used = 0
    private var position = 0

    package init() throws(HostError) {
        memory = try CodeMemory(size: Self.codeSize)
        entries = .allocate(capacity: Self.capacity)
        entries.initialize(repeating: ThunkEntry(), count: Self.capacity)
    }

    deinit { entries.deallocate() }

    /// The slot that has the key, or the free one where it belongs.
    @inline(__always)
    func slot(_ key: UInt64) -> UnsafeMutablePointer<ThunkEntry> {
        var n = Int(truncatingIfNeeded: (key &* 0x9E37_79B9_7F4A_7C15) >> 51)
        while true {
            let entry = entries + (n & (Self.capacity - 1))
            if entry.pointee.key == key || entry.pointee.key == 0 { return entry }
            n &+= 1
        }
    }

    /// Takes a free slot; drops everything first when the cache is full.
    func insert(_ entry: ThunkEntry, _ emitter: (inout ThunkEmitter) -> Void) -> UnsafeMutablePointer<ThunkEntry> {
        if used >= Self.capacity / 4 * 3 || position + Self.longest > memory.size {
            entries.update(repeating: ThunkEntry(), count: Self.capacity)
            used = 0
            position = 0
        }
        let place = slot(entry.key)
        place.pointee = entry
        used += 1
        if entry.kind == .thunk {
            place.pointee.code = memory.executable + position
            var e = ThunkEmitter(start: memory.writable + position)
            emitter(&e)
            position = (position + e.count + 15) & ~15
        }
        return place
    }
}
