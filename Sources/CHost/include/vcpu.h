// The vCPU state block: one C struct per vCPU, known to Swift by name and to translated code by offset.
// Who writes what stands beside each field. Sizes in bytes unless said otherwise.
#ifndef ROOST_VCPU_H
#define ROOST_VCPU_H
#include <stdint.h>
#include <stddef.h>

// Segment register numbers as encoded in instructions; LDTR and TR follow.
#define ROOST_ES 0
#define ROOST_CS 1
#define ROOST_SS 2
#define ROOST_DS 3
#define ROOST_FS 4
#define ROOST_GS 5
#define ROOST_LDTR 6
#define ROOST_TR 7

// A segment register with its hidden part (SDM 3A 3.4.3).
typedef struct {
    uint64_t base;
    uint32_t limit;       // byte-granular, already scaled by G
    uint16_t selector;
    uint16_t attributes;  // as in VMX access rights: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13, D/B 14, G 15;
                          // 0 in P = unusable (null)
} roost_segment;

// One software TLB entry. A tag is (linear page base | address-space tag in bits 11:0); ~0 never matches.
// Host address of a byte = linear + addend.
typedef struct {
    uint64_t read_tag;
    uint64_t write_tag;   // ~0 unless writable, dirty already set, not a code page, not dirty-logged-clean
    uint64_t addend;
    uint64_t physical;    // guest-physical page base | internal flags in bits 11:0 (owned by MMU/)
} roost_tlb_entry;

#define ROOST_TLB_BITS 13
#define ROOST_TLB_ENTRIES 8192

// Translation contexts, each with a TLB of its own.
#define ROOST_TLB_USER 0
#define ROOST_TLB_SUPERVISOR 1
#define ROOST_TLB_SUPERVISOR_AC 2
#define ROOST_TLB_CONTEXTS 3

typedef struct {
    // ---- registers -------------------------------------------------------------------------------------------
    uint64_t gpr[16];            // RAX RCX RDX RBX RSP RBP RSI RDI R8..R15; must stay at offset 0
    uint64_t rip;                // while a block runs: its first instruction (see Interpreter)
    uint64_t rflags;             // all but CF PF AF ZF SF OF, which are zero here; bit 1 set
    uint32_t arithmetic_flags;   // as LAHF;SETO AL leave AX: SF15 ZF14 AF12 PF10 CF8, OF in bit 0; other bits 0
    uint32_t attention;          // atomic; nonzero: leave the loop at the next block (see ROOST_ATTENTION_*)

    // ---- cached from CS, CR0, EFER, RFLAGS by VCPU.updateMode() ------------------------------------------------
    uint8_t  code_size;          // 2, 4 or 8: default mode of CS
    uint8_t  stack_size;         // 2, 4 or 8: width of the stack pointer
    uint8_t  cpl;
    uint8_t  tlb_context;        // ROOST_TLB_*
    uint8_t  protected_mode;     // CR0.PE
    uint8_t  virtual8086;        // RFLAGS.VM
    uint8_t  long_mode;          // EFER.LMA
    uint8_t  slow_memory;        // data watchpoints or #AC armed: tlb points at the never-matching table
    uint32_t mode_key;           // everything that decoding depends on; part of a block's identity
    uint16_t address_space;      // TLB tag now in force, 1..2047; `tlb_tag` is the same
    uint8_t  interrupt_shadow;   // STI, MOV SS: 1 = interrupts, 2 = also debug traps are held for one instruction
    uint8_t  nmi_blocked;
    uint64_t tlb_tag;            // address_space widened: what translated code adds to a page's address
    roost_tlb_entry *tlb;        // the table for tlb_context
    uint64_t linear_mask;        // ~0 in 64-bit mode, 0xffffffff elsewhere
    uint64_t effective_base[8];  // base to add: 0 for ES CS SS DS in 64-bit mode
    uint8_t  segment_check[8];   // 0: flat or 64-bit, no limit or type check needed; 1: check in the slow path

    // ---- memory ------------------------------------------------------------------------------------------------
    uint8_t *ram;                // host address of guest-physical 0 (see GuestMemory)
    uint8_t *page_flags;         // one byte a guest-physical page up to ram_limit (see GuestMemory.PageFlags)
    uint64_t ram_low_end;        // RAM is [0, ram_low_end) and [4 GiB, ram_high_end)
    uint64_t ram_high_end;
    uint64_t ram_limit;          // first guest-physical address without a page_flags entry
    void    *memory;             // its GuestMemory, unretained
    uint32_t *code_versions;     // one count a guest-physical page, raised by every write to a page marked as code
    void    *blocks;             // the interpreter's BlockCache
    const void *block_end;       // end of the running block; zero makes the loop stop after the current instruction

    void    *group;              // its VCPUGroup; zero where the machine has one vCPU
    uint32_t apic_id;            // local APIC identifier, its number in the group
    uint32_t group_reserved;

    // ---- the translator (see CPU/Translator) ---------------------------------------------------------------------
    void    *translation;        // its TranslationCache; zero under the interpreter
    void    *self_;              // this block, for translated code
    uint64_t entry;              // where translated code is entered; the target of an indirect call on its way
    uint64_t stack_base;         // host stack pointer of translated code with nothing on its return stack
    uint64_t stack_floor;        // below this the return stack is dropped
    uint64_t code_page;          // RIP of the first byte of the running code's page, not yet truncated
    uint64_t chain_site;         // the jump that translated code left by, to be patched; 0 none
    void    *jump_table;         // from instruction addresses to host code (JumpEntry)
    uint64_t jump_key;           // what an entry of it must carry: generation, address space, mode
    uint32_t jump_generation;    // raised whenever code may be somewhere else than it was
    uint8_t  local_code;         // supervisor code that isn't global is in the jump table
    uint8_t  x87_usable;         // x87 and MMX may run inline
    uint8_t  vectors_live;       // the host's vector registers and MXCSR hold the guest's
    uint8_t  x87_live;           // the host's x87 registers hold the guest's; must follow `vectors_live`
    uint8_t  vectors_usable;     // 1: SSE may run inline, 2: AVX too
    uint32_t code_bases[16];     // bases of CS that numbers in `jump_key` stand for (not in 64-bit mode)
    uint32_t code_base_number;   // the one in force
    uint32_t next_code_base;     // the number that is given away next
    uint64_t code_filter[64];    // a bit for each linear page (hashed) that code was fetched from
    uint64_t code_regions[64];   // the same for each 4 MiB region
    uint64_t large_pages[64];    // a bit for each 4 MiB region (hashed) that pieces of large pages may be held of
    uint64_t huge_pages;         // the same for 1 GiB regions, 64 bits
    uint64_t saved_mxcsr;        // the host's, while vectors_live
    uint64_t group_addends[4];   // what to add to linear addresses of the running block's access groups

    // ---- the comparison of engines (see CPU/Lockstep) ------------------------------------------------------------
    void    *lockstep;           // its Lockstep; zero where one engine runs alone
    roost_tlb_entry *other_tlb;  // the TLBs of the engine that doesn't run now: flushed with these
    uint8_t  logs_stores;        // every store is logged, and tlb points at the table that never matches
    roost_tlb_entry *tlb_contexts[ROOST_TLB_CONTEXTS];
    roost_tlb_entry *tlb_never_matching;  // in force while watchpoints or #AC are armed
    roost_tlb_entry *fetch_tlb;  // 512 entries for the supervisor, 512 for the user
    uint64_t *store_filter;      // 65,536 bits, one for each guest-physical page (hashed) that a TLB may let stores pass to
    uint64_t pdpte[4];           // PAE page-directory pointers, loaded with CR3
    uint32_t pcid_tag[16];       // PCID << 16 | address-space tag that holds its translations; 0 unknown
    uint16_t next_address_space;

    // ---- system registers --------------------------------------------------------------------------------------
    roost_segment segment[8];
    uint64_t gdtr_base, idtr_base;
    uint32_t gdtr_limit, idtr_limit;
    uint64_t cr0, cr2, cr3, cr4, cr8, xcr0, efer;
    uint64_t dr[8];
    uint64_t star, lstar, cstar, sfmask, kernel_gs_base;
    uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
    uint64_t pat, tsc_aux, apic_base, misc_enable, xss;
    uint64_t tsc_offset;         // guest TSC = host TSC scaled + offset (see CPU/State/TimeStampCounter)
    uint32_t pkru, mxcsr_mask;
    uint64_t mtrr_default, mtrr_fixed[11], mtrr_base[8], mtrr_mask[8];

    // ---- the processor model ----------------------------------------------------------------------------------
    uint64_t cr4_allowed, efer_allowed, xcr0_allowed, features;
    const uint32_t *cpuid_table; // rows of 6: leaf, subleaf or ~0, EAX, EBX, ECX, EDX
    uint32_t cpuid_count;
    uint32_t signature;
    uint64_t random_state, random_key;  // RDRAND's generator, seeded by the machine

    // ---- events ------------------------------------------------------------------------------------------------
    uint8_t  halted;
    uint8_t  awaits_startup;     // after INIT: nothing runs until a start-up message comes
    uint8_t  pending_nmi;
    uint8_t  interrupt_window;   // Machine asks for VMExit.interruptWindow as soon as IF allows
    uint8_t  pending_fault;      // deliver #GP(0) at RIP before anything else (a refused MSR access)
    uint8_t  pending_debug;      // DR6 bits B0..B3/BS to raise as #DB trap after the current instruction
    uint64_t monitor_address;    // 0: not armed

    // ---- an exit that waits for its answer (see CPU/State/Exit.swift) ---------------------------------------------
    uint32_t exit_kind;
    uint32_t exit_size;
    uint64_t exit_address;       // port, guest-physical address or MSR index
    uint64_t exit_value;
    uint32_t completed_count;    // accesses of the current instruction already answered
    uint32_t completed_next;     // the next one to hand out while the instruction runs again
    uint64_t completed[16];

    // ---- statistics ----------------------------------------------------------------------------------------------
    uint64_t instructions, tlb_misses, page_walks, exceptions, interrupts;

    // ---- counting (docs/architecture.md, "Virtual time"); 64 bytes ------------------------------------------------
    uint64_t instruction_limit;  // VMExit.interrupted as soon as `instructions` is there; ~0 never
    uint64_t skipped_time;       // nanoseconds of virtual time that passed while the vCPU was halted
    uint8_t  virtual_clock;      // time is instructions + skipped_time, and the machine is asked for the counter
    uint8_t  tables_ready;       // the software engines' TLBs have been cleared: until then nothing touches their memory
    uint8_t  counting_reserved[6];
    uint64_t counting_reserved2[5];

    // ---- direct execution of user code (see CPU/Direct); 64 bytes -----------------------------------------------
    void    *direct;             // the DirectExecution; zero: none
    int32_t  direct_running;     // atomic; pidfd + 1 of the stub that runs, for who sets `attention`; 0 none
    uint32_t direct_armed;       // returns to user mode ask `directWish`
    uint32_t direct_generation;  // raised when a page that stubs map changes between data and code
    uint32_t direct_sweep;       // pages were marked as code whose stores the TLBs may still let pass
    uint64_t system_calls;       // SYSCALL instructions
    uint64_t direct_reserved[4];

    // ---- vector and x87 state: the standard (non-compacted) XSAVE area (SDM 1 13.4) -----------------------------
    // The block is page-aligned; the assertion below keeps this part aligned to 64.
    void    *vector_thunks;      // the vector unit's cache of generated code (see CPU/Vector/ThunkCache)
    uint64_t xsave_padding[3];
    uint64_t xsave[320];
} roost_vcpu;
_Static_assert(offsetof(roost_vcpu, xsave) % 64 == 0, "xsave must be aligned to 64");

// The TLBs, one for each context and the one that never matches, follow the block in its allocation, so that translated
// code reaches them at a constant distance.
#define ROOST_TLB_OFFSET ((sizeof(roost_vcpu) + 4095) & ~(size_t)4095)
static inline size_t roost_tlb_offset(void) { return ROOST_TLB_OFFSET; }
static inline uint64_t *roost_code_filter_at(roost_vcpu *cpu, size_t n) { return &cpu->code_filter[n & 63]; }
static inline uint64_t *roost_code_regions_at(roost_vcpu *cpu, size_t n) { return &cpu->code_regions[n & 63]; }
static inline uint64_t *roost_large_pages_at(roost_vcpu *cpu, size_t n) { return &cpu->large_pages[n & 63]; }

// Bits of roost_vcpu.attention, set by any thread.
#define ROOST_ATTENTION_KICK 1u          // return VMExit.interrupted
#define ROOST_ATTENTION_INTERRUPT 2u     // an interrupt may be deliverable: return VMExit.interrupted
#define ROOST_ATTENTION_DIRECT 4u        // set by the vCPU's thread: user code may run directly

static inline uint32_t roost_attention(const roost_vcpu *cpu) { return __atomic_load_n(&cpu->attention, __ATOMIC_ACQUIRE); }
static inline void roost_attention_set(roost_vcpu *cpu, uint32_t bits) { __atomic_fetch_or(&cpu->attention, bits, __ATOMIC_ACQ_REL); }
static inline uint32_t roost_attention_take(roost_vcpu *cpu, uint32_t bits) { return __atomic_fetch_and(&cpu->attention, ~bits, __ATOMIC_ACQ_REL) & bits; }
// Full barriers on both sides: either who sets `attention` sees the stub, or the vCPU's thread sees the attention.
static inline void roost_direct_publish(roost_vcpu *cpu, int32_t value) { __atomic_store_n(&cpu->direct_running, value, __ATOMIC_SEQ_CST); }
static inline int32_t roost_direct_running(roost_vcpu *cpu) { __atomic_thread_fence(__ATOMIC_SEQ_CST); return __atomic_load_n(&cpu->direct_running, __ATOMIC_SEQ_CST); }
static inline roost_segment *roost_segment_at(roost_vcpu *cpu, size_t n) { return &cpu->segment[n & 7]; }
static inline uint64_t *roost_dr_at(roost_vcpu *cpu, size_t n) { return &cpu->dr[n & 7]; }
static inline uint64_t *roost_effective_base_at(roost_vcpu *cpu, size_t n) { return &cpu->effective_base[n & 7]; }
static inline uint8_t *roost_segment_check_at(roost_vcpu *cpu, size_t n) { return &cpu->segment_check[n & 7]; }
static inline uint64_t *roost_completed_at(roost_vcpu *cpu, size_t n) { return &cpu->completed[n & 15]; }
static inline uint32_t *roost_code_base_at(roost_vcpu *cpu, size_t n) { return &cpu->code_bases[n & 15]; }
static inline uint64_t *roost_pdpte_at(roost_vcpu *cpu, size_t n) { return &cpu->pdpte[n & 3]; }
static inline uint32_t *roost_pcid_tag_at(roost_vcpu *cpu, size_t n) { return &cpu->pcid_tag[n & 15]; }
static inline uint64_t *roost_mtrr_base_at(roost_vcpu *cpu, size_t n) { return &cpu->mtrr_base[n & 7]; }
static inline uint64_t *roost_mtrr_mask_at(roost_vcpu *cpu, size_t n) { return &cpu->mtrr_mask[n & 7]; }
static inline uint64_t *roost_mtrr_fixed_at(roost_vcpu *cpu, size_t n) { return &cpu->mtrr_fixed[n % 11]; }
static inline void roost_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
// Not before what comes before it: other vCPUs compare what they read.
static inline uint64_t roost_rdtsc(void) {
    __builtin_ia32_lfence();
    return __builtin_ia32_rdtsc();
}
static inline void roost_cpuid(uint32_t leaf, uint32_t sub, uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d) {
    __asm__ volatile("cpuid" : "=a"(*a), "=b"(*b), "=c"(*c), "=d"(*d) : "a"(leaf), "c"(sub));
}
// Position of the first `byte` from `start` on, or `end`.
static inline uint64_t roost_find_byte(const uint8_t *bytes, uint64_t start, uint64_t end, uint8_t byte) {
    const void *found = start < end ? __builtin_memchr(bytes + start, byte, end - start) : 0;
    return found ? (uint64_t)((const uint8_t *)found - bytes) : end;
}
static inline uint8_t *roost_xsave_area(roost_vcpu *cpu) { return (uint8_t *)cpu->xsave; }

#endif
