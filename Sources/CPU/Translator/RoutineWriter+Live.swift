// The routines that bring the guest's vector and x87 registers into the host's, and back.
internal import CHost

extension RoutineWriter {
    /// Writes them all; returns where what is live is loaded again and where it is saved, the general registers being free.
    mutating func writeLive(_ common: inout CommonRoutines) -> (load: Int, save: Int) {
        common.loadVectors = origin + code.count
        let loadVectors = writeLoadVectors()
        let saveVectors = code.count
        writeSaveVectors()
        common.loadX87 = origin + code.count
        let loadX87 = writeLoadX87()
        let saveX87 = code.count
        writeSaveX87()
        let load = code.count
        callIfLive(StateOffset.vectorsLive, loadVectors)
        callIfLive(StateOffset.x87Live, loadX87)
        code.byte(0xC3)
        let save = code.count
        callIfLive(StateOffset.vectorsLive, saveVectors)
        callIfLive(StateOffset.x87Live, saveX87)
        code.byte(0xC3)
        return (load, save)
    }

    private mutating func callIfLive(_ field: HostAddress, _ routine: Int) {
        code.compareByte(field, 0)
        let dead = code.jump(if: 4)
        code.patch(code.call(), to: routine)
        code.patch(dead, to: code.count)
    }

    // MARK: x87

    /// XSAVE's and XRSTOR's mask: x87 alone. Clobbers RAX and RDX.
    private mutating func setX87Mask() {
        code.constant(0, 1)
        code.registers(0x31, reg: 2, rm: 2)
    }

    /// XSTATE_BV of the area, which is zero but here.
    private mutating func setHeader(_ components: Int32) {
        code.memory(0xC7, wide: true, reg: 0, StateOffset.area(512))
        code.word32(components)
    }

    /// Returns with ZF set when the registers were loaded; the check is before the position returned.
    private mutating func writeLoadX87() -> Int {
        code.memory(0x8B, reg: scratch0, StateOffset.area(0))
        code.arithmetic(4, scratch0, 0x3F, wide: false)
        code.arithmetic(7, scratch0, 0x3F, wide: false)
        let masked = code.jump(if: 4)
        code.byte(0xC3)
        code.patch(masked, to: code.count)
        code.memory(0xC6, reg: 0, StateOffset.x87Live)
        code.byte(1)
        let start = code.count
        code.move(scratch0, 0)
        code.move(scratch1, 2)
        setX87Mask()
        setHeader(1)
        code.memory(0xAE, map: 1, wide: true, reg: 5, StateOffset.area(0))
        setHeader(0)
        code.move(0, scratch0)
        code.move(2, scratch1)
        code.registers(0x39, reg: scratch0, rm: scratch0)
        code.byte(0xC3)
        return start
    }

    /// FOP, FIP and FDP stay as they are in the area; the host's own registers are left empty. Clobbers RAX, RCX,
    /// RDX, RBX and RSI, the guest's being saved.
    private mutating func writeSaveX87() {
        code.load(1, StateOffset.area(0))
        code.load(3, StateOffset.area(8))
        code.load(6, StateOffset.area(16))
        setX87Mask()
        code.memory(0xAE, map: 1, wide: true, reg: 4, StateOffset.area(0))
        setHeader(0)
        code.shift(5, 1, 48)
        code.memory(0x89, prefix: 0x66, reg: 1, StateOffset.area(6))
        code.store(StateOffset.area(8), 3)
        code.store(StateOffset.area(16), 6)
        code.bytes(0xDB, 0xE3)  // fninit
        code.byte(0xC3)
    }

    // MARK: Vector registers

    /// Returns with ZF set when the registers were loaded; the check is before the position returned.
    private mutating func writeLoadVectors() -> Int {
        code.memory(0x8B, reg: scratch0, StateOffset.area(24))
        code.arithmetic(4, scratch0, 0x1F80, wide: false)
        code.arithmetic(7, scratch0, 0x1F80, wide: false)
        let masked = code.jump(if: 4)
        code.byte(0xC3)
        code.patch(masked, to: code.count)
        code.memory(0xB6, map: 1, reg: scratch0, StateOffset.vectorsUsable)
        code.memory(0x88, reg: scratch0, StateOffset.vectorsLive)
        let start = code.count
        code.memory(0xAE, map: 1, reg: 3, StateOffset.savedMXCSR)
        code.memory(0xAE, map: 1, reg: 2, StateOffset.area(24))
        for n in 0..<UInt8(16) {
            let low = StateOffset.area(160 + 16 * Int32(n))
            let high = StateOffset.area(576 + 16 * Int32(n))
            code.vex(0x10, map: 1, prefix: 0, wide: false, long: false, reg: n, vvvv: 0, low)
            code.vex(0x18, map: 3, prefix: 0x66, wide: false, long: true, reg: n, vvvv: n, high)
            code.byte(1)
        }
        code.registers(0x39, reg: scratch0, rm: scratch0)
        code.byte(0xC3)
        return start
    }

    private mutating func writeSaveVectors() {
        code.memory(0xAE, map: 1, reg: 3, StateOffset.area(24))
        code.memory(0xAE, map: 1, reg: 2, StateOffset.savedMXCSR)
        for n in 0..<UInt8(16) {
            let low = StateOffset.area(160 + 16 * Int32(n))
            let high = StateOffset.area(576 + 16 * Int32(n))
            code.vex(0x11, map: 1, prefix: 0, wide: false, long: false, reg: n, vvvv: 0, low)
            code.vex(0x19, map: 3, prefix: 0x66, wide: false, long: true, reg: n, vvvv: 0, high)
            code.byte(1)
        }
        code.bytes(0xC5, 0xF8, 0x77)
        code.byte(0xC3)
    }
}
