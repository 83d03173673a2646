// Where translated code finds the state block's fields: `gs:[offset]`.
internal import CHost

/// Offsets of the state block's fields.
enum StateOffset {
    static let rip = state(\.rip)
    static let flags = state(\.arithmetic_flags)
    static let rflags = state(\.rflags)
    static let attention = state(\.attention)
    static let tlbTag = state(\.tlb_tag)
    static let instructions = state(\.instructions)
    static let instructionLimit = state(\.instruction_limit)
    static let chainSite = state(\.chain_site)
    static let entry = state(\.entry)
    static let own = state(\.self_)
    static let codePage = state(\.code_page)
    static let stackBase = state(\.stack_base)
    static let stackFloor = state(\.stack_floor)
    static let jumpTable = state(\.jump_table)
    static let jumpKey = state(\.jump_key)
    static let vectorsLive = state(\.vectors_live)
    static let vectorsUsable = state(\.vectors_usable)
    static let x87Live = state(\.x87_live)
    static let x87Usable = state(\.x87_usable)
    static let savedMXCSR = state(\.saved_mxcsr)
    static let interruptWindow = state(\.interrupt_window)
    static let interruptShadow = state(\.interrupt_shadow)
    static let modeKey = state(\.mode_key)
    static let tlb = state(\.tlb)
    static let tlbContext = state(\.tlb_context)
    static let tscOffset = state(\.tsc_offset)
    static let tscAux = state(\.tsc_aux)
    static let cr4 = state(\.cr4)
    static let kernelGSBase = state(\.kernel_gs_base)
    private static let bases = offset(\.effective_base)
    private static let checks = offset(\.segment_check)
    private static let segments = offset(\.segment)
    private static let area = offset(\.xsave)
    /// Distance of the first TLB from the state block.
    static let tables = Int32(roost_tlb_offset())

    static func register(_ n: UInt8) -> HostAddress { .state(Int32(n) * 8) }
    static func effectiveBase(_ segment: UInt8) -> HostAddress { .state(bases + Int32(segment & 7) * 8) }
    static func segmentCheck(_ segment: UInt8) -> HostAddress { .state(checks + Int32(segment & 7)) }
    static func segmentBase(_ segment: UInt8) -> HostAddress { .state(segments + Int32(segment & 7) * 16) }
    static func segmentLimit(_ segment: UInt8) -> HostAddress { .state(segments + Int32(segment & 7) * 16 + 8) }
    /// The way of an access group.
    static func group(_ n: Int) -> HostAddress { .state(offset(\.group_addends) + Int32(n) * 8) }
    /// The pointer to a context's TLB.
    static func tlb(context: Int32) -> HostAddress { .state(offset(\.tlb_contexts) + context * 8) }
    /// A place in the XSAVE area.
    static func area(_ place: Int32) -> HostAddress { .state(area + place) }

    private static func state(_ path: PartialKeyPath<roost_vcpu>) -> HostAddress { .state(offset(path)) }
    private static func offset(_ path: PartialKeyPath<roost_vcpu>) -> Int32 {
        Int32(MemoryLayout<roost_vcpu>.offset(of: path) ?? 0)
    }
}
