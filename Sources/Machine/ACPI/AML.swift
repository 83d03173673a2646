// A small encoder for the ACPI Machine Language: what the board's DSDT needs.
//
// - Spec: ACPI 6.5, chapter 20 (AML), section 6.4 (resource descriptors).

/// AML as bytes, made by nesting.
package struct AML: Equatable, Sendable {
    /// The encoding.
    package var bytes: [UInt8]

    /// A run of terms.
    package init(_ parts: [AML] = []) { bytes = parts.flatMap(\.bytes) }

    init(raw: [UInt8]) { bytes = raw }

    /// PkgLength: covers itself and `length` bytes that follow.
    ///
    /// - Spec: 20.2.4.
    static func packageLength(_ length: Int) -> [UInt8] {
        if length + 1 < 0x40 { return [UInt8(length + 1)] }
        for extra in 1...3 {
            let total = length + 1 + extra
            if total < 1 << (4 + 8 * extra) {
                return [UInt8(extra << 6 | total & 15)]
                    + (0..<extra).map { UInt8(truncatingIfNeeded: total >> (4 + 8 * $0)) }
            }
        }
        return [0]
    }

    /// A name path: `\` for the root, segments of up to four characters separated by dots.
    static func name(_ path: String) -> [UInt8] {
        var rest = Substring(path)
        var result: [UInt8] = []
        if rest.first == "\\" {
            result.append(0x5C)
            rest = rest.dropFirst()
        }
        let segments = rest.split(separator: ".")
        if segments.count == 2 { result.append(0x2E) }
        if segments.count > 2 { result += [0x2F, UInt8(segments.count)] }
        if segments.isEmpty { result.append(0) }
        for segment in segments { result += Array((Array(segment.utf8) + Array("____".utf8)).prefix(4)) }
        return result
    }

    private static func block(_ opcode: [UInt8], _ head: [UInt8], _ body: [AML]) -> AML {
        let content = head + AML(body).bytes
        return AML(raw: opcode + packageLength(content.count) + content)
    }

    /// Scope (path) { … }
    package static func scope(_ path: String, _ body: [AML]) -> AML { block([0x10], name(path), body) }
    /// Device (name) { … }
    package static func device(_ path: String, _ body: [AML]) -> AML { block([0x5B, 0x82], name(path), body) }
    /// Processor-independent: Name (path, value)
    package static func define(_ path: String, _ value: AML) -> AML { AML(raw: [0x08] + name(path) + value.bytes) }
    /// Package () { … }
    package static func package(_ elements: [AML]) -> AML { block([0x12], [UInt8(elements.count & 255)], elements) }
    /// Method (name, 0, NotSerialized) { … }
    package static func method(_ path: String, _ body: [AML]) -> AML { block([0x14], name(path) + [0], body) }
    /// Method (name, 1, Serialized) { … }
    package static func handler(_ path: String, _ body: [AML]) -> AML { block([0x14], name(path) + [0x09], body) }
    /// Notify (object, value)
    package static func notify(_ path: String, _ value: UInt64) -> AML {
        AML(raw: [0x86] + name(path) + integer(value).bytes)
    }
    /// If (predicate) { … }
    package static func when(_ predicate: AML, _ body: [AML]) -> AML { block([0xA0], predicate.bytes, body) }
    /// And (left, right)
    package static func and(_ left: AML, _ right: AML) -> AML { AML(raw: [0x7B] + left.bytes + right.bytes + [0]) }
    /// LocalN
    package static func local(_ number: UInt8) -> AML { AML(raw: [0x60 + (number & 7)]) }
    /// Store (value, name)
    package static func store(_ value: AML, _ path: String) -> AML { AML(raw: [0x70] + value.bytes + name(path)) }
    /// Store (value, LocalN)
    package static func storeLocal(_ value: AML, _ number: UInt8) -> AML {
        AML(raw: [0x70] + value.bytes + local(number).bytes)
    }
    /// OperationRegion (name, SystemIO, start, count)
    package static func ports(_ path: String, _ start: UInt16, count: UInt8) -> AML {
        AML(raw: [0x5B, 0x80] + name(path) + [0x01] + integer(UInt64(start)).bytes + integer(UInt64(count)).bytes)
    }
    /// Field (region, DWordAcc, NoLock, Preserve) { names, 32 bits each }
    package static func doubleWords(_ region: String, _ names: [String]) -> AML {
        block([0x5B, 0x81], name(region) + [0x03], names.map { AML(raw: name($0) + [32]) })
    }
    /// Buffer () { bytes }
    package static func buffer(_ bytes: [UInt8]) -> AML {
        block([0x11], integer(UInt64(bytes.count)).bytes, [AML(raw: bytes)])
    }
    /// Return (value)
    package static func returning(_ value: AML) -> AML { AML(raw: [0xA4] + value.bytes) }

    /// An integer in its shortest form.
    package static func integer(_ value: UInt64) -> AML {
        switch value {
        case 0: return AML(raw: [0x00])
        case 1: return AML(raw: [0x01])
        case ...0xFF: return AML(raw: [0x0A, UInt8(value)])
        case ...0xFFFF: return number(0x0B, UInt16(value))
        case ...0xFFFF_FFFF: return number(0x0C, UInt32(value))
        default: return number(0x0E, value)
        }
    }

    private static func number<T: FixedWidthInteger & UnsignedInteger>(_ prefix: UInt8, _ value: T) -> AML {
        var bytes = [prefix]
        bytes.append(little: value)
        return AML(raw: bytes)
    }

    /// A string.
    package static func string(_ text: String) -> AML { AML(raw: [0x0D] + Array(text.utf8) + [0]) }

    /// A compressed EISA identifier, such as "PNP0A03".
    ///
    /// - Spec: 19.3.4.
    package static func eisaID(_ text: String) -> AML {
        let characters = Array(text.utf8)
        guard characters.count == 7, let product = UInt16(text.dropFirst(3), radix: 16) else { return string(text) }
        let vendor = characters.prefix(3).reduce(UInt16(0)) { $0 << 5 | UInt16(($1 &- 0x40) & 31) }
        return AML(
            raw: [
                0x0C, UInt8(vendor >> 8), UInt8(vendor & 255), UInt8(product >> 8), UInt8(product & 255),
            ])
    }

    /// A reference to a named object.
    package static func reference(_ path: String) -> AML { AML(raw: name(path)) }

    /// A resource template: the descriptors with their end tag.
    package static func resources(_ descriptors: [[UInt8]]) -> AML {
        let content = Array(descriptors.joined()) + [0x79, 0x00]
        return block([0x11], integer(UInt64(content.count)).bytes, [AML(raw: content)])
    }

    /// IO (Decode16): a fixed range of ports.
    package static func ports(_ start: UInt16, count: UInt8, alignment: UInt8 = 1) -> [UInt8] {
        [
            0x47, 1, UInt8(start & 255), UInt8(start >> 8), UInt8(start & 255), UInt8(start >> 8), alignment, count,
        ]
    }

    /// IRQNoFlags: edge-triggered ISA interrupts.
    package static func interrupt(_ irq: UInt8) -> [UInt8] {
        let mask = UInt16(1) << UInt16(irq & 15)
        return [0x22, UInt8(mask & 255), UInt8(mask >> 8)]
    }

    /// Extended Interrupt: one level-triggered, active-high, shared global interrupt.
    package static func globalInterrupt(_ gsi: UInt32, flags: UInt8 = 0x09) -> [UInt8] {
        var bytes: [UInt8] = [0x89, 6, 0, flags, 1]
        bytes.append(little: gsi)
        return bytes
    }

    /// Memory32Fixed.
    package static func memory32(_ start: UInt32, length: UInt32, writable: Bool = true) -> [UInt8] {
        var bytes: [UInt8] = [0x86, 9, 0, writable ? 1 : 0]
        bytes.append(little: start)
        bytes.append(little: length)
        return bytes
    }

    /// Word address space: bus numbers (`kind` 2) or ports (1) that a bridge passes on.
    package static func wordWindow(kind: UInt8, _ range: ClosedRange<UInt16>, flags: UInt8) -> [UInt8] {
        var bytes: [UInt8] = [0x88, 13, 0, kind, 0x0C, flags]
        for value in [0, range.lowerBound, range.upperBound, 0, range.upperBound - range.lowerBound &+ 1] {
            bytes.append(little: value)
        }
        return bytes
    }

    /// Double-word address space: memory that a bridge passes on, non-cacheable, read-write.
    package static func memoryWindow(_ range: ClosedRange<UInt64>) -> [UInt8] {
        var bytes: [UInt8] = [0x87, 23, 0, 0, 0x0C, 0x01]
        for value in [0, range.lowerBound, range.upperBound, 0, range.upperBound - range.lowerBound + 1] {
            bytes.append(little: UInt32(truncatingIfNeeded: value))
        }
        return bytes
    }

    /// Quad-word address space: memory beyond 4 GiB, prefetchable.
    package static func wideMemoryWindow(_ range: ClosedRange<UInt64>) -> [UInt8] {
        var bytes: [UInt8] = [0x8A, 43, 0, 0, 0x0C, 0x07]
        for value in [0, range.lowerBound, range.upperBound, 0, range.upperBound - range.lowerBound + 1] {
            bytes.append(little: value)
        }
        return bytes
    }
}
