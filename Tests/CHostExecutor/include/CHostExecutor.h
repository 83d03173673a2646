// Runs one instruction on the host's own processor from a given state, and hands back the state after it: the oracle of
// the differential tests. One at a time in a process (the caller serializes).
#ifndef CHOST_EXECUTOR_H
#define CHOST_EXECUTOR_H
#include <stdint.h>
#include <stddef.h>

typedef struct {
    uint64_t gpr[16];         // RAX RCX RDX RBX RSP RBP RSI RDI R8...R15
    uint64_t rip;
    uint64_t rflags;
    uint32_t compatibility;   // in: run in the 32-bit code segment
    uint32_t vector;          // out: 3 = ran to the breakpoint after it; else the exception's vector
    uint64_t error_code;      // out
    uint64_t fault_address;   // out: CR2 of a page fault
    uint64_t padding[3];
    uint8_t xsave[1088];      // the whole is allocated on 64 bytes; standard format: x87, SSE, AVX (legacy 512, header 64, YMM 256)
} host_executor_state;

static inline uint8_t *host_executor_xsave(host_executor_state *s) { return s->xsave; }
static inline size_t host_executor_state_size(void) { return sizeof(host_executor_state); }

// Maps `length` bytes read-write-execute at exactly `address`; zero when that isn't possible.
int host_executor_map(uint64_t address, uint64_t length, int executable);
// Takes all access away from a range.
int host_executor_forbid(uint64_t address, uint64_t length);
// Whether 32-bit code segments work here.
int host_executor_has_compatibility(void);
// Runs from state->rip until the first trap or fault; `state` is replaced by what is then.
void host_executor_run(host_executor_state *state);
#endif
