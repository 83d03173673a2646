// The first difference between the engines: everything that is needed to find its cause.
internal import CHost
internal import Glibc
internal import HostOS

/// Where a translation did something else than the interpreter.
public final class LockstepDifference: @unchecked Sendable {
    // SAFETY of @unchecked: nothing changes after `init`.

    /// A byte of guest memory that differs.
    public struct Byte: Sendable, Equatable {
        /// Guest-physical address.
        public var address: UInt64
        /// What the interpreter left there.
        public var interpreter: UInt8
        /// What the translation left there.
        public var translator: UInt8
    }

    /// Eight bytes of the state block that differ.
    public struct Word: Sendable, Equatable {
        /// The register there, and how far into it.
        public var name: String
        /// Before the block.
        public var before: UInt64
        /// After the interpreter's run.
        public var interpreter: UInt64
        /// After the translation's run.
        public var translator: UInt64
    }

    /// Registers before the block, after the interpreter's run and after the translation's.
    public let before, interpreter, translator: VCPU
    /// The words of the state block that differ.
    public let words: [Word]
    /// The bytes of memory that differ.
    public let bytes: [Byte]
    /// Guest-physical address of the block.
    public let physical: UInt64
    /// The block's bytes.
    public let guestCode: [UInt8]
    /// Where its translation is, and its bytes.
    public let hostAddress: UInt64
    /// The translation.
    public let hostCode: [UInt8]

    init(vcpu: VCPU, block: UnsafeMutablePointer<Block>) {
        let state = vcpu.lockstep
        before = Self.copy(state.pointee.before)
        interpreter = Self.copy(state.pointee.interpreted)
        translator = Self.copy(vcpu.s)
        words = Self.words(before, interpreter, translator)
        bytes = state.pointee.log.differences(vcpu.s.pointee.ram)
        physical = block.pointee.physical
        guestCode = Array(
            UnsafeBufferPointer(
                start: vcpu.s.pointee.ram + Int(block.pointee.physical), count: Int(block.pointee.byteLength)))
        let memory = vcpu.translations.pointee.memory
        hostAddress = UInt64(UInt(bitPattern: memory.executable)) &+ UInt64(block.pointee.host)
        let length = vcpu.translations.pointee.codeLength(at: Int(block.pointee.host))
        hostCode = Array(
            UnsafeRawBufferPointer(start: memory.executable + Int(block.pointee.host), count: length))
    }

    deinit {
        for state in [before, interpreter, translator] { state.s.deallocate() }
    }

    private static func copy(_ state: UnsafeMutablePointer<roost_vcpu>) -> VCPU {
        let copy = UnsafeMutablePointer<roost_vcpu>.allocate(capacity: 1)
        memcpy(copy, state, MemoryLayout<roost_vcpu>.size)
        return VCPU(copy)
    }

    private static func words(_ before: VCPU, _ interpreter: VCPU, _ translator: VCPU) -> [Word] {
        var result: [Word] = []
        for offset in stride(from: 0, to: MemoryLayout<roost_vcpu>.size, by: 8) {
            func word(_ v: VCPU) -> UInt64 {
                let value = UnsafeRawPointer(v.s).load(fromByteOffset: offset, as: UInt64.self)
                // The attention word stands beside the flags.
                return offset == MemoryLayout<roost_vcpu>.offset(of: \.arithmetic_flags) ? value & 0xFFFF_FFFF : value
            }
            if word(interpreter) == word(translator) || isHint(offset) { continue }
            result.append(
                Word(
                    name: name(of: offset), before: word(before), interpreter: word(interpreter),
                    translator: word(translator)))
        }
        return result
    }

    /// Whether an offset is in the maps of pages, which aren't compared.
    private static func isHint(_ offset: Int) -> Bool {
        let start = MemoryLayout<roost_vcpu>.offset(of: \.code_filter) ?? 0
        let end = MemoryLayout<roost_vcpu>.offset(of: \.saved_mxcsr) ?? 0
        return offset >= start && offset < end
    }

    private static func name(of offset: Int) -> String {
        var best = (name: "rax", offset: 0)
        for (name, at) in places where at <= offset && at > best.offset { best = (name, at) }
        return offset == best.offset ? best.name : "\(best.name)+\(offset - best.offset)"
    }

    /// The state block's fields at eight-byte places.
    private static var places: [(String, Int)] {
        let registers = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
            "r15",
        ]
        let fields: [(String, PartialKeyPath<roost_vcpu>)] = [
            ("rip", \.rip), ("rflags without arithmetic flags", \.rflags), ("arithmetic flags", \.arithmetic_flags),
            ("mode", \.code_size), ("mode key", \.mode_key), ("TLB tag", \.tlb_tag), ("linear mask", \.linear_mask),
            ("effective base", \.effective_base), ("segment check", \.segment_check), ("ram", \.ram),
            ("TLB", \.tlb), ("pdpte", \.pdpte), ("pcid tags", \.pcid_tag),
            ("next address space", \.next_address_space),
            ("segment", \.segment), ("gdtr base", \.gdtr_base), ("idtr base", \.idtr_base),
            ("gdtr limit", \.gdtr_limit), ("cr0", \.cr0), ("cr2", \.cr2), ("cr3", \.cr3), ("cr4", \.cr4),
            ("cr8", \.cr8), ("xcr0", \.xcr0), ("efer", \.efer), ("dr", \.dr), ("star", \.star), ("lstar", \.lstar),
            ("cstar", \.cstar), ("sfmask", \.sfmask), ("kernel gs base", \.kernel_gs_base),
            ("sysenter", \.sysenter_cs), ("pat", \.pat), ("tsc aux", \.tsc_aux), ("apic base", \.apic_base),
            ("misc enable", \.misc_enable), ("xss", \.xss), ("tsc offset", \.tsc_offset), ("pkru", \.pkru),
            ("mtrr", \.mtrr_default), ("model", \.cr4_allowed), ("random state", \.random_state),
            ("events", \.halted), ("monitor", \.monitor_address), ("exit kind", \.exit_kind),
            ("exit address", \.exit_address), ("exit value", \.exit_value), ("completed", \.completed_count),
            ("instructions", \.instructions), ("exceptions", \.exceptions), ("interrupts", \.interrupts),
            ("xsave", \.xsave),
        ]
        let area = MemoryLayout<roost_vcpu>.offset(of: \.xsave) ?? 0
        return registers.enumerated().map { ($1, $0 * 8) }
            + fields.map { ($0.0, MemoryLayout<roost_vcpu>.offset(of: $0.1) ?? 0) }
            + (0..<16).map { ("xmm\($0)", area + 160 + $0 * 16) } + [("xsave header", area + 512)]
            + (0..<16).map { ("ymm\($0) upper half", area + 576 + $0 * 16) }
    }
}
