// What a debugger stops at: a loop, nested calls, instructions that are hard to step over, faults, a signal's handler.
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

volatile long total;
volatile int watched[4];
static sigjmp_buf place;

long leaf(long value) {
    total += value;
    return value * 3 + 1;
}

long middle(long value) {
    long result = leaf(value + 1);
    watched[1] = (int)result;
    return result + 2;
}

long loop(int count) {
    long sum = 0;
    for (int i = 0; i < count; i++) {
        sum += middle(i);
        watched[i & 3] = i;
    }
    return sum;
}

// Single steps: repeated instructions, flags pushed and popped, a system call, CPUID, x87, AVX,
// jumps.
long stepped(char *to, const char *from) {
    long result = 0;
    __asm__ volatile(
        "cld\n\t"
        "mov $9, %%ecx\n\t"
        "rep movsb\n\t"
        "mov $3, %%ecx\n\t"
        "rep stosq\n\t"
        "xor %%ecx, %%ecx\n\t"
        "rep movsq\n\t"
        "pushfq\n\t"
        "orq $1, (%%rsp)\n\t"
        "andq $~0x100, (%%rsp)\n\t"
        "popfq\n\t"
        "adc $5, %[result]\n\t"
        "mov $39, %%eax\n\t"
        "syscall\n\t"
        "nop\n\t"
        "xor %%eax, %%eax\n\t"
        "cpuid\n\t"
        "nop\n\t"
        "rdtsc\n\t"
        "mov %%ds, %%eax\n\t"
        "mov %%eax, %%ds\n\t"
        "nop\n\t"
        "mov $4, %%ecx\n"
        "1:\tadd %%rcx, %[result]\n\t"
        "movq %[result], %%xmm0\n\t"
        "vpaddq %%xmm0, %%xmm0, %%xmm1\n\t"
        "loop 1b\n\t"
        "call 2f\n\t"
        "jmp 3f\n"
        "2:\tfld1\n\t"
        "fldpi\n\t"
        "faddp\n\t"
        "fstp %%st(0)\n\t"
        "ret\n"
        "3:\tmov $7, %%eax\n\t"
        "cmp $7, %%eax\n\t"
        "je 4f\n\t"
        "ud2\n"
        "4:\txchg %%al, %%ah\n\t"
        "lock incq %[total]\n\t"
        "mov $24, %%eax\n\t"
        "syscall\n\t"
        "nop"
        : [result] "+r"(result), [total] "+m"(total), "+D"(to), "+S"(from)
        :
        : "rax", "rbx", "rcx", "rdx", "r11", "xmm0", "xmm1", "memory", "cc");
    return result;
}

void handler(int number) {
    total += number;
    if (number == SIGSEGV || number == SIGFPE || number == SIGILL || number == SIGTRAP) siglongjmp(place, number);
}

int divide(int a, int b) { return a / b; }
void store(int *where) { *where = 1; }
void undefined(void) { __asm__ volatile("ud2"); }
void breakpoint(void) { __asm__ volatile("int3"); }

int main(void) {
    static char to[64], from[64] = "stepping through copies";
    for (int number = 1; number < 32; number++) {
        if (number != SIGKILL && number != SIGSTOP) signal(number, handler);
    }
    printf("loop %ld\n", loop(40));
    printf("stepped %ld\n", stepped(to, from));
    printf("copied %s\n", to);
    if (!sigsetjmp(place, 1)) store((int *)0x123450);
    if (!sigsetjmp(place, 1)) printf("%d\n", divide(7, (int)(total & 0)));
    if (!sigsetjmp(place, 1)) undefined();
    if (!sigsetjmp(place, 1)) breakpoint();
    raise(SIGUSR1);
    raise(SIGUSR2);
    alarm(0);
    printf("total %ld, watched %d %d %d %d\n", total, watched[0], watched[1], watched[2], watched[3]);
    return 3;
}
