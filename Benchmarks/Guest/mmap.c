// mmap and munmap of 64 KiB, one page of it touched.
#include "bench.h"

#include <sys/mman.h>

static struct outcome run(double scale) {
    uint64_t rounds = scaled(40000, scale), sum = 0;
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) {
        uint8_t *memory = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) fail("mmap");
        memory[i & 0xFFFF] = (uint8_t)i;
        sum += memory[i & 0xFFFF];
        munmap(memory, 65536);
    }
    return (struct outcome){now() - start, rounds, sum, NULL};
}

const struct program mmap_program = {"mmap", "system", "mmap, touch and munmap", run};
