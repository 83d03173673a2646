// Moves and gathers of which a mask says the elements: elements that the mask leaves out are not touched in memory.
//
// - Spec: SDM 2 MASKMOVDQU, VMASKMOV, VPMASKMOV, VPGATHER.
internal import CHost

extension VCPU {
    /// Eight bytes of a vector register; `n` 0 to 3.
    @inline(__always)
    private func quad(_ register: UInt8, _ n: Int) -> UnsafeMutablePointer<UInt64> {
        let place = (n & 3) < 2 ? 160 &+ 8 &* (n & 3) : 576 &+ 8 &* ((n & 3) &- 2)
        return (area + (place &+ 16 &* Int(register & 15))).assumingMemoryBound(to: UInt64.self)
    }

    private func element(_ register: UInt8, _ n: Int, _ size: Int) -> UInt64 {
        size == 8 ? quad(register, n).pointee : (quad(register, n / 2).pointee &>> (UInt64(n & 1) &* 32)) & 0xFFFF_FFFF
    }

    private func setElement(_ register: UInt8, _ n: Int, _ size: Int, _ value: UInt64) {
        if size == 8 {
            quad(register, n).pointee = value
        } else {
            let shift = UInt64(n & 1) &* 32
            let p = quad(register, n / 2)
            p.pointee = (p.pointee & ~(0xFFFF_FFFF &<< shift)) | (value & 0xFFFF_FFFF) &<< shift
        }
    }

    private func loadElement(_ segment: Int, _ offset: UInt64, _ size: Int) throws(CPUException) -> UInt64 {
        if size == 8 { return try load(segment, offset) }
        let value: UInt32 = try load(segment, offset)
        return UInt64(value)
    }

    /// VMASKMOVPS, VMASKMOVPD, VPMASKMOVD, VPMASKMOVQ.
    func maskedMove(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let opcode = i.pointee.opcode
        let isStore = opcode == 0x2E || opcode == 0x2F || opcode == 0x8E
        let isQuad = opcode < 0x80 ? opcode & 1 != 0 : i.pointee.prefixes.contains(.wide)
        let size = isQuad ? 8 : 4
        let count = (i.pointee.prefixes.contains(.vex256) ? 32 : 16) / size
        let segment = Int(i.pointee.segment)
        let address = effectiveAddress(i)
        let top = UInt64(size &* 8 &- 1)
        var values: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0, 0, 0, 0, 0)
        // Stores: every selected element is probed first.
        for pass in 0..<2 {
            for n in 0..<count {
                let selected = element(i.pointee.extra, n, size) >> top & 1 != 0
                let offset = address &+ UInt64(n &* size)
                if isStore {
                    if !selected { continue }
                    if pass == 0 {
                        if size == 8 {
                            let _: UInt64 = try loadForWrite(segment, offset)
                        } else {
                            let _: UInt32 = try loadForWrite(segment, offset)
                        }
                    } else if size == 8 {
                        try store(segment, offset, element(i.pointee.reg, n, 8))
                    } else {
                        try store(segment, offset, UInt32(truncatingIfNeeded: element(i.pointee.reg, n, 4)))
                    }
                } else if pass == 0 {
                    let value = selected ? try loadElement(segment, offset, size) : 0
                    withUnsafeMutableBytes(of: &values) {
                        $0.storeBytes(of: value, toByteOffset: n &* 8, as: UInt64.self)
                    }
                } else {
                    if n == 0 { for q in 0..<4 { quad(i.pointee.reg, q).pointee = 0 } }
                    let value = withUnsafeBytes(of: values) { $0.load(fromByteOffset: n &* 8, as: UInt64.self) }
                    setElement(i.pointee.reg, n, size, value)
                }
            }
        }
    }

    /// MASKMOVQ and MASKMOVDQU: to DS:rDI, or the overriding segment.
    func byteMaskedMove(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        let isMMX = i.pointee.operation == .mmx
        if isMMX { enterMMX() }
        let data = UnsafeRawPointer(area + ((isMMX ? 32 : 160) &+ 16 &* Int(i.pointee.reg & 15)))
        let mask = UnsafeRawPointer(area + ((isMMX ? 32 : 160) &+ 16 &* Int(i.pointee.rm & 15)))
        let base = truncateAddress(gpr[7], i.pointee.addressSize)
        let segment = Int(i.pointee.segment)
        try probeStore(segment, base, isMMX ? 8 : 16, always: true)
        for pass in 0..<2 {
            for n in 0..<(isMMX ? 8 : 16) where mask.load(fromByteOffset: n, as: UInt8.self) & 0x80 != 0 {
                let offset = truncateAddress(base &+ UInt64(n), i.pointee.addressSize)
                if pass == 0 {
                    let _: UInt8 = try loadForWrite(segment, offset)
                } else {
                    try store(segment, offset, data.load(fromByteOffset: n, as: UInt8.self))
                }
            }
        }
    }

    /// What any MMX instruction but EMMS does to the x87 state: TOP 0, all registers valid.
    func enterMMX() {
        rotateX87(to: 0)
        area.storeBytes(of: 0xFF, toByteOffset: 4, as: UInt8.self)
    }

    /// Sets TOP. The image begins with ST(0), so the registers move.
    func rotateX87(to top: Int) {
        let status = area.load(fromByteOffset: 2, as: UInt16.self)
        let turn = top &- Int(status >> 11)
        var old = [8 of UInt64](repeating: 0)
        for half in 0..<2 {
            for n in 0..<8 { old[n] = area.load(fromByteOffset: 32 &+ 16 &* n &+ 8 &* half, as: UInt64.self) }
            for n in 0..<8 {
                area.storeBytes(of: old[(n &+ turn) & 7], toByteOffset: 32 &+ 16 &* n &+ 8 &* half, as: UInt64.self)
            }
        }
        area.storeBytes(of: (status & ~0x3800) | UInt16(top & 7) << 11, toByteOffset: 2, as: UInt16.self)
    }

    /// Gathers, element by element: what was loaded is in its place and its mask cleared when another one faults.
    func gather(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        // Without a SIB byte there is no such instruction.
        guard i.pointee.index < 16 else { throw .invalidOpcode }
        let size = i.pointee.prefixes.contains(.wide) ? 8 : 4
        let indexSize = i.pointee.opcode & 1 != 0 ? 8 : 4
        let vector = i.pointee.prefixes.contains(.vex256) ? 32 : 16
        let count = vector / max(size, indexSize)
        let (destination, mask) = (i.pointee.reg, i.pointee.extra)
        let segment = Int(i.pointee.segment)
        let top = UInt64(size &* 8 &- 1)
        for n in 0..<count {
            if element(mask, n, size) >> top & 1 == 0 {
                setElement(mask, n, size, 0)
                continue
            }
            var index = element(i.pointee.index, n, indexSize)
            if indexSize == 4 { index = UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: index))) }
            var address = UInt64(bitPattern: Int64(i.pointee.displacement)) &+ (index &<< UInt64(i.pointee.scale & 3))
            if i.pointee.base < 16 { address = address &+ gpr[Int(i.pointee.base)] }
            let value = try loadElement(segment, truncateAddress(address, i.pointee.addressSize), size)
            setElement(destination, n, size, value)
            setElement(mask, n, size, 0)
        }
        for q in 0..<4 { quad(mask, q).pointee = 0 }
        // Bits past the gathered elements are zero.
        for q in count &* size / 8..<4 { quad(destination, q).pointee = 0 }
    }
}
