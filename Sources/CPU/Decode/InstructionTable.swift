// The instruction table: what every decoder, engine, test and document takes its facts from.
//
// A row's columns, separated by spaces:
//   encoding   [V][prefix.][map.]opcode[+r][/digit][m|R][:ModRM]
//              V: with VEX. prefix: NP (none), 66, F3, F2; left out: these prefixes mean what they usually mean.
//              map: 0F, 0F38, 0F3A. +r: register in the opcode. m: memory operand only, R: register only.
//   mnemonic   as in the manual
//   operands   OperandKind names, destination first, or -
//   the rest   attributes: lock br (sets RIP) end (ends its block) o64 (only 64-bit) i64 (invalid in 64-bit) d64 f64
//              (operand size 64 by default, always) v (operand size without operands) al (aligned) wr (memory written)
//              L0 L1 W0 W1 segN; op=operation when it isn't the mnemonic; +feature
//
// - Spec: SDM 2D appendix A (opcode maps), SDM 2 (each instruction).
// Invariant: `rows` and `chains` are written once, by the initializer of `shared`, and live for ever.

/// The instruction table.
public enum InstructionTable {
    /// Number of rows.
    public static var count: Int { shared.count }

    /// A row by number.
    @inline(__always)
    public static func row(_ n: UInt16) -> InstructionRow { shared.rows[Int(n)] }

    /// All mnemonics that rows name.
    public static var mnemonics: [String] { shared.mnemonics }

    /// Words of the table that could not be read: none.
    package static var complaints: [String] { shared.complaints }

    static let shared = Parsed()

    /// Makes the table now, unless it is there.
    package static func prepare() { _ = shared }

    /// The table parsed and indexed.
    struct Parsed: @unchecked Sendable {
        let rows: UnsafeMutablePointer<InstructionRow>
        let count: Int
        let mnemonics: [String]
        let complaints: [String]
        /// For each (VEX, prefix, map, opcode) where its candidates begin in `candidates`.
        let chains: UnsafeMutablePointer<UInt16>
        /// Row numbers, each chain ended by 0xFFFF; the first that fits counts.
        let candidates: UnsafeMutablePointer<UInt16>

        init() {
            var parser = TableParser()
            parser.parse(InstructionTable.integerRows, group: nil)
            parser.parseConditional(InstructionTable.conditionalRows)
            parser.parse(InstructionTable.systemRows, group: nil)
            parser.parse(InstructionTable.x87Rows, group: .x87)
            parser.parse(InstructionTable.vectorRows, group: .sse)
            count = parser.rows.count
            mnemonics = parser.mnemonics
            complaints = parser.complaints
            rows = .allocate(capacity: count)
            rows.initialize(from: parser.rows, count: count)
            chains = .allocate(capacity: 8192)
            let lists = Self.index(parser.rows)
            var flat: [UInt16] = [0xFFFF]
            for n in 0..<8192 {
                chains[n] = lists[n].isEmpty ? 0 : UInt16(flat.count)
                if !lists[n].isEmpty { flat += lists[n] + [0xFFFF] }
            }
            candidates = .allocate(capacity: flat.count)
            candidates.initialize(from: flat, count: flat.count)
        }

        /// Place of an opcode's chain. `prefix`: 0 none, 1 66, 2 F3, 3 F2.
        @inline(__always)
        static func slot(vex: Int, prefix: Int, map: Int, opcode: UInt8) -> Int {
            ((vex &* 4 &+ prefix) &* 4 &+ map) &* 256 &+ Int(opcode)
        }

        private static func index(_ rows: [InstructionRow]) -> [[UInt16]] {
            var lists = [[UInt16]](repeating: [], count: 8192)
            // Rows of one prefix before those of any; whole ModRM bytes before digits.
            let order = rows.indices.sorted {
                weight(rows[$0]) < weight(rows[$1]) || (weight(rows[$0]) == weight(rows[$1]) && $0 < $1)
            }
            for n in order {
                let row = rows[n]
                let vex = row.attributes.contains(.vex) ? 1 : 0
                let prefixes: [Int]
                switch row.mandatoryPrefix {
                case 0: prefixes = [0]
                case 0x66: prefixes = [1]
                case 0xF3: prefixes = [2]
                case 0xF2: prefixes = [3]
                default: prefixes = [0, 1, 2, 3]
                }
                let registers = row.attributes.contains(.opcodeRegister) ? 8 : 1
                for prefix in prefixes {
                    for r in 0..<registers {
                        lists[slot(vex: vex, prefix: prefix, map: Int(row.map), opcode: row.opcode + UInt8(r))].append(
                            UInt16(n))
                    }
                }
            }
            return lists
        }

        private static func weight(_ row: InstructionRow) -> Int {
            (row.mandatoryPrefix == 0xFF ? 2 : 0) + (row.fixedModRM == 0 ? 1 : 0)
        }
    }
}
