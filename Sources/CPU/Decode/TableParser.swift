// Reads the instruction table's text into rows. A word it doesn't know is a defect of the table: the row is kept invalid,
// and a test says so.

struct TableParser {
    var rows: [InstructionRow] = []
    var mnemonics: [String] = []
    /// What could not be read, for the test.
    private(set) var complaints: [String] = []

    private var names: [Substring: UInt16] = [:]
    private let operations = Dictionary(
        Operation.allCases.map { (String(describing: $0).lowercased(), $0) }, uniquingKeysWith: { first, _ in first })
    private let kinds = Dictionary(uniqueKeysWithValues: OperandKind.allCases.map { (String(describing: $0), $0) })
    private let features = Dictionary(uniqueKeysWithValues: CPUFeature.allCases.map { (String(describing: $0), $0) })
    private static let words: [Substring: InstructionAttributes] = [
        "lock": .lockable, "br": .branch, "end": .endsBlock, "o64": .only64, "i64": .no64, "d64": .default64,
        "f64": .force64, "v": .sizeV, "al": .alignedSSE, "wr": .memoryWrite, "L0": .l0, "L1": .l1, "W0": .w0, "W1": .w1,
    ]

    /// Reads rows; `group` is the operation of rows that name none of their own.
    mutating func parse(_ text: String, group: Operation?) {
        for line in text.split(separator: "\n") {
            let columns = line.split(separator: " ")
            guard columns.count >= 3 else { continue }
            if ["mmi", "mms", "mm2", "xi", "fp4", "fp2", "sh", "fma"].contains(columns[0]) {
                for row in TableShapes.expand(columns) { add(row.split(separator: " "), group: group) }
            } else {
                add(columns, group: group)
            }
        }
    }

    /// Reads rows that stand for sixteen conditions each.
    mutating func parseConditional(_ text: String) {
        let suffixes = ["O", "NO", "B", "AE", "E", "NE", "BE", "A", "S", "NS", "P", "NP", "L", "GE", "LE", "G"]
        for line in text.split(separator: "\n") {
            let columns = line.split(separator: " ").map(String.init)
            guard columns.count >= 3, let base = UInt8(columns[0].suffix(2), radix: 16) else { continue }
            for (n, suffix) in suffixes.enumerated() {
                let opcode = String(base + UInt8(n), radix: 16, uppercase: true)
                let row = [columns[0].dropLast(2) + opcode, columns[1] + suffix] + columns.dropFirst(2)
                add(row.joined(separator: " ").split(separator: " "), group: nil)
            }
        }
    }

    private mutating func add(_ columns: [Substring], group: Operation?) {
        var row = InstructionRow()
        readEncoding(columns[0], &row)
        if let known = names[columns[1]] {
            row.name = known
        } else {
            row.name = UInt16(mnemonics.count)
            mnemonics.append(String(columns[1]))
            names[columns[1]] = row.name
        }
        var kinds: [OperandKind] = []
        if columns[2] != "-" {
            for word in columns[2].split(separator: ",") {
                if let kind = self.kinds[String(word)] {
                    kinds.append(kind)
                } else {
                    complaints.append("\(word) in \(columns)")
                }
            }
        }
        while kinds.count < 4 { kinds.append(.none) }
        row.operands = (kinds[0], kinds[1], kinds[2], kinds[3])
        row.operation = operations[columns[1].lowercased()] ?? .invalid
        if let group {
            row.operation = group == .sse && row.attributes.contains(.vex) ? .avx : group
            row.feature = group == .x87 ? .x87 : row.attributes.contains(.vex) ? .avx : .mmx
        }
        for word in columns.dropFirst(3) { readWord(word, &row) }
        if row.operation == .invalid { complaints.append("no operation: \(columns)") }
        derive(&row, group)
        rows.append(row)
    }

    private mutating func readWord(_ word: Substring, _ row: inout InstructionRow) {
        if let attribute = Self.words[word] {
            row.attributes.insert(attribute)
        } else if word.hasPrefix("op=") {
            row.operation = operations[word.dropFirst(3).lowercased()] ?? .invalid
        } else if word.hasPrefix("+") {
            if let feature = features[String(word.dropFirst())] {
                row.feature = feature
            } else {
                complaints.append("\(word)")
            }
        } else if word.hasPrefix("seg") {
            row.segmentRegister = UInt8(word.dropFirst(3)) ?? 0
        } else {
            complaints.append("\(word)")
        }
    }

    private mutating func readEncoding(_ text: Substring, _ row: inout InstructionRow) {
        var rest = text
        if rest.hasPrefix("V") {
            row.attributes.insert(.vex)
            row.mandatoryPrefix = 0
            rest = rest.dropFirst()
        }
        for (prefix, value) in [("NP.", UInt8(0)), ("66.", 0x66), ("F3.", 0xF3), ("F2.", 0xF2)]
        where rest.hasPrefix(prefix) {
            row.mandatoryPrefix = value
            rest = rest.dropFirst(3)
            break
        }
        for (map, value) in [("0F38.", UInt8(2)), ("0F3A.", 3), ("0F.", 1)] where rest.hasPrefix(map) {
            row.map = value
            rest = rest.dropFirst(map.count)
            break
        }
        guard let opcode = UInt8(rest.prefix(2), radix: 16) else {
            complaints.append("encoding \(text)")
            return
        }
        row.opcode = opcode
        rest = rest.dropFirst(2)
        if rest == "+r" {
            row.attributes.insert(.opcodeRegister)
        } else if rest.hasPrefix(":") {
            row.fixedModRM = UInt8(rest.dropFirst(), radix: 16) ?? 0
            row.attributes.insert(.modRM)
        } else if rest.hasPrefix("/") {
            row.attributes.insert(.modRM)
            for letter in rest.dropFirst() {
                switch letter {
                case "m": row.attributes.insert(.memoryOnly)
                case "R": row.attributes.insert(.registerOnly)
                default: row.digit = UInt8(String(letter)) ?? 0xFF
                }
            }
        }
    }

    /// What follows from the operands.
    private func derive(_ row: inout InstructionRow, _ group: Operation?) {
        for n in 0..<4 {
            let kind = row.operand(n)
            if kind.needsModRM { row.attributes.insert(.modRM) }
            if kind.isMemoryOnly { row.attributes.insert(.memoryOnly) }
            if kind.isRegisterOnly { row.attributes.insert(.registerOnly) }
        }
        row.sizeRule = .of(row, isVector: group != nil)
        row.immediates = (ImmediateRule.first(row), ImmediateRule.second(row))
        if group != nil {
            row.form = row.attributes.contains(.modRM) ? .vector : .vectorNone
        } else {
            row.form = OperandForm.from(row)
        }
    }
}

extension OperandForm {
    /// The layout of an integer or system instruction's operands.
    static func from(_ row: InstructionRow) -> OperandForm {
        let (a, b, c, _) = row.operands
        if a == .Xb || a == .Xv || a == .Xz || a == .Yb || a == .Yv || a == .Yz { return .none }
        if row.operation == .movToCR || row.operation == .movToDR { return .regRM }
        if row.operation == .movFromCR || row.operation == .movFromDR { return .rmReg }
        switch (a.place, b.place, c.place) {
        case (.rm, .reg, .none): return .rmReg
        case (.reg, .rm, .none): return .regRM
        case (.rm, .immediate, _): return .rmImmediate
        case (.rm, .none, _): return .rm
        case (.reg, .rm, .immediate): return .regRMImmediate
        case (.rm, .reg, .immediate): return .rmRegImmediate
        case (.rm, .counter, _), (.rm, .reg, .counter): return .rmCL
        case (.rm, .one, _): return .rmOne
        case (.reg, .extra, .rm): return .regExtraRM
        case (.reg, .rm, .extra): return .regRMExtra
        case (.extra, .rm, _): return .extraRM
        case (.opcodeRegister, .immediate, _): return .regImmediate
        case (.accumulator, .immediate, _): return row.operation == .in ? .immediate : .regImmediate
        case (.accumulator, .offset, _): return .offsetLoad
        case (.offset, .accumulator, _): return .offsetStore
        case (.opcodeRegister, .none, _): return .reg
        case (.branch, _, _): return .relative
        case (.far, _, _): return .farPointer
        case (.immediate, _, _): return .immediate
        default: return .none
        }
    }
}
