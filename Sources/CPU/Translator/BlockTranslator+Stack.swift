// PUSH, POP, LEAVE; and division, whose faults the interpreter decides on.
internal import CHost

extension BlockTranslator {
    /// Stack operands as wide as the mode has them, to registers, immediates and (pushed) memory.
    func emitsStack(_ p: Instruction) -> Bool {
        if p.operandSize != codeSize || stackSize != codeSize { return false }
        if p.operation == .push { return true }
        return !p.isMemory
    }

    mutating func emitStack(_ n: Int) {
        let p = instruction(n).pointee
        let size = Int(p.operandSize)
        let wide = size == 8
        if p.operation == .push {
            if p.isMemory { return emitPushMemory(n) }
            probeStack(n, -Int32(size), size: size, write: true)
            switch p.form {
            case .immediate, .regImmediate:
                code.memory(0xC7, prefix: size == 2 ? 0x66 : 0, wide: wide, reg: 0, .base(scratch0, 0))
                code.immediate(p.immediate, min(size, 4))
            default:
                let from = source(p.form == .rm ? p.rm : p.reg, scratch1)
                code.memory(0x89, prefix: size == 2 ? 0x66 : 0, wide: wide, reg: from, .base(scratch0, 0))
            }
            moveStack(by: -Int32(size))
        } else {
            probeStack(n, 0, size: size, write: false)
            let register = p.form == .rm ? p.rm : p.reg
            if size == 2 {
                code.memory(0xB7, map: 1, reg: scratch1, .base(scratch0, 0))
                moveStack(by: 2)
                code.registers(0x89, prefix: 0x66, reg: scratch1, rm: Self.host(register) ?? scratch1)
                return
            }
            if let own = Self.host(register) {
                code.memory(0x8B, wide: wide, reg: own, .base(scratch0, 0))
                if own != guestStack { moveStack(by: Int32(size)) }
            } else {
                code.memory(0x8B, wide: wide, reg: scratch1, .base(scratch0, 0))
                storeBack(register, scratch1)
                moveStack(by: Int32(size))
            }
        }
    }

    /// PUSH of a memory operand: it waits in the state block while the stack is reached.
    private mutating func emitPushMemory(_ n: Int) {
        let size = Int(instruction(n).pointee.operandSize)
        probeOperand(n, size: size, write: false)
        if size == 2 {
            code.memory(0xB7, map: 1, reg: scratch0, .base(scratch0, 0))
        } else {
            code.memory(0x8B, wide: size == 8, reg: scratch0, .base(scratch0, 0))
        }
        code.store(StateOffset.entry, scratch0)
        probeStack(n, -Int32(size), size: size, write: true)
        code.load(scratch1, StateOffset.entry)
        code.memory(0x89, prefix: size == 2 ? 0x66 : 0, wide: size == 8, reg: scratch1, .base(scratch0, 0))
        moveStack(by: -Int32(size))
    }

    mutating func emitLeave(_ n: Int) {
        let wide = instruction(n).pointee.operandSize == 8
        losesFlags(before: n)
        loadOffset(.base(5, 0), addressSize: stackSize)
        probe(n, segment: UInt8(ROOST_SS), size: wide ? 8 : 4, write: false, kind: .goesOn)
        code.memory(0x8B, wide: wide, reg: scratch1, .base(scratch0, 0))
        code.lea(guestStack, .base(5, wide ? 8 : 4), narrow: !wide)
        code.move(5, scratch1)
    }

    /// DIV and IDIV where the quotient fits for sure: by the host. Else the interpreter decides.
    ///
    /// The flags, undefined after them, stay as they were.
    mutating func emitDivide(_ n: Int) {
        let p = instruction(n).pointee
        let wide = p.operandSize == 8
        losesFlags(before: n)
        if p.isMemory {
            probeOperand(n, size: Int(p.operandSize), write: false)
            code.memory(0x8B, wide: wide, reg: scratch0, .base(scratch0, 0))
        } else {
            code.move(scratch0, source(p.rm, scratch0))
        }
        if p.operation == .div {
            code.registers(0x3B, wide: wide, reg: 2, rm: scratch0)
            addStub(code.jump(if: 3), n)
            code.registers(0xF7, wide: wide, reg: 6, rm: scratch0)
            return
        }
        // The dividend is RAX sign-extended, and the divisor neither 0 nor -1.
        code.registers(0x89, wide: wide, reg: 0, rm: scratch1)
        code.shift(7, scratch1, wide ? 63 : 31, wide: wide)
        code.registers(0x3B, wide: wide, reg: scratch1, rm: 2)
        addStub(code.jump(if: 5), n)
        code.lea(scratch1, .base(scratch0, 1), narrow: !wide)
        code.arithmetic(7, scratch1, 1, wide: wide)
        addStub(code.jump(if: 6), n)
        code.registers(0xF7, wide: wide, reg: 7, rm: scratch0)
    }
}
