// Page faults: fresh anonymous memory, touched page by page and given back.
#define _GNU_SOURCE
#include "bench.h"

#include <sys/mman.h>

static struct outcome run(double scale) {
    enum { page = 4096, pages = 1024 };
    uint64_t rounds = scaled(150, scale), sum = 0;
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) {
        uint8_t *memory = mmap(NULL, page * pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) fail("mmap");
        // Small pages everywhere, whatever the kernel's habit is.
        madvise(memory, page * pages, MADV_NOHUGEPAGE);
        for (size_t n = 0; n < pages; n++) sum += memory[n * page + (n & 63)]++ + n;
        munmap(memory, page * pages);
    }
    return (struct outcome){now() - start, rounds * pages, sum, NULL};
}

const struct program fault_program = {"fault", "system", "page fault", run};
