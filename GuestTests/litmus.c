// Memory-ordering litmus tests (SDM 3A 8.2.3; AMD APM 2 7.2) and atomic counters on several processors, as a guest's init.
//
// Each test has threads that store to and load from shared places at the same time, over and over, and counts the outcomes
// that the architecture forbids. `rounds=N` on the kernel's command line says how often. The last line is "end".
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/reboot.h>
#include <unistd.h>

#define BATCH 1024
#define THREADS 4

// Places of one round, each in a cache line of its own.
struct place {
    volatile uint32_t x __attribute__((aligned(64)));
    volatile uint32_t y __attribute__((aligned(64)));
};
static struct place places[BATCH];
static uint32_t seen[THREADS][2][BATCH];

static void store(volatile uint32_t *to, uint32_t value) { __asm__ volatile("movl %1, %0" : "=m"(*to) : "r"(value)); }
static uint32_t load(volatile uint32_t *from) {
    uint32_t value;
    __asm__ volatile("movl %1, %0" : "=r"(value) : "m"(*from));
    return value;
}
static void exchange(volatile uint32_t *to, uint32_t value) {
    __asm__ volatile("xchgl %1, %0" : "+m"(*to), "+r"(value) : : "memory");
}
static void fence(void) { __asm__ volatile("mfence" : : : "memory"); }
static void locked(void) { __asm__ volatile("lock; addl $0, -128(%%rsp)" : : : "memory"); }

// What each thread does in round n of a test.
typedef void (*step)(int n);
#define LOAD(thread, which, place) seen[thread][which][n] = load(&places[n].place)
static void store_x(int n) { store(&places[n].x, 1); }
static void store_y(int n) { store(&places[n].y, 1); }
static void mp0(int n) { store(&places[n].x, 1); store(&places[n].y, 1); }
static void mp1(int n) { LOAD(1, 0, y); LOAD(1, 1, x); }
static void sb0(int n) { store(&places[n].x, 1); LOAD(0, 0, y); }
static void sb1(int n) { store(&places[n].y, 1); LOAD(1, 0, x); }
static void sbf0(int n) { store(&places[n].x, 1); fence(); LOAD(0, 0, y); }
static void sbf1(int n) { store(&places[n].y, 1); fence(); LOAD(1, 0, x); }
static void sbl0(int n) { store(&places[n].x, 1); locked(); LOAD(0, 0, y); }
static void sbl1(int n) { store(&places[n].y, 1); locked(); LOAD(1, 0, x); }
static void sbx0(int n) { exchange(&places[n].x, 1); LOAD(0, 0, y); }
static void sbx1(int n) { exchange(&places[n].y, 1); LOAD(1, 0, x); }
static void lb0(int n) { LOAD(0, 0, x); store(&places[n].y, 1); }
static void lb1(int n) { LOAD(1, 0, y); store(&places[n].x, 1); }
static void iriw2(int n) { LOAD(2, 0, x); LOAD(2, 1, y); }
static void iriw3(int n) { LOAD(3, 0, y); LOAD(3, 1, x); }

// Which outcomes are forbidden.
static int mp_bad(int n) { return seen[1][0][n] == 1 && seen[1][1][n] == 0; }
static int sb_both(int n) { return seen[0][0][n] == 0 && seen[1][0][n] == 0; }
static int lb_bad(int n) { return seen[0][0][n] == 1 && seen[1][0][n] == 1; }
static int iriw_bad(int n) {
    return seen[2][0][n] == 1 && seen[2][1][n] == 0 && seen[3][0][n] == 1 && seen[3][1][n] == 0;
}

static const struct test {
    const char *name;
    int threads;
    step steps[THREADS];
    int (*outcome)(int n);
    int forbidden;
} tests[] = {
    {"message passing", 2, {mp0, mp1}, mp_bad, 1},
    {"store buffering", 2, {sb0, sb1}, sb_both, 0},
    {"store buffering, MFENCE", 2, {sbf0, sbf1}, sb_both, 1},
    {"store buffering, LOCK ADD", 2, {sbl0, sbl1}, sb_both, 1},
    {"store buffering, XCHG", 2, {sbx0, sbx1}, sb_both, 1},
    {"load buffering", 2, {lb0, lb1}, lb_bad, 1},
    {"independent reads", 4, {store_x, store_y, iriw2, iriw3}, iriw_bad, 1},
};

static const struct test *current;
static volatile int finished;

// A barrier that spins, so that all start within a few cycles where each has a processor; where they haven't, whoever
// waits lets the others run.
static volatile int arrived, phase, expected, spins;
static void meet(void) {
    int now = phase;
    if (__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST) == expected) {
        arrived = 0;
        __atomic_store_n(&phase, now + 1, __ATOMIC_SEQ_CST);
        return;
    }
    for (int n = 0; phase == now; n++) {
        if (n < spins) __asm__ volatile("pause");
        else sched_yield();
    }
}

// Starts of a batch that differ by a little more or less each time, so that all interleavings come up.
static void stagger(int thread, unsigned round) {
    for (volatile unsigned n = round * (7u + 4u * (unsigned)thread) % 256; n; n--) {}
}

static void run_batch(int thread, unsigned round) {
    stagger(thread, round);
    step body = current->steps[thread];
    for (int n = 0; n < BATCH; n++) body(n);
}

static void *run(void *argument) {
    int thread = (int)(intptr_t)argument;
    for (unsigned round = 0;; round++) {
        meet();
        if (finished) return 0;
        run_batch(thread, round);
        meet();
    }
}

// The main thread is the first of each test.
static long measure(const struct test *test, long rounds) {
    pthread_t threads[THREADS];
    current = test;
    finished = 0;
    expected = test->threads;
    spins = test->threads <= sysconf(_SC_NPROCESSORS_ONLN) ? 2000 : 20;
    for (intptr_t n = 1; n < test->threads; n++) pthread_create(&threads[n], 0, run, (void *)n);
    long count = 0;
    unsigned round = 0;
    for (long done = 0; done < rounds; done += BATCH) {
        for (int n = 0; n < BATCH; n++) places[n].x = places[n].y = 0;
        meet();
        run_batch(0, round++);
        meet();
        for (int n = 0; n < BATCH; n++) count += test->outcome(n);
    }
    finished = 1;
    meet();
    for (int n = 1; n < test->threads; n++) pthread_join(threads[n], 0);
    return count;
}

// Counters that all threads raise in every atomic way, within a cache line and across two.
static struct {
    volatile uint64_t add, increment, exchange_add, compare, bits[4];
    volatile uint32_t lock, guarded;
} counters __attribute__((aligned(64)));
static long increments;

static void *count(void *argument) {
    uint64_t own = (uint64_t)(intptr_t)argument;
    for (long n = 0; n < increments; n++) {
        __asm__ volatile("lock; addq $1, %0" : "+m"(counters.add));
        __asm__ volatile("lock; incq %0" : "+m"(counters.increment));
        uint64_t one = 1;
        __asm__ volatile("lock; xaddq %1, %0" : "+m"(counters.exchange_add), "+r"(one));
        for (uint64_t old = counters.compare;;) {
            uint64_t found = old;
            __asm__ volatile("lock; cmpxchgq %2, %1" : "+a"(found), "+m"(counters.compare) : "r"(old + 1));
            if (found == old) break;
            old = found;
        }
        __asm__ volatile("lock; btcq %1, %0" : "+m"(counters.bits[0]) : "r"(own));
        uint32_t taken = 1;
        do { __asm__ volatile("xchgl %1, %0" : "+m"(counters.lock), "+r"(taken)); if (taken) sched_yield(); } while (taken);
        counters.guarded++;
        store(&counters.lock, 0);
    }
    return 0;
}

int main(void) {
    const char *words = getenv("rounds");
    long rounds = words ? atol(words) : 100000;
    printf("begin\nprocessors %ld\n", sysconf(_SC_NPROCESSORS_ONLN));
    for (unsigned n = 0; n < sizeof tests / sizeof *tests; n++) {
        long found = measure(&tests[n], rounds);
        if (tests[n].forbidden) printf("%s: %ld forbidden\n", tests[n].name, found);
        else printf("%s: allowed outcome %s\n", tests[n].name, found ? "seen" : "not seen");
        fflush(stdout);
    }
    increments = rounds / 4;
    pthread_t threads[THREADS];
    for (intptr_t n = 0; n < THREADS; n++) pthread_create(&threads[n], 0, count, (void *)n);
    for (int n = 0; n < THREADS; n++) pthread_join(threads[n], 0);
    uint64_t wanted = (uint64_t)increments * THREADS;
    printf("counters %s\n",
           counters.add == wanted && counters.increment == wanted && counters.exchange_add == wanted
                   && counters.compare == wanted && counters.guarded == (uint32_t)wanted
                   && counters.bits[0] == (increments & 1 ? (1u << THREADS) - 1 : 0) ? "right" : "wrong");
    printf("end\n");
    fflush(stdout);
    if (getpid() == 1) reboot(RB_POWER_OFF);
    return 0;
}
