// A bit of everything that a C program does: floats, strings, sorting, setjmp, signals, varargs, 128-bit integers.
#include <errno.h>
#include <fenv.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>

static uint64_t state = 88172645463325252u;

static uint64_t random64(void) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static uint64_t hash(const void *bytes, size_t count) {
    uint64_t h = 14695981039346656037u;
    for (const unsigned char *p = bytes; count--; p++) h = (h ^ *p) * 1099511628211u;
    return h;
}

static void floats(void) {
    double sum = 0, product = 1;
    float narrow = 0;
    long double wide = 0;
    for (int i = 1; i <= 200000; i++) {
        double x = (double)(random64() >> 11) / 9007199254740992.0;
        sum += sin(x) * cos(x * i) + exp(-x) + log1p(x) + pow(x, 1.5) + atan2(x, i) + cbrt(x) + fmod(i, x + 1);
        product *= 1 + (x - 0.5) * 1e-3;
        narrow += sqrtf((float)x) / (float)i;
        wide += sqrtl((long double)x) / i;
    }
    printf("%.17g %a %.9g %.21Lg\n", sum, product, narrow, wide);
    printf("%g %g %g %d\n", 1 / INFINITY, -INFINITY, fmax(NAN, 2), isnan(NAN - NAN) != 0);
    printf("%.0f %.0f %.0f %ld %lld\n", rint(2.5), nearbyint(-3.5), trunc(-2.7), lrint(1e9 + 0.5), llround(-0.5));
    printf("%a %a %d\n", nextafter(1, 2), DBL_MIN / 3, fpclassify(DBL_MIN / 3) == FP_SUBNORMAL);
    for (int i = 0; i < 4; i++) {
        static const int modes[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};
        fesetround(modes[i]);
        volatile double a = 1, b = 3, c = -1;
        volatile long double d = 1, e = 7;
        printf("%a %a %La %.3f\n", a / b, c / b, d / e, 0.0625 * 3);
    }
    fesetround(FE_TONEAREST);
    feclearexcept(FE_ALL_EXCEPT);
    volatile double zero = 0, big = DBL_MAX;
    volatile double result = 1 / zero;
    result = big * big + result;
    printf("%d %d %d\n", !!fetestexcept(FE_DIVBYZERO), !!fetestexcept(FE_OVERFLOW), !!fetestexcept(FE_INVALID));
    printf("%.20g %.20g %d\n", strtod("0.1", NULL), strtod("1.7976931348623159e308", NULL), errno == ERANGE);
    printf("%.30Lf\n", strtold("3.14159265358979323846264338327950288", NULL));
}

static void integers(void) {
    uint64_t sum = 0;
    __int128 wide = 1;
    for (int i = 1; i < 2000000; i++) {
        uint64_t x = random64(), y = random64() | 1;
        sum += x / y + x % (y >> 40 | 1) + __builtin_popcountll(x) + __builtin_clzll(y) + (x << (y & 63));
        sum ^= (sum >> 29) + __builtin_bswap64(x);
        wide = wide * (int64_t)y + (wide >> 64) / (int64_t)(x >> 50 | 1);
    }
    printf("%016" PRIx64 " %016" PRIx64 "%016" PRIx64 "\n", sum, (uint64_t)(wide >> 64), (uint64_t)wide);
}

static int byWord(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }
static int byNumber(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void sorting(void) {
    enum { count = 60000 };
    static char *words[count];
    static double numbers[count];
    for (int i = 0; i < count; i++) {
        char text[40];
        snprintf(text, sizeof text, "%" PRIx64 "-%d", random64() >> (random64() & 63), i % 977);
        words[i] = strdup(text);
        numbers[i] = (double)(int64_t)random64() / 1e6;
    }
    qsort(words, count, sizeof *words, byWord);
    qsort(numbers, count, sizeof *numbers, byNumber);
    uint64_t h = 0;
    for (int i = 0; i < count; i++) h = h * 31 + hash(words[i], strlen(words[i]));
    printf("%s %s %016" PRIx64 " %016" PRIx64 "\n", words[0], words[count - 1], h, hash(numbers, sizeof numbers));
}

static void strings(void) {
    static char buffer[1 << 16], other[1 << 16];
    uint64_t h = 0;
    for (int i = 0; i < 20000; i++) {
        size_t length = random64() % 400, from = random64() % 300, to = random64() % 300;
        memset(buffer + from, 'a' + i % 26, length);
        memmove(buffer + to, buffer + from, length);
        memcpy(other + from, buffer + to, length);
        buffer[to + length] = 0;
        char *found = memchr(buffer, 'q', 700), *last = strrchr(buffer + to, 'a' + i % 26);
        h = h * 131 + strlen(buffer + to) + strspn(buffer + to, "abcxyz") + (found ? found - buffer : 7);
        h = h * 131 + (last ? last - buffer : 3) + (memcmp(buffer, other, 600) > 0) + strnlen(other, length);
        h += strstr(buffer + to, "zz") != NULL;
    }
    char text[] = "the quick,brown;fox jumps,over", *rest = text;
    for (char *word; (word = strsep(&rest, " ,;"));) printf("%s/", word);
    printf(" %016" PRIx64 " %016" PRIx64 "\n", h, hash(other, sizeof other));
}

static jmp_buf place;
static sigjmp_buf fault_place;
static volatile int depth_seen;

static void descend(int depth) {
    volatile char frame[200];
    frame[0] = (char)depth;
    if (depth == 500) longjmp(place, depth);
    descend(depth + 1);
    depth_seen += frame[0];
}

static void on_fault(int number, siginfo_t *info, void *context) {
    (void)context;
    printf("signal %d at %p\n", number, number == SIGSEGV ? info->si_addr : NULL);
    siglongjmp(fault_place, number);
}

static void jumps(void) {
    int value = setjmp(place);
    if (value == 0) descend(0);
    printf("back from %d, %d\n", value, depth_seen);
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGFPE, &action, NULL);
    sigaction(SIGILL, &action, NULL);
    if (sigsetjmp(fault_place, 1) == 0) *(volatile int *)0x123450 = 1;
    volatile int zero = 0, one = 1;
    if (sigsetjmp(fault_place, 1) == 0) printf("%d\n", one / zero);
    if (sigsetjmp(fault_place, 1) == 0) __asm__ volatile("ud2");
    int taken = 0;
    for (int i = 0; i < 2000; i++) {
        if (sigsetjmp(place, 1) == 0) longjmp(place, 1);
        taken++;
    }
    printf("%d jumps\n", taken);
}

static void say(const char *kinds, ...) {
    va_list list, again;
    va_start(list, kinds);
    va_copy(again, list);
    for (const char *kind = kinds; *kind; kind++) {
        switch (*kind) {
        case 'i': printf("%d ", va_arg(list, int)); break;
        case 'l': printf("%+ld ", va_arg(list, long)); break;
        case 'd': printf("%.10e ", va_arg(list, double)); break;
        case 's': printf("%-8s|", va_arg(list, char *)); break;
        case 'L': printf("%Lg ", va_arg(list, long double)); break;
        }
    }
    va_end(list);
    char line[256];
    vsnprintf(line, sizeof line, "%3$s %2$g %1$d", again);
    va_end(again);
    printf("%s\n", line);
}

int main(int argc, char **argv) {
    floats();
    integers();
    sorting();
    strings();
    jumps();
    say("idsidlLdddddddd", 1, 2.5, "three", -4, 5e-300, 6L << 40, 7.25L, .1, .2, .3, .4, .5, .6, .7, .8);
    printf("%5.2f|%-10s|%+d|%#x|%o|%e|%c|%%|%ls|%n", 3.14159, "left", 42, 255, 8, 12345.678, 'z', L"wide", &argc);
    printf("%d %s\n", argc, argv[3]);
    struct tm date = {.tm_year = 126, .tm_mon = 10, .tm_mday = 25, .tm_hour = 12};
    char text[64];
    time_t seconds = timegm(&date);
    strftime(text, sizeof text, "%A %j %U %FT%T", gmtime(&seconds));
    printf("%s\n", text);
    return 0;
}
