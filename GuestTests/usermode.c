// User code that is hard on whoever runs it directly: run by DirectExecutionTests in each mode, outputs compared.
// Nothing that it prints depends on time, addresses or process numbers.
// gcc -O2 -static -pthread -fno-toplevel-reorder -o init usermode.c -lm
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <fenv.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

// Keeps the C library's start-up code, which asks for CPUID, off the pages of the functions here.
__asm__(".text\n.fill 4096, 1, 0x90\n");

static int scale = 1;
#define NOINLINE __attribute__((noinline))

static NOINLINE uint64_t spin(uint64_t n) {
    uint64_t a = 1, b = 7;
    for (uint64_t i = 0; i < n; i++) a = a * 6364136223846793005ull + b, b ^= a >> 17;
    return a ^ b;
}

static void say(const char *name, uint64_t value) {
    printf("%s %016llx\n", name, (unsigned long long)value);
    fflush(stdout);
}

// ---- signals -------------------------------------------------------------------------------------------------------
static volatile sig_atomic_t alarms;
static void on_alarm(int n) { (void)n; alarms++; }

static void test_alarms(void) {
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval every = {{0, 3000}, {0, 3000}}, off = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &every, NULL);
    double sum = 0;
    uint64_t h = 0;
    for (int r = 0; r < 20 * scale || alarms < 3; r++) {
        h = spin(2000000);
        for (int i = 1; i < 1000; i++) sum += 1.0 / i;
        if (r > 20000) break;
    }
    setitimer(ITIMER_REAL, &off, NULL);
    say("alarms", h + (alarms >= 3));
}

static sigjmp_buf back;
static volatile int caught, caught_code;
static volatile uintptr_t caught_address;
static void on_fault(int n, siginfo_t *info, void *context) {
    (void)context;
    caught = n;
    caught_code = info->si_code;
    caught_address = (uintptr_t)info->si_addr;
    siglongjmp(back, 1);
}

static void test_faults(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    int all[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (unsigned i = 0; i < 5; i++) sigaction(all[i], &action, NULL);
    uint64_t h = 0;
    char *page = mmap(NULL, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int r = 0; r < 20 * scale; r++)
        for (int k = 0; k < 14; k++) {
            caught = 0;
            spin(20000);
            if (!sigsetjmp(back, 1)) switch (k) {
                case 0: *(volatile int *)8 = 1; break;
                case 1: page[4100] = 1; break;
                case 2: { volatile int zero = 0; h += 5 / zero; } break;
                case 3: __asm__ volatile("ud2"); break;
                case 4: __asm__ volatile("int3"); break;
                case 5: *(volatile int *)0x8000000000001234 = 1; break;
                case 6: __asm__ volatile("hlt"); break;
                case 7: ((void (*)(void))page)(); break;
                case 8: __asm__ volatile("int $0x80" : : "a"(20), "b"(0) : "memory", "r8", "r9", "r10", "r11"); break;
                case 9: __asm__ volatile("int $0x55"); break;
                case 10: __asm__ volatile(".byte 0xcd, 3"); break;
                case 11: __asm__ volatile("in $0x60, %%al" : : : "rax"); break;
                case 12: __asm__ volatile("pushf; orl $0x100, (%rsp); popf; nop; nop"); break;
                case 13: __asm__ volatile(".byte 0xcd, 4"); break;
                }
            uintptr_t offset = k == 1 || k == 7 ? caught_address - (uintptr_t)page : k == 0 || k == 5 ? caught_address : 0;
            h = h * 31 + caught * 1000 + caught_code + offset;
        }
    say("faults", h);
    struct sigaction normal = {.sa_handler = SIG_DFL};
    for (unsigned i = 0; i < 5; i++) sigaction(all[i], &normal, NULL);
    munmap(page, 8192);
}

// Resumes at the faulting instruction after repairing what it missed.
static char *guarded;
static void on_guard(int n, siginfo_t *info, void *context) {
    (void)n; (void)context;
    mprotect((void *)((uintptr_t)info->si_addr & ~4095ul), 4096, PROT_READ | PROT_WRITE);
}

static void test_guard(void) {
    struct sigaction action = {.sa_sigaction = on_guard, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    uint64_t h = 0;
    guarded = mmap(NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int r = 0; r < 4 * scale; r++) {
        mprotect(guarded, 64 * 4096, r & 1 ? PROT_NONE : PROT_READ);
        for (int i = 0; i < 64; i++) guarded[i * 4096 + r] += i + r;
        spin(100000);
        for (int i = 0; i < 64; i++) h = h * 33 + guarded[i * 4096 + r];
    }
    munmap(guarded, 64 * 4096);
    signal(SIGSEGV, SIG_DFL);
    say("guard", h);
}

// ---- memory --------------------------------------------------------------------------------------------------------
static void test_churn(void) {
    uint64_t h = 0, x = 12345;
    enum { N = 24 };
    uint64_t *area[N] = {0}, tag[N];
    size_t size[N];
    for (int r = 0; r < 400 * scale; r++) {
        x = x * 6364136223846793005ull + 1442695040888963407ull;
        int k = (x >> 33) % N;
        if (area[k]) {
            for (size_t i = 0; i < size[k]; i += 4096)
                if (area[k][i / 8] != tag[k] + i || area[k][i / 8 + 511] != ~i) { say("churn: WRONG", r); return; }
            switch ((x >> 40) & 3) {
            case 0: munmap(area[k], size[k]); area[k] = 0; break;
            case 1:
                mprotect(area[k], size[k], PROT_READ);
                h += area[k][0] - tag[k];
                mprotect(area[k], size[k], PROT_READ | PROT_WRITE);
                break;
            case 2: {
                uint64_t *moved = mremap(area[k], size[k], size[k] + 8192, MREMAP_MAYMOVE);
                for (size_t i = size[k]; i < size[k] + 8192; i += 4096) moved[i / 8] = tag[k] + i, moved[i / 8 + 511] = ~i;
                area[k] = moved;
                size[k] += 8192;
            } break;
            case 3:
                madvise(area[k], size[k], MADV_DONTNEED);
                for (size_t i = 0; i < size[k]; i += 4096) {
                    h += area[k][i / 8] + area[k][i / 8 + 511];
                    area[k][i / 8] = tag[k] + i;
                    area[k][i / 8 + 511] = ~i;
                }
            }
        } else {
            size[k] = (1 + (x >> 50) % 40) * 4096;
            tag[k] = x;
            area[k] = mmap(NULL, size[k], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            for (size_t i = 0; i < size[k]; i += 4096) area[k][i / 8] = tag[k] + i, area[k][i / 8 + 511] = ~i;
        }
        h = h * 33 + spin(1000 + (x >> 60));
    }
    for (int k = 0; k < N; k++) if (area[k]) munmap(area[k], size[k]);
    say("churn", h);
}

static void test_fork(void) {
    uint64_t h = 0;
    size_t n = 200;
    uint64_t *a = mmap(NULL, n * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int r = 0; r < 6 * scale; r++) {
        for (size_t i = 0; i < n; i++) a[i * 512] = i * 7 + r;
        spin(1000000);
        pid_t child = fork();
        if (child == 0) {
            uint64_t bad = 0;
            for (size_t i = 0; i < n; i++) bad += a[i * 512] != i * 7 + r;
            for (size_t i = 0; i < n; i += 2) a[i * 512] = i + 1000;
            spin(1000000);
            for (size_t i = 0; i < n; i++) bad += a[i * 512] != (i & 1 ? i * 7 + r : i + 1000);
            _exit(bad ? 1 : 42);
        }
        uint64_t bad = 0;
        for (size_t i = 0; i < n; i += 3) a[i * 512] = i + 5000;
        spin(1500000);
        for (size_t i = 0; i < n; i++) bad += a[i * 512] != (i % 3 ? i * 7 + r : i + 5000);
        int status;
        waitpid(child, &status, 0);
        for (size_t i = 0; i < n; i++) bad += a[i * 512] != (i % 3 ? i * 7 + r : i + 5000);
        h = h * 33 + WEXITSTATUS(status) + bad * 1000;
    }
    munmap(a, n * 4096);
    say("fork", h);
}

// ---- code that changes ---------------------------------------------------------------------------------------------
// mov eax, value; ret
static void write_code(unsigned char *at, uint32_t value) {
    at[0] = 0xB8;
    memcpy(at + 1, &value, 4);
    at[5] = 0xC3;
}

static void test_jit(void) {
    uint64_t h = 0;
    unsigned char *code = mmap(NULL, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int r = 0; r < 200 * scale; r++) {
        write_code(code + (r % 7) * 64, r * 17);
        uint32_t got = ((uint32_t(*)(void))(code + (r % 7) * 64))();
        if (got != (uint32_t)r * 17) { say("jit: WRONG", r); return; }
        h = h * 33 + got + spin(2000);
        // Data on the same page, and code through a pointer that was called before.
        code[2048] += 1;
        code[1] ^= 0x55;
        h += ((uint32_t(*)(void))code)() & 0xFF;
    }
    // The same through two mappings: one to write, one to execute.
    int fd = memfd_create("jit", 0);
    if (ftruncate(fd, 4096)) return;
    unsigned char *data = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    unsigned char *text = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    for (int r = 0; r < 200 * scale; r++) {
        write_code(data + (r % 5) * 64, r * 13);
        uint32_t got = ((uint32_t(*)(void))(text + (r % 5) * 64))();
        if (got != (uint32_t)r * 13) { say("jit: WRONG alias", r); return; }
        h = h * 33 + got + spin(500);
    }
    // Read by the kernel into a page that is executed.
    int file = open("/code", O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (int r = 0; r < 40 * scale; r++) {
        unsigned char bytes[8];
        write_code(bytes, r * 11 + 1);
        if (pwrite(file, bytes, 6, 0) != 6 || pread(file, code + 4096, 6, 0) != 6) return;
        uint32_t got = ((uint32_t(*)(void))(code + 4096))();
        if (got != (uint32_t)r * 11 + 1) { say("jit: WRONG read", r); return; }
        h = h * 33 + got + spin(500);
    }
    // CPUID written where something harmless was.
    static const unsigned char leaf[] = {0x53, 0x31, 0xC0, 0x90, 0x90, 0x89, 0xD8, 0x5B, 0xC3};
    memcpy(code, leaf, sizeof leaf);
    __asm__ volatile("" : : "b"(0x1234));
    ((uint32_t(*)(void))code)();
    code[3] = 0x0F;
    code[4] = 0xA2;
    uint32_t ebx = ((uint32_t(*)(void))code)(), a, b, c, d;
    __cpuid(0, a, b, c, d);
    h += ebx == b ? 1 : 1000;
    close(file);
    close(fd);
    munmap(code, 8192);
    munmap(data, 4096);
    munmap(text, 4096);
    say("jit", h);
}

static void test_alias(void) {
    uint64_t h = 0;
    int fd = memfd_create("alias", 0);
    if (ftruncate(fd, 16 * 4096)) return;
    volatile uint32_t *a = mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    volatile uint32_t *b = mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    for (int r = 0; r < 500 * scale; r++) {
        int i = (r * 37) % 16 * 1024;
        a[i] = r;
        if (b[i] != (uint32_t)r) { say("alias: WRONG", r); return; }
        b[i + 1]++;
        h = h * 33 + a[i + 1] + spin(300);
    }
    close(fd);
    say("alias", h);
}

static void test_state(void) {
    uint64_t h = 0;
    // x87, SSE, AVX and flags through kernel entries and interrupts.
    for (int r = 0; r < 60 * scale; r++) {
        fesetround(r & 1 ? FE_UPWARD : FE_TONEAREST);
        long double x = 1;
        double y = 1;
        for (int i = 1; i < 300; i++) {
            x = x * 1.0000001L + 1 / (long double)i;
            y = y / 3 + i;
            if (i % 100 == 0) sched_yield();
        }
        unsigned char bytes[16] = {0};
        memcpy(bytes, &x, 10);
        for (int i = 0; i < 10; i++) h = h * 33 + bytes[i];
        uint64_t bits;
        memcpy(&bits, &y, 8);
        h = h * 33 + bits;
    }
    fesetround(FE_TONEAREST);
    if (__builtin_cpu_supports("avx2")) {
        uint64_t in[4] = {1, 2, 3, 4}, out[4];
        for (int r = 0; r < 20 * scale; r++) {
            __asm__ volatile("vmovdqu %1, %%ymm15; vmovdqu %1, %%ymm3" : "=m"(out) : "m"(in) : "xmm15", "xmm3");
            spin(100000);
            sched_yield();
            __asm__ volatile("vpaddq %%ymm3, %%ymm15, %%ymm1; vmovdqu %%ymm1, %0; vzeroupper" : "=m"(out) : : "xmm1");
            memcpy(in, out, 32);
        }
        h = h * 33 + in[0] + in[1] * 3 + in[2] * 5 + in[3] * 7;
    }
    uint64_t flags;
    __asm__ volatile("pushf; orl $0x200000, (%%rsp); popf; pushf; pop %0" : "=r"(flags));
    h = h * 33 + (flags & 0x200FFF);
    uint64_t segments[6];
    __asm__ volatile("mov %%cs, %0; mov %%ss, %1; mov %%ds, %2; mov %%es, %3; mov %%fs, %4; mov %%gs, %5"
                     : "=r"(segments[0]), "=r"(segments[1]), "=r"(segments[2]), "=r"(segments[3]), "=r"(segments[4]),
                       "=r"(segments[5]));
    for (int i = 0; i < 6; i++) h = h * 33 + (segments[i] & 0xFFFF);
    uint64_t base;
    __asm__ volatile("push %%gs; mov $0x2b, %%eax; mov %%eax, %%gs; mov %%gs, %%eax; pop %%gs; mov %%rax, %0"
                     : "=r"(base) : : "rax");
    say("state", h * 33 + base);
}

// ---- tracing, processes, threads -----------------------------------------------------------------------------------
static void test_ptrace(void) {
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        spin(30);
        _exit(7);
    }
    int status;
    uint64_t steps = 0, h = 0;
    waitpid(child, &status, 0);
    while (steps < 2000 && ptrace(PTRACE_SINGLESTEP, child, 0, 0) == 0) {
        waitpid(child, &status, 0);
        if (WIFEXITED(status)) break;
        steps++;
        h = h * 33 + WSTOPSIG(status);
    }
    say("ptrace", h + steps * 1000000 + (WIFEXITED(status) ? WEXITSTATUS(status) : 99));
    if (!WIFEXITED(status)) kill(child, SIGKILL), waitpid(child, &status, 0);
}

static void test_sharing(void) {
    pid_t child[3];
    for (int i = 0; i < 3; i++)
        if ((child[i] = fork()) == 0) {
            uint64_t want = spin(3000000 + i), got = 0;
            char *private = malloc(1 << 20);
            for (int r = 0; r < 8 * scale; r++) {
                memset(private, i + r, 1 << 20);
                got = spin(3000000 + i);
                if (got != want || private[r * 1000] != (char)(i + r) || private[(1 << 20) - 1] != (char)(i + r)) _exit(1);
            }
            _exit(10 + i);
        }
    uint64_t h = 0;
    for (int i = 0; i < 3; i++) {
        int status;
        waitpid(child[i], &status, 0);
        h = h * 33 + WEXITSTATUS(status);
    }
    say("sharing", h);
}

static atomic_int turn;
static _Atomic uint64_t total;
static void *worker(void *argument) {
    int me = (int)(intptr_t)argument;
    static __thread uint64_t mine;
    for (int r = 0; r < 40 * scale; r++) {
        while (atomic_load(&turn) % 3 != me) sched_yield();
        mine += spin(5000 + me) & 0xFF;
        atomic_fetch_add(&total, mine);
        atomic_fetch_add(&turn, 1);
    }
    return (void *)(uintptr_t)mine;
}

static void test_threads(void) {
    pthread_t threads[3];
    uint64_t h = 0;
    for (int i = 0; i < 3; i++) pthread_create(&threads[i], NULL, worker, (void *)(intptr_t)i);
    for (int i = 0; i < 3; i++) {
        void *result;
        pthread_join(threads[i], &result);
        h = h * 33 + (uintptr_t)result;
    }
    say("threads", h + total);
}

static void test_syscalls(void) {
    uint64_t h = 0;
    int ends[2];
    if (pipe(ends)) return;
    for (int r = 0; r < 300 * scale; r++) {
        char out[64], in[64];
        memset(out, r, sizeof out);
        if (write(ends[1], out, sizeof out) != 64 || read(ends[0], in, sizeof in) != 64) break;
        h = h * 33 + (memcmp(in, out, 64) == 0) + spin(r & 63);
        // Registers that a call must keep.
        uint64_t kept;
        __asm__ volatile("mov %1, %%r15; mov $39, %%eax; syscall; mov %%r15, %0"
                         : "=r"(kept) : "r"((uint64_t)r * 3) : "rax", "rcx", "r11", "r15", "memory");
        h += kept;
    }
    close(ends[0]);
    close(ends[1]);
    say("syscalls", h);
}

// ---- the processor -------------------------------------------------------------------------------------------------
static void __attribute__((aligned(4096))) test_cpuid(void) {
    uint32_t a, b, c, d;
    char vendor[13] = {0}, brand[49] = {0};
    uint64_t h = 0;
    for (int r = 0; r < 200 * scale; r++) {
        __cpuid(0, a, b, c, d);
        memcpy(vendor, &b, 4), memcpy(vendor + 4, &d, 4), memcpy(vendor + 8, &c, 4);
        for (uint32_t leaf = 0; leaf <= a && leaf < 0x20; leaf++) {
            uint32_t e, f, g, i;
            __cpuid_count(leaf, 0, e, f, g, i);
            // Leaf 1 EBX and leaf 0Bh hold the APIC's number, 0Dh what is enabled now: the same in each mode.
            h = h * 33 + e + f + g + i;
        }
        h += spin(1000);
    }
    for (uint32_t n = 0; n < 3; n++) {
        __cpuid(0x80000002 + n, a, b, c, d);
        memcpy(brand + 16 * n, &a, 4), memcpy(brand + 16 * n + 4, &b, 4);
        memcpy(brand + 16 * n + 8, &c, 4), memcpy(brand + 16 * n + 12, &d, 4);
    }
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    printf("cpu %s %s xcr0 %x\n", vendor, brand, low);
    say("cpuid", h);
}

static void test_time(void) {
    uint64_t last = 0, bad = 0;
    struct timespec before = {0, 0}, now;
    for (int r = 0; r < 300 * scale; r++) {
        uint32_t low, high;
        __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
        uint64_t tsc = (uint64_t)high << 32 | low;
        bad += tsc < last;
        last = tsc;
        clock_gettime(CLOCK_MONOTONIC, &now);
        bad += now.tv_sec < before.tv_sec || (now.tv_sec == before.tv_sec && now.tv_nsec < before.tv_nsec);
        before = now;
        spin(3000);
    }
    unsigned cpu = 99;
    syscall(SYS_getcpu, &cpu, NULL, NULL);
    say("time", bad * 100 + cpu + sched_getcpu());
}

int main(int count, char **arguments) {
    (void)count;
    if (getpid() == 1) {
        mount("dev", "/dev", "devtmpfs", 0, NULL);
        int fd = open("/dev/console", O_RDWR);
        if (fd >= 0) dup2(fd, 0), dup2(fd, 1), dup2(fd, 2);
    }
    // As the guest's first program it has them from the kernel's command line: `only=…`, `scale=…`.
    const char *wanted = getpid() != 1 && count > 1 ? arguments[1] : getenv("only") ? getenv("only") : "";
    if (getenv("scale")) scale = atoi(getenv("scale"));
    (void)arguments;
    const struct { const char *name; void (*run)(void); } tests[] = {
        {"alarms", test_alarms}, {"faults", test_faults}, {"guard", test_guard}, {"churn", test_churn},
        {"fork", test_fork}, {"jit", test_jit}, {"alias", test_alias}, {"cpuid", test_cpuid}, {"time", test_time},
        {"state", test_state}, {"ptrace", test_ptrace}, {"sharing", test_sharing}, {"threads", test_threads},
        {"syscalls", test_syscalls},
    };
    printf("begin\n");
    for (unsigned i = 0; i < sizeof tests / sizeof *tests; i++)
        if (!*wanted || strstr(wanted, tests[i].name)) tests[i].run();
    printf("end\n");
    fflush(stdout);
    if (getpid() == 1) {
        sync();
        reboot(RB_POWER_OFF);
        pause();
    }
    return 0;
}

__asm__(".text\n.fill 4096, 1, 0x90\n");
