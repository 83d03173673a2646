// The instruction table, MMX, SSE and AVX. The columns are described in InstructionTable.swift. Lines that
// begin with a shape stand for several rows of one instruction:
//
//   mmi  MMX, SSE2 and VEX forms of an integer instruction       mms  the same, its last operand a shift count
//   mm2  the same with two operands only                         xi   SSE and VEX forms, no MMX
//   fp4  PS, PD, SS and SD, legacy and VEX                       fp2  PS and PD only
//   sh   shifts by an immediate: MMX, SSE2 and VEX               fma  PS, PD, SS and SD, VEX only

extension InstructionTable {
    static let vectorRows = #"""
        mmi 0F.61 PUNPCKLWD low
        mmi 0F.60 PUNPCKLBW low
        mmi 0F.62 PUNPCKLDQ low
        mmi 0F.63 PACKSSWB
        mmi 0F.64 PCMPGTB
        mmi 0F.65 PCMPGTW
        mmi 0F.66 PCMPGTD
        mmi 0F.67 PACKUSWB
        mmi 0F.68 PUNPCKHBW
        mmi 0F.69 PUNPCKHWD
        mmi 0F.6A PUNPCKHDQ
        mmi 0F.6B PACKSSDW
        xi 0F.6C PUNPCKLQDQ +sse2
        xi 0F.6D PUNPCKHQDQ +sse2
        mmi 0F.74 PCMPEQB
        mmi 0F.75 PCMPEQW
        mmi 0F.76 PCMPEQD
        mms 0F.D1 PSRLW
        mms 0F.D2 PSRLD
        mms 0F.D3 PSRLQ
        mmi 0F.D4 PADDQ
        mmi 0F.D5 PMULLW
        mmi 0F.D8 PSUBUSB
        mmi 0F.D9 PSUBUSW
        mmi 0F.DA PMINUB
        mmi 0F.DB PAND
        mmi 0F.DC PADDUSB
        mmi 0F.DD PADDUSW
        mmi 0F.DE PMAXUB
        mmi 0F.DF PANDN
        mmi 0F.E0 PAVGB
        mms 0F.E1 PSRAW
        mms 0F.E2 PSRAD
        mmi 0F.E3 PAVGW
        mmi 0F.E4 PMULHUW
        mmi 0F.E5 PMULHW
        mmi 0F.E8 PSUBSB
        mmi 0F.E9 PSUBSW
        mmi 0F.EA PMINSW
        mmi 0F.EB POR
        mmi 0F.EC PADDSB
        mmi 0F.ED PADDSW
        mmi 0F.EE PMAXSW
        mmi 0F.EF PXOR
        mms 0F.F1 PSLLW
        mms 0F.F2 PSLLD
        mms 0F.F3 PSLLQ
        mmi 0F.F4 PMULUDQ
        mmi 0F.F5 PMADDWD
        mmi 0F.F6 PSADBW
        mmi 0F.F8 PSUBB
        mmi 0F.F9 PSUBW
        mmi 0F.FA PSUBD
        mmi 0F.FB PSUBQ
        mmi 0F.FC PADDB
        mmi 0F.FD PADDW
        mmi 0F.FE PADDD
        mmi 0F38.00 PSHUFB +ssse3
        mmi 0F38.01 PHADDW +ssse3
        mmi 0F38.02 PHADDD +ssse3
        mmi 0F38.03 PHADDSW +ssse3
        mmi 0F38.04 PMADDUBSW +ssse3
        mmi 0F38.05 PHSUBW +ssse3
        mmi 0F38.06 PHSUBD +ssse3
        mmi 0F38.07 PHSUBSW +ssse3
        mmi 0F38.08 PSIGNB +ssse3
        mmi 0F38.09 PSIGNW +ssse3
        mmi 0F38.0A PSIGND +ssse3
        mmi 0F38.0B PMULHRSW +ssse3
        mm2 0F38.1C PABSB +ssse3
        mm2 0F38.1D PABSW +ssse3
        mm2 0F38.1E PABSD +ssse3
        sh 0F.71/2 PSRLW
        sh 0F.71/4 PSRAW
        sh 0F.71/6 PSLLW
        sh 0F.72/2 PSRLD
        sh 0F.72/4 PSRAD
        sh 0F.72/6 PSLLD
        sh 0F.73/2 PSRLQ
        sh 0F.73/6 PSLLQ
        66.0F.73/3 PSRLDQ Udq,Ib +sse2
        66.0F.73/7 PSLLDQ Udq,Ib +sse2
        V66.0F.73/3 VPSRLDQ Hx,Ux,Ib
        V66.0F.73/7 VPSLLDQ Hx,Ux,Ib
        NP.0F3A.0F PALIGNR Pq,Qq,Ib op=mmx +ssse3
        66.0F3A.0F PALIGNR Vdq,Wdq,Ib al +ssse3
        V66.0F3A.0F VPALIGNR Vx,Hx,Wx,Ib
        xi 0F38.28 PMULDQ
        xi 0F38.29 PCMPEQQ
        xi 0F38.2B PACKUSDW
        xi 0F38.37 PCMPGTQ +sse42
        xi 0F38.38 PMINSB
        xi 0F38.39 PMINSD
        xi 0F38.3A PMINUW
        xi 0F38.3B PMINUD
        xi 0F38.3C PMAXSB
        xi 0F38.3D PMAXSD
        xi 0F38.3E PMAXUW
        xi 0F38.3F PMAXUD
        xi 0F38.40 PMULLD
        66.0F38.10 PBLENDVB Vdq,Wdq,XMM0 al +sse41
        66.0F38.14 BLENDVPS Vdq,Wdq,XMM0 al +sse41
        66.0F38.15 BLENDVPD Vdq,Wdq,XMM0 al +sse41
        66.0F38.17 PTEST Vdq,Wdq al +sse41
        V66.0F38.17 VPTEST Vx,Wx +avx
        V66.0F38.0E VTESTPS Vx,Wx W0 +avx
        V66.0F38.0F VTESTPD Vx,Wx W0 +avx
        66.0F38.20 PMOVSXBW Vdq,Wq +sse41
        66.0F38.21 PMOVSXBD Vdq,Wd +sse41
        66.0F38.22 PMOVSXBQ Vdq,Ww +sse41
        66.0F38.23 PMOVSXWD Vdq,Wq +sse41
        66.0F38.24 PMOVSXWQ Vdq,Wd +sse41
        66.0F38.25 PMOVSXDQ Vdq,Wq +sse41
        66.0F38.30 PMOVZXBW Vdq,Wq +sse41
        66.0F38.31 PMOVZXBD Vdq,Wd +sse41
        66.0F38.32 PMOVZXBQ Vdq,Ww +sse41
        66.0F38.33 PMOVZXWD Vdq,Wq +sse41
        66.0F38.34 PMOVZXWQ Vdq,Wd +sse41
        66.0F38.35 PMOVZXDQ Vdq,Wq +sse41
        V66.0F38.20 VPMOVSXBW Vx,Wh
        V66.0F38.21 VPMOVSXBD Vx,We
        V66.0F38.22 VPMOVSXBQ Vx,Wi
        V66.0F38.23 VPMOVSXWD Vx,Wh
        V66.0F38.24 VPMOVSXWQ Vx,We
        V66.0F38.25 VPMOVSXDQ Vx,Wh
        V66.0F38.30 VPMOVZXBW Vx,Wh
        V66.0F38.31 VPMOVZXBD Vx,We
        V66.0F38.32 VPMOVZXBQ Vx,Wi
        V66.0F38.33 VPMOVZXWD Vx,Wh
        V66.0F38.34 VPMOVZXWQ Vx,We
        V66.0F38.35 VPMOVZXDQ Vx,Wh
        66.0F38.2A MOVNTDQA Vdq,Mdq al +sse41
        V66.0F38.2A VMOVNTDQA Vx,Mx al
        66.0F38.41 PHMINPOSUW Vdq,Wdq al +sse41
        V66.0F38.41 VPHMINPOSUW Vdq,Wdq L0 +avx
        66.0F3A.08 ROUNDPS Vdq,Wdq,Ib al +sse41
        66.0F3A.09 ROUNDPD Vdq,Wdq,Ib al +sse41
        66.0F3A.0A ROUNDSS Vdq,Wd,Ib +sse41
        66.0F3A.0B ROUNDSD Vdq,Wq,Ib +sse41
        V66.0F3A.08 VROUNDPS Vx,Wx,Ib +avx
        V66.0F3A.09 VROUNDPD Vx,Wx,Ib +avx
        V66.0F3A.0A VROUNDSS Vdq,Hdq,Wd,Ib +avx
        V66.0F3A.0B VROUNDSD Vdq,Hdq,Wq,Ib +avx
        66.0F3A.0C BLENDPS Vdq,Wdq,Ib al +sse41
        66.0F3A.0D BLENDPD Vdq,Wdq,Ib al +sse41
        66.0F3A.0E PBLENDW Vdq,Wdq,Ib al +sse41
        V66.0F3A.0C VBLENDPS Vx,Hx,Wx,Ib +avx
        V66.0F3A.0D VBLENDPD Vx,Hx,Wx,Ib +avx
        V66.0F3A.0E VPBLENDW Vx,Hx,Wx,Ib
        66.0F3A.14 PEXTRB Eb,Vdq,Ib wr +sse41
        66.0F3A.15 PEXTRW Ew,Vdq,Ib wr +sse41
        66.0F3A.16 PEXTRD Ey,Vdq,Ib wr +sse41
        66.0F3A.17 EXTRACTPS Ed,Vdq,Ib wr +sse41
        V66.0F3A.14 VPEXTRB Eb,Vdq,Ib wr L0 +avx
        V66.0F3A.15 VPEXTRW Ew,Vdq,Ib wr L0 +avx
        V66.0F3A.16 VPEXTRD Ey,Vdq,Ib wr L0 W0 +avx
        V66.0F3A.16 VPEXTRQ Ey,Vdq,Ib wr L0 W1 o64 +avx
        V66.0F3A.17 VEXTRACTPS Ed,Vdq,Ib wr L0 +avx
        66.0F3A.20 PINSRB Vdq,Eb,Ib +sse41
        66.0F3A.21 INSERTPS Vdq,Wd,Ib +sse41
        66.0F3A.22 PINSRD Vdq,Ey,Ib +sse41
        V66.0F3A.20 VPINSRB Vdq,Hdq,Eb,Ib L0 +avx
        V66.0F3A.21 VINSERTPS Vdq,Hdq,Wd,Ib L0 +avx
        V66.0F3A.22 VPINSRD Vdq,Hdq,Ey,Ib L0 W0 +avx
        V66.0F3A.22 VPINSRQ Vdq,Hdq,Ey,Ib L0 W1 o64 +avx
        66.0F3A.40 DPPS Vdq,Wdq,Ib al +sse41
        66.0F3A.41 DPPD Vdq,Wdq,Ib al +sse41
        66.0F3A.42 MPSADBW Vdq,Wdq,Ib al +sse41
        V66.0F3A.40 VDPPS Vx,Hx,Wx,Ib +avx
        V66.0F3A.41 VDPPD Vdq,Hdq,Wdq,Ib L0 +avx
        V66.0F3A.42 VMPSADBW Vx,Hx,Wx,Ib
        66.0F3A.44 PCLMULQDQ Vdq,Wdq,Ib al +pclmul
        V66.0F3A.44 VPCLMULQDQ Vdq,Hdq,Wdq,Ib L0 +avx
        66.0F3A.60 PCMPESTRM Vdq,Wdq,Ib +sse42
        66.0F3A.61 PCMPESTRI Vdq,Wdq,Ib +sse42
        66.0F3A.62 PCMPISTRM Vdq,Wdq,Ib +sse42
        66.0F3A.63 PCMPISTRI Vdq,Wdq,Ib +sse42
        V66.0F3A.60 VPCMPESTRM Vdq,Wdq,Ib L0 +avx
        V66.0F3A.61 VPCMPESTRI Vdq,Wdq,Ib L0 +avx
        V66.0F3A.62 VPCMPISTRM Vdq,Wdq,Ib L0 +avx
        V66.0F3A.63 VPCMPISTRI Vdq,Wdq,Ib L0 +avx
        66.0F3A.DF AESKEYGENASSIST Vdq,Wdq,Ib al +aes
        66.0F38.DB AESIMC Vdq,Wdq al +aes
        66.0F38.DC AESENC Vdq,Wdq al +aes
        66.0F38.DD AESENCLAST Vdq,Wdq al +aes
        66.0F38.DE AESDEC Vdq,Wdq al +aes
        66.0F38.DF AESDECLAST Vdq,Wdq al +aes
        V66.0F3A.DF VAESKEYGENASSIST Vdq,Wdq,Ib L0 +aes
        V66.0F38.DB VAESIMC Vdq,Wdq L0 +aes
        V66.0F38.DC VAESENC Vdq,Hdq,Wdq L0 +aes
        V66.0F38.DD VAESENCLAST Vdq,Hdq,Wdq L0 +aes
        V66.0F38.DE VAESDEC Vdq,Hdq,Wdq L0 +aes
        V66.0F38.DF VAESDECLAST Vdq,Hdq,Wdq L0 +aes
        NP.0F3A.CC SHA1RNDS4 Vdq,Wdq,Ib +sha
        NP.0F38.C8 SHA1NEXTE Vdq,Wdq +sha
        NP.0F38.C9 SHA1MSG1 Vdq,Wdq +sha
        NP.0F38.CA SHA1MSG2 Vdq,Wdq +sha
        NP.0F38.CB SHA256RNDS2 Vdq,Wdq,XMM0 +sha
        NP.0F38.CC SHA256MSG1 Vdq,Wdq +sha
        NP.0F38.CD SHA256MSG2 Vdq,Wdq +sha
        fp4 0F.58 ADD
        fp4 0F.59 MUL
        fp4 0F.5C SUB
        fp4 0F.5D MIN
        fp4 0F.5E DIV
        fp4 0F.5F MAX
        fp4 0F.C2 CMP imm
        fp2 0F.14 UNPCKL
        fp2 0F.15 UNPCKH
        fp2 0F.54 AND
        fp2 0F.55 ANDN
        fp2 0F.56 OR
        fp2 0F.57 XOR
        fp2 0F.C6 SHUF imm
        NP.0F.51 SQRTPS Vdq,Wdq al +sse
        66.0F.51 SQRTPD Vdq,Wdq al +sse2
        F3.0F.51 SQRTSS Vdq,Wd +sse
        F2.0F.51 SQRTSD Vdq,Wq +sse2
        VNP.0F.51 VSQRTPS Vx,Wx +avx
        V66.0F.51 VSQRTPD Vx,Wx +avx
        VF3.0F.51 VSQRTSS Vdq,Hdq,Wd +avx
        VF2.0F.51 VSQRTSD Vdq,Hdq,Wq +avx
        NP.0F.52 RSQRTPS Vdq,Wdq al +sse
        F3.0F.52 RSQRTSS Vdq,Wd +sse
        VNP.0F.52 VRSQRTPS Vx,Wx +avx
        VF3.0F.52 VRSQRTSS Vdq,Hdq,Wd +avx
        NP.0F.53 RCPPS Vdq,Wdq al +sse
        F3.0F.53 RCPSS Vdq,Wd +sse
        VNP.0F.53 VRCPPS Vx,Wx +avx
        VF3.0F.53 VRCPSS Vdq,Hdq,Wd +avx
        66.0F.7C HADDPD Vdq,Wdq al +sse3
        F2.0F.7C HADDPS Vdq,Wdq al +sse3
        66.0F.7D HSUBPD Vdq,Wdq al +sse3
        F2.0F.7D HSUBPS Vdq,Wdq al +sse3
        66.0F.D0 ADDSUBPD Vdq,Wdq al +sse3
        F2.0F.D0 ADDSUBPS Vdq,Wdq al +sse3
        V66.0F.7C VHADDPD Vx,Hx,Wx +avx
        VF2.0F.7C VHADDPS Vx,Hx,Wx +avx
        V66.0F.7D VHSUBPD Vx,Hx,Wx +avx
        VF2.0F.7D VHSUBPS Vx,Hx,Wx +avx
        V66.0F.D0 VADDSUBPD Vx,Hx,Wx +avx
        VF2.0F.D0 VADDSUBPS Vx,Hx,Wx +avx
        NP.0F.10 MOVUPS Vdq,Wdq +sse
        66.0F.10 MOVUPD Vdq,Wdq +sse2
        F3.0F.10 MOVSS Vdq,Wd +sse
        F2.0F.10 MOVSD Vdq,Wq +sse2
        NP.0F.11 MOVUPS Wdq,Vdq wr +sse
        66.0F.11 MOVUPD Wdq,Vdq wr +sse2
        F3.0F.11 MOVSS Wd,Vdq wr +sse
        F2.0F.11 MOVSD Wq,Vdq wr +sse2
        VNP.0F.10 VMOVUPS Vx,Wx +avx
        V66.0F.10 VMOVUPD Vx,Wx +avx
        VF3.0F.10/m VMOVSS Vdq,Wd +avx
        VF3.0F.10/R VMOVSS Vdq,Hdq,Wd +avx
        VF2.0F.10/m VMOVSD Vdq,Wq +avx
        VF2.0F.10/R VMOVSD Vdq,Hdq,Wq +avx
        VNP.0F.11 VMOVUPS Wx,Vx wr +avx
        V66.0F.11 VMOVUPD Wx,Vx wr +avx
        VF3.0F.11/m VMOVSS Wd,Vdq wr +avx
        VF3.0F.11/R VMOVSS Wd,Hdq,Vdq wr +avx
        VF2.0F.11/m VMOVSD Wq,Vdq wr +avx
        VF2.0F.11/R VMOVSD Wq,Hdq,Vdq wr +avx
        NP.0F.12/m MOVLPS Vdq,Mq +sse
        NP.0F.12/R MOVHLPS Vdq,Udq +sse
        66.0F.12 MOVLPD Vdq,Mq +sse2
        F3.0F.12 MOVSLDUP Vdq,Wdq al +sse3
        F2.0F.12 MOVDDUP Vdq,Wq +sse3
        NP.0F.13 MOVLPS Mq,Vdq wr +sse
        66.0F.13 MOVLPD Mq,Vdq wr +sse2
        NP.0F.16/m MOVHPS Vdq,Mq +sse
        NP.0F.16/R MOVLHPS Vdq,Udq +sse
        66.0F.16 MOVHPD Vdq,Mq +sse2
        F3.0F.16 MOVSHDUP Vdq,Wdq al +sse3
        NP.0F.17 MOVHPS Mq,Vdq wr +sse
        66.0F.17 MOVHPD Mq,Vdq wr +sse2
        VNP.0F.12/m VMOVLPS Vdq,Hdq,Mq L0 +avx
        VNP.0F.12/R VMOVHLPS Vdq,Hdq,Udq L0 +avx
        V66.0F.12 VMOVLPD Vdq,Hdq,Mq L0 +avx
        VF3.0F.12 VMOVSLDUP Vx,Wx +avx
        VF2.0F.12 VMOVDDUP Vdq,Wq L0 +avx
        VF2.0F.12 VMOVDDUP Vqq,Wqq L1 +avx
        VNP.0F.13 VMOVLPS Mq,Vdq wr L0 +avx
        V66.0F.13 VMOVLPD Mq,Vdq wr L0 +avx
        VNP.0F.16/m VMOVHPS Vdq,Hdq,Mq L0 +avx
        VNP.0F.16/R VMOVLHPS Vdq,Hdq,Udq L0 +avx
        V66.0F.16 VMOVHPD Vdq,Hdq,Mq L0 +avx
        VF3.0F.16 VMOVSHDUP Vx,Wx +avx
        VNP.0F.17 VMOVHPS Mq,Vdq wr L0 +avx
        V66.0F.17 VMOVHPD Mq,Vdq wr L0 +avx
        NP.0F.28 MOVAPS Vdq,Wdq al +sse
        66.0F.28 MOVAPD Vdq,Wdq al +sse2
        NP.0F.29 MOVAPS Wdq,Vdq al wr +sse
        66.0F.29 MOVAPD Wdq,Vdq al wr +sse2
        VNP.0F.28 VMOVAPS Vx,Wx al +avx
        V66.0F.28 VMOVAPD Vx,Wx al +avx
        VNP.0F.29 VMOVAPS Wx,Vx al wr +avx
        V66.0F.29 VMOVAPD Wx,Vx al wr +avx
        NP.0F.2B MOVNTPS Mdq,Vdq al wr +sse
        66.0F.2B MOVNTPD Mdq,Vdq al wr +sse2
        VNP.0F.2B VMOVNTPS Mx,Vx al wr +avx
        V66.0F.2B VMOVNTPD Mx,Vx al wr +avx
        NP.0F.2A CVTPI2PS Vdq,Qq op=mmx
        66.0F.2A CVTPI2PD Vdq,Qq op=mmx
        F3.0F.2A CVTSI2SS Vdq,Ey +sse
        F2.0F.2A CVTSI2SD Vdq,Ey +sse2
        VF3.0F.2A VCVTSI2SS Vdq,Hdq,Ey +avx
        VF2.0F.2A VCVTSI2SD Vdq,Hdq,Ey +avx
        NP.0F.2C CVTTPS2PI Pq,Wq op=mmx
        66.0F.2C CVTTPD2PI Pq,Wdq al op=mmx
        F3.0F.2C CVTTSS2SI Gy,Wd +sse
        F2.0F.2C CVTTSD2SI Gy,Wq +sse2
        VF3.0F.2C VCVTTSS2SI Gy,Wd +avx
        VF2.0F.2C VCVTTSD2SI Gy,Wq +avx
        NP.0F.2D CVTPS2PI Pq,Wq op=mmx
        66.0F.2D CVTPD2PI Pq,Wdq al op=mmx
        F3.0F.2D CVTSS2SI Gy,Wd +sse
        F2.0F.2D CVTSD2SI Gy,Wq +sse2
        VF3.0F.2D VCVTSS2SI Gy,Wd +avx
        VF2.0F.2D VCVTSD2SI Gy,Wq +avx
        NP.0F.2E UCOMISS Vdq,Wd +sse
        66.0F.2E UCOMISD Vdq,Wq +sse2
        NP.0F.2F COMISS Vdq,Wd +sse
        66.0F.2F COMISD Vdq,Wq +sse2
        VNP.0F.2E VUCOMISS Vdq,Wd +avx
        V66.0F.2E VUCOMISD Vdq,Wq +avx
        VNP.0F.2F VCOMISS Vdq,Wd +avx
        V66.0F.2F VCOMISD Vdq,Wq +avx
        NP.0F.50 MOVMSKPS Gd,Udq +sse
        66.0F.50 MOVMSKPD Gd,Udq +sse2
        VNP.0F.50 VMOVMSKPS Gd,Ux +avx
        V66.0F.50 VMOVMSKPD Gd,Ux +avx
        NP.0F.5A CVTPS2PD Vdq,Wq +sse2
        66.0F.5A CVTPD2PS Vdq,Wdq al +sse2
        F3.0F.5A CVTSS2SD Vdq,Wd +sse2
        F2.0F.5A CVTSD2SS Vdq,Wq +sse2
        VNP.0F.5A VCVTPS2PD Vx,Wh +avx
        V66.0F.5A VCVTPD2PS Vdq,Wx +avx
        VF3.0F.5A VCVTSS2SD Vdq,Hdq,Wd +avx
        VF2.0F.5A VCVTSD2SS Vdq,Hdq,Wq +avx
        NP.0F.5B CVTDQ2PS Vdq,Wdq al +sse2
        66.0F.5B CVTPS2DQ Vdq,Wdq al +sse2
        F3.0F.5B CVTTPS2DQ Vdq,Wdq al +sse2
        VNP.0F.5B VCVTDQ2PS Vx,Wx +avx
        V66.0F.5B VCVTPS2DQ Vx,Wx +avx
        VF3.0F.5B VCVTTPS2DQ Vx,Wx +avx
        66.0F.E6 CVTTPD2DQ Vdq,Wdq al +sse2
        F3.0F.E6 CVTDQ2PD Vdq,Wq +sse2
        F2.0F.E6 CVTPD2DQ Vdq,Wdq al +sse2
        V66.0F.E6 VCVTTPD2DQ Vdq,Wx +avx
        VF3.0F.E6 VCVTDQ2PD Vx,Wh +avx
        VF2.0F.E6 VCVTPD2DQ Vdq,Wx +avx
        NP.0F.6E MOVD Pq,Ey op=mmx
        66.0F.6E MOVD Vdq,Ey +sse2
        V66.0F.6E VMOVD Vdq,Ey L0 +avx
        NP.0F.7E MOVD Ey,Pq wr op=mmx
        66.0F.7E MOVD Ey,Vdq wr +sse2
        V66.0F.7E VMOVD Ey,Vdq wr L0 +avx
        F3.0F.7E MOVQ Vdq,Wq +sse2
        VF3.0F.7E VMOVQ Vdq,Wq L0 +avx
        66.0F.D6 MOVQ Wq,Vdq wr +sse2
        V66.0F.D6 VMOVQ Wq,Vdq wr L0 +avx
        NP.0F.6F MOVQ Pq,Qq op=mmx
        66.0F.6F MOVDQA Vdq,Wdq al +sse2
        F3.0F.6F MOVDQU Vdq,Wdq +sse2
        V66.0F.6F VMOVDQA Vx,Wx al +avx
        VF3.0F.6F VMOVDQU Vx,Wx +avx
        NP.0F.7F MOVQ Qq,Pq wr op=mmx
        66.0F.7F MOVDQA Wdq,Vdq al wr +sse2
        F3.0F.7F MOVDQU Wdq,Vdq wr +sse2
        V66.0F.7F VMOVDQA Wx,Vx al wr +avx
        VF3.0F.7F VMOVDQU Wx,Vx wr +avx
        NP.0F.70 PSHUFW Pq,Qq,Ib op=mmx
        66.0F.70 PSHUFD Vdq,Wdq,Ib al +sse2
        F3.0F.70 PSHUFHW Vdq,Wdq,Ib al +sse2
        F2.0F.70 PSHUFLW Vdq,Wdq,Ib al +sse2
        V66.0F.70 VPSHUFD Vx,Wx,Ib
        VF3.0F.70 VPSHUFHW Vx,Wx,Ib
        VF2.0F.70 VPSHUFLW Vx,Wx,Ib
        NP.0F.77 EMMS - op=mmx
        VNP.0F.77 VZEROUPPER - L0 +avx
        VNP.0F.77 VZEROALL - L1 +avx
        NP.0F.C4 PINSRW Pq,Ew,Ib op=mmx
        66.0F.C4 PINSRW Vdq,Ew,Ib +sse2
        V66.0F.C4 VPINSRW Vdq,Hdq,Ew,Ib L0 +avx
        NP.0F.C5 PEXTRW Gd,Nq,Ib op=mmx
        66.0F.C5 PEXTRW Gd,Udq,Ib +sse2
        V66.0F.C5 VPEXTRW Gd,Udq,Ib L0 +avx
        F3.0F.D6 MOVQ2DQ Vdq,Nq op=mmx
        F2.0F.D6 MOVDQ2Q Pq,Uq op=mmx
        NP.0F.D7 PMOVMSKB Gd,Nq op=mmx
        66.0F.D7 PMOVMSKB Gd,Udq +sse2
        V66.0F.D7 VPMOVMSKB Gd,Ux
        NP.0F.E7 MOVNTQ Mq,Pq wr op=mmx
        66.0F.E7 MOVNTDQ Mdq,Vdq al wr +sse2
        V66.0F.E7 VMOVNTDQ Mx,Vx al wr +avx
        F2.0F.F0 LDDQU Vdq,Mdq +sse3
        VF2.0F.F0 VLDDQU Vx,Mx +avx
        NP.0F.F7 MASKMOVQ Pq,Nq op=mmx
        66.0F.F7 MASKMOVDQU Vdq,Udq +sse2
        V66.0F.F7 VMASKMOVDQU Vdq,Udq L0 +avx
        V66.0F38.0C VPERMILPS Vx,Hx,Wx W0 +avx
        V66.0F38.0D VPERMILPD Vx,Hx,Wx W0 +avx
        V66.0F38.13 VCVTPH2PS Vx,Wh W0 +f16c
        V66.0F38.16 VPERMPS Vqq,Hqq,Wqq W0 L1 +avx2
        V66.0F38.18 VBROADCASTSS Vx,Wd W0
        V66.0F38.19 VBROADCASTSD Vqq,Wq W0 L1
        V66.0F38.1A VBROADCASTF128 Vqq,Mdq W0 L1 +avx
        V66.0F38.2C VMASKMOVPS Vx,Hx,Mx W0 +avx
        V66.0F38.2D VMASKMOVPD Vx,Hx,Mx W0 +avx
        V66.0F38.2E VMASKMOVPS Mx,Hx,Vx W0 wr +avx
        V66.0F38.2F VMASKMOVPD Mx,Hx,Vx W0 wr +avx
        V66.0F38.36 VPERMD Vqq,Hqq,Wqq W0 L1 +avx2
        V66.0F38.45 VPSRLVD Vx,Hx,Wx W0 +avx2
        V66.0F38.45 VPSRLVQ Vx,Hx,Wx W1 +avx2
        V66.0F38.46 VPSRAVD Vx,Hx,Wx W0 +avx2
        V66.0F38.47 VPSLLVD Vx,Hx,Wx W0 +avx2
        V66.0F38.47 VPSLLVQ Vx,Hx,Wx W1 +avx2
        V66.0F38.58 VPBROADCASTD Vx,Wd W0 +avx2
        V66.0F38.59 VPBROADCASTQ Vx,Wq W0 +avx2
        V66.0F38.5A VBROADCASTI128 Vqq,Mdq W0 L1 +avx2
        V66.0F38.78 VPBROADCASTB Vx,Wb W0 +avx2
        V66.0F38.79 VPBROADCASTW Vx,Ww W0 +avx2
        V66.0F38.8C VPMASKMOVD Vx,Hx,Mx W0 +avx2
        V66.0F38.8C VPMASKMOVQ Vx,Hx,Mx W1 +avx2
        V66.0F38.8E VPMASKMOVD Mx,Hx,Vx W0 wr +avx2
        V66.0F38.8E VPMASKMOVQ Mx,Hx,Vx W1 wr +avx2
        V66.0F38.90 VPGATHERDD Vx,VSIBd,Hx W0 +avx2
        V66.0F38.90 VPGATHERDQ Vx,VSIBd,Hx W1 +avx2
        V66.0F38.91 VPGATHERQD Vx,VSIBq,Hx W0 +avx2
        V66.0F38.91 VPGATHERQQ Vx,VSIBq,Hx W1 +avx2
        V66.0F38.92 VGATHERDPS Vx,VSIBd,Hx W0 +avx2
        V66.0F38.92 VGATHERDPD Vx,VSIBd,Hx W1 +avx2
        V66.0F38.93 VGATHERQPS Vx,VSIBq,Hx W0 +avx2
        V66.0F38.93 VGATHERQPD Vx,VSIBq,Hx W1 +avx2
        V66.0F3A.00 VPERMQ Vqq,Wqq,Ib W1 L1 +avx2
        V66.0F3A.01 VPERMPD Vqq,Wqq,Ib W1 L1 +avx2
        V66.0F3A.02 VPBLENDD Vx,Hx,Wx,Ib W0 +avx2
        V66.0F3A.04 VPERMILPS Vx,Wx,Ib W0 +avx
        V66.0F3A.05 VPERMILPD Vx,Wx,Ib W0 +avx
        V66.0F3A.06 VPERM2F128 Vqq,Hqq,Wqq,Ib W0 L1 +avx
        V66.0F3A.18 VINSERTF128 Vqq,Hqq,Wdq,Ib W0 L1 +avx
        V66.0F3A.19 VEXTRACTF128 Wdq,Vqq,Ib W0 L1 wr +avx
        V66.0F3A.1D VCVTPS2PH Wh,Vx,Ib W0 wr +f16c
        V66.0F3A.38 VINSERTI128 Vqq,Hqq,Wdq,Ib W0 L1 +avx2
        V66.0F3A.39 VEXTRACTI128 Wdq,Vqq,Ib W0 L1 wr +avx2
        V66.0F3A.46 VPERM2I128 Vqq,Hqq,Wqq,Ib W0 L1 +avx2
        V66.0F3A.4A VBLENDVPS Vx,Hx,Wx,Lx W0 +avx
        V66.0F3A.4B VBLENDVPD Vx,Hx,Wx,Lx W0 +avx
        V66.0F3A.4C VPBLENDVB Vx,Hx,Wx,Lx W0
        fma 96 VFMADDSUB132 packed
        fma 97 VFMSUBADD132 packed
        fma 98 VFMADD132
        fma 9A VFMSUB132
        fma 9C VFNMADD132
        fma 9E VFNMSUB132
        fma A6 VFMADDSUB213 packed
        fma A7 VFMSUBADD213 packed
        fma A8 VFMADD213
        fma AA VFMSUB213
        fma AC VFNMADD213
        fma AE VFNMSUB213
        fma B6 VFMADDSUB231 packed
        fma B7 VFMSUBADD231 packed
        fma B8 VFMADD231
        fma BA VFMSUB231
        fma BC VFNMADD231
        fma BE VFNMSUB231
        """#
}
