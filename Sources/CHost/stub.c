// The process that runs guest user code: how it is made, and the ptrace requests that drive it.
#define _GNU_SOURCE
#include "stub.h"
#include <elf.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define STRING(x) #x
#define VALUE(x) STRING(x)
#define LAST_ADDRESS 0x7ffffffff000

// The stub's own code: unmaps all but itself, then works off lists. It uses no stack.
__asm__(
    ".pushsection .rodata\n"
    "roost_stub_begin:\n"
    "  mov $" VALUE(11) ", %eax\n"  // munmap below
    "  xor %edi, %edi\n"
    "  lea roost_stub_begin(%rip), %rsi\n"
    "  syscall\n"
    "  test %rax, %rax\n"
    "  jnz 1f\n"
    "  mov $" VALUE(11) ", %eax\n"  // munmap above
    "  lea roost_stub_begin + 17 * 4096(%rip), %rdi\n"
    "  movabs $0x7ffffffff000, %rsi\n"
    "  sub %rdi, %rsi\n"
    "  syscall\n"
    "1: int3\n"
    "roost_stub_work:\n"
    "  lea roost_stub_begin + 4096(%rip), %rbx\n"
    "2: mov (%rbx), %rax\n"
    "  cmp $-1, %rax\n"
    "  je 3f\n"
    "  mov 8(%rbx), %rdi\n"
    "  mov 16(%rbx), %rsi\n"
    "  mov 24(%rbx), %rdx\n"
    "  mov 32(%rbx), %r10\n"
    "  mov 40(%rbx), %r8\n"
    "  mov 48(%rbx), %r9\n"
    "  syscall\n"
    "  cmp $-4096, %rax\n"
    "  ja 3f\n"
    "  add $56, %rbx\n"
    "  jmp 2b\n"
    "3: int3\n"
    "roost_stub_finish:\n"
    ".popsection\n");
extern const char roost_stub_begin[], roost_stub_work[], roost_stub_finish[];
_Static_assert(ROOST_STUB_LIST_PAGES == 16 && ROOST_STUB_SIZE == 17 * 4096 && ROOST_STUB_MAP == SYS_mmap &&
               ROOST_STUB_UNMAP == SYS_munmap && ROOST_STUB_PROTECT == SYS_mprotect && sizeof(roost_stub_call) == 56, "the assembly counts on it");

size_t roost_stub_code(void *page) {
    size_t size = (size_t)(roost_stub_finish - roost_stub_begin);
    memcpy(page, roost_stub_begin, size);
    return size;
}

size_t roost_stub_list_entry(void) { return (size_t)(roost_stub_work - roost_stub_begin); }

// Only mmap, munmap and mprotect, and only from the stub's page. The tracer stops every call of the guest's before it
// gets here; the filter is for the host's vsyscall page, which needs no call, and in case the tracer errs.
static int install_filter(void) {
    const uint32_t high = (uint32_t)(ROOST_STUB_ADDRESS >> 32), low = (uint32_t)ROOST_STUB_ADDRESS;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 9),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer) + 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, high, 0, 7),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer)),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xfffff000),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, low, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_munmap, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program);
}

// The kernel remembers where the vDSO was, and its entry for 32-bit calls sends the caller there, be anything mapped or
// not: so it goes to a place that says nothing of Roost's, whose low half is page 0. The vDSO's size isn't told, but only
// the whole of it can be moved.
static int move_vdso(void) {
    void *from = (void *)getauxval(AT_SYSINFO_EHDR), *to = (void *)0x6f5b00000000ull;
    const size_t most = 16 * 4096;
    if (!from) return 0;
    if (mmap(to, most, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != to) return -1;
    for (size_t size = 4096; size <= most; size += 4096)
        if (mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to) return 0;
    return -1;
}

// In the new process; async-signal-safe. Returns only what failed.
static int become_stub(int memory, int control, pid_t parent) {
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) || getppid() != parent) return 1;
    // What the C library has registered with the kernel points into memory that is about to go.
    if (__rseq_size) {
        void *area = (char *)__builtin_thread_pointer() + __rseq_offset;
        if (syscall(SYS_rseq, area, __rseq_size < 32 ? 32 : __rseq_size, RSEQ_FLAG_UNREGISTER, RSEQ_SIG)) return 2;
    }
    syscall(SYS_set_robust_list, NULL, 24);
    syscall(SYS_set_tid_address, NULL);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    for (int n = 1; n < 65; n++) sigaction(n, &action, NULL);
    stack_t none = {.ss_flags = SS_DISABLE};
    sigaltstack(&none, NULL);
    uint64_t mask = 0;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, 8);
    struct rlimit zero = {0, 0};
    setrlimit(RLIMIT_CORE, &zero);
    prctl(PR_SET_NAME, "roost-guest", 0, 0, 0);
    char *at = (char *)ROOST_STUB_ADDRESS;
    if (mmap(at, 4096, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED_NOREPLACE, control, 0) != at) return 3;
    if (mmap(at + 4096, ROOST_STUB_SIZE - 4096, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, control, 4096) != at + 4096)
        return 4;
    if (move_vdso()) return 9;
    if (dup2(memory, 0) != 0 || syscall(SYS_close_range, 1, ~0u, 0)) return 5;
    if (ptrace(PTRACE_TRACEME, 0, 0, 0)) return 6;
    if (install_filter()) return 7;
    ((void (*)(void))at)();
    return 8;
}

int roost_stub_start(int memory, int control, roost_stub *stub) {
    // Stops of traced children need not be told by signals.
    struct sigaction action;
    if (!sigaction(SIGCHLD, NULL, &action) && action.sa_handler == SIG_DFL && !(action.sa_flags & SA_NOCLDSTOP)) {
        action.sa_flags |= SA_NOCLDSTOP;
        sigaction(SIGCHLD, &action, NULL);
    }
    pid_t parent = getpid();
    // A fork without the C library's handlers: other threads may hold its locks.
    int pidfd = -1;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    long pid = syscall(SYS_clone, CLONE_PIDFD, NULL, &pidfd, NULL, 0);
    if (pid == 0) _exit(become_stub(memory, control, parent));
    int error = errno;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pid < 0) return error;
    *stub = (roost_stub){(int32_t)pid, pidfd};
    int status = roost_stub_wait((int)pid);
    if (status >= 0 && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP
        && !ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD)) {
        struct user_regs_struct registers;
        if (!roost_stub_get_registers((int)pid, &registers) && registers.rax == 0) return 0;
    }
    roost_stub_end(stub);
    return EPERM;
}

void roost_stub_end(const roost_stub *stub) {
    syscall(SYS_pidfd_send_signal, stub->pidfd, SIGKILL, NULL, 0);
    int status;
    do {
        if (waitpid(stub->pid, &status, __WALL) < 0 && errno != EINTR) break;
    } while (!WIFEXITED(status) && !WIFSIGNALED(status));
    close(stub->pidfd);
}

int roost_stub_get_registers(int pid, struct user_regs_struct *registers) {
    return ptrace(PTRACE_GETREGS, pid, 0, registers) ? errno : 0;
}

int roost_stub_set_registers(int pid, const struct user_regs_struct *registers) {
    return ptrace(PTRACE_SETREGS, pid, 0, registers) ? errno : 0;
}

int64_t roost_stub_get_extended(int pid, void *buffer, size_t size) {
    struct iovec vector = {buffer, size};
    return ptrace(PTRACE_GETREGSET, pid, NT_X86_XSTATE, &vector) ? -errno : (int64_t)vector.iov_len;
}

int roost_stub_set_extended(int pid, const void *buffer, size_t size) {
    struct iovec vector = {(void *)buffer, size};
    return ptrace(PTRACE_SETREGSET, pid, NT_X86_XSTATE, &vector) ? errno : 0;
}

int roost_stub_resume(int pid, int emulate) {
    return ptrace(emulate ? PTRACE_SYSEMU : PTRACE_CONT, pid, 0, 0) ? errno : 0;
}

int roost_stub_wait(int pid) {
    int status;
    while (waitpid(pid, &status, __WALL) < 0)
        if (errno != EINTR) return -errno;
    return status;
}

int roost_stub_signal(int pid, int32_t *code, uint64_t *address) {
    siginfo_t info;
    if (ptrace(PTRACE_GETSIGINFO, pid, 0, &info)) return errno;
    *code = info.si_code;
    *address = (uint64_t)info.si_addr;
    return 0;
}

void roost_stub_kick(int pidfd) { syscall(SYS_pidfd_send_signal, pidfd, SIGUSR1, NULL, 0); }

int roost_stub_pin(int pid, int processor) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (processor >= 0 && processor < CPU_SETSIZE) {
        CPU_SET(processor, &set);
    } else if (sched_getaffinity(0, sizeof set, &set)) {
        return errno;
    }
    return sched_setaffinity(pid, sizeof set, &set) ? errno : 0;
}

_Static_assert(sizeof(cpu_set_t) == ROOST_PROCESSOR_SET, "what the header says");

int roost_pin_thread(void *before) {
    int processor = sched_getcpu();
    cpu_set_t set;
    if (processor < 0 || processor >= CPU_SETSIZE || sched_getaffinity(0, ROOST_PROCESSOR_SET, before)) return -1;
    CPU_ZERO(&set);
    CPU_SET(processor, &set);
    return sched_setaffinity(0, sizeof set, &set) ? -1 : processor;
}

void roost_unpin_thread(const void *before) { sched_setaffinity(0, ROOST_PROCESSOR_SET, before); }

int roost_stub_patch(int pid, uint64_t address, uint8_t byte) {
    // A word that lies in one page.
    uint64_t start = address & ~7ull;
    errno = 0;
    long word = ptrace(PTRACE_PEEKDATA, pid, start, 0);
    if (word == -1 && errno) return errno;
    unsigned shift = (unsigned)(address & 7) * 8;
    uint64_t patched = ((uint64_t)word & ~(0xFFull << shift)) | (uint64_t)byte << shift;
    return ptrace(PTRACE_POKEDATA, pid, start, patched) ? errno : 0;
}
