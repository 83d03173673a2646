// Which flags are wanted after a block: a look at the first instructions of every way on, as far as its page goes.
internal import CHost

extension VCPU {
    /// Flags that some way on from a block may read before writing them.
    func flagsWanted(after block: UnsafeMutablePointer<Block>) -> FlagSet {
        let last = blocks.pointee.instructions + Int(block.pointee.first) + Int(block.pointee.count) - 1
        let page = block.pointee.physical >> 12
        let end = Int(block.pointee.physical & 4095) + Int(last.pointee.endOffset)
        switch last.pointee.operation {
        case .jcc:
            return flagsWanted(page, at: end).union(flagsWanted(page, at: end + Int(last.pointee.immediate)))
        case .jmp, .call: return flagsWanted(page, at: end + Int(last.pointee.immediate))
        default:
            if block.pointee.endsInBranch { return .all }
            return flagsWanted(page, at: end)
        }
    }

    /// Flags wanted at a place in a page; what was looked at counts as decoded, so that a change of it is noticed.
    private func flagsWanted(_ page: UInt64, at start: Int) -> FlagSet {
        var place = start
        var begin = start
        var unwritten = FlagSet.all
        var instruction = Instruction()
        let bytes = UnsafePointer(s.pointee.ram + Int(page << 12))
        if place >= 0 && place < 4096 { markBeforeDecoding(page, from: UInt64(place), length: 96) }
        for _ in 0..<6 {
            guard place >= 0 && place < 4096 else { return .all }
            instruction = Instruction()
            let result = Decoder.decode(
                bytes + place, available: 4096 - place, codeSize: s.pointee.code_size, into: &instruction)
            guard result == .ok else { return .all }
            applyModel(to: &instruction)
            let use = FlagUse.of(&instruction)
            let ends = InstructionTable.row(instruction.row).attributes.contains(.endsBlock)
            if ends || !use.reads.intersection(unwritten).isEmpty { return .all }
            unwritten.subtract(use.writes)
            place += Int(instruction.length)
            if unwritten.isEmpty {
                markCode(page, from: UInt64(begin), to: UInt64(place))
                return []
            }
            switch instruction.operation {
            case .jmp:
                markCode(page, from: UInt64(begin), to: UInt64(place))
                place += Int(instruction.immediate)
                begin = place
                if place >= 0 && place < 4096 { markBeforeDecoding(page, from: UInt64(place), length: 96) }
            case .jcc, .call, .ret, .retImmediate, .jmpIndirect, .callIndirect, .loop, .jcxz: return .all
            default: break
            }
        }
        return .all
    }
}
