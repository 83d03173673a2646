// The instruction table: x87. The columns are described in InstructionTable.swift.

extension InstructionTable {
    static let x87Rows = #"""
        D8/0m FADD ST0,m32
        D8/1m FMUL ST0,m32
        D8/2m FCOM ST0,m32
        D8/3m FCOMP ST0,m32
        D8/4m FSUB ST0,m32
        D8/5m FSUBR ST0,m32
        D8/6m FDIV ST0,m32
        D8/7m FDIVR ST0,m32
        D8/0R FADD ST0,STi
        D8/1R FMUL ST0,STi
        D8/2R FCOM ST0,STi
        D8/3R FCOMP ST0,STi
        D8/4R FSUB ST0,STi
        D8/5R FSUBR ST0,STi
        D8/6R FDIV ST0,STi
        D8/7R FDIVR ST0,STi
        D9/0m FLD m32
        D9/2m FST m32 wr
        D9/3m FSTP m32 wr
        D9/4m FLDENV mEnv
        D9/5m FLDCW m16
        D9/6m FNSTENV mEnv wr
        D9/7m FNSTCW m16 wr
        D9/0R FLD STi
        D9/1R FXCH STi
        D9/3R FSTPNCE STi
        D9:D0 FNOP -
        D9:E0 FCHS -
        D9:E1 FABS -
        D9:E4 FTST -
        D9:E5 FXAM -
        D9:E8 FLD1 -
        D9:E9 FLDL2T -
        D9:EA FLDL2E -
        D9:EB FLDPI -
        D9:EC FLDLG2 -
        D9:ED FLDLN2 -
        D9:EE FLDZ -
        D9:F0 F2XM1 -
        D9:F1 FYL2X -
        D9:F2 FPTAN -
        D9:F3 FPATAN -
        D9:F4 FXTRACT -
        D9:F5 FPREM1 -
        D9:F6 FDECSTP -
        D9:F7 FINCSTP -
        D9:F8 FPREM -
        D9:F9 FYL2XP1 -
        D9:FA FSQRT -
        D9:FB FSINCOS -
        D9:FC FRNDINT -
        D9:FD FSCALE -
        D9:FE FSIN -
        D9:FF FCOS -
        DA/0m FIADD ST0,m32
        DA/1m FIMUL ST0,m32
        DA/2m FICOM ST0,m32
        DA/3m FICOMP ST0,m32
        DA/4m FISUB ST0,m32
        DA/5m FISUBR ST0,m32
        DA/6m FIDIV ST0,m32
        DA/7m FIDIVR ST0,m32
        DA/0R FCMOVB ST0,STi
        DA/1R FCMOVE ST0,STi
        DA/2R FCMOVBE ST0,STi
        DA/3R FCMOVU ST0,STi
        DA:E9 FUCOMPP -
        DB/0m FILD m32
        DB/1m FISTTP m32 wr
        DB/2m FIST m32 wr
        DB/3m FISTP m32 wr
        DB/5m FLD m80
        DB/7m FSTP m80 wr
        DB/0R FCMOVNB ST0,STi
        DB/1R FCMOVNE ST0,STi
        DB/2R FCMOVNBE ST0,STi
        DB/3R FCMOVNU ST0,STi
        DB:E0 FENI -
        DB:E1 FDISI -
        DB:E2 FNCLEX -
        DB:E3 FNINIT -
        DB:E4 FSETPM -
        DB/5R FUCOMI ST0,STi
        DB/6R FCOMI ST0,STi
        DC/0m FADD ST0,m64
        DC/1m FMUL ST0,m64
        DC/2m FCOM ST0,m64
        DC/3m FCOMP ST0,m64
        DC/4m FSUB ST0,m64
        DC/5m FSUBR ST0,m64
        DC/6m FDIV ST0,m64
        DC/7m FDIVR ST0,m64
        DC/0R FADD STi,ST0
        DC/1R FMUL STi,ST0
        DC/2R FCOM ST0,STi
        DC/3R FCOMP ST0,STi
        DC/4R FSUBR STi,ST0
        DC/5R FSUB STi,ST0
        DC/6R FDIVR STi,ST0
        DC/7R FDIV STi,ST0
        DD/0m FLD m64
        DD/1m FISTTP m64 wr
        DD/2m FST m64 wr
        DD/3m FSTP m64 wr
        DD/4m FRSTOR mState
        DD/6m FNSAVE mState wr
        DD/7m FNSTSW m16 wr
        DD/0R FFREE STi
        DD/1R FXCH STi
        DD/2R FST STi
        DD/3R FSTP STi
        DD/4R FUCOM STi
        DD/5R FUCOMP STi
        DE/0m FIADD ST0,m16
        DE/1m FIMUL ST0,m16
        DE/2m FICOM ST0,m16
        DE/3m FICOMP ST0,m16
        DE/4m FISUB ST0,m16
        DE/5m FISUBR ST0,m16
        DE/6m FIDIV ST0,m16
        DE/7m FIDIVR ST0,m16
        DE/0R FADDP STi,ST0
        DE/1R FMULP STi,ST0
        DE/2R FCOMP ST0,STi
        DE:D9 FCOMPP -
        DE/4R FSUBRP STi,ST0
        DE/5R FSUBP STi,ST0
        DE/6R FDIVRP STi,ST0
        DE/7R FDIVP STi,ST0
        DF/0m FILD m16
        DF/1m FISTTP m16 wr
        DF/2m FIST m16 wr
        DF/3m FISTP m16 wr
        DF/4m FBLD m80
        DF/5m FILD m64
        DF/6m FBSTP m80 wr
        DF/7m FISTP m64 wr
        DF/0R FFREEP STi
        DF/1R FXCH STi
        DF/2R FSTP STi
        DF/3R FSTP STi
        DF:E0 FNSTSW -
        DF/5R FUCOMIP ST0,STi
        DF/6R FCOMIP ST0,STi
        9B FWAIT -
        """#
}
