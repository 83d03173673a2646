// x87: the host executes on the guest's FXSAVE image; control instructions and environments are done here.
//
// The image (SDM 1 table 10-2): 0 FCW, 2 FSW, 4 tags (a bit each, 1 = in use), 6 FOP, 8 FIP, 16 FDP, 32 + 16n ST(n).
// FSW: 5:0 exceptions, 6 SF, 7 ES, 13:11 TOP, 15 B. FIP and FDP are kept as 64 bits; the selectors read as zero, as CPUID
// says of processors that deprecate them.
//
// - Quirk: FOP's mod field is that of the shortest encoding. With CR0.NE = 0 errors raise #MF too, not FERR#.
internal import CHost

extension VCPU {
    func executeX87(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let opcode = i.pointee.opcode
        if opcode == 0x9B {
            if s.pointee.cr0 & 0xA == 0xA { throw .deviceNotAvailable }
            return try checkPendingX87()
        }
        if s.pointee.cr0 & 0xC != 0 { throw .deviceNotAvailable }
        let row = InstructionTable.row(i.pointee.row)
        let isMemory = i.pointee.isMemory
        let reg = row.fixedModRM != 0 ? (row.fixedModRM >> 3) & 7 : i.pointee.reg & 7
        switch (opcode, reg, isMemory) {
        case (0xDB, 4, false): return controlX87(row.fixedModRM)
        case (0xDF, 4, false):
            gpr[0] = (gpr[0] & ~0xFFFF) | UInt64(area.load(fromByteOffset: 2, as: UInt16.self))
            return
        case (0xDD, 7, true):
            return try store(Int(i.pointee.segment), effectiveAddress(i), area.load(fromByteOffset: 2, as: UInt16.self))
        case (0xD9, 7, true):
            return try store(Int(i.pointee.segment), effectiveAddress(i), area.load(fromByteOffset: 0, as: UInt16.self))
        case (0xD9, 6, true): return try storeEnvironment(i, whole: false)
        case (0xDD, 6, true): return try storeEnvironment(i, whole: true)
        default: break
        }
        try checkPendingX87()
        switch (opcode, reg, isMemory) {
        case (0xD9, 5, true):
            let word: UInt16 = try load(Int(i.pointee.segment), effectiveAddress(i))
            setControl(word)
        case (0xD9, 4, true): try loadEnvironment(i, whole: false)
        case (0xDD, 4, true): try loadEnvironment(i, whole: true)
        default: try arithmeticX87(i)
        }
    }

    /// FNCLEX, FNINIT; FENI, FDISI and FSETPM do nothing.
    private func controlX87(_ modRM: UInt8) {
        switch modRM {
        case 0xE2:
            area.storeBytes(
                of: area.load(fromByteOffset: 2, as: UInt16.self) & 0x7F00, toByteOffset: 2, as: UInt16.self)
        case 0xE3: resetX87()
        default: break
        }
    }

    /// FNINIT's state; the registers' contents stay.
    func resetX87() {
        rotateX87(to: 0)
        area.storeBytes(of: 0x37F, toByteOffset: 0, as: UInt64.self)
        area.storeBytes(of: 0, toByteOffset: 8, as: UInt64.self)
        area.storeBytes(of: 0, toByteOffset: 16, as: UInt64.self)
    }

    private func setControl(_ word: UInt16) {
        area.storeBytes(of: (word & 0x1F7F) | 0x40, toByteOffset: 0, as: UInt16.self)
        summarize()
    }

    /// Sets FSW.ES and B as exceptions and masks are.
    func summarize() {
        let control = area.load(fromByteOffset: 0, as: UInt16.self)
        var status = area.load(fromByteOffset: 2, as: UInt16.self) & ~0x8080
        if status & ~control & 0x3F != 0 { status |= 0x8080 }
        area.storeBytes(of: status, toByteOffset: 2, as: UInt16.self)
    }

    private func arithmeticX87(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        guard let cache = thunkCache else { throw .invalidOpcode }
        let key = thunkKey(i)
        var entry = cache.slot(key)
        if entry.pointee.key == 0 { entry = addEntry(cache, i, key) }
        guard let code = entry.pointee.code else { throw .invalidOpcode }
        let size = Int(entry.pointee.memorySize)
        let writes = entry.pointee.writesMemory
        let segment = Int(i.pointee.segment)
        let offset = size == 0 ? 0 : effectiveAddress(i)
        var buffer: (UInt64, UInt64) = (0, 0)
        try withUnsafeMutablePointer(to: &buffer) { (p) throws(CPUException) in
            let memory = UnsafeMutableRawPointer(p)
            if size != 0 {
                if writes { try probeStore(segment, offset, size, always: true) }
                // An unmasked exception leaves the destination as it was: then it gets its own bytes.
                try loadOperand(segment, offset, size, into: memory)
            }
            if writes {
                try storeX87(code, memory, segment, offset, size)
            } else {
                callKeepingPointers(code, memory)
            }
        }
        setPointers(i, offset, hasMemory: size != 0)
    }

    /// Executes a store; registers go back if the memory access has to be repeated.
    private func storeX87(
        _ code: UnsafeRawPointer, _ memory: UnsafeMutableRawPointer, _ segment: Int, _ offset: UInt64, _ size: Int
    ) throws(CPUException) {
        typealias Half = (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64)
        var saved: (Half, Half) = (
            (0, 0, 0, 0, 0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        )
        withUnsafeMutableBytes(of: &saved) { $0.copyMemory(from: UnsafeRawBufferPointer(start: area, count: 160)) }
        callKeepingPointers(code, memory)
        do throws(CPUException) {
            try storeOperand(segment, offset, size, from: memory)
        } catch {
            withUnsafeBytes(of: &saved) {
                area.copyMemory(from: $0.baseAddress ?? UnsafeRawPointer(area), byteCount: 160)
            }
            throw error
        }
    }

    private func setPointers(_ i: UnsafePointer<Instruction>, _ offset: UInt64, hasMemory: Bool) {
        area.storeBytes(of: Self.lastOpcode(i, hasMemory: hasMemory), toByteOffset: 6, as: UInt16.self)
        let real = s.pointee.protected_mode == 0 || s.pointee.virtual8086 != 0
        let base = real ? segment(Int(ROOST_CS)).pointee.base : 0
        area.storeBytes(of: currentRIP(i) &+ base, toByteOffset: 8, as: UInt64.self)
        if hasMemory {
            let data = real ? segment(Int(i.pointee.segment)).pointee.base : 0
            area.storeBytes(of: offset &+ data, toByteOffset: 16, as: UInt64.self)
        }
    }

    /// What FOP is after an instruction.
    static func lastOpcode(_ i: UnsafePointer<Instruction>, hasMemory: Bool) -> UInt16 {
        var modRM = InstructionTable.row(i.pointee.row).fixedModRM
        if modRM == 0 {
            modRM = (i.pointee.reg & 7) << 3
            if !hasMemory {
                modRM |= 0xC0 | (i.pointee.rm & 7)
            } else {
                let d = i.pointee.displacement
                modRM |= i.pointee.index != Instruction.none ? 4 : i.pointee.base < 16 ? i.pointee.base & 7 : 5
                if i.pointee.base < 16 { modRM |= d == 0 ? 0 : d == Int32(Int8(truncatingIfNeeded: d)) ? 0x40 : 0x80 }
            }
        }
        return UInt16(i.pointee.opcode & 7) << 8 | UInt16(modRM)
    }

    // MARK: Environment (SDM 1 figures 8-9 to 8-12)

    /// The tag word: two bits a physical register; 0 valid, 1 zero, 2 special, 3 empty.
    private func fullTags() -> UInt16 {
        let top = Int(area.load(fromByteOffset: 2, as: UInt16.self) >> 11) & 7
        let abridged = area.load(fromByteOffset: 4, as: UInt8.self)
        var tags: UInt16 = 0
        for n in 0..<8 {
            var tag: UInt16 = 3
            if abridged >> UInt8(n) & 1 != 0 {
                let place = 32 &+ 16 &* ((n &- top) & 7)
                let mantissa = area.load(fromByteOffset: place, as: UInt64.self)
                let exponent = area.load(fromByteOffset: place &+ 8, as: UInt16.self) & 0x7FFF
                tag =
                    exponent == 0 && mantissa == 0
                    ? 1 : exponent == 0 || exponent == 0x7FFF || mantissa >> 63 == 0 ? 2 : 0
            }
            tags |= tag << UInt16(2 * n)
        }
        return tags
    }

    /// The seven words of an environment, each of 2 or 4 bytes.
    private func environment(wide: Bool) -> [7 of UInt32] {
        let real = s.pointee.protected_mode == 0 || s.pointee.virtual8086 != 0
        let opcode = UInt32(area.load(fromByteOffset: 6, as: UInt16.self) & 0x7FF)
        let instruction = UInt32(truncatingIfNeeded: area.load(fromByteOffset: 8, as: UInt64.self))
        let data = UInt32(truncatingIfNeeded: area.load(fromByteOffset: 16, as: UInt64.self))
        var words = [7 of UInt32](repeating: 0)
        let high: UInt32 = wide ? 0xFFFF_0000 : 0
        words[0] = UInt32(area.load(fromByteOffset: 0, as: UInt16.self)) | high
        words[1] = UInt32(area.load(fromByteOffset: 2, as: UInt16.self)) | high
        words[2] = UInt32(fullTags()) | high
        if real {
            words[3] = (instruction & 0xFFFF) | high
            words[4] = (wide ? (instruction >> 16) << 12 : (instruction >> 16 & 15) << 12) | opcode
            words[5] = (data & 0xFFFF) | high
            words[6] = wide ? (data >> 16) << 12 : (data >> 16 & 15) << 12
        } else {
            words[3] = instruction
            words[4] = wide ? opcode << 16 : 0
            words[5] = data
            words[6] = high
        }
        return words
    }

    private func storeEnvironment(_ i: UnsafePointer<Instruction>, whole: Bool) throws(CPUException) {
        let wide = i.pointee.operandSize != 2
        let size = wide ? 4 : 2
        let segment = Int(i.pointee.segment)
        let offset = effectiveAddress(i)
        try probeStore(segment, offset, 7 &* size &+ (whole ? 80 : 0), always: true)
        let words = environment(wide: wide)
        for n in 0..<7 {
            let place = offset &+ UInt64(n &* size)
            if wide {
                try store(segment, place, words[n])
            } else {
                try store(segment, place, UInt16(truncatingIfNeeded: words[n]))
            }
        }
        if whole {
            for n in 0..<8 {
                try storeOperand(segment, offset &+ UInt64(7 &* size &+ 10 &* n), 10, from: area + (32 &+ 16 &* n))
            }
            resetX87()
        } else {
            area.storeBytes(of: area.load(fromByteOffset: 0, as: UInt16.self) | 0x3F, toByteOffset: 0, as: UInt16.self)
            summarize()
        }
    }

    private func loadEnvironment(_ i: UnsafePointer<Instruction>, whole: Bool) throws(CPUException) {
        let wide = i.pointee.operandSize != 2
        let size = wide ? 4 : 2
        let segment = Int(i.pointee.segment)
        let offset = effectiveAddress(i)
        var words = [7 of UInt32](repeating: 0)
        // As processors do, the end is looked at first where it lies on another page.
        let end = offset &+ UInt64(7 &* size &+ (whole ? 79 : -1))
        if (linearAddress(segment, offset) ^ linearAddress(segment, end)) & ~0xFFF != 0 {
            let _: UInt8 = try load(segment, end)
        }
        for n in 0..<7 {
            let place = offset &+ UInt64(n &* size)
            if wide {
                words[n] = try load(segment, place)
            } else {
                let word: UInt16 = try load(segment, place)
                words[n] = UInt32(word)
            }
        }
        if whole {
            var registers = [20 of UInt64](repeating: 0)
            for n in 0..<8 {
                let place = offset &+ UInt64(7 &* size &+ 10 &* n)
                registers[2 * n] = try load(segment, place)
                let high: UInt16 = try load(segment, place &+ 8)
                registers[2 * n + 1] = UInt64(high)
            }
            for n in 0..<16 { area.storeBytes(of: registers[n], toByteOffset: 32 &+ 8 &* n, as: UInt64.self) }
        }
        // FRSTOR brings the registers in the order of the new TOP, FLDENV leaves them where they are.
        if !whole { rotateX87(to: Int(words[1] >> 11 & 7)) }
        applyEnvironment(words, wide: wide)
    }

    private func applyEnvironment(_ words: [7 of UInt32], wide: Bool) {
        let real = s.pointee.protected_mode == 0 || s.pointee.virtual8086 != 0
        var tags: UInt8 = 0
        for n in 0..<8 where (words[2] >> UInt32(2 * n)) & 3 != 3 { tags |= 1 << UInt8(n) }
        var instruction = words[3]
        var data = words[5]
        var opcode: UInt32 = wide ? words[4] >> 16 : UInt32(area.load(fromByteOffset: 6, as: UInt16.self))
        if real {
            let mask: UInt32 = wide ? 0xFFFF : 15
            instruction = (words[3] & 0xFFFF) | (words[4] >> 12 & mask) << 16
            data = (words[5] & 0xFFFF) | (words[6] >> 12 & mask) << 16
            opcode = words[4]
        }
        area.storeBytes(of: UInt16(truncatingIfNeeded: words[1]), toByteOffset: 2, as: UInt16.self)
        area.storeBytes(of: UInt16(tags), toByteOffset: 4, as: UInt16.self)
        area.storeBytes(of: UInt16(truncatingIfNeeded: opcode & 0x7FF), toByteOffset: 6, as: UInt16.self)
        area.storeBytes(of: UInt64(instruction), toByteOffset: 8, as: UInt64.self)
        area.storeBytes(of: UInt64(data), toByteOffset: 16, as: UInt64.self)
        setControl(UInt16(truncatingIfNeeded: words[0]))
    }
}
