// Which pages of user code may run natively: those without an instruction that would show the host's processor.
//
// Patterns are looked for at every byte. Where one is found, what stands before it is decoded: x86 code falls into step
// with itself after a few instructions, so that a pattern inside an immediate or a displacement is told from an
// instruction. A page whose forbidden instructions are known runs in a private copy without them; where decoding can't
// tell, the page is left to the translator.
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
// | 0F AE /4 /6 with memory | XSAVE XSAVEOPT | XCR0, in the area's header |
// | 0F C7 /4 with memory | XSAVEC | the same; the guest's XRSTOR would refuse the area |
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
        case 0xAE: third < 0xC0 && (third & 0x38 == 0x20 || third & 0x38 == 0x30)
        case 0xC7: third >= 0xC0 ? third & 0x30 == 0x30 : third & 0x38 == 0x20
        default: false
        }
    }

    /// Whether the second byte may belong to a forbidden instruction.
    static func mayBeForbidden(_ second: UInt8) -> Bool {
        switch second {
        case 0x00...0x03, 0x31, 0x34, 0xA2, 0xAE, 0xC7: true
        default: false
        }
    }

    /// A page of code with what stands before and after it linearly; nil: unknown.
    package struct Page {
        let bytes: UnsafePointer<UInt8>
        let previous: UnsafePointer<UInt8>?
        let next: UnsafePointer<UInt8>?

        /// A page and its neighbors.
        package init(_ bytes: UnsafePointer<UInt8>, previous: UnsafePointer<UInt8>?, next: UnsafePointer<UInt8>?) {
            self.bytes = bytes
            self.previous = previous
            self.next = next
        }

        /// The byte at an offset from the page's start, -4096 to 8191.
        subscript(_ n: Int) -> UInt8? {
            n < 0 ? previous?[n + 4096] : n < 4096 ? bytes[n] : next?[n - 4096]
        }

        /// Whether what follows may make a forbidden instruction of its last bytes.
        var dependsOnNext: Bool { bytes[4095] == 0x0F || bytes[4094] == 0x0F && CodeScan.mayBeForbidden(bytes[4095]) }
    }

    /// Whether a page may be executed as it is.
    package static func mayRun(_ page: Page) -> Bool { forbidden(page, most: 0) != nil }

    /// Where a page's forbidden instructions begin; nil: there are more than `most`, or it isn't clear where.
    package static func forbidden(_ page: Page, most: Int) -> [Int]? {
        var found: [Int] = []
        var n = 0
        while true {
            n = Int(roost_find_byte(page.bytes, UInt64(n), 4096, 0x0F))
            if n >= 4096 { return found }
            // The page's last byte is an escape and nobody knows what follows.
            guard let second = page[n + 1], let third = page[n + 2] else {
                if n + 1 < 4096 && !mayBeForbidden(page.bytes[n + 1]) {
                    n += 1
                    continue
                }
                return nil
            }
            if isForbidden(second, third) {
                switch verdict(at: n, page) {
                case .none: break
                case .unclear: return nil
                case .begins(let start):
                    // One that begins in the page before is guarded there.
                    if found.count >= most || start < 0 { return nil }
                    found.append(start)
                }
            }
            n += 1
        }
    }

    /// What an escape byte is.
    private enum Verdict {
        /// Part of another instruction.
        case none
        /// An opcode of the instruction that begins there.
        case begins(Int)
        case unclear
    }

    /// What the escape byte at `place` is: by decoding from each of sixteen bytes some way before it. Most of these chains
    /// fall into step with the code; that it is an instruction must be the word of all.
    private static func verdict(at place: Int, _ page: Page) -> Verdict {
        var window: [UInt8] = []
        var origin = place - 96
        for n in place - 96..<place + 32 {
            if let byte = page[n] {
                window.append(byte)
            } else if n < place {
                (window, origin) = ([], n + 1)
            } else {
                break
            }
        }
        let target = place - origin
        var (others, begins, start) = (0, 0, -1)
        for first in 0..<min(16, target + 1) {
            switch chain(from: first, to: target, window) {
            case .none: others += 1
            case .unclear: break
            case .begins(let at):
                if begins > 0 && at != start { return .unclear }
                start = at
                begins += 1
            }
        }
        if begins == 0 { return others > 0 ? .none : .unclear }
        if others == 0 { return .begins(start + origin) }
        return others > 2 * begins ? .none : .unclear
    }

    /// What one chain of instructions says of the escape byte at `place`; `.unclear`: it breaks off.
    private static func chain(from first: Int, to place: Int, _ window: [UInt8]) -> Verdict {
        window.withUnsafeBufferPointer { buffer in
            guard let bytes = buffer.baseAddress else { return .unclear }
            var i = Instruction()
            var at = first
            while at <= place {
                let available = buffer.count - at
                let result = Decoder.decode(bytes + at, available: available, codeSize: 8, into: &i)
                let length = result == .ok ? Int(i.length) : lengthOfMore(bytes + at, available: available)
                if length == 0 { return .unclear }
                // Inside this instruction: as its opcode (after prefixes), or as a later byte of it.
                if at + length > place {
                    return result == .ok && isOpcode(place - at, bytes + at) ? .begins(at) : .none
                }
                at += length
            }
            return .none
        }
    }

    /// Length of an instruction that the decoder doesn't know: AVX-512 in EVEX and VEX encoding, transactions, and what else
    /// 0F 01 has; 0: it is none.
    ///
    /// - Spec: SDM 2A 2.3 and 2.7.
    private static func lengthOfMore(_ bytes: UnsafePointer<UInt8>, available: Int) -> Int {
        if available < 12 { return 0 }
        let header: Int
        let map: UInt8
        switch bytes[0] {
        case 0x62: (header, map) = (4, bytes[1] & 7)
        case 0xC4: (header, map) = (3, bytes[1] & 31)
        case 0xC5: (header, map) = (2, 1)
        case 0x0F: return bytes[1] == 1 && bytes[2] >= 0xC0 ? 3 : 0
        case 0xC6: return bytes[1] == 0xF8 ? 3 : 0
        case 0xC7: return bytes[1] == 0xF8 ? 6 : 0
        default: return 0
        }
        let (opcode, modRM) = (bytes[header], bytes[header + 1])
        var length = header + 2
        let mode = modRM >> 6
        var base = modRM & 7
        if mode != 3 {
            if base == 4 {
                base = bytes[length] & 7
                length += 1
            }
            length += mode == 1 ? 1 : mode == 2 || base == 5 ? 4 : 0
        }
        switch opcode {
        case 0x70...0x73, 0xC2, 0xC4...0xC6: return map == 1 || map == 3 ? length + 1 : length
        default: return map == 3 ? length + 1 : length
        }
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
}
