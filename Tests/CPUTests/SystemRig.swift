// A vCPU with descriptor tables, handlers' stacks and TSSs in guest memory, for tests that run handlers directly.
import CHost
import CPU
import GuestMemory

/// Memory: GDT 0x1000, IDT 0x2000, TSS 0x3000, second TSS 0x3800, LDT 0x4000, page tables 0x10000, stacks at 0x20000 and
/// up, user stack below 0x30000.
struct SystemRig {
    // Selectors of the GDT that `init` builds.
    static let code0: UInt16 = 0x08
    static let data0: UInt16 = 0x10
    static let code3: UInt16 = 0x1B
    static let data3: UInt16 = 0x23
    static let tss: UInt16 = 0x28
    static let conforming0: UInt16 = 0x30
    static let absentData: UInt16 = 0x38
    static let code1: UInt16 = 0x41
    static let data1: UInt16 = 0x49
    static let otherTSS: UInt16 = 0x50
    static let ldt: UInt16 = 0x60
    static let code16: UInt16 = 0x70
    static let readOnly: UInt16 = 0x78
    static let executeOnly: UInt16 = 0x80
    static let longCode0: UInt16 = 0x88
    static let longCode3: UInt16 = 0x93
    static let absentCode: UInt16 = 0x98
    static let otherTSS16: UInt16 = 0xA0
    static let free: UInt16 = 0xB0

    static let gdt: UInt64 = 0x1000
    static let idt: UInt64 = 0x2000
    static let tssBase: UInt64 = 0x3000
    static let otherBase: UInt64 = 0x3800
    static let ldtBase: UInt64 = 0x4000

    let cpu: VirtualCPU
    let memory: GuestMemory
    var v: VCPU { cpu.vcpu }
    var s: UnsafeMutablePointer<roost_vcpu> { cpu.state }

    /// A CPU in 32-bit protected mode, CPL 0, at 0x5000; in memory of its own or that of another one.
    init(id: Int = 0, memory shared: GuestMemory? = nil) throws {
        cpu = VirtualCPU(id: id, count: id + 1)
        if let shared { memory = shared } else { memory = try GuestMemory(size: 0x20_0000) }
        cpu.attach(memory: memory)
        v.reset()
        s.pointee.rflags = 2
        s.pointee.dr.6 = 0xFFFF_0FF0
        s.pointee.dr.7 = 0x400
        s.pointee.cr0 = 0x11
        s.pointee.gdtr_base = Self.gdt
        s.pointee.gdtr_limit = 0xFF
        s.pointee.idtr_base = Self.idt
        s.pointee.idtr_limit = 0x7FF
        s.pointee.exit_kind = 0
        entry(Self.code0, Self.flat(0x9B, 0xC))
        entry(Self.data0, Self.flat(0x93, 0xC))
        entry(Self.code3, Self.flat(0xFB, 0xC))
        entry(Self.data3, Self.flat(0xF3, 0xC))
        entry(Self.tss, Self.descriptor(base: Self.tssBase, limit: 0x167, access: 0x8B, flags: 0))
        entry(Self.conforming0, Self.flat(0x9F, 0xC))
        entry(Self.absentData, Self.flat(0x13, 0xC))
        entry(Self.code1, Self.flat(0xBB, 0xC))
        entry(Self.data1, Self.flat(0xB3, 0xC))
        entry(Self.otherTSS, Self.descriptor(base: Self.otherBase, limit: 0x67, access: 0x89, flags: 0))
        entry(Self.ldt, Self.descriptor(base: Self.ldtBase, limit: 0x1F, access: 0x82, flags: 0))
        entry(Self.code16, Self.descriptor(base: 0, limit: 0xFFFF, access: 0x9B, flags: 0))
        entry(Self.readOnly, Self.flat(0x91, 0xC))
        entry(Self.executeOnly, Self.flat(0x99, 0xC))
        entry(Self.longCode0, Self.flat(0x9B, 0xA))
        entry(Self.longCode3, Self.flat(0xFB, 0xA))
        entry(Self.absentCode, Self.flat(0x1B, 0xC))
        entry(Self.otherTSS16, Self.descriptor(base: Self.otherBase, limit: 0x2B, access: 0x81, flags: 0))
        // TSS: ESP0 0x21000, SS0; ESP1 0x22000, SS1; I/O map at 0x68.
        put(0x21000, at: Self.tssBase + 4, as: UInt32.self)
        put(UInt64(Self.data0), at: Self.tssBase + 8, as: UInt32.self)
        put(0x22000, at: Self.tssBase + 12, as: UInt32.self)
        put(UInt64(Self.data1), at: Self.tssBase + 16, as: UInt32.self)
        put(0x68, at: Self.tssBase + 0x66, as: UInt16.self)
        set(7, Self.tss, base: Self.tssBase, limit: 0x167, attributes: 0x8B)
        enterLevel(0)
        v.gpr[4] = 0x20000
        s.pointee.rip = 0x5000
    }

    static func flat(_ access: UInt64, _ flags: UInt64) -> UInt64 {
        descriptor(base: 0, limit: 0xFFFFF, access: access, flags: flags)
    }

    static func descriptor(base: UInt64, limit: UInt64, access: UInt64, flags: UInt64) -> UInt64 {
        (limit & 0xFFFF) | (base & 0xFF_FFFF) << 16 | access << 40 | (limit >> 16 & 15) << 48 | flags << 52
            | (base >> 24 & 0xFF) << 56
    }

    static func gate(_ selector: UInt16, _ offset: UInt64, access: UInt64, count: UInt64 = 0) -> UInt64 {
        (offset & 0xFFFF) | UInt64(selector) << 16 | count << 32 | access << 40 | (offset >> 16 & 0xFFFF) << 48
    }

    func put<T: FixedWidthInteger & BitwiseCopyable>(_ value: UInt64, at address: UInt64, as type: T.Type) {
        UnsafeMutableRawPointer(memory.base + Int(address)).storeBytes(of: T(truncatingIfNeeded: value), as: T.self)
    }

    func get<T: FixedWidthInteger & BitwiseCopyable>(_ address: UInt64, as type: T.Type) -> UInt64 {
        UInt64(truncatingIfNeeded: UnsafeRawPointer(memory.base + Int(address)).loadUnaligned(as: T.self))
    }

    func get32(_ address: UInt64) -> UInt64 { get(address, as: UInt32.self) }
    func get64(_ address: UInt64) -> UInt64 { get(address, as: UInt64.self) }
    func put32(_ value: UInt64, at address: UInt64) { put(value, at: address, as: UInt32.self) }
    func put64(_ value: UInt64, at address: UInt64) { put(value, at: address, as: UInt64.self) }

    /// Sets a GDT entry.
    func entry(_ selector: UInt16, _ raw: UInt64) { put64(raw, at: Self.gdt + UInt64(selector & ~7)) }

    /// Sets an 8-byte IDT entry.
    func vector(_ n: UInt8, _ raw: UInt64) { put64(raw, at: Self.idt + UInt64(n) * 8) }

    /// Sets a 16-byte IDT entry.
    func longVector(_ n: UInt8, _ selector: UInt16, _ offset: UInt64, access: UInt64 = 0x8E, ist: UInt64 = 0) {
        put64(Self.gate(selector, offset, access: access, count: ist), at: Self.idt + UInt64(n) * 16)
        put64(offset >> 32, at: Self.idt + UInt64(n) * 16 + 8)
    }

    func set(_ n: Int, _ selector: UInt16, base: UInt64, limit: UInt32, attributes: UInt16) {
        v.segment(n).pointee = roost_segment(base: base, limit: limit, selector: selector, attributes: attributes)
    }

    /// Flat 32-bit segments at privilege level 0, 1 or 3.
    func enterLevel(_ cpl: UInt8) {
        let code = cpl == 0 ? Self.code0 : cpl == 1 ? Self.code1 : Self.code3
        let data = cpl == 0 ? Self.data0 : cpl == 1 ? Self.data1 : Self.data3
        set(1, code, base: 0, limit: ~0, attributes: 0xC09B | UInt16(cpl) << 5)
        for n in [0, 2, 3, 4, 5] { set(n, data, base: 0, limit: ~0, attributes: 0xC093 | UInt16(cpl) << 5) }
        s.pointee.cpl = cpl
        v.armDebug()
    }

    /// Virtual-8086 mode at 0x600:0x10, stack 0x2F00:0x100, with an IOPL.
    func enterVirtual8086(iopl: UInt64) {
        s.pointee.rflags = 0x20202 | iopl << 12
        for n in 0..<6 { set(n, 0x600, base: 0x6000, limit: 0xFFFF, attributes: 0xF3) }
        set(2, 0x2F00, base: 0x2F000, limit: 0xFFFF, attributes: 0xF3)
        s.pointee.cpl = 3
        v.gpr[4] = 0x100
        s.pointee.rip = 0x10
        v.armDebug()
    }

    /// Real mode with all bases zero but CS 0x600 and SS 0x2F00.
    func enterReal() {
        s.pointee.cr0 = 0x10
        for n in 0..<6 { set(n, 0, base: 0, limit: 0xFFFF, attributes: 0x93) }
        set(1, 0x600, base: 0x6000, limit: 0xFFFF, attributes: 0x93)
        set(2, 0x2F00, base: 0x2F000, limit: 0xFFFF, attributes: 0x93)
        s.pointee.cpl = 0
        s.pointee.idtr_base = 0
        s.pointee.idtr_limit = 0x3FF
        v.gpr[4] = 0x100
        s.pointee.rip = 0x10
        v.armDebug()
    }

    /// 64-bit mode, the first GiB mapped one to one for users too; a 64-bit TSS with RSP0 and IST1.
    func enterLong(_ cpl: UInt8) {
        put64(0x11007, at: 0x10000)
        put64(0x12007, at: 0x11000)
        put64(0x87, at: 0x12000)
        s.pointee.cr3 = 0x10000
        s.pointee.cr4 = 0x20
        s.pointee.efer = 0xD01
        s.pointee.cr0 = 0x8000_0011
        put64(0x21000, at: Self.tssBase + 4)
        put64(0x23008, at: Self.tssBase + 0x24)
        set(1, cpl == 0 ? Self.longCode0 : Self.longCode3, base: 0, limit: ~0, attributes: 0xA09B | UInt16(cpl) << 5)
        for n in [0, 2, 3, 4, 5] {
            set(n, cpl == 0 ? Self.data0 : Self.data3, base: 0, limit: ~0, attributes: 0xC093 | UInt16(cpl) << 5)
        }
        s.pointee.idtr_limit = 0xFFF
        s.pointee.cpl = cpl
        v.gpr[4] = 0x20000
        v.armDebug()
    }

    /// Runs an instruction of the system group; what it throws.
    @discardableResult
    func run(_ operation: CPU.Operation, size: UInt8 = 4, edit: (inout Instruction) -> Void = { _ in }) -> CPUException?
    {
        var i = Instruction()
        i.operation = operation
        i.operandSize = size
        i.addressSize = s.pointee.code_size
        i.length = 2
        i.endOffset = 2
        edit(&i)
        do throws(CPUException) {
            try v.executeSystem(&i)
            return nil
        } catch {
            return error
        }
    }

    /// A far jump or call to an immediate pointer.
    func far(_ operation: CPU.Operation, _ selector: UInt16, _ offset: UInt64, size: UInt8 = 4) -> CPUException? {
        run(operation, size: size) {
            $0.form = .farPointer
            $0.immediate = Int64(UInt64(selector) << 32 | offset)
        }
    }

    /// MOV Sreg, AX.
    func load(_ n: UInt8, _ selector: UInt16) -> CPUException? {
        v.gpr[0] = UInt64(selector)
        return run(.movToSegment, size: 2) {
            $0.form = .regRM
            $0.reg = n
            $0.rm = 0
        }
    }

    /// Delivers an exception; what it throws (only `.exit`).
    @discardableResult
    func deliver(_ e: CPUException) -> CPUException? {
        do throws(CPUException) {
            try v.deliver(e)
            return nil
        } catch {
            return error
        }
    }

    /// Delivers an external interrupt.
    @discardableResult
    func inject(_ vector: UInt8) -> CPUException? {
        do throws(CPUException) {
            try v.inject(vector, external: true)
            return nil
        } catch {
            return error
        }
    }

    /// CS:RIP, SS:RSP and CPL, to compare before and after.
    var place: [UInt64] {
        [
            UInt64(v.segment(1).pointee.selector), s.pointee.rip, UInt64(v.segment(2).pointee.selector), v.gpr[4],
            UInt64(s.pointee.cpl), v.rflags,
        ]
    }
}
