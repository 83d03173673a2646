// String instructions and port input/output (SDM 1 7.3.9). Under REP they run whole pages at once where nothing can be
// observed, and stop between elements for events: RCX, RSI and RDI are exact at every fault.
internal import CHost

extension VCPU {
    /// One string instruction. With REP it ends its block and sets RIP: to the next instruction when done, to its own otherwise.
    func executeString(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let repeated = !i.pointee.prefixes.isDisjoint(with: [.rep, .repne])
        if !repeated {
            _ = try stringElement(i)
            return
        }
        let size = i.pointee.addressSize
        var budget = 4096
        while true {
            let count = truncateAddress(gpr[1], size)
            if count == 0 { break }
            if budget <= 0 || (budget < 4096 && s.pointee.lockstep == nil && roost_attention(s) != 0) {
                return suspendString(i)
            }
            let run = try stringRun(i, count)
            if run > 0 {
                writeCounter(count &- run, size)
                budget -= 256
                if compares(i.pointee.operation) && stops(i) { break }
                continue
            }
            let answered = s.pointee.completed_count
            let stop = try stringElement(i)
            writeCounter(count &- 1, size)
            budget -= 16
            if stop { break }
            if answered != 0 || watched {
                // One element an instruction where the machine answers or a debugger watches.
                if count > 1 { return suspendString(i) }
                break
            }
        }
        s.pointee.rip = nextRIP(i)
    }

    /// The instruction goes on later; it is counted once, when it is done.
    ///
    /// An instruction breakpoint isn't met again in its middle: RF is set then (SDM 3B 18.3.1.1).
    private func suspendString(_ i: UnsafePointer<Instruction>) {
        s.pointee.rip = currentRIP(i)
        if s.pointee.dr.7 & 0xFF != 0 { s.pointee.rflags |= 0x1_0000 }
        if s.pointee.translation == nil || translations.pointee.options.counts { s.pointee.instructions &-= 1 }
    }

    /// Single step, watchpoints or alignment checks are on.
    @inline(__always)
    private var watched: Bool { s.pointee.slow_memory != 0 || s.pointee.rflags & 0x100 != 0 }

    @inline(__always)
    private var backwards: Bool { s.pointee.rflags & 0x400 != 0 }

    /// Advances RSI or RDI by elements, in the address size.
    @inline(__always)
    private func advance(_ n: Int, _ i: UnsafePointer<Instruction>, by elements: UInt64 = 1) {
        let step = UInt64(i.pointee.operandSize) &* elements
        let value = backwards ? gpr[n] &- step : gpr[n] &+ step
        switch i.pointee.addressSize {
        case 8: gpr[n] = value
        case 4: gpr[n] = value & 0xFFFF_FFFF
        default: gpr[n] = (gpr[n] & ~0xFFFF) | (value & 0xFFFF)
        }
    }

    @inline(__always)
    private func compares(_ operation: Operation) -> Bool { operation == .cmps || operation == .scas }

    /// CMPS and SCAS forwards over what lies in one page, up to where they end: the elements done.
    private func comparison<T: GuestInteger>(
        _ i: UnsafePointer<Instruction>, _ count: UInt64, _ type: T.Type
    ) throws(CPUException) -> UInt64 {
        let size = i.pointee.addressSize
        let element = UInt64(MemoryLayout<T>.size)
        let isScan = i.pointee.operation == .scas
        let to = truncateAddress(gpr[7], size)
        let from = truncateAddress(gpr[6], size)
        guard let (target, room) = try hostRun(Int(ROOST_ES), to, write: false) else { return 0 }
        var source = UnsafeRawPointer(target)
        var available = room
        if !isScan {
            guard let found = try hostRun(Int(i.pointee.segment), from, write: false) else { return 0 }
            source = UnsafeRawPointer(found.0)
            available = min(room, found.1)
        }
        let elements = min(count, UInt64(truncatingIfNeeded: available) / element)
        if elements == 0 || wraps(to, elements &* element, size) { return 0 }
        if !isScan && wraps(from, elements &* element, size) { return 0 }
        let accumulator = readRegister(0, as: T.self)
        let endsWhenEqual = i.pointee.prefixes.contains(.repne)
        var done: UInt64 = 0
        var (a, b) = (accumulator, accumulator)
        repeat {
            let place = Int(truncatingIfNeeded: done &* element)
            b = UnsafeRawPointer(target).loadUnaligned(fromByteOffset: place, as: T.self)
            if !isScan { a = source.loadUnaligned(fromByteOffset: place, as: T.self) }
            done &+= 1
        } while done < elements && (a == b) != endsWhenEqual
        _ = alu(UInt32(ROOST_ALU_CMP), a, b)
        if !isScan { advance(6, i, by: done) }
        advance(7, i, by: done)
        return done
    }

    /// MOVS, STOS, CMPS, SCAS forwards over what lies in one page: the elements done, 0 when it must go one by one.
    private func stringRun(_ i: UnsafePointer<Instruction>, _ count: UInt64) throws(CPUException) -> UInt64 {
        let operation = i.pointee.operation
        guard !backwards, !watched, s.pointee.completed_count == 0 else { return 0 }
        if compares(operation) {
            switch i.pointee.operandSize {
            case 8: return try comparison(i, count, UInt64.self)
            case 4: return try comparison(i, count, UInt32.self)
            case 1: return try comparison(i, count, UInt8.self)
            default: return try comparison(i, count, UInt16.self)
            }
        }
        guard operation == .movs || operation == .stos else { return 0 }
        let element = UInt64(i.pointee.operandSize)
        let size = i.pointee.addressSize
        let to = truncateAddress(gpr[7], size)
        if operation == .movs {
            let from = truncateAddress(gpr[6], size)
            // The source faults first.
            guard let (source, available) = try hostRun(Int(i.pointee.segment), from, write: false),
                let (target, room) = try hostRun(Int(ROOST_ES), to, write: true)
            else { return 0 }
            let bytes = UInt64(truncatingIfNeeded: min(room, available))
            let elements = min(count, bytes / element)
            if elements == 0 || wraps(to, elements &* element, size) || wraps(from, elements &* element, size) {
                return 0
            }
            // Closer than an element: the bytes of one element must not be seen by the next through byte copies.
            let distance = UInt64(UInt(bitPattern: target)) &- UInt64(UInt(bitPattern: source))
            if distance != 0 && distance < element { return 0 }
            logRun(target, elements &* element)
            roost_copy_bytes(target, source, elements &* element)
            advance(6, i, by: elements)
            advance(7, i, by: elements)
            return elements
        }
        guard let (target, room) = try hostRun(Int(ROOST_ES), to, write: true) else { return 0 }
        let elements = min(count, UInt64(truncatingIfNeeded: room) / element)
        if elements == 0 || wraps(to, elements &* element, size) { return 0 }
        logRun(target, elements &* element)
        fill(target, gpr[0], Int(elements), Int(element))
        advance(7, i, by: elements)
        return elements
    }

    @inline(__always)
    private func wraps(_ start: UInt64, _ length: UInt64, _ size: UInt8) -> Bool {
        size != 8 && start &+ length &- 1 > (size == 4 ? 0xFFFF_FFFF : 0xFFFF)
    }

    private func fill(_ target: UnsafeMutablePointer<UInt8>, _ value: UInt64, _ count: Int, _ size: Int) {
        let raw = UnsafeMutableRawPointer(target)
        switch size {
        case 1: target.update(repeating: UInt8(truncatingIfNeeded: value), count: count)
        case 2:
            for n in 0..<count {
                raw.storeBytes(of: UInt16(truncatingIfNeeded: value), toByteOffset: n * 2, as: UInt16.self)
            }
        case 4:
            for n in 0..<count {
                raw.storeBytes(of: UInt32(truncatingIfNeeded: value), toByteOffset: n * 4, as: UInt32.self)
            }
        default: for n in 0..<count { raw.storeBytes(of: value, toByteOffset: n * 8, as: UInt64.self) }
        }
    }

    /// One element; true when REPE or REPNE ends here.
    private func stringElement(_ i: UnsafePointer<Instruction>) throws(CPUException) -> Bool {
        switch i.pointee.operandSize {
        case 8: try stringElement(i, UInt64.self)
        case 4: try stringElement(i, UInt32.self)
        case 1: try stringElement(i, UInt8.self)
        default: try stringElement(i, UInt16.self)
        }
    }

    private func stringElement<T: GuestInteger>(
        _ i: UnsafePointer<Instruction>, _ type: T.Type
    ) throws(CPUException) -> Bool {
        let size = i.pointee.addressSize
        let source = Int(i.pointee.segment)
        let from = truncateAddress(gpr[6], size)
        let to = truncateAddress(gpr[7], size)
        let compare = UInt32(ROOST_ALU_CMP)
        switch i.pointee.operation {
        case .movs:
            try store(Int(ROOST_ES), to, try load(source, from, as: T.self))
            advance(6, i)
            advance(7, i)
        case .stos:
            try store(Int(ROOST_ES), to, readRegister(0, as: T.self))
            advance(7, i)
        case .lods:
            writeRegister(0, try load(source, from, as: T.self))
            advance(6, i)
        case .cmps:
            let b: T = try load(Int(ROOST_ES), to)
            let a: T = try load(source, from)
            _ = alu(compare, a, b)
            advance(6, i)
            advance(7, i)
            return stops(i)
        case .scas:
            let value: T = try load(Int(ROOST_ES), to)
            _ = alu(compare, readRegister(0, as: T.self), value)
            advance(7, i)
            return stops(i)
        case .ins:
            let port = UInt16(truncatingIfNeeded: gpr[2])
            try checkIOPermission(port: port, size: MemoryLayout<T>.size)
            // A fault of the destination comes before the port is read.
            if s.pointee.completed_next == s.pointee.completed_count { let _: T = try loadForWrite(Int(ROOST_ES), to) }
            let value = try answer(.portRead, address: UInt64(port), size: MemoryLayout<T>.size, value: 0)
            try store(Int(ROOST_ES), to, T(truncatingIfNeeded: value))
            advance(7, i)
        default:
            let port = UInt16(truncatingIfNeeded: gpr[2])
            try checkIOPermission(port: port, size: MemoryLayout<T>.size)
            let value: T = try load(source, from)
            _ = try answer(
                .portWrite, address: UInt64(port), size: MemoryLayout<T>.size, value: UInt64(truncatingIfNeeded: value))
            advance(6, i)
        }
        return false
    }

    @inline(__always)
    private func stops(_ i: UnsafePointer<Instruction>) -> Bool {
        let zero = s.pointee.arithmetic_flags & 0x4000 != 0
        return i.pointee.prefixes.contains(.repne) ? zero : !zero
    }

    /// IN, OUT with an immediate port or DX.
    func portAccess(_ i: UnsafePointer<Instruction>, write: Bool) throws(CPUException) {
        let port =
            i.pointee.form == .none
            ? UInt16(truncatingIfNeeded: gpr[2]) : UInt16(truncatingIfNeeded: i.pointee.immediate & 0xFF)
        let size = Int(i.pointee.operandSize)
        try checkIOPermission(port: port, size: size)
        if write {
            let mask: UInt64 = size == 1 ? 0xFF : size == 2 ? 0xFFFF : 0xFFFF_FFFF
            _ = try answer(.portWrite, address: UInt64(port), size: size, value: gpr[0] & mask)
        } else {
            writeSized(0, try answer(.portRead, address: UInt64(port), size: size, value: 0), UInt8(size))
        }
    }
}
