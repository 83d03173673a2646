// The runner: `bench NAME [SCALE]` runs a program and prints a line, `bench --list` names them all.
//
//   @bench result NAME SECONDS OPERATIONS CHECKSUM PATH
#include "bench.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const struct program *const programs[] = {
    &integer_program,
    &sieve_program,
    &tree_program,
    &list_program,
    &hash_program,
    &matrix_program,
    &aes_program,
    &sha256_program,
    &sha256_plain_program,
    &dot_program,
    &memcpy_64_program,
    &memcpy_4k_program,
    &memcpy_1m_program,
    &memset_64_program,
    &memset_4k_program,
    &memset_1m_program,
    &sort_program,
    &lua_program,
    &gzip_program,
    &xz_program,
    &sqlite_program,
    &regex_program,
    &syscall_program,
    &fault_program,
    &mmap_program,
    &signal_program,
    &fork_program,
    &exec_program,
    &shell_program,
    &pipe_2_program,
    &pipe_16_program,
    &files_program,
    &compile_program,
};

double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

uint64_t scaled(double count, double scale) {
    double product = count * scale;
    return product < 1 ? 1 : (uint64_t)product;
}

uint64_t next_random(uint64_t *state) {
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545F4914F6CDD1D;
}

uint64_t checksum(const void *bytes, size_t size) {
    uint64_t sum = 0xCBF29CE484222325;
    for (size_t i = 0; i < size; i++) sum = (sum ^ ((const uint8_t *)bytes)[i]) * 0x100000001B3;
    return sum;
}

void fill_text(char *buffer, size_t size) {
    static const char *const syllables[] = {"ta", "ri", "no", "mel", "ko", "sun", "da", "fe", "lor", "wi", "ba", "xe",
                                            "pu", "gar", "ho", "zi"};
    uint64_t state = 0x9E3779B97F4A7C15;
    size_t length = 0;
    while (length < size) {
        // A word is a number whose digits are syllables; the product of two numbers makes small ones frequent.
        uint64_t random = next_random(&state);
        uint64_t word = (random & 63) * ((random >> 8) & 63);
        do {
            for (const char *s = syllables[word & 15]; *s && length < size; s++) buffer[length++] = *s;
            word >>= 4;
        } while (word);
        if (length < size) buffer[length++] = (random >> 60) == 0 ? '\n' : ' ';
    }
}

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("@bench error ", stderr);
    vfprintf(stderr, format, arguments);
    fputs("\n", stderr);
    va_end(arguments);
    exit(1);
}

static void list(void) {
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++)
        printf("%s\t%s\t%s\n", programs[i]->name, programs[i]->set, programs[i]->unit);
}

int main(int count, char **arguments) {
    const char *name = count > 1 ? arguments[1] : "";
    // What the exec benchmark starts.
    if (strcmp(name, "nothing") == 0) return 0;
    if (strcmp(name, "--list") == 0) {
        list();
        return 0;
    }
    double scale = count > 2 ? atof(arguments[2]) : 1;
    for (size_t i = 0; i < sizeof programs / sizeof *programs; i++) {
        if (strcmp(name, programs[i]->name) != 0) continue;
        struct outcome outcome = programs[i]->run(scale);
        printf("@bench result %s %.6f %llu %016llx %s\n", name, outcome.seconds, (unsigned long long)outcome.operations,
               (unsigned long long)outcome.checksum, outcome.path ? outcome.path : "-");
        return 0;
    }
    fprintf(stderr, "usage: bench NAME [SCALE] | bench --list\n");
    return 2;
}
