// FXSAVE and the XSAVE family, LDMXCSR and STMXCSR (SDM 1 10.5 and chapter 13).
//
// The state block holds the standard form: legacy region 0-511, header 512-575, YMM high halves 576-831. All components
// count as in use. Header: 512 XSTATE_BV, 520 XCOMP_BV (63 compacted). Components: 0 x87, 1 SSE, 2 AVX, 9 PKRU.
// PKRU is no part of the block's area: it is a register of its own there.
internal import CHost

/// Where components lie in an XSAVE area (SDM 1 13.4.2, 13.4.3).
enum ExtendedState {
    /// PKRU's component, 9.
    static var pkru: UInt64 { 1 << 9 }
    /// Its place in the standard form, as CPUID.0D.9 tells.
    static var pkruOffset: UInt64 { 832 }

    /// Bytes of the standard form with these components.
    static func standardSize(_ components: UInt64) -> UInt32 {
        components & pkru != 0 ? 840 : components & 4 != 0 ? 832 : 576
    }

    /// Bytes of the compacted form with these components.
    static func compactedSize(_ components: UInt64) -> UInt32 {
        UInt32(compactedPKRU(components)) + (components & pkru != 0 ? 8 : 0)
    }

    /// PKRU's place in the compacted form with these components: after AVX's, if it is one of them.
    static func compactedPKRU(_ components: UInt64) -> UInt64 { components & 4 != 0 ? 832 : 576 }
}

extension VCPU {
    /// Bits of MXCSR that exist.
    static var mxcsrMask: UInt32 { 0xFFFF }

    func executeExtendedState(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        switch i.pointee.operation {
        case .ldmxcsr:
            try checkSIMD(avx: i.pointee.prefixes.contains(.vex))
            let value: UInt32 = try load(Int(i.pointee.segment), effectiveAddress(i))
            if value & ~Self.mxcsrMask != 0 { throw .generalProtection(0) }
            area.storeBytes(of: value, toByteOffset: 24, as: UInt32.self)
        case .stmxcsr:
            try checkSIMD(avx: i.pointee.prefixes.contains(.vex))
            try store(Int(i.pointee.segment), effectiveAddress(i), area.load(fromByteOffset: 24, as: UInt32.self))
        case .fxsave, .fxrstor:
            if s.pointee.cr0 & 0xC != 0 { throw s.pointee.cr0 & 4 != 0 ? .invalidOpcode : .deviceNotAvailable }
            let offset = try alignedAddress(i, 15)
            if i.pointee.operation == .fxsave { try fxsave(i, offset) } else { try fxrstor(i, offset) }
        default: try executeXSAVE(i)
        }
    }

    private func alignedAddress(_ i: UnsafePointer<Instruction>, _ mask: UInt64) throws(CPUException) -> UInt64 {
        let offset = effectiveAddress(i)
        let linear = offset &+ roost_effective_base_at(s, Int(i.pointee.segment)).pointee
        if linear & mask != 0 { throw .generalProtection(0) }
        return offset
    }

    /// XMM and YMM registers that the mode has.
    private var vectorCount: Int { s.pointee.code_size == 8 ? 16 : 8 }

    /// Stores `count` bytes of the state at `from` to `offset &+ to`.
    private func storeRange(_ segment: Int, _ offset: UInt64, from: Int, to: Int, _ count: Int) throws(CPUException) {
        var n = 0
        while n < count {
            try store(segment, offset &+ UInt64(to &+ n), area.load(fromByteOffset: from &+ n, as: UInt64.self))
            n &+= 8
        }
    }

    private func probeArea(_ segment: Int, _ offset: UInt64, _ size: Int) throws(CPUException) {
        let _: UInt8 = try loadForWrite(segment, offset)
        let _: UInt8 = try loadForWrite(segment, offset &+ UInt64(size &- 1))
    }

    /// FCW to FDP; the pointers are 32 bits wide and have zero selectors without REX.W.
    private func storeX87Header(_ segment: Int, _ offset: UInt64, wide: Bool) throws(CPUException) {
        let mask: UInt64 = wide ? ~0 : 0xFFFF_FFFF
        try store(segment, offset, area.load(fromByteOffset: 0, as: UInt64.self))
        try store(segment, offset &+ 8, area.load(fromByteOffset: 8, as: UInt64.self) & mask)
        try store(segment, offset &+ 16, area.load(fromByteOffset: 16, as: UInt64.self) & mask)
    }

    private func storeMXCSR(_ segment: Int, _ offset: UInt64) throws(CPUException) {
        try store(segment, offset &+ 24, area.load(fromByteOffset: 24, as: UInt32.self))
        try store(segment, offset &+ 28, Self.mxcsrMask)
    }

    private func fxsave(_ i: UnsafePointer<Instruction>, _ offset: UInt64) throws(CPUException) {
        let segment = Int(i.pointee.segment)
        try probeArea(segment, offset, 512)
        try storeX87Header(segment, offset, wide: i.pointee.prefixes.contains(.wide))
        try storeMXCSR(segment, offset)
        try storeRange(segment, offset, from: 32, to: 32, 128 &+ 16 &* vectorCount)
    }

    private typealias Image = UnsafeMutablePointer<UInt64>

    /// Loads `count` bytes into `image`.
    private func loadRange(_ segment: Int, _ offset: UInt64, _ image: Image, at: Int, _ count: Int) throws(CPUException)
    {
        for n in 0..<(count / 8) {
            image[at / 8 &+ n] = try load(segment, offset &+ UInt64(8 &* n))
        }
    }

    /// Runs `body` with 832 bytes.
    private func withImage(_ body: (Image) throws(CPUException) -> Void) throws(CPUException) {
        let image = Image.allocate(capacity: 104)
        defer { image.deallocate() }
        try body(image)
    }

    private func takeX87(_ image: Image, wide: Bool) {
        area.copyMemory(from: image, byteCount: 24)
        area.storeBytes(of: area.load(fromByteOffset: 4, as: UInt8.self), toByteOffset: 4, as: UInt8.self)
        area.storeBytes(of: 0, toByteOffset: 5, as: UInt8.self)
        area.storeBytes(of: area.load(fromByteOffset: 6, as: UInt16.self) & 0x7FF, toByteOffset: 6, as: UInt16.self)
        if !wide {
            area.storeBytes(of: 0, toByteOffset: 12, as: UInt32.self)
            area.storeBytes(of: 0, toByteOffset: 20, as: UInt32.self)
        }
        for n in 0..<8 {
            area.storeBytes(of: image[4 &+ 2 &* n], toByteOffset: 32 &+ 16 &* n, as: UInt64.self)
            area.storeBytes(of: image[5 &+ 2 &* n] & 0xFFFF, toByteOffset: 40 &+ 16 &* n, as: UInt64.self)
        }
        area.storeBytes(
            of: (area.load(fromByteOffset: 0, as: UInt16.self) & 0x1F7F) | 0x40, toByteOffset: 0, as: UInt16.self)
        summarize()
    }

    private func fxrstor(_ i: UnsafePointer<Instruction>, _ offset: UInt64) throws(CPUException) {
        let segment = Int(i.pointee.segment)
        try withImage { (image) throws(CPUException) in
            try loadRange(segment, offset, image, at: 0, 416)
            let mxcsr = UInt32(truncatingIfNeeded: image[3])
            if mxcsr & ~Self.mxcsrMask != 0 { throw .generalProtection(0) }
            takeX87(image, wide: i.pointee.prefixes.contains(.wide))
            area.storeBytes(of: mxcsr, toByteOffset: 24, as: UInt32.self)
            (area + 160).copyMemory(from: image + 20, byteCount: 16 &* vectorCount)
        }
    }

    // MARK: XSAVE

    private func executeXSAVE(_ i: UnsafePointer<Instruction>) throws(CPUException) {
        if s.pointee.cr4 & 0x40000 == 0 { throw .invalidOpcode }
        let operation = i.pointee.operation
        let supervisor = operation == .xsaves || operation == .xrstors
        if supervisor && s.pointee.cpl != 0 { throw .generalProtection(0) }
        if s.pointee.cr0 & 8 != 0 { throw .deviceNotAvailable }
        let offset = try alignedAddress(i, 63)
        let requested = (gpr[0] & 0xFFFF_FFFF) & s.pointee.xcr0
        let segment = Int(i.pointee.segment)
        let wide = i.pointee.prefixes.contains(.wide)
        switch operation {
        case .xsave, .xsaveopt: try xsave(segment, offset, requested, compacted: false, wide: wide)
        case .xsavec, .xsaves: try xsave(segment, offset, requested, compacted: true, wide: wide)
        case .xrstor, .xrstors: try xrstor(segment, offset, requested, supervisor: supervisor, wide: wide)
        default: throw .invalidOpcode
        }
    }

    private func xsave(_ segment: Int, _ offset: UInt64, _ requested: UInt64, compacted: Bool, wide: Bool)
        throws(CPUException)
    {
        try probeArea(
            segment, offset,
            Int(compacted ? ExtendedState.compactedSize(requested) : ExtendedState.standardSize(requested)))
        let old: UInt64 = compacted ? 0 : try load(segment, offset &+ 512)
        if requested & 1 != 0 {
            try storeX87Header(segment, offset, wide: wide)
            try storeRange(segment, offset, from: 32, to: 32, 128)
        }
        if requested & (compacted ? 2 : 6) != 0 { try storeMXCSR(segment, offset) }
        if requested & 2 != 0 { try storeRange(segment, offset, from: 160, to: 160, 16 &* vectorCount) }
        if requested & 4 != 0 { try storeRange(segment, offset, from: 576, to: 576, 16 &* vectorCount) }
        if requested & ExtendedState.pkru != 0 {
            let place = compacted ? ExtendedState.compactedPKRU(requested) : ExtendedState.pkruOffset
            try store(segment, offset &+ place, UInt64(s.pointee.pkru))
        }
        try store(segment, offset &+ 512, (old & ~requested) | requested)
        if compacted { try store(segment, offset &+ 520, requested | 1 << 63) }
    }

    private func xrstor(_ segment: Int, _ offset: UInt64, _ requested: UInt64, supervisor: Bool, wide: Bool)
        throws(CPUException)
    {
        try withImage { (image) throws(CPUException) in
            try loadRange(segment, offset &+ 512, image, at: 512, 64)
            let present = image[64]
            let compacted = image[65] >> 63 != 0
            try checkHeader(image, supervisor: supervisor)
            let load = requested & present
            try loadRange(segment, offset, image, at: 0, 32)
            let mxcsr = UInt32(truncatingIfNeeded: image[3])
            let takesMXCSR = compacted ? load & 2 != 0 : requested & 6 != 0
            if takesMXCSR && mxcsr & ~Self.mxcsrMask != 0 { throw .generalProtection(0) }
            if load & 1 != 0 { try loadRange(segment, offset &+ 32, image, at: 32, 128) }
            if load & 2 != 0 { try loadRange(segment, offset &+ 160, image, at: 160, 16 &* vectorCount) }
            if load & 4 != 0 { try loadRange(segment, offset &+ 576, image, at: 576, 16 &* vectorCount) }
            var pkru: UInt64 = 0
            if load & ExtendedState.pkru != 0 {
                let place = compacted ? ExtendedState.compactedPKRU(image[65]) : ExtendedState.pkruOffset
                pkru = try self.load(segment, offset &+ place)
            }
            if requested & ExtendedState.pkru != 0 { setPKRU(UInt32(truncatingIfNeeded: pkru)) }
            if load & 1 != 0 {
                takeX87(image, wide: wide)
            } else if requested & 1 != 0 {
                resetX87()
                (area + 32).initializeMemory(as: UInt8.self, repeating: 0, count: 128)
            }
            if takesMXCSR {
                area.storeBytes(of: mxcsr, toByteOffset: 24, as: UInt32.self)
            } else if requested & 2 != 0 {
                area.storeBytes(of: 0x1F80, toByteOffset: 24, as: UInt32.self)
            }
            takeVectors(image, 160, requested & 2, load & 2)
            takeVectors(image, 576, requested & 4, load & 4)
        }
    }

    private func takeVectors(_ image: Image, _ at: Int, _ requested: UInt64, _ load: UInt64) {
        if load != 0 {
            (area + at).copyMemory(from: image + at / 8, byteCount: 16 &* vectorCount)
        } else if requested != 0 {
            (area + at).initializeMemory(as: UInt8.self, repeating: 0, count: 16 &* vectorCount)
        }
    }

    /// #GP(0) for a header that XRSTOR refuses (SDM 1 13.8.1, 13.8.2, 13.12).
    private func checkHeader(_ image: Image, supervisor: Bool) throws(CPUException) {
        let available = s.pointee.xcr0
        let present = image[64]
        let format = image[65]
        if format >> 63 == 0 {
            if supervisor || present & ~available != 0 || format != 0 || image[66] != 0 { throw .generalProtection(0) }
        } else {
            if format & ~(1 << 63) & ~available != 0 || present & ~format != 0 || present >> 63 != 0 {
                throw .generalProtection(0)
            }
            for n in 66..<72 where image[n] != 0 { throw .generalProtection(0) }
        }
    }
}
