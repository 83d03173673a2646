// Which pages of user code may run natively: those without an instruction that would show the host's processor.
//
// Patterns are looked for at every byte. Where one is found, the page is decoded from its first byte on: x86 code falls
// into step with itself after a few instructions, so that a pattern inside an immediate or a displacement is told from an
// instruction. Where decoding can't tell (data, an invalid byte), the pattern counts as an instruction.
//
// | bytes | instruction | shows |
// |---|---|---|
// | 0F 00 /0 /1 /4 /5 | SLDT STR VERR VERW | descriptors |
// | 0F 01 /0 /1 /4 | SGDT SIDT SMSW | tables, CR0 |
// | 0F 01 C1 CF D0 D7 D9 EE EF F9…FC | VMCALL, XGETBV, ENCLU, VMMCALL, PKRU, RDTSCP, MONITORX, CLZERO … | features, time |
// | 0F 02, 0F 03 | LAR LSL | descriptors; the processor's number |
// | 0F 31 | RDTSC | time |
// | 0F 34 | SYSENTER | loses RIP in the host's entry |
// | 0F A2 | CPUID | the model |
// | 0F C7 /6 /7 | RDRAND RDSEED RDPID | features, the processor's number |
internal import CHost
internal import GuestMemory

/// Scans of pages for forbidden instructions.
package enum CodeScan {
    /// Whether two bytes may begin a forbidden instruction; `third` decides where a group is meant.
    @inline(__always)
    static func isForbidden(_ second: UInt8, _ third: UInt8) -> Bool {
        switch second {
        case 0x02, 0x03, 0x31, 0x34, 0xA2: true
        case 0x00: third & 0x10 == 0
        case 0x01:
            switch third {
            case 0xC1, 0xCF, 0xD0, 0xD7, 0xD9, 0xE0...0xE7, 0xEE, 0xEF, 0xF9...0xFC: true
            case 0xC0...0xFF: false
            default: third & 0x38 == 0 || third & 0x38 == 8 || third & 0x38 == 0x20
            }
        case 0xC7: third & 0x30 == 0x30 && third >= 0xC0
        default: false
        }
    }

    /// Whether a page may be executed. `next`: what follows it linearly, at least 16 bytes; nil when unknown.
    package static func mayRun(_ bytes: UnsafePointer<UInt8>, next: UnsafePointer<UInt8>?) -> Bool {
        var n = 0
        var decoded = -1
        while true {
            n = Int(roost_find_byte(bytes, UInt64(n), 4096, 0x0F))
            if n >= 4096 { return true }
            let second: UInt8? = n + 1 < 4096 ? bytes[n + 1] : next?[0]
            let third: UInt8? = n + 2 < 4096 ? bytes[n + 2] : next?[n + 2 - 4096]
            // The page's last byte is an escape and nobody knows what follows.
            guard let second, let third else {
                if n + 1 < 4096 && !isForbidden(bytes[n + 1], 0xFA) && !isForbidden(bytes[n + 1], 0) {
                    n += 1
                    continue
                }
                return false
            }
            if isForbidden(second, third) {
                if isInstruction(at: n, bytes, next, &decoded) { return false }
            }
            n += 1
        }
    }

    /// Whether the escape byte at `place` begins an opcode, by decoding on from `position` (-1: from the page's start).
    private static func isInstruction(
        at place: Int, _ bytes: UnsafePointer<UInt8>, _ next: UnsafePointer<UInt8>?, _ position: inout Int
    ) -> Bool {
        // Too early for decoding to have fallen into step.
        if place < 32 { return true }
        var i = Instruction()
        var at = max(position, 0)
        while at <= place {
            var result = Decoder.decode(bytes + at, available: 4096 - at, codeSize: 8, into: &i)
            if result == .needMoreBytes {
                guard let next else { return true }
                result = decodeAcross(bytes, at, next, &i)
            }
            guard result == .ok else {
                // Data, or out of step: go on at the next byte; a pattern here counts.
                if at == place { return true }
                at += 1
                continue
            }
            let end = at + Int(i.length)
            if end > place {
                position = at
                // Inside this instruction: as its opcode (after prefixes), or as a later byte of it.
                return isOpcode(place - at, bytes + at)
            }
            at = end
        }
        position = at
        return false
    }

    /// Whether only prefixes stand before byte `offset` of an instruction.
    private static func isOpcode(_ offset: Int, _ bytes: UnsafePointer<UInt8>) -> Bool {
        for n in 0..<offset {
            switch bytes[n] {
            case 0x26, 0x2E, 0x36, 0x3E, 0x40...0x4F, 0x64...0x67, 0xF0, 0xF2, 0xF3: continue
            default: return false
            }
        }
        return true
    }

    private static func decodeAcross(
        _ bytes: UnsafePointer<UInt8>, _ at: Int, _ next: UnsafePointer<UInt8>, _ i: inout Instruction
    ) -> DecodeResult {
        var joined: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
        let head = min(4096 - at, 16)
        return withUnsafeMutableBytes(of: &joined) { buffer in
            for n in 0..<head { buffer[n] = bytes[at + n] }
            for n in 0..<16 { buffer[head + n] = next[n] }
            let start = UnsafePointer(buffer.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: UInt8.self))
            return Decoder.decode(start, available: head + 16, codeSize: 8, into: &i)
        }
    }
}
