// Generates the host code that runs one vector instruction on a guest's saved state.
//
// A thunk is called with RDI = XSAVE area, RSI = memory operand, RDX = general registers, RCX = arithmetic flags. It loads
// the vector registers that the instruction names under their own numbers, general registers into R9 (ModRM.reg) and R10
// (ModRM.rm), executes the instruction with memory operands at [RSI], and stores them all. x87 and MMX instructions get
// the whole legacy state by FXRSTOR64 and FXSAVE64; neither reports pending exceptions, so the host never faults.
//
// Invariant: at most `ThunkCache.longest` bytes are written.

/// Writes code.
struct ThunkEmitter {
    let start: UnsafeMutablePointer<UInt8>
    private(set) var count = 0

    init(start: UnsafeMutablePointer<UInt8>) { self.start = start }

    /// Appends bytes, first the least significant.
    mutating func bytes(_ value: UInt64, _ n: Int) {
        for k in 0..<n { byte(UInt8(truncatingIfNeeded: value >> UInt64(8 * k))) }
    }
    mutating func byte(_ value: UInt8) {
        if count < ThunkCache.longest {
            start[count] = value
            count += 1
        }
    }
    mutating func code(_ a: UInt8, _ b: UInt8, _ c: UInt8) {
        byte(a)
        byte(b)
        byte(c)
    }
    mutating func code(_ a: UInt8, _ b: UInt8, _ c: UInt8, _ d: UInt8) {
        code(a, b, c)
        byte(d)
    }

    /// VMOVUPS and VINSERTF128, or VMOVUPS and VEXTRACTF128: a whole YMM register from or to the XSAVE area.
    mutating func moveVector(_ n: UInt8, store: Bool) {
        let r: UInt8 = n & 8 == 0 ? 0xE0 : 0x60
        let modRM = 0x87 | (n & 7) << 3
        code(0xC4, r | 1, 0x78, store ? 0x11 : 0x10)
        byte(modRM)
        bytes(160 + 16 * UInt64(n), 4)
        code(0xC4, r | 3, store ? 0x7D : (~n & 15) << 3 | 5, store ? 0x19 : 0x18)
        byte(modRM)
        bytes(576 + 16 * UInt64(n), 4)
        byte(1)
    }

    /// MOV R9 or R10 (`second`), [R8 + 8n], or back.
    mutating func moveGeneral(_ n: UInt8, second: Bool, store: Bool) {
        code(0x4D, store ? 0x89 : 0x8B, second ? 0x90 : 0x88)
        bytes(8 * UInt64(n), 4)
    }

    /// What one instruction needs.
    struct Plan {
        var row: InstructionRow
        var reg: UInt8 = 0
        var rm: UInt8 = 0
        var extra: UInt8 = 0
        var immediate: UInt8 = 0
        var hasImmediate = false
        var isMemory = false
        var wide = false
        var long = false
        /// Vector registers in use, a bit each.
        var vectors: UInt16 = 0
        var generalReg = false
        var generalRM = false
        var legacyState = false
        var floating = false
        var flags = false
        /// PCMPxSTRx: EAX, EDX, ECX are implied.
        var strings = false
    }

    /// The whole thunk.
    mutating func thunk(_ p: Plan) {
        code(0x49, 0x89, 0xD0)  // mov r8, rdx
        code(0x49, 0x89, 0xCB)  // mov r11, rcx
        if p.floating || p.legacyState { bytes(0xF8_245C_AE0F, 5) }  // stmxcsr [rsp-8]
        if p.legacyState {
            code(0x48, 0x0F, 0xAE, 0x0F)  // fxrstor64 [rdi]
        } else {
            if p.floating { code(0x0F, 0xAE, 0x57, 0x18) }  // ldmxcsr [rdi+24]
            for n in 0..<UInt8(16) where p.vectors >> UInt16(n) & 1 != 0 { moveVector(n, store: false) }
        }
        if p.generalReg { moveGeneral(p.reg, second: false, store: false) }
        if p.generalRM { moveGeneral(p.rm, second: true, store: false) }
        if p.strings {
            code(0x49, 0x8B, 0x00)  // mov rax, [r8]
            code(0x49, 0x8B, 0x50, 0x10)  // mov rdx, [r8+16]
            code(0x49, 0x8B, 0x48, 0x08)  // mov rcx, [r8+8]
        } else if p.flags {
            code(0x41, 0x8B, 0x03)  // mov eax, [r11]
            code(0x04, 0x7F, 0x9E)  // add al, 127; sahf
        }
        instruction(p)
        if p.flags {
            code(0x9F, 0x0F, 0x90, 0xC0)  // lahf; seto al
            bytes(0x00_00D5_0125, 5)  // and eax, 0xD501
            code(0x41, 0x89, 0x03)  // mov [r11], eax
        }
        if p.strings && p.row.opcode & 1 != 0 { code(0x49, 0x89, 0x48, 0x08) }  // mov [r8+8], rcx
        if p.generalReg { moveGeneral(p.reg, second: false, store: true) }
        if p.generalRM { moveGeneral(p.rm, second: true, store: true) }
        if p.legacyState {
            code(0x48, 0x0F, 0xAE, 0x07)  // fxsave64 [rdi]
            bytes(0xE3DB, 2)  // fninit
        } else {
            if p.floating { code(0x0F, 0xAE, 0x5F, 0x18) }  // stmxcsr [rdi+24]
            for n in 0..<UInt8(16) where p.vectors >> UInt16(n) & 1 != 0 { moveVector(n, store: true) }
        }
        if p.floating || p.legacyState { bytes(0xF8_2454_AE0F, 5) }  // ldmxcsr [rsp-8]
        code(0xC5, 0xF8, 0x77)  // vzeroupper
        byte(0xC3)
    }

    /// The guest's instruction with its operands redirected.
    mutating func instruction(_ p: Plan) {
        let row = p.row
        let reg = p.generalReg ? 9 : p.reg
        let rm = p.isMemory ? 6 : p.generalRM ? 10 : p.rm
        let high = (reg & 8) >> 1 | (rm & 8) >> 3
        if row.attributes.contains(.vex) {
            let pp: UInt8 =
                row.mandatoryPrefix == 0x66 ? 1 : row.mandatoryPrefix == 0xF3 ? 2 : row.mandatoryPrefix == 0xF2 ? 3 : 0
            byte(0xC4)
            byte((high & 4 == 0 ? 0x80 : 0) | 0x40 | (high & 1 == 0 ? 0x20 : 0) | row.map)
            byte((p.wide ? 0x80 : 0) | (~p.extra & 15) << 3 | (p.long ? 4 : 0) | pp)
        } else {
            if row.mandatoryPrefix != 0 && row.mandatoryPrefix != 0xFF { byte(row.mandatoryPrefix) }
            if high != 0 || p.wide { byte(0x40 | high | (p.wide ? 8 : 0)) }
            if row.map != 0 { byte(0x0F) }
            if row.map == 2 { byte(0x38) }
            if row.map == 3 { byte(0x3A) }
        }
        byte(row.opcode)
        if row.attributes.contains(.modRM) { byte((p.isMemory ? 0 : 0xC0) | (reg & 7) << 3 | rm & 7) }
        if p.hasImmediate { byte(p.immediate) }
    }
}
