// Short programs in machine code: the interpreter runs them to HLT, or to the handler of an exception.
import CHost
import CPU
import GuestMemory

/// A `SystemRig` in 64-bit mode with a handler for each exception: HLT, at 0x8000 + 16 * vector.
struct CodeRig {
    let system: SystemRig
    let interpreter: Interpreter
    var v: VCPU { system.v }
    var s: UnsafeMutablePointer<roost_vcpu> { system.s }

    /// Where programs begin.
    static let code: UInt64 = 0x5000
    /// Data that programs use: 4 KiB.
    static let data: UInt64 = 0x40000
    private static let handlers: UInt64 = 0x8000

    init(model: CPUModel? = nil, id: Int = 0, memory: GuestMemory? = nil) throws {
        system = try SystemRig(id: id, memory: memory)
        if let model { system.cpu.model = model }
        system.enterLong(0)
        interpreter = Interpreter(cpu: system.cpu, memory: system.memory)
        for n in 0..<32 as Range<UInt8> {
            system.longVector(n, SystemRig.longCode0, Self.handlers + UInt64(n) * 16)
            system.put(0xF4, at: Self.handlers + UInt64(n) * 16, as: UInt8.self)
        }
        v.updateMode()
    }

    /// A model by name, whatever the host has.
    static func model(_ name: String) -> CPUModel? {
        var missing: [String] = []
        return CPUModel.named(name, missing: &missing)
    }

    /// Runs a program to its HLT; the vector of the exception that came instead, or nil.
    func run(_ bytes: [UInt8], at place: UInt64 = Self.code) throws -> UInt8? {
        try load(bytes, at: place)
        return goOn(at: place)
    }

    /// Puts a program and a HLT in place, and RIP at its beginning.
    func load(_ bytes: [UInt8], at place: UInt64 = Self.code) throws {
        try system.memory.write(bytes + [0xF4], at: .init(place))
        system.memory.didWrite(.init(place), length: bytes.count + 1)
        s.pointee.rip = place
    }

    /// Runs what is in memory as `run` does.
    func goOn(at place: UInt64) -> UInt8? {
        s.pointee.rip = place
        s.pointee.halted = 0
        for _ in 0..<1000 {
            let exit = interpreter.run()
            if exit == .halt {
                let rip = s.pointee.rip
                guard rip > Self.handlers, rip < Self.handlers + 512 else { return nil }
                return UInt8((rip - Self.handlers) / 16)
            }
            if exit == .shutdown { return 0xFF }
        }
        return 0xFE
    }

    /// The error code and RIP that the handler found on its stack.
    var frame: (errorCode: UInt64, rip: UInt64) { (system.get64(v.gpr[4]), system.get64(v.gpr[4] + 8)) }
}
