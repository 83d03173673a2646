// A guest in user mode with the same code and data at the same linear addresses as a host process: what a differential
// test runs an instruction in. Exceptions are delivered through an IDT whose handlers halt, so that the whole path to a
// handler is under test with every case.
import CHost
import CHostExecutor
import CPU
import GuestMemory

/// Where things are in both worlds.
enum Place {
    static let code: UInt64 = 0x1000_0000
    static let codeLength: UInt64 = 0x4000
    static let data: UInt64 = 0x2000_0000
    static let dataLength: UInt64 = 0x4000
    /// Pages without access follow the data.
    static let forbiddenLength: UInt64 = 0x4000
    /// Guest-physical.
    static let gdt: UInt64 = 0x1000
    static let idt: UInt64 = 0x2000
    static let tss: UInt64 = 0x3000
    static let tables: UInt64 = 0x4000
    static let handlers: UInt64 = 0x1_0000
    static let kernelStack: UInt64 = 0x2_0000
    static let codePhysical: UInt64 = 0x10_0000
    static let dataPhysical: UInt64 = 0x20_0000
    /// Linear address of guest-physical 0 for the supervisor.
    static let kernel: UInt64 = 0xFFFF_8000_0000_0000
}

/// What one instruction left behind.
struct Outcome: Equatable {
    var vector: UInt32 = 0
    var errorCode: UInt64 = 0
    var faultAddress: UInt64 = 0
    var rip: UInt64 = 0
    var rflags: UInt64 = 0
    var gpr = [UInt64](repeating: 0, count: 16)
    var vectorState = [UInt8](repeating: 0, count: 832)
    var data: [UInt8] = []
}

/// The guest's side.
final class GuestProcess {
    let memory: GuestMemory
    let cpu: VirtualCPU
    private let run: () -> VMExit

    init(model: CPUModel, translates: Bool) throws {
        memory = try GuestMemory(size: 16 << 20)
        cpu = VirtualCPU(id: 0)
        cpu.attach(memory: memory)
        cpu.model = model
        if translates {
            var settings = Translator.Settings()
            settings.codeCache = 2 << 20
            settings.heat = 0
            let translator = try Translator(cpu: cpu, memory: memory, settings: settings)
            run = { translator.run() }
        } else {
            let interpreter = Interpreter(cpu: cpu, memory: memory)
            run = { interpreter.run() }
        }
        cpu.vcpu.reset()
        layOut()
    }

    private func put<T: FixedWidthInteger & BitwiseCopyable>(_ address: UInt64, _ value: T) {
        UnsafeMutableRawPointer(memory.base + Int(address)).storeBytes(of: value.littleEndian, as: T.self)
    }

    private func layOut() {
        // GDT: null, -, kernel code 64 (08 is at 0x10 as Linux has it), kernel data 0x18, user code 32 0x23, user data
        // 0x2B, user code 64 0x33, TSS 0x40.
        put(Place.gdt + 0x10, 0x00AF_9B00_0000_FFFF as UInt64)
        put(Place.gdt + 0x18, 0x00CF_9300_0000_FFFF as UInt64)
        put(Place.gdt + 0x20, 0x00CF_FB00_0000_FFFF as UInt64)
        put(Place.gdt + 0x28, 0x00CF_F300_0000_FFFF as UInt64)
        put(Place.gdt + 0x30, 0x00AF_FB00_0000_FFFF as UInt64)
        let tss = Place.kernel + Place.tss
        put(Place.gdt + 0x40, 0x0000_8B00_0000_0067 | (tss & 0xFF_FFFF) << 16 | (tss >> 24 & 0xFF) << 56)
        put(Place.gdt + 0x48, tss >> 32)
        put(Place.tss + 4, Place.kernel + Place.kernelStack + 0x1000)
        // No I/O permission bitmap.
        put(Place.tss + 0x66, 0x68 as UInt16)
        for vector in 0..<256 as Range<UInt64> {
            let handler = Place.kernel + Place.handlers + vector * 16
            put(Place.handlers + vector * 16, 0xF4 as UInt8)
            let gate = Place.idt + vector * 16
            let dpl: UInt64 = vector == 3 || vector == 4 ? 3 : 0
            put(gate, handler & 0xFFFF | 0x10 << 16 | (0x8E00 | dpl << 13) << 32 | (handler >> 16 & 0xFFFF) << 48)
            put(gate + 8, handler >> 32)
        }
        // Wherever a branch leads, a breakpoint waits.
        (memory.base + Int(Place.codePhysical)).update(repeating: 0xCC, count: Int(Place.codeLength))
        mapPages()
    }

    private func mapPages() {
        let root = Place.tables
        // Supervisor: the first 16 MiB at Place.kernel, by large pages.
        put(root + 256 * 8, (root + 0x1000) | 3)
        put(root + 0x1000, (root + 0x2000) | 3)
        for n in 0..<8 as Range<UInt64> { put(root + 0x2000 + n * 8, (n << 21) | 0x83) }
        // User: code and data below 1 GiB.
        put(root, (root + 0x3000) | 7)
        put(root + 0x3000, (root + 0x4000) | 7)
        for (linear, physical, length, table) in [
            (Place.code, Place.codePhysical, Place.codeLength, root + 0x5000),
            (Place.data, Place.dataPhysical, Place.dataLength, root + 0x6000),
        ] {
            put(root + 0x4000 + (linear >> 21) * 8, table | 7)
            let noExecute: UInt64 = linear == Place.data ? 1 << 63 : 0
            for n in 0..<(length >> 12) {
                put(table + ((linear >> 12 & 511) + n) * 8, (physical + (n << 12)) | 0x67 | noExecute)
            }
        }
    }

    /// Runs from a state to the first trap or fault.
    func run(_ start: HostState, code: [UInt8], at rip: UInt64) -> Outcome {
        let s = cpu.state
        enterUserMode(compatibility: start.compatibility)
        for n in 0..<16 { cpu.vcpu.gpr[n] = start.gpr[n] }
        s.pointee.rip = rip
        cpu.vcpu.rflags = start.rflags
        cpu.vcpu.updateMode()
        start.vectorState.withUnsafeBufferPointer { bytes in
            guard let area = roost_xsave_area(s) else { return }
            area.update(from: bytes.baseAddress!, count: 832)
        }
        try? memory.write(code, at: GuestPhysicalAddress(Place.codePhysical + rip - Place.code))
        var exits = 0
        while true {
            let exit = run()
            if exit == .halt { break }
            exits += 1
            if exits > 10_000 || exit == .shutdown { return Outcome(vector: 0xFFFF) }
        }
        return outcome()
    }

    private func enterUserMode(compatibility: Bool) {
        let s = cpu.state
        s.pointee.cr0 = 0x8005_0033
        s.pointee.cr3 = Place.tables
        s.pointee.cr4 = 0x4_06A0 | 0x1_0000
        s.pointee.efer = 0xD01
        s.pointee.xcr0 = 7
        s.pointee.cr2 = 0
        s.pointee.gdtr_base = Place.kernel + Place.gdt
        s.pointee.gdtr_limit = 0x4F
        s.pointee.idtr_base = Place.kernel + Place.idt
        s.pointee.idtr_limit = 0xFFF
        s.pointee.halted = 0
        s.pointee.interrupt_shadow = 0
        let flat = roost_segment(base: 0, limit: ~0, selector: 0x2B, attributes: 0xC0F3)
        for n in [ROOST_ES, ROOST_SS, ROOST_DS] { cpu.vcpu.segment(Int(n)).pointee = flat }
        for n in [ROOST_FS, ROOST_GS] {
            cpu.vcpu.segment(Int(n)).pointee = roost_segment(base: 0, limit: 0, selector: 0, attributes: 0)
        }
        cpu.vcpu.segment(Int(ROOST_CS)).pointee = roost_segment(
            base: 0, limit: ~0, selector: compatibility ? 0x23 : 0x33, attributes: compatibility ? 0xC0FB : 0xA0FB)
        cpu.vcpu.segment(Int(ROOST_LDTR)).pointee = roost_segment(base: 0, limit: 0, selector: 0, attributes: 0)
        cpu.vcpu.segment(Int(ROOST_TR)).pointee = roost_segment(
            base: Place.kernel + Place.tss, limit: 0x67, selector: 0x40, attributes: 0x8B)
        s.pointee.cpl = 3
    }

    /// The state that the handler found, from its registers and the frame on its stack.
    private func outcome() -> Outcome {
        var result = Outcome()
        let s = cpu.state
        result.vector = UInt32(truncatingIfNeeded: (s.pointee.rip &- 1 &- Place.kernel &- Place.handlers) / 16)
        for n in 0..<16 { result.gpr[n] = cpu.vcpu.gpr[n] }
        var frame = UnsafeRawPointer(memory.base + Int(truncatingIfNeeded: result.gpr[4] & 0xFF_FFFF))
        if [8, 10, 11, 12, 13, 14, 17].contains(result.vector) {
            result.errorCode = frame.load(as: UInt64.self)
            frame += 8
        }
        if result.vector == 14 { result.faultAddress = s.pointee.cr2 }
        result.rip = frame.load(as: UInt64.self)
        result.rflags = frame.load(fromByteOffset: 16, as: UInt64.self)
        result.gpr[4] = frame.load(fromByteOffset: 24, as: UInt64.self)
        if let area = roost_xsave_area(s) {
            result.vectorState = Array(UnsafeBufferPointer(start: area, count: 832))
        }
        result.data = Array(
            UnsafeBufferPointer(start: memory.base + Int(Place.dataPhysical), count: Int(Place.dataLength)))
        return result
    }
}

/// What an instruction starts from, in both worlds.
struct HostState {
    var gpr = [UInt64](repeating: 0, count: 16)
    var rflags: UInt64 = 0x202
    var compatibility = false
    /// The standard XSAVE area: legacy 512 bytes, header 64, upper halves 256.
    var vectorState = [UInt8](repeating: 0, count: 832)
}

/// The host's side: one process-wide place, so its users take turns.
final class HostProcess: @unchecked Sendable {
    /// The only one: the addresses can be taken once.
    static let shared = HostProcess()

    private let state: UnsafeMutablePointer<host_executor_state>

    /// Nil when the addresses are taken.
    init?() {
        guard host_executor_map(Place.code, Place.codeLength, 1) != 0,
            host_executor_map(Place.data, Place.dataLength + Place.forbiddenLength, 0) != 0,
            host_executor_forbid(Place.data + Place.dataLength, Place.forbiddenLength) != 0
        else { return nil }
        UnsafeMutablePointer<UInt8>(bitPattern: UInt(Place.code))?.update(repeating: 0xCC, count: Int(Place.codeLength))
        state = UnsafeMutableRawPointer.allocate(byteCount: host_executor_state_size(), alignment: 64)
            .bindMemory(to: host_executor_state.self, capacity: 1)
    }

    var data: UnsafeMutablePointer<UInt8> { UnsafeMutablePointer(bitPattern: UInt(Place.data))! }
    var code: UnsafeMutablePointer<UInt8> { UnsafeMutablePointer(bitPattern: UInt(Place.code))! }

    /// Runs from a state to the first trap or fault.
    func run(_ start: HostState, code bytes: [UInt8], at rip: UInt64) -> Outcome {
        for (n, byte) in bytes.enumerated() { code[Int(rip - Place.code) + n] = byte }
        withUnsafeMutableBytes(of: &state.pointee.gpr) { $0.copyBytes(from: start.gpr.withUnsafeBytes { Array($0) }) }
        state.pointee.rip = rip
        state.pointee.rflags = start.rflags
        state.pointee.compatibility = start.compatibility ? 1 : 0
        let area = host_executor_xsave(state)!
        start.vectorState.withUnsafeBufferPointer { area.update(from: $0.baseAddress!, count: 832) }
        host_executor_run(state)
        var result = Outcome()
        result.vector = state.pointee.vector
        result.errorCode = [8, 10, 11, 12, 13, 14, 17].contains(result.vector) ? state.pointee.error_code : 0
        result.faultAddress = result.vector == 14 ? state.pointee.fault_address : 0
        result.rip = state.pointee.rip
        result.rflags = state.pointee.rflags
        result.gpr = withUnsafeBytes(of: state.pointee.gpr) { Array($0.bindMemory(to: UInt64.self)) }
        result.vectorState = Array(UnsafeBufferPointer(start: area, count: 832))
        result.data = Array(UnsafeBufferPointer(start: data, count: Int(Place.dataLength)))
        return result
    }
}
