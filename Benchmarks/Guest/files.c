// Files of a kibibyte on a tmpfs: created, written, closed, deleted; sixteen stand at any time.
#include "bench.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void name(char path[64], const char *folder, uint64_t number) {
    snprintf(path, 64, "%s/bench-%d-%llu", folder, (int)getpid(), (unsigned long long)number);
}

static struct outcome run(double scale) {
    enum { standing = 16 };
    static char contents[1024];
    fill_text(contents, sizeof contents);
    const char *folder = getenv("BENCH_TMP");
    if (!folder) folder = "/tmp";
    uint64_t rounds = scaled(25000, scale), sum = 0;
    char path[64];
    double start = now();
    for (uint64_t i = 0; i < rounds + standing; i++) {
        if (i < rounds) {
            name(path, folder, i);
            int file = open(path, O_CREAT | O_EXCL | O_WRONLY, 0600);
            if (file < 0) fail("cannot create %s", path);
            sum += (uint64_t)write(file, contents, sizeof contents);
            close(file);
        }
        if (i >= standing) {
            name(path, folder, i - standing);
            if (unlink(path) == 0) sum++;
        }
    }
    return (struct outcome){now() - start, rounds, sum, NULL};
}

const struct program files_program = {"files", "system", "file created and deleted", run};
