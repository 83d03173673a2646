// The instruction table, part 1: the integer set. One row an instruction form; the columns are described in
// InstructionTable.swift.

extension InstructionTable {
    static let integerRows = #"""
        00 ADD Eb,Gb lock
        01 ADD Ev,Gv lock
        02 ADD Gb,Eb
        03 ADD Gv,Ev
        04 ADD AL,Ib
        05 ADD rAX,Iz
        08 OR Eb,Gb lock
        09 OR Ev,Gv lock
        0A OR Gb,Eb
        0B OR Gv,Ev
        0C OR AL,Ib
        0D OR rAX,Iz
        10 ADC Eb,Gb lock
        11 ADC Ev,Gv lock
        12 ADC Gb,Eb
        13 ADC Gv,Ev
        14 ADC AL,Ib
        15 ADC rAX,Iz
        18 SBB Eb,Gb lock
        19 SBB Ev,Gv lock
        1A SBB Gb,Eb
        1B SBB Gv,Ev
        1C SBB AL,Ib
        1D SBB rAX,Iz
        20 AND Eb,Gb lock
        21 AND Ev,Gv lock
        22 AND Gb,Eb
        23 AND Gv,Ev
        24 AND AL,Ib
        25 AND rAX,Iz
        28 SUB Eb,Gb lock
        29 SUB Ev,Gv lock
        2A SUB Gb,Eb
        2B SUB Gv,Ev
        2C SUB AL,Ib
        2D SUB rAX,Iz
        30 XOR Eb,Gb lock
        31 XOR Ev,Gv lock
        32 XOR Gb,Eb
        33 XOR Gv,Ev
        34 XOR AL,Ib
        35 XOR rAX,Iz
        38 CMP Eb,Gb
        39 CMP Ev,Gv
        3A CMP Gb,Eb
        3B CMP Gv,Ev
        3C CMP AL,Ib
        3D CMP rAX,Iz
        80/0 ADD Eb,Ib lock
        80/1 OR Eb,Ib lock
        80/2 ADC Eb,Ib lock
        80/3 SBB Eb,Ib lock
        80/4 AND Eb,Ib lock
        80/5 SUB Eb,Ib lock
        80/6 XOR Eb,Ib lock
        80/7 CMP Eb,Ib
        81/0 ADD Ev,Iz lock
        81/1 OR Ev,Iz lock
        81/2 ADC Ev,Iz lock
        81/3 SBB Ev,Iz lock
        81/4 AND Ev,Iz lock
        81/5 SUB Ev,Iz lock
        81/6 XOR Ev,Iz lock
        81/7 CMP Ev,Iz
        82/0 ADD Eb,Ib lock i64
        82/1 OR Eb,Ib lock i64
        82/2 ADC Eb,Ib lock i64
        82/3 SBB Eb,Ib lock i64
        82/4 AND Eb,Ib lock i64
        82/5 SUB Eb,Ib lock i64
        82/6 XOR Eb,Ib lock i64
        82/7 CMP Eb,Ib i64
        83/0 ADD Ev,IbSigned lock
        83/1 OR Ev,IbSigned lock
        83/2 ADC Ev,IbSigned lock
        83/3 SBB Ev,IbSigned lock
        83/4 AND Ev,IbSigned lock
        83/5 SUB Ev,IbSigned lock
        83/6 XOR Ev,IbSigned lock
        83/7 CMP Ev,IbSigned
        84 TEST Eb,Gb
        85 TEST Ev,Gv
        A8 TEST AL,Ib
        A9 TEST rAX,Iz
        F6/0 TEST Eb,Ib
        F6/1 TEST Eb,Ib
        F7/0 TEST Ev,Iz
        F7/1 TEST Ev,Iz
        F6/2 NOT Eb lock
        F7/2 NOT Ev lock
        F6/3 NEG Eb lock
        F7/3 NEG Ev lock
        F6/4 MUL Eb
        F7/4 MUL Ev
        F6/5 IMUL Eb
        F7/5 IMUL Ev
        F6/6 DIV Eb
        F7/6 DIV Ev
        F6/7 IDIV Eb
        F7/7 IDIV Ev
        69 IMUL Gv,Ev,Iz op=imul2
        6B IMUL Gv,Ev,IbSigned op=imul2
        0F.AF IMUL Gv,Ev op=imul2
        40+r INC Zv i64
        48+r DEC Zv i64
        FE/0 INC Eb lock
        FE/1 DEC Eb lock
        FF/0 INC Ev lock
        FF/1 DEC Ev lock
        88 MOV Eb,Gb
        89 MOV Ev,Gv
        8A MOV Gb,Eb
        8B MOV Gv,Ev
        A0 MOV AL,Ob
        A1 MOV rAX,Ov
        A2 MOV Ob,AL
        A3 MOV Ov,rAX
        B0+r MOV Zb,Ib
        B8+r MOV Zv,Iv
        C6/0 MOV Eb,Ib
        C7/0 MOV Ev,Iz
        0F.B6 MOVZX Gv,Eb
        0F.B7 MOVZX Gv,Ew
        0F.BE MOVSX Gv,Eb
        0F.BF MOVSX Gv,Ew
        63 MOVSXD Gv,Ed o64 op=movsx
        8D LEA Gv,M
        86 XCHG Eb,Gb lock
        87 XCHG Ev,Gv lock
        F3.90 PAUSE -
        90 NOP -
        90+r XCHG Zv
        50+r PUSH Zv d64
        58+r POP Zv d64
        68 PUSH Iz d64
        6A PUSH IbSigned d64
        FF/6 PUSH Ev d64
        8F/0 POP Ev d64
        60 PUSHA - i64 v
        61 POPA - i64 v
        9C PUSHF - d64 v
        9D POPF - d64 v end
        98 CBW - v
        99 CWD - v
        C0/0 ROL Eb,Ib
        C0/1 ROR Eb,Ib
        C0/2 RCL Eb,Ib
        C0/3 RCR Eb,Ib
        C0/4 SHL Eb,Ib
        C0/5 SHR Eb,Ib
        C0/6 SHL Eb,Ib
        C0/7 SAR Eb,Ib
        C1/0 ROL Ev,Ib
        C1/1 ROR Ev,Ib
        C1/2 RCL Ev,Ib
        C1/3 RCR Ev,Ib
        C1/4 SHL Ev,Ib
        C1/5 SHR Ev,Ib
        C1/6 SHL Ev,Ib
        C1/7 SAR Ev,Ib
        D0/0 ROL Eb,one
        D0/1 ROR Eb,one
        D0/2 RCL Eb,one
        D0/3 RCR Eb,one
        D0/4 SHL Eb,one
        D0/5 SHR Eb,one
        D0/6 SHL Eb,one
        D0/7 SAR Eb,one
        D1/0 ROL Ev,one
        D1/1 ROR Ev,one
        D1/2 RCL Ev,one
        D1/3 RCR Ev,one
        D1/4 SHL Ev,one
        D1/5 SHR Ev,one
        D1/6 SHL Ev,one
        D1/7 SAR Ev,one
        D2/0 ROL Eb,CL
        D2/1 ROR Eb,CL
        D2/2 RCL Eb,CL
        D2/3 RCR Eb,CL
        D2/4 SHL Eb,CL
        D2/5 SHR Eb,CL
        D2/6 SHL Eb,CL
        D2/7 SAR Eb,CL
        D3/0 ROL Ev,CL
        D3/1 ROR Ev,CL
        D3/2 RCL Ev,CL
        D3/3 RCR Ev,CL
        D3/4 SHL Ev,CL
        D3/5 SHR Ev,CL
        D3/6 SHL Ev,CL
        D3/7 SAR Ev,CL
        0F.A4 SHLD Ev,Gv,Ib
        0F.A5 SHLD Ev,Gv,CL
        0F.AC SHRD Ev,Gv,Ib
        0F.AD SHRD Ev,Gv,CL
        0F.A3 BT Ev,Gv
        0F.AB BTS Ev,Gv lock
        0F.B3 BTR Ev,Gv lock
        0F.BB BTC Ev,Gv lock
        0F.BA/4 BT Ev,Ib
        0F.BA/5 BTS Ev,Ib lock
        0F.BA/6 BTR Ev,Ib lock
        0F.BA/7 BTC Ev,Ib lock
        0F.BC BSF Gv,Ev
        0F.BD BSR Gv,Ev
        F3.0F.BC TZCNT Gv,Ev +bmi1
        F3.0F.BD LZCNT Gv,Ev +lzcnt
        F3.0F.B8 POPCNT Gv,Ev +popcnt
        0F.C8+r BSWAP Zv
        0F.B0 CMPXCHG Eb,Gb lock
        0F.B1 CMPXCHG Ev,Gv lock
        0F.C7/1 CMPXCHG8B Mq W0 lock +cx8
        0F.C7/1 CMPXCHG16B Mdq W1 lock +cx16
        0F.C0 XADD Eb,Gb lock
        0F.C1 XADD Ev,Gv lock
        9F LAHF -
        9E SAHF -
        F5 CMC -
        F8 CLC -
        F9 STC -
        FC CLD -
        FD STD -
        27 DAA - i64
        2F DAS - i64
        37 AAA - i64
        3F AAS - i64
        D4 AAM Ib i64
        D5 AAD Ib i64
        D6 SALC - i64
        D7 XLAT -
        C8 ENTER Iw,Ib d64 v
        C9 LEAVE - d64 v
        62 BOUND Gv,Ma i64
        CE INTO - i64
        0F.0D PREFETCHW Mb op=prefetch
        0F.18 PREFETCH Ev
        0F.19 NOP Ev
        0F.1A NOP Ev
        0F.1B NOP Ev
        0F.1C NOP Ev
        0F.1D NOP Ev
        0F.1E NOP Ev
        0F.1F NOP Ev
        NP.0F.AE/5R LFENCE - op=fence
        NP.0F.AE/6R MFENCE - op=fence
        NP.0F.AE/7R SFENCE - op=fence
        NP.0F38.F0 MOVBE Gv,Mv +movbe
        NP.0F38.F1 MOVBE Mv,Gv +movbe
        66.0F38.F0 MOVBE Gv,Mv +movbe
        66.0F38.F1 MOVBE Mv,Gv +movbe
        F2.0F38.F0 CRC32 Gy,Eb +sse42
        F2.0F38.F1 CRC32 Gy,Ev +sse42
        66.0F38.F6 ADCX Gy,Ey +adx
        F3.0F38.F6 ADOX Gy,Ey +adx
        NP.0F.C3 MOVNTI My,Gy +sse2
        VNP.0F38.F2 ANDN Gy,By,Ey L0 +bmi1
        VNP.0F38.F3/1 BLSR By,Ey L0 +bmi1
        VNP.0F38.F3/2 BLSMSK By,Ey L0 +bmi1
        VNP.0F38.F3/3 BLSI By,Ey L0 +bmi1
        VNP.0F38.F7 BEXTR Gy,Ey,By L0 +bmi1
        VNP.0F38.F5 BZHI Gy,Ey,By L0 +bmi2
        VF2.0F38.F6 MULX Gy,By,Ey L0 +bmi2
        VF2.0F38.F5 PDEP Gy,By,Ey L0 +bmi2
        VF3.0F38.F5 PEXT Gy,By,Ey L0 +bmi2
        VF2.0F3A.F0 RORX Gy,Ey,Ib L0 +bmi2
        VF3.0F38.F7 SARX Gy,Ey,By L0 +bmi2
        V66.0F38.F7 SHLX Gy,Ey,By L0 +bmi2
        VF2.0F38.F7 SHRX Gy,Ey,By L0 +bmi2
        A4 MOVSB Xb,Yb op=movs
        A5 MOVS Xv,Yv
        A6 CMPSB Xb,Yb op=cmps
        A7 CMPS Xv,Yv
        AA STOSB Yb op=stos
        AB STOS Yv
        AC LODSB Xb op=lods
        AD LODS Xv
        AE SCASB Yb op=scas
        AF SCAS Yv
        6C INSB Yb op=ins end
        6D INS Yz end
        6E OUTSB Xb op=outs end
        6F OUTS Xz end
        E4 IN AL,Ib end
        E5 IN eAX,Ib end
        EC IN AL,DX end
        ED IN eAX,DX end
        E6 OUT Ib,AL end
        E7 OUT Ib,eAX end
        EE OUT DX,AL end
        EF OUT DX,eAX end
        C2 RET Iw op=retImmediate br f64 v
        C3 RET - br f64 v
        E0 LOOPNE Jb br f64
        E1 LOOPE Jb br f64
        E2 LOOP Jb br f64
        E3 JCXZ Jb br f64
        E8 CALL Jz br f64
        E9 JMP Jz br f64
        EB JMP Jb br f64
        FF/2 CALL Ev br f64 op=callIndirect
        FF/4 JMP Ev br f64 op=jmpIndirect
        """#

    /// The rows that stand once for each of the sixteen conditions.
    static let conditionalRows = #"""
        70 J Jb br f64 op=jcc
        0F.80 J Jz br f64 op=jcc
        0F.90 SET Eb op=setcc
        0F.40 CMOV Gv,Ev op=cmovcc +cmov
        """#

    static let systemRows = #"""
        06 PUSH - i64 v op=pushSegment seg0
        0E PUSH - i64 v op=pushSegment seg1
        16 PUSH - i64 v op=pushSegment seg2
        1E PUSH - i64 v op=pushSegment seg3
        0F.A0 PUSH - d64 v op=pushSegment seg4
        0F.A8 PUSH - d64 v op=pushSegment seg5
        07 POP - i64 v op=popSegment seg0 end
        17 POP - i64 v op=popSegment seg2 end
        1F POP - i64 v op=popSegment seg3 end
        0F.A1 POP - d64 v op=popSegment seg4 end
        0F.A9 POP - d64 v op=popSegment seg5 end
        8C MOV Ev,Sw op=movFromSegment
        8E MOV Sw,Ew op=movToSegment end
        9A CALL Ap i64 br op=callFar v
        EA JMP Ap i64 br op=jmpFar v
        FF/3 CALL Mp br op=callFarIndirect
        FF/5 JMP Mp br op=jmpFarIndirect
        CA RETF Iw br v op=retFarImmediate
        CB RETF - br v op=retFar
        CF IRET - br v
        CD INT Ib br
        CC INT3 - br
        F1 INT1 - br
        0F.05 SYSCALL - br +syscall
        0F.07 SYSRET - br v +syscall
        0F.34 SYSENTER - br v +sysenter
        0F.35 SYSEXIT - br v +sysenter
        FA CLI - end
        FB STI - end
        F4 HLT - end
        0F.20 MOV Rd,Cd end op=movFromCR
        0F.22 MOV Cd,Rd end op=movToCR
        0F.21 MOV Rd,Dd end op=movFromDR
        0F.23 MOV Dd,Rd end op=movToDR
        0F.06 CLTS - end
        0F.00/0 SLDT Ev
        0F.00/1 STR Ev
        0F.00/2 LLDT Ew end
        0F.00/3 LTR Ew end
        0F.00/4 VERR Ew
        0F.00/5 VERW Ew
        0F.01/0 SGDT Ms
        0F.01/1 SIDT Ms
        0F.01/2 LGDT Ms end
        0F.01/3 LIDT Ms end
        0F.01/4 SMSW Ev
        0F.01/6 LMSW Ew end
        0F.01/7m INVLPG M end
        NP.0F.01:C1 VMCALL - end
        NP.0F.01:C8 MONITOR - +monitor
        NP.0F.01:C9 MWAIT - end +monitor
        NP.0F.01:CA CLAC - end +smap
        NP.0F.01:CB STAC - end +smap
        NP.0F.01:D0 XGETBV - +xsave
        NP.0F.01:D1 XSETBV - end +xsave
        NP.0F.01:D9 VMMCALL - end
        NP.0F.01:EE RDPKRU - +pku
        NP.0F.01:EF WRPKRU - end +pku
        0F.01:F8 SWAPGS - end o64
        0F.01:F9 RDTSCP - end +rdtscp
        0F.02 LAR Gv,Ew
        0F.03 LSL Gv,Ew
        63 ARPL Ew,Gw i64
        C4 LES Gv,Mp i64 end
        C5 LDS Gv,Mp i64 end
        0F.B2 LSS Gv,Mp end
        0F.B4 LFS Gv,Mp end
        0F.B5 LGS Gv,Mp end
        66.0F38.82 INVPCID Gy,Mdq end f64 +invpcid
        0F.08 INVD - end
        0F.09 WBINVD - end
        0F.A2 CPUID - end
        0F.30 WRMSR - end
        0F.31 RDTSC - end
        0F.32 RDMSR - end
        0F.33 RDPMC - end
        F3.0F.C7/7R RDPID Rd f64 +rdpid
        NP.0F.C7/6R RDRAND Rv +rdrand
        66.0F.C7/6R RDRAND Rv +rdrand
        NP.0F.C7/7R RDSEED Rv +rdseed
        66.0F.C7/7R RDSEED Rv +rdseed
        NP.0F.AE/7m CLFLUSH Mb +clflush
        66.0F.AE/7m CLFLUSHOPT Mb +clflushopt
        66.0F.AE/6m CLWB Mb +clwb
        F3.0F.AE/0R RDFSBASE Ry o64 +fsgsbase
        F3.0F.AE/1R RDGSBASE Ry o64 +fsgsbase
        F3.0F.AE/2R WRFSBASE Ry o64 end +fsgsbase
        F3.0F.AE/3R WRGSBASE Ry o64 end +fsgsbase
        0F.FF UD0 Gd,Ed op=ud
        0F.B9 UD1 Gd,Ed op=ud
        0F.0B UD2 - op=ud
        NP.0F.AE/0m FXSAVE M wr +sse
        NP.0F.AE/1m FXRSTOR M +sse
        NP.0F.AE/2m LDMXCSR Md +sse
        NP.0F.AE/3m STMXCSR Md wr +sse
        NP.0F.AE/4m XSAVE M wr +xsave
        NP.0F.AE/5m XRSTOR M end +xsave
        NP.0F.AE/6m XSAVEOPT M wr +xsaveopt
        NP.0F.C7/4m XSAVEC M wr +xsavec
        NP.0F.C7/5m XSAVES M wr +xsaves
        NP.0F.C7/3m XRSTORS M end +xsaves
        VNP.0F.AE/2m VLDMXCSR Md L0 op=ldmxcsr +avx
        VNP.0F.AE/3m VSTMXCSR Md L0 wr op=stmxcsr +avx
        """#
}
