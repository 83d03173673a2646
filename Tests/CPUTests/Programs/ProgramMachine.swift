// A guest that runs whole programs: code with a second linear mapping, a copy of it on other pages, data, a stack, and
// handlers that halt, so that the test itself sees every exception and decides where to go on.
import CHost
import CPU
import GuestMemory

/// What a test needs of an engine.
protocol ProgramEngine: AnyObject {
    func run() -> VMExit
    var canTakeInterrupt: Bool { get }
    func inject(vector: UInt8) -> Bool
}

extension Interpreter: ProgramEngine {}
extension Translator: ProgramEngine {}
extension LockstepEngine: ProgramEngine {}

/// What a program runs as.
enum ProgramMode: CaseIterable {
    case user64, user32, kernel64, absolute64

    var is64: Bool { self != .user32 }
    var isKernel: Bool { self == .kernel64 || self == .absolute64 }
    /// Where its code is.
    var code: UInt64 { self == .absolute64 ? 0xFFFF_FFFF_9000_0000 : Place.code }
}

/// An exception or trap as its handler found it.
struct ProgramEvent: Equatable, CustomStringConvertible {
    var vector: UInt32
    var errorCode: UInt64
    var address: UInt64
    var rip: UInt64
    var rflags: UInt64
    var gpr: [UInt64]
    var vectors: Int

    /// Without the arithmetic flags, where it is a fault.
    var withoutFaultFlags: ProgramEvent {
        var result = self
        if vector != 1 && vector != 3 { result.rflags &= ~0x8D5 }
        return result
    }

    var description: String {
        func hex(_ value: UInt64) -> String { String(value, radix: 16) }
        return "vector \(vector) error \(hex(errorCode)) cr2 \(hex(address)) rip \(hex(rip)) rflags \(hex(rflags)) "
            + "registers \(gpr.map(hex).joined(separator: " ")) vectors \(hex(UInt64(bitPattern: Int64(vectors))))"
    }
}

/// The guest.
final class ProgramMachine {
    static let codePages: UInt64 = 8
    static let alias: UInt64 = 0x1800_0000
    static let copyAlias: UInt64 = 0x1840_0000
    static let stack: UInt64 = 0x2800_0000
    static let control: UInt64 = 0x2900_0000
    static let interruptVector: UInt8 = 0x40
    private static let tables: UInt64 = 0x3_0000
    private static let stackPhysical: UInt64 = 0x18_0000
    private static let controlPhysical: UInt64 = 0x19_0000
    /// Guest-physical address of a word at `control` + 0x100.
    static let controlWord = controlPhysical + 0x100
    private static let toucher: UInt64 = 0x1_8000
    /// What interrupts leave on their stack differs from run to run.
    static let kernelStack: UInt64 = 0x2_0000

    let memory: GuestMemory
    let cpu: VirtualCPU
    let mode: ProgramMode

    init(mode: ProgramMode) throws {
        self.mode = mode
        memory = try GuestMemory(size: 4 << 20)
        cpu = VirtualCPU(id: 0)
        cpu.attach(memory: memory)
        cpu.model = CPUModel.host
        cpu.vcpu.reset()
        layOut()
    }

    /// Guest-physical address of a code page; `copy`: the page that can take its place.
    static func codePhysical(_ page: UInt64, copy: Bool = false) -> UInt64 {
        (copy ? 0x14_0000 : 0x10_0000) + (page * 3 & 7) << 12
    }

    /// Linear address, in the kernel's mapping of memory, of the entry that maps a code page.
    static func entry(of page: UInt64, _ mode: ProgramMode) -> UInt64 {
        Place.kernel + (mode == .absolute64 ? tables + 0x8000 : tables + 0x5000) + page * 8
    }

    func put<T: FixedWidthInteger & BitwiseCopyable>(_ address: UInt64, _ value: T) {
        UnsafeMutableRawPointer(memory.base + Int(address)).storeBytes(of: value.littleEndian, as: T.self)
    }

    private func layOut() {
        // As GuestProcess has it.
        put(Place.gdt + 0x10, 0x00AF_9B00_0000_FFFF as UInt64)
        put(Place.gdt + 0x18, 0x00CF_9300_0000_FFFF as UInt64)
        put(Place.gdt + 0x20, 0x00CF_FB00_0000_FFFF as UInt64)
        put(Place.gdt + 0x28, 0x00CF_F300_0000_FFFF as UInt64)
        put(Place.gdt + 0x30, 0x00AF_FB00_0000_FFFF as UInt64)
        let tss = Place.kernel + Place.tss
        put(Place.gdt + 0x40, 0x0000_8B00_0000_0067 | (tss & 0xFF_FFFF) << 16 | (tss >> 24 & 0xFF) << 56)
        put(Place.gdt + 0x48, tss >> 32)
        // IST1 for every vector.
        put(Place.tss + 0x24, Place.kernel + Self.kernelStack + 0x1000)
        put(Place.tss + 0x66, 0x68 as UInt16)
        for vector in 0..<256 as Range<UInt64> {
            let isInterrupt = vector == UInt64(Self.interruptVector)
            let handler = Place.kernel + (isInterrupt ? Self.toucher : Place.handlers + vector * 16)
            put(Place.handlers + vector * 16, 0xF4 as UInt8)
            let gate = Place.idt + vector * 16
            let dpl: UInt64 = vector == 3 || vector == 4 ? 3 : 0
            put(gate, handler & 0xFFFF | 0x10 << 16 | (0x8E01 | dpl << 13) << 32 | (handler >> 16 & 0xFFFF) << 48)
            put(gate + 8, handler >> 32)
        }
        mapPages()
    }

    /// The interrupt's handler writes a byte of code back as it is: translations go, nothing changes.
    func touch(offset: UInt64) {
        let address = Place.kernel + Self.codePhysical(offset >> 12 & 7) + (offset & 4095)
        var code: [UInt8] = [0x50, 0xA0]
        for n in 0..<8 { code.append(UInt8(truncatingIfNeeded: address >> (n * 8))) }
        code.append(0xA2)
        for n in 0..<8 { code.append(UInt8(truncatingIfNeeded: address >> (n * 8))) }
        code += [0x58, 0x48, 0xCF]
        for (n, byte) in code.enumerated() { put(Self.toucher + UInt64(n), byte) }
    }

    private func mapPages() {
        let root = Self.tables
        put(root + 256 * 8, (root + 0x1000) | 3)
        put(root + 0x1000, (root + 0x2000) | 3)
        for n in 0..<2 as Range<UInt64> { put(root + 0x2000 + n * 8, (n << 21) | 0x83) }
        let user: UInt64 = mode.isKernel ? 3 : 7
        put(root, (root + 0x3000) | user)
        put(root + 0x3000, (root + 0x4000) | user)
        // The kernel's half, from 0xFFFF_FFFF_8000_0000.
        put(root + 511 * 8, (root + 0x6000) | 3)
        put(root + 0x6000 + 510 * 8, (root + 0x7000) | 3)
        put(root + 0x7000 + 128 * 8, (root + 0x8000) | 3)
        let low = root + 0x5000
        map(Place.code, low, Self.codePages, user) { Self.codePhysical($0) }
        map(0, root + 0x8000, Self.codePages, 0x103) { Self.codePhysical($0) }
        map(Self.alias, root + 0x9000, Self.codePages, user) { Self.codePhysical($0) }
        map(Self.copyAlias, root + 0xA000, Self.codePages, user) { Self.codePhysical($0, copy: true) }
        map(Place.data, root + 0xB000, 4, user) { Place.dataPhysical + (3 - $0) << 12 }
        map(Self.stack, root + 0xC000, 2, user) { Self.stackPhysical + $0 << 12 }
        map(Self.control, root + 0xD000, 1, user) { Self.controlPhysical + $0 << 12 }
        for (linear, table) in [
            (Place.code, low), (Self.alias, root + 0x9000), (Self.copyAlias, root + 0xA000),
            (Place.data, root + 0xB000),
            (Self.stack, root + 0xC000), (Self.control, root + 0xD000),
        ] { put(root + 0x4000 + (linear >> 21) * 8, table | user) }
    }

    private func map(_ linear: UInt64, _ table: UInt64, _ count: UInt64, _ bits: UInt64, _ physical: (UInt64) -> UInt64)
    {
        for n in 0..<count { put(table + ((linear >> 12 & 511) + n) * 8, physical(n) | bits) }
    }

    /// Maps the first GiB of linear addresses a second time from 2 GiB on, a third time from 4 GiB on.
    func mapAgain() {
        let entry = (Self.tables + 0x4000) | (mode.isKernel ? 3 : 7)
        for n in [2, 4] as [UInt64] { put(Self.tables + 0x3000 + n * 8, entry) }
    }

    /// Makes the page at `control` the user's in kernel modes too.
    func letUserReachControl() {
        put(Self.tables, (Self.tables + 0x3000) | 7)
        put(Self.tables + 0x3000, (Self.tables + 0x4000) | 7)
        put(Self.tables + 0x4000 + (Self.control >> 21) * 8, (Self.tables + 0xD000) | 7)
        put(Self.tables + 0xD000 + (Self.control >> 12 & 511) * 8, Self.controlPhysical | 7)
    }

    /// Puts the program's bytes and their copy in place.
    func load(_ code: [UInt8], copy: [UInt8]) {
        for n in 0..<Int(Self.codePages) * 4096 {
            let (page, offset) = (UInt64(n >> 12), UInt64(n & 4095))
            put(Self.codePhysical(page) + offset, n < code.count ? code[n] : 0xCC)
            put(Self.codePhysical(page, copy: true) + offset, n < copy.count ? copy[n] : 0xCC)
        }
    }

    /// Goes on in the program.
    func resume(at rip: UInt64, stack: UInt64, rflags: UInt64, limit: UInt32 = ~0) {
        let s = cpu.state
        s.pointee.halted = 0
        s.pointee.interrupt_shadow = 0
        let level: UInt16 = mode.isKernel ? 0 : 0x60
        let data = roost_segment(
            base: 0, limit: ~0, selector: mode.isKernel ? 0x18 : 0x2B, attributes: 0xC093 | level)
        for n in [ROOST_ES, ROOST_SS, ROOST_DS] { cpu.vcpu.segment(Int(n)).pointee = data }
        let selector: UInt16 = mode.isKernel ? 0x10 : mode.is64 ? 0x33 : 0x23
        cpu.vcpu.segment(Int(ROOST_CS)).pointee = roost_segment(
            base: 0, limit: limit, selector: selector, attributes: (mode.is64 ? 0xA09B : 0xC09B) | level)
        s.pointee.cpl = mode.isKernel ? 0 : 3
        s.pointee.rip = rip
        cpu.vcpu.gpr[4] = stack
        cpu.vcpu.rflags = rflags
        cpu.vcpu.updateMode()
    }

    /// Power-on for a program.
    func start(limit: UInt32) {
        let s = cpu.state
        s.pointee.cr0 = 0x8001_0033
        s.pointee.cr3 = Self.tables
        s.pointee.cr4 = 0x4_06A0
        s.pointee.efer = 0xD01
        s.pointee.xcr0 = 7
        s.pointee.gdtr_base = Place.kernel + Place.gdt
        s.pointee.gdtr_limit = 0x4F
        s.pointee.idtr_base = Place.kernel + Place.idt
        s.pointee.idtr_limit = 0xFFF
        for n in [ROOST_FS, ROOST_GS, ROOST_LDTR] {
            cpu.vcpu.segment(Int(n)).pointee = roost_segment(base: 0, limit: 0, selector: 0, attributes: 0)
        }
        cpu.vcpu.segment(Int(ROOST_TR)).pointee = roost_segment(
            base: Place.kernel + Place.tss, limit: 0x67, selector: 0x40, attributes: 0x8B)
        resume(at: mode.code, stack: Self.stack + 0x1800, rflags: 0x202, limit: limit)
    }

    /// What the handler that has halted found.
    func event() -> ProgramEvent {
        let s = cpu.state
        let vector = UInt32(truncatingIfNeeded: (s.pointee.rip &- 1 &- Place.kernel &- Place.handlers) / 16)
        var gpr = (0..<16).map { cpu.vcpu.gpr[$0] }
        var frame = UnsafeRawPointer(memory.base + Int(truncatingIfNeeded: gpr[4] & 0x3F_FFFF))
        var errorCode: UInt64 = 0
        if [8, 10, 11, 12, 13, 14, 17].contains(vector) {
            errorCode = frame.load(as: UInt64.self)
            frame += 8
        }
        gpr[4] = frame.load(fromByteOffset: 24, as: UInt64.self)
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        let area = UnsafeRawPointer(roost_xsave_area(s)!)
        for n in stride(from: 0, to: 832, by: 8) {
            hash = (hash ^ area.load(fromByteOffset: n, as: UInt64.self)) &* 0x100_0000_01B3
        }
        return ProgramEvent(
            vector: vector, errorCode: errorCode, address: vector == 14 ? s.pointee.cr2 : 0,
            rip: frame.load(as: UInt64.self), rflags: frame.load(fromByteOffset: 16, as: UInt64.self) & ~0x1_0000,
            gpr: gpr,
            vectors: Int(truncatingIfNeeded: hash))
    }
}
