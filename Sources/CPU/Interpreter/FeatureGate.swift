// What a processor model makes of instructions that it doesn't have.
internal import CHost

extension VCPU {
    /// Turns an instruction of a feature that the model lacks into what processors without it execute: #UD, or the older
    /// instruction that the prefix doesn't change (SDM 2A, TZCNT and LZCNT). VEX means nothing in real and virtual-8086
    /// mode, in none of its instructions (SDM 2A 2.3.2).
    func applyModel(to i: UnsafeMutablePointer<Instruction>) {
        if i.pointee.prefixes.contains(.vex) && s.pointee.mode_key & ModeKey.real != 0 {
            i.pointee.operation = .invalid
            return
        }
        let feature = InstructionTable.row(i.pointee.row).feature
        if s.pointee.features & (1 << UInt64(feature.rawValue)) != 0 { return }
        switch i.pointee.operation {
        case .tzcnt: i.pointee.operation = .bsf
        case .lzcnt: i.pointee.operation = .bsr
        default: i.pointee.operation = .invalid
        }
    }
}
