// What every benchmark program shares: its row, its outcome, a clock, a generator of numbers that is the same everywhere.
#pragma once
#include <stddef.h>
#include <stdint.h>

// What one run of a program tells.
struct outcome {
    double seconds;       // around the work alone, by CLOCK_MONOTONIC
    uint64_t operations;  // how often the thing in question was done
    uint64_t checksum;    // of the result: the same on every machine
    const char *path;     // which code ran, where the processor decides; NULL where it does not
};

// One program; `scale` multiplies its work (1 is 0.2 to 0.5 seconds on a machine of 2024).
struct program {
    const char *name;
    const char *set;   // "compute" or "system"
    const char *unit;  // what an operation is
    struct outcome (*run)(double scale);
};

// Seconds since some fixed moment.
double now(void);

// `count` times `scale`, at least one.
uint64_t scaled(double count, double scale);

// The next number of a generator (xorshift64*).
uint64_t next_random(uint64_t *state);

// A checksum of bytes (FNV-1a).
uint64_t checksum(const void *bytes, size_t size);

// Fills a buffer with text of made-up words, some of them frequent, as in a language.
void fill_text(char *buffer, size_t size);

// Ends the program with a line on standard error: it cannot run here.
_Noreturn void fail(const char *format, ...);

#define PROGRAM(identifier) extern const struct program identifier
PROGRAM(integer_program);
PROGRAM(sieve_program);
PROGRAM(tree_program);
PROGRAM(list_program);
PROGRAM(hash_program);
PROGRAM(matrix_program);
PROGRAM(aes_program);
PROGRAM(sha256_program);
PROGRAM(sha256_plain_program);
PROGRAM(dot_program);
PROGRAM(memcpy_64_program);
PROGRAM(memcpy_4k_program);
PROGRAM(memcpy_1m_program);
PROGRAM(memset_64_program);
PROGRAM(memset_4k_program);
PROGRAM(memset_1m_program);
PROGRAM(sort_program);
PROGRAM(lua_program);
PROGRAM(gzip_program);
PROGRAM(xz_program);
PROGRAM(sqlite_program);
PROGRAM(regex_program);
PROGRAM(syscall_program);
PROGRAM(fault_program);
PROGRAM(mmap_program);
PROGRAM(signal_program);
PROGRAM(fork_program);
PROGRAM(exec_program);
PROGRAM(shell_program);
PROGRAM(pipe_2_program);
PROGRAM(pipe_16_program);
PROGRAM(files_program);
PROGRAM(compile_program);
#undef PROGRAM
