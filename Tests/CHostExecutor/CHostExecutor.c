#define _GNU_SOURCE
#include "CHostExecutor.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

// The handler runs on the caller's own stack copy: an alternate stack, since RSP is the guest's.
static host_executor_state *volatile active;
static uint64_t saved_rsp __asm__("host_executor_saved_rsp") __attribute__((used));
static volatile pid_t active_thread;
static struct sigaction previous[32];
extern void host_executor_enter(host_executor_state *state);
extern char host_executor_leave[];


// Entered first: POPF may have set AC, and the handler's unaligned accesses would fault.
void host_executor_signal(int number, siginfo_t *info, void *context);

__attribute__((used)) void host_executor_on_signal(int number, siginfo_t *info, void *context) {
    ucontext_t *u = context;
    host_executor_state *s = active;
    if (!s || gettid() != active_thread) {
        sigaction(number, &previous[number], NULL);
        return;
    }
    static const int registers[16] = {
        REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
        REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
    };
    greg_t *g = u->uc_mcontext.gregs;
    for (int n = 0; n < 16; n++) s->gpr[n] = (uint64_t)g[registers[n]];
    s->rip = (uint64_t)g[REG_RIP];
    s->rflags = (uint64_t)g[REG_EFL];
    s->vector = (uint32_t)g[REG_TRAPNO];
    s->error_code = (uint64_t)g[REG_ERR];
    s->fault_address = (uint64_t)g[REG_CR2];
    // The kernel's frame holds the XSAVE area in standard format; XSTATE_BV tells which parts are in it.
    const uint8_t *frame = (const uint8_t *)u->uc_mcontext.fpregs;
    uint64_t present = 3;
    if (*(const uint32_t *)(frame + 464) == 0x46505853) present = *(const uint64_t *)(frame + 512);
    memcpy(s->xsave, frame, 512);
    memset(s->xsave + 464, 0, 48);
    if (!(present & 1)) {
        memset(s->xsave, 0, 24);
        memset(s->xsave + 32, 0, 128);
        s->xsave[0] = 0x7F;
        s->xsave[1] = 0x03;
    }
    if (!(present & 2)) memset(s->xsave + 160, 0, 256);
    if (present & 4) memcpy(s->xsave + 576, frame + 576, 256);
    else memset(s->xsave + 576, 0, 256);
    active = NULL;
    g[REG_RIP] = (greg_t)host_executor_leave;
    g[REG_RSP] = (greg_t)saved_rsp;
    g[REG_EFL] = 0x202;
    // 64-bit code segment in the low word.
    g[REG_CSGSFS] = (g[REG_CSGSFS] & ~0xFFFFll) | 0x33;
    if (u->uc_mcontext.fpregs) {
        u->uc_mcontext.fpregs->mxcsr = 0x1F80;
        u->uc_mcontext.fpregs->cwd = 0x37F;
        u->uc_mcontext.fpregs->swd = 0;
        u->uc_mcontext.fpregs->ftw = 0;
    }
}

static uint32_t far_target[2] __asm__("host_executor_far") __attribute__((used));
static uint64_t near_target __asm__("host_executor_near") __attribute__((used));

__asm__(
    ".text\n"
    ".globl host_executor_signal\n"
    "host_executor_signal:\n"
    "  pushfq\n  andl $0xfffbffff, (%rsp)\n  popfq\n"
    "  jmp host_executor_on_signal\n"
    ".globl host_executor_enter\n"
    "host_executor_enter:\n"
    "  pushq %rbx\n  pushq %rbp\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  subq $8, %rsp\n"
    "  movq %rsp, host_executor_saved_rsp(%rip)\n"
    "  movl $7, %eax\n  xorl %edx, %edx\n"
    "  xrstor64 192(%rdi)\n"
    "  movl 144(%rdi), %ecx\n"
    "  pushq 136(%rdi)\n  popfq\n"   // RFLAGS; nothing below touches them
    "  movq 32(%rdi), %rsp\n"
    "  movq 0(%rdi), %rax\n  movq 16(%rdi), %rdx\n  movq 24(%rdi), %rbx\n"
    "  movq 40(%rdi), %rbp\n  movq 48(%rdi), %rsi\n"
    "  movq 64(%rdi), %r8\n  movq 72(%rdi), %r9\n  movq 80(%rdi), %r10\n  movq 88(%rdi), %r11\n"
    "  movq 96(%rdi), %r12\n  movq 104(%rdi), %r13\n  movq 112(%rdi), %r14\n  movq 120(%rdi), %r15\n"
    "  jrcxz 1f\n"
    "  movl $0x2b, %ecx\n  movl %ecx, %ds\n  movl %ecx, %es\n"
    "  movq 8(%rdi), %rcx\n  movq 56(%rdi), %rdi\n"
    "  ljmp *host_executor_far(%rip)\n"
    "1:\n"
    "  movq 8(%rdi), %rcx\n  movq 56(%rdi), %rdi\n"
    "  jmp *host_executor_near(%rip)\n"
    ".globl host_executor_leave\n"
    "host_executor_leave:\n"
    "  vzeroupper\n  cld\n"
    "  addq $8, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbp\n  popq %rbx\n"
    "  ret\n");

_Static_assert(offsetof(host_executor_state, rflags) == 136, "used by host_executor_enter");
_Static_assert(offsetof(host_executor_state, compatibility) == 144, "used by host_executor_enter");
_Static_assert(offsetof(host_executor_state, xsave) == 192, "used by host_executor_enter");

static void install(void) {
    static int installed;
    if (installed) return;
    installed = 1;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = host_executor_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    int numbers[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP };
    for (int n = 0; n < 5; n++) sigaction(numbers[n], &action, &previous[numbers[n]]);
}

void host_executor_run(host_executor_state *state) {
    install();
    static _Thread_local void *stack;
    if (!stack) {
        stack = mmap(NULL, 1 << 17, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    stack_t alternate = { .ss_sp = stack, .ss_size = 1 << 17, .ss_flags = 0 };
    sigaltstack(&alternate, NULL);
    near_target = state->rip;
    far_target[0] = (uint32_t)state->rip;
    far_target[1] = 0x23;
    // XSTATE_BV: all three components are in the area.
    memset(state->xsave + 512, 0, 64);
    state->xsave[512] = 7;
    active_thread = gettid();
    active = state;
    host_executor_enter(state);
}

int host_executor_map(uint64_t address, uint64_t length, int executable) {
    void *got = mmap((void *)address, length, PROT_READ | PROT_WRITE | (executable ? PROT_EXEC : 0),
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    return got == (void *)address;
}

int host_executor_forbid(uint64_t address, uint64_t length) { return mprotect((void *)address, length, PROT_NONE) == 0; }

int host_executor_has_compatibility(void) {
    static int known = -1;
    if (known >= 0) return known;
    static uint8_t *const page = (uint8_t *)0x6F000000;
    known = 0;
    if (host_executor_map((uint64_t)page, 4096, 1)) {
        // INC EAX in 32-bit code; a REX prefix in 64-bit code.
        page[0] = 0x40; page[1] = 0xCC;
        host_executor_state *s = aligned_alloc(64, sizeof *s);
        memset(s, 0, sizeof *s);
        s->xsave[0] = 0x7F; s->xsave[1] = 3; s->xsave[24] = 0x80; s->xsave[25] = 0x1F;
        s->rip = (uint64_t)page;
        s->rflags = 0x202;
        s->compatibility = 1;
        s->gpr[4] = (uint64_t)page + 2048;
        host_executor_run(s);
        known = s->vector == 3 && s->gpr[0] == 1;
        free(s);
    }
    return known;
}
