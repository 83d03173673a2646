// The processor's state at a kernel's first instruction, as plain data.

/// What a boot protocol wants of the first vCPU; everything not named is as after reset, segments flat, IF clear.
package struct EntryState: Equatable, Sendable {
    /// Processor modes that boot protocols start in.
    package enum Mode: Equatable, Sendable {
        /// Protected mode, flat 32-bit segments, no paging.
        case protected32
        /// Long mode, flat 64-bit code, identity-mapped paging.
        case long64
    }

    /// The mode.
    package var mode: Mode
    /// First instruction.
    package var rip: UInt64
    /// Registers other than zero, by number (0 RAX, 3 RBX, 4 RSP, 6 RSI).
    package var registers: [Int: UInt64] = [:]
    /// CS.
    package var codeSelector: UInt16
    /// DS, ES, SS, FS and GS.
    package var dataSelector: UInt16
    /// Guest-physical address of the descriptor table.
    package var gdtBase: UInt64
    /// Its limit.
    package var gdtLimit: UInt16
    /// Guest-physical address of the top page table, long mode only.
    package var pageTable: UInt64 = 0

    /// Descriptors of flat segments.
    ///
    /// - Spec: SDM 3A 3.4.5.
    package enum Descriptor {
        /// 64-bit code, readable, accessed.
        package static let code64: UInt64 = 0x00AF_9B00_0000_FFFF
        /// 32-bit code, readable, accessed.
        package static let code32: UInt64 = 0x00CF_9B00_0000_FFFF
        /// 32-bit data, writable, accessed.
        package static let data32: UInt64 = 0x00CF_9300_0000_FFFF
    }
}
