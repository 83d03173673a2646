// Guest integer arithmetic on the host's own arithmetic unit: results and flags are the hardware's, undefined flags too.
// Flags travel as LAHF;SETO AL leave AX: SF15 ZF14 AF12 PF10 CF8, OF bit 0. Sizes are bytes: 1, 2, 4, 8.
// Every function is inlined into its caller, where operation and size are constants.
#ifndef ROOST_ALU_H
#define ROOST_ALU_H
#include <stdint.h>

#define ROOST_INLINE static inline __attribute__((always_inline))
#define ROOST_FLAGS 0xD501u

enum {
    ROOST_ALU_ADD, ROOST_ALU_OR, ROOST_ALU_ADC, ROOST_ALU_SBB, ROOST_ALU_AND, ROOST_ALU_SUB, ROOST_ALU_XOR,
    ROOST_ALU_CMP, ROOST_ALU_TEST, ROOST_ALU_INC, ROOST_ALU_DEC, ROOST_ALU_NEG, ROOST_ALU_NOT,
    ROOST_ALU_XADD, ROOST_ALU_XCHG, ROOST_ALU_BTS, ROOST_ALU_BTR, ROOST_ALU_BTC,
};

// op b, a; flags out only.
#define ROOST_BINARY(T, insn)                                                                           \
    do {                                                                                                \
        T x = (T)a; uint32_t f;                                                                         \
        __asm__(insn " %[b], %[x]\n\tlahf\n\tseto %%al" : [x] "+&r"(x), "=&a"(f) : [b] "r"((T)b) : "cc"); \
        *flags = f & ROOST_FLAGS;                                                                       \
        return (uint64_t)x;                                                                             \
    } while (0)
// The same where flags that the instruction leaves undefined keep what they were.
#define ROOST_KEEPING(T, insn)                                                                          \
    do {                                                                                                \
        T x = (T)a; uint32_t f = *flags;                                                                \
        __asm__("addb $0x7f, %%al\n\tsahf\n\t" insn " %[b], %[x]\n\tlahf\n\tseto %%al"                  \
                : [x] "+&r"(x), "+&a"(f) : [b] "r"((T)b) : "cc");                                        \
        *flags = f & ROOST_FLAGS;                                                                       \
        return (uint64_t)x;                                                                             \
    } while (0)
// The same with carry in from the flags (adc, sbb), or carry preserved (inc, dec).
#define ROOST_BINARY_CARRY(T, insn)                                                                     \
    do {                                                                                                \
        T x = (T)a; uint32_t f = *flags;                                                                \
        __asm__("btl $8, %%eax\n\t" insn " %[b], %[x]\n\tlahf\n\tseto %%al"                             \
                : [x] "+&r"(x), "+&a"(f) : [b] "r"((T)b) : "cc");                                        \
        *flags = f & ROOST_FLAGS;                                                                       \
        return (uint64_t)x;                                                                             \
    } while (0)
#define ROOST_UNARY_CARRY(T, insn)                                                                      \
    do {                                                                                                \
        T x = (T)a; uint32_t f = *flags;                                                                \
        __asm__("btl $8, %%eax\n\t" insn " %[x]\n\tlahf\n\tseto %%al" : [x] "+&r"(x), "+&a"(f) : : "cc"); \
        *flags = f & ROOST_FLAGS;                                                                       \
        return (uint64_t)x;                                                                             \
    } while (0)
#define ROOST_BY_SIZE(M, insn)                                                                          \
    switch (size) {                                                                                     \
    case 1: M(uint8_t, insn "b");                                                                       \
    case 2: M(uint16_t, insn "w");                                                                      \
    case 4: M(uint32_t, insn "l");                                                                      \
    default: M(uint64_t, insn "q");                                                                     \
    }

// Two-operand arithmetic; CMP and TEST return a value that the caller drops.
ROOST_INLINE uint64_t roost_alu(uint32_t op, uint32_t size, uint64_t a, uint64_t b, uint32_t *flags) {
    switch (op) {
    case ROOST_ALU_ADD: ROOST_BY_SIZE(ROOST_BINARY, "add")
    case ROOST_ALU_OR: ROOST_BY_SIZE(ROOST_BINARY, "or")
    case ROOST_ALU_ADC: ROOST_BY_SIZE(ROOST_BINARY_CARRY, "adc")
    case ROOST_ALU_SBB: ROOST_BY_SIZE(ROOST_BINARY_CARRY, "sbb")
    case ROOST_ALU_AND: ROOST_BY_SIZE(ROOST_BINARY, "and")
    case ROOST_ALU_SUB: ROOST_BY_SIZE(ROOST_BINARY, "sub")
    case ROOST_ALU_XOR: ROOST_BY_SIZE(ROOST_BINARY, "xor")
    case ROOST_ALU_CMP: ROOST_BY_SIZE(ROOST_BINARY, "cmp")
    case ROOST_ALU_TEST: ROOST_BY_SIZE(ROOST_BINARY, "test")
    case ROOST_ALU_INC: ROOST_BY_SIZE(ROOST_UNARY_CARRY, "inc")
    case ROOST_ALU_DEC: ROOST_BY_SIZE(ROOST_UNARY_CARRY, "dec")
    case ROOST_ALU_NEG: ROOST_BY_SIZE(ROOST_UNARY_CARRY, "neg")
    case ROOST_ALU_XADD: ROOST_BY_SIZE(ROOST_BINARY, "add")
    case ROOST_ALU_NOT: return ~a;
    case ROOST_ALU_XCHG: return b;
    case ROOST_ALU_BTS: case ROOST_ALU_BTR: case ROOST_ALU_BTC: {
        uint64_t bit = 1ull << (b & (size * 8 - 1));
        *flags = (*flags & ~0x100u) | ((a & bit) ? 0x100u : 0);
        return op == ROOST_ALU_BTS ? a | bit : op == ROOST_ALU_BTR ? a & ~bit : a ^ bit;
    }
    }
    return a;
}

// The same on memory as one atomic operation (LOCK); returns the old value.
#define ROOST_ATOMIC(T)                                                                                 \
    do {                                                                                                \
        T *p = (T *)address, old = __atomic_load_n(p, __ATOMIC_RELAXED), value; uint32_t f;             \
        do {                                                                                            \
            f = *flags;                                                                                 \
            value = (T)roost_alu(op, size, old, b, &f);                                                 \
        } while (!__atomic_compare_exchange_n(p, &old, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));  \
        *flags = f;                                                                                     \
        return (uint64_t)old;                                                                           \
    } while (0)
ROOST_INLINE uint64_t roost_alu_atomic(uint32_t op, uint32_t size, void *address, uint64_t b, uint32_t *flags) {
    switch (size) {
    case 1: ROOST_ATOMIC(uint8_t);
    case 2: ROOST_ATOMIC(uint16_t);
    case 4: ROOST_ATOMIC(uint32_t);
    default: ROOST_ATOMIC(uint64_t);
    }
}

// Compare and exchange on memory; returns the old value, flags as CMP of the accumulator with it.
ROOST_INLINE uint64_t roost_cmpxchg_atomic(uint32_t size, void *address, uint64_t expected, uint64_t value) {
    switch (size) {
    case 1: { uint8_t e = (uint8_t)expected; __atomic_compare_exchange_n((uint8_t *)address, &e, (uint8_t)value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); return e; }
    case 2: { uint16_t e = (uint16_t)expected; __atomic_compare_exchange_n((uint16_t *)address, &e, (uint16_t)value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); return e; }
    case 4: { uint32_t e = (uint32_t)expected; __atomic_compare_exchange_n((uint32_t *)address, &e, (uint32_t)value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); return e; }
    default: { uint64_t e = expected; __atomic_compare_exchange_n((uint64_t *)address, &e, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); return e; }
    }
}

ROOST_INLINE uint64_t roost_load_sized(uint32_t size, const void *address) {
    switch (size) {
    case 1: return __atomic_load_n((const uint8_t *)address, __ATOMIC_RELAXED);
    case 2: return __atomic_load_n((const uint16_t *)address, __ATOMIC_RELAXED);
    case 4: return __atomic_load_n((const uint32_t *)address, __ATOMIC_RELAXED);
    default: return __atomic_load_n((const uint64_t *)address, __ATOMIC_RELAXED);
    }
}

// CMPXCHG16B on 16-byte aligned memory; expected is replaced by what was there. Returns whether it was exchanged.
ROOST_INLINE int roost_cmpxchg16b(void *address, uint64_t *low, uint64_t *high, uint64_t new_low, uint64_t new_high) {
    uint8_t equal;
    __asm__ volatile("lock cmpxchg16b %[m]\n\tsete %[e]"
                     : [m] "+m"(*(unsigned __int128 *)address), [e] "=q"(equal), "+a"(*low), "+d"(*high)
                     : "b"(new_low), "c"(new_high) : "cc", "memory");
    return equal;
}

// 16 bytes of guest memory, which is at `from`: one access where they are aligned, as processors with AVX have it
// (SDM 3A 9.1.1).
ROOST_INLINE void roost_load16(void *to, const void *from) {
    if ((uintptr_t)from & 15) {
        __builtin_memcpy(to, from, 16);
        return;
    }
    __asm__ volatile("movdqa %[from], %%xmm0\n\tmovdqu %%xmm0, %[to]"
                     : [to] "=m"(*(uint8_t (*)[16])to) : [from] "m"(*(const uint8_t (*)[16])from)
                     : "xmm0", "memory");
}

// The same where guest memory is at `to`.
ROOST_INLINE void roost_store16(void *to, const void *from) {
    if ((uintptr_t)to & 15) {
        __builtin_memcpy(to, from, 16);
        return;
    }
    __asm__ volatile("movdqu %[from], %%xmm0\n\tmovdqa %%xmm0, %[to]"
                     : [to] "=m"(*(uint8_t (*)[16])to) : [from] "m"(*(const uint8_t (*)[16])from)
                     : "xmm0", "memory");
}

enum { ROOST_ROL, ROOST_ROR, ROOST_RCL, ROOST_RCR, ROOST_SHL, ROOST_SHR, ROOST_SAL, ROOST_SAR };

// Shifts and rotates: flags are loaded first, since a count of zero keeps them and RCL, RCR read the carry.
#define ROOST_SHIFT(T, insn)                                                                            \
    do {                                                                                                \
        T x = (T)a; uint32_t f = *flags;                                                                \
        __asm__("addb $0x7f, %%al\n\tsahf\n\t" insn " %%cl, %[x]\n\tlahf\n\tseto %%al"                   \
                : [x] "+&r"(x), "+&a"(f) : "c"((uint8_t)count) : "cc");                                  \
        *flags = f & ROOST_FLAGS;                                                                       \
        return (uint64_t)x;                                                                             \
    } while (0)
ROOST_INLINE uint64_t roost_shift(uint32_t op, uint32_t size, uint64_t a, uint64_t count, uint32_t *flags) {
    switch (op) {
    case ROOST_ROL: ROOST_BY_SIZE(ROOST_SHIFT, "rol")
    case ROOST_ROR: ROOST_BY_SIZE(ROOST_SHIFT, "ror")
    case ROOST_RCL: ROOST_BY_SIZE(ROOST_SHIFT, "rcl")
    case ROOST_RCR: ROOST_BY_SIZE(ROOST_SHIFT, "rcr")
    case ROOST_SHR: ROOST_BY_SIZE(ROOST_SHIFT, "shr")
    case ROOST_SAR: ROOST_BY_SIZE(ROOST_SHIFT, "sar")
    default: ROOST_BY_SIZE(ROOST_SHIFT, "shl")
    }
}

#define ROOST_DOUBLE_SHIFT(T, insn)                                                                     \
    do {                                                                                                \
        T x = (T)a; uint32_t f = *flags;                                                                \
        __asm__("addb $0x7f, %%al\n\tsahf\n\t" insn " %%cl, %[b], %[x]\n\tlahf\n\tseto %%al"             \
                : [x] "+&r"(x), "+&a"(f) : [b] "r"((T)b), "c"((uint8_t)count) : "cc");                   \
        *flags = f & ROOST_FLAGS;                                                                       \
        return (uint64_t)x;                                                                             \
    } while (0)
ROOST_INLINE uint64_t roost_double_shift(int right, uint32_t size, uint64_t a, uint64_t b, uint64_t count, uint32_t *flags) {
    if (right) {
        if (size == 2) ROOST_DOUBLE_SHIFT(uint16_t, "shrdw");
        if (size == 4) ROOST_DOUBLE_SHIFT(uint32_t, "shrdl");
        ROOST_DOUBLE_SHIFT(uint64_t, "shrdq");
    }
    if (size == 2) ROOST_DOUBLE_SHIFT(uint16_t, "shldw");
    if (size == 4) ROOST_DOUBLE_SHIFT(uint32_t, "shldl");
    ROOST_DOUBLE_SHIFT(uint64_t, "shldq");
}

// MUL and IMUL with one operand: low half returned, high half through `high` (for bytes: AX is returned, high unused).
#define ROOST_MULTIPLY(T, insn)                                                                         \
    do {                                                                                                \
        uint64_t f = *flags, low = a, top = 0;                                                          \
        __asm__("addb $0x7f, %%al\n\tsahf\n\tmovq %[l], %%rax\n\t" insn " %[b]\n\t"                      \
                "movq %%rax, %[l]\n\tlahf\n\tseto %%al"                                                 \
                : "+&a"(f), [l] "+&r"(low), "+&d"(top) : [b] "r"((T)b) : "cc");                          \
        *flags = (uint32_t)f & ROOST_FLAGS;                                                             \
        *high = (T)top;                                                                                 \
        return low;                                                                                     \
    } while (0)
ROOST_INLINE uint64_t roost_multiply(int is_signed, uint32_t size, uint64_t a, uint64_t b, uint64_t *high, uint32_t *flags) {
    if (is_signed) ROOST_BY_SIZE(ROOST_MULTIPLY, "imul")
    ROOST_BY_SIZE(ROOST_MULTIPLY, "mul")
}

// Division of high:low; the caller has checked that the quotient fits. Flags are left as they were.
#define ROOST_DIVIDE(T, insn)                                                                           \
    do {                                                                                                \
        T q = (T)low, r = (T)high;                                                                      \
        __asm__(insn " %[b]" : "+a"(q), "+d"(r) : [b] "r"((T)b) : "cc");                                 \
        *remainder = r;                                                                                 \
        return q;                                                                                       \
    } while (0)
ROOST_INLINE uint64_t roost_divide(uint32_t size, uint64_t high, uint64_t low, uint64_t b, uint64_t *remainder) {
    switch (size) {
    case 2: ROOST_DIVIDE(uint16_t, "divw");
    case 4: ROOST_DIVIDE(uint32_t, "divl");
    default: ROOST_DIVIDE(uint64_t, "divq");
    }
}

// Two operands, flags out; `a` is the destination's old value.
enum { ROOST_IMUL2, ROOST_BSF, ROOST_BSR, ROOST_TZCNT, ROOST_LZCNT, ROOST_POPCNT, ROOST_BLSI, ROOST_BLSMSK, ROOST_BLSR };
#define ROOST_BY_WORD(M, insn)                                                                          \
    switch (size) {                                                                                     \
    case 2: M(uint16_t, insn "w");                                                                      \
    case 4: M(uint32_t, insn "l");                                                                      \
    default: M(uint64_t, insn "q");                                                                     \
    }
#define ROOST_BY_LONG(M, insn)                                                                          \
    switch (size) {                                                                                     \
    case 4: M(uint32_t, insn "l");                                                                      \
    default: M(uint64_t, insn "q");                                                                     \
    }
ROOST_INLINE uint64_t roost_bits(uint32_t op, uint32_t size, uint64_t a, uint64_t b, uint32_t *flags) {
    switch (op) {
    case ROOST_IMUL2: ROOST_BY_WORD(ROOST_KEEPING, "imul")
    case ROOST_BSF: ROOST_BY_WORD(ROOST_KEEPING, "bsf")
    case ROOST_BSR: ROOST_BY_WORD(ROOST_KEEPING, "bsr")
    case ROOST_TZCNT: ROOST_BY_WORD(ROOST_KEEPING, "tzcnt")
    case ROOST_LZCNT: ROOST_BY_WORD(ROOST_KEEPING, "lzcnt")
    case ROOST_POPCNT: ROOST_BY_WORD(ROOST_KEEPING, "popcnt")
    case ROOST_BLSI: ROOST_BY_LONG(ROOST_KEEPING, "blsi")
    case ROOST_BLSMSK: ROOST_BY_LONG(ROOST_KEEPING, "blsmsk")
    case ROOST_BLSR: ROOST_BY_LONG(ROOST_KEEPING, "blsr")
    }
    return a;
}

// VEX forms of three operands: ANDN = ~a & b; BEXTR, BZHI take the control in b; PDEP, PEXT the mask in b (no flags).
enum { ROOST_ANDN, ROOST_BEXTR, ROOST_BZHI, ROOST_PDEP, ROOST_PEXT };
#define ROOST_TERNARY(T, insn)                                                                          \
    do {                                                                                                \
        T x; uint32_t f;                                                                                \
        __asm__(insn " %[b], %[a], %[x]\n\tlahf\n\tseto %%al"                                            \
                : [x] "=&r"(x), "=&a"(f) : [a] "r"((T)a), [b] "r"((T)b) : "cc");                         \
        *flags = f & ROOST_FLAGS;                                                                       \
        return (uint64_t)x;                                                                             \
    } while (0)
#define ROOST_TERNARY_NO_FLAGS(T, insn)                                                                 \
    do {                                                                                                \
        T x;                                                                                            \
        __asm__(insn " %[b], %[a], %[x]" : [x] "=r"(x) : [a] "r"((T)a), [b] "r"((T)b));                  \
        return (uint64_t)x;                                                                             \
    } while (0)
ROOST_INLINE uint64_t roost_vex_bits(uint32_t op, uint32_t size, uint64_t a, uint64_t b, uint32_t *flags) {
    switch (op) {
    case ROOST_ANDN: ROOST_BY_LONG(ROOST_TERNARY, "andn")
    case ROOST_BEXTR: ROOST_BY_LONG(ROOST_TERNARY, "bextr")
    case ROOST_BZHI: ROOST_BY_LONG(ROOST_TERNARY, "bzhi")
    case ROOST_PDEP: ROOST_BY_LONG(ROOST_TERNARY_NO_FLAGS, "pdep")
    case ROOST_PEXT: ROOST_BY_LONG(ROOST_TERNARY_NO_FLAGS, "pext")
    }
    return a;
}

// CRC32 (Castagnoli) of one operand of `size` bytes onto the accumulator.
ROOST_INLINE uint64_t roost_crc32(uint32_t size, uint64_t crc, uint64_t value) {
    switch (size) {
    case 1: { uint32_t c = (uint32_t)crc; __asm__("crc32b %1, %0" : "+r"(c) : "r"((uint8_t)value)); return c; }
    case 2: { uint32_t c = (uint32_t)crc; __asm__("crc32w %1, %0" : "+r"(c) : "r"((uint16_t)value)); return c; }
    case 4: { uint32_t c = (uint32_t)crc; __asm__("crc32l %1, %0" : "+r"(c) : "r"((uint32_t)value)); return c; }
    default: __asm__("crc32q %1, %0" : "+r"(crc) : "r"(value)); return crc;
    }
}

// Whether condition code `cc` (low nibble of Jcc's opcode) holds (SDM 1 appendix B).
ROOST_INLINE int roost_condition(uint32_t cc, uint32_t flags) {
    uint32_t result;
    uint32_t less = ((flags >> 15) ^ flags) & 1;
    switch ((cc >> 1) & 7) {
    case 0: result = flags & 1; break;
    case 1: result = flags & 0x100; break;
    case 2: result = flags & 0x4000; break;
    case 3: result = flags & 0x4100; break;
    case 4: result = flags & 0x8000; break;
    case 5: result = flags & 0x400; break;
    case 6: result = less; break;
    default: result = less | (flags & 0x4000); break;
    }
    return (result != 0) ^ (int)(cc & 1);
}

// Copies and fills as the string instructions do, byte by byte in order, so that overlapping runs repeat.
ROOST_INLINE void roost_copy_bytes(void *to, const void *from, uint64_t count) {
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
}

#endif
