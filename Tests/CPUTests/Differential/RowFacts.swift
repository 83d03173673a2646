// What the case generator asks of a row, and which rows the differential tests leave out, with the reason.
import CPU

extension InstructionRow {
    var usesVEX: Bool { attributes.contains(.vex) }
    var opcodeHoldsRegister: Bool { attributes.contains(.opcodeRegister) }
    var hasModRM: Bool { attributes.contains(.modRM) }
    var extensionDigit: UInt8? { digit == 0xFF ? nil : digit }
    var memoryOnly: Bool { attributes.contains(.memoryOnly) }
    var registerOnly: Bool { attributes.contains(.registerOnly) }

    var isString: Bool {
        switch operation {
        case .movs, .cmps, .stos, .lods, .scas: true
        default: false
        }
    }

    /// Whether the host can be made to execute it in a user process with the same outcome as the guest's.
    var canRunInUserMode: Bool {
        switch operation {
        // The host's kernel would act on these, or they would change the test's own process.
        case .syscall, .sysenter, .sysret, .sysexit, .int, .int1, .vmcall, .vmmcall, .wrfsbase, .wrgsbase, .wrpkru,
            .rdpkru, .movToSegment, .popSegment, .les, .lds, .lss, .lfs, .lgs, .callFar, .jmpFar, .callFarIndirect,
            .jmpFarIndirect, .retFar, .retFarImmediate, .iret, .pushSegment, .movFromSegment:
            false
        // Their answers are the host's own (time, identity, descriptor tables).
        case .rdtsc, .rdtscp, .rdpmc, .rdpid, .rdrand, .rdseed, .cpuid, .xgetbv, .sgdt, .sidt, .sldt, .str, .smsw, .lar,
            .lsl,
            .verr, .verw, .arpl, .rdfsbase, .rdgsbase, .xsave, .xsaveopt, .xsavec, .xsaves, .xrstor, .xrstors, .fxsave,
            .fxrstor, .monitor, .mwait:
            false
        default: true
        }
    }
}

extension Instruction {
    var attributesOfRow: InstructionAttributes { InstructionTable.row(row).attributes }

    var isStringOperation: Bool {
        switch operation {
        case .movs, .cmps, .stos, .lods, .scas, .ins, .outs: true
        default: false
        }
    }

    /// MASKMOVQ and MASKMOVDQU.
    var usesImplicitRDI: Bool { map == 1 && opcode == 0xF7 && form == .vector }
}
