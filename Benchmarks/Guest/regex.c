// Regular expressions: PCRE2's matcher (not its compiler to machine code) over a text.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "bench.h"

#include <pcre2.h>
#include <stdlib.h>

static const char *const patterns[] = {
    "\\b[a-m]+ri[a-z]*\\b",
    "(ta|ko|mel)(no|sun)+(?=\\s)",
    "^.*gar.*lor.*$",
    "(\\w)(\\w)\\2\\1",
    "[aeiou]{2}x|zi(?!\\w)",
};

static uint64_t matches(const pcre2_code *code, pcre2_match_data *data, const char *text, size_t size) {
    uint64_t sum = 0;
    PCRE2_SIZE at = 0;
    while (at < size && pcre2_match(code, (PCRE2_SPTR)text, size, at, 0, data, NULL) > 0) {
        PCRE2_SIZE *range = pcre2_get_ovector_pointer(data);
        sum = sum * 31 + range[0] + range[1];
        at = range[1] > range[0] ? range[1] : range[1] + 1;
    }
    return sum;
}

static struct outcome run(double scale) {
    enum { size = 128 << 10 };
    uint64_t rounds = scaled(20, scale), sum = 0;
    char *text = malloc(size);
    fill_text(text, size);
    double start = now();
    for (uint64_t i = 0; i < rounds; i++)
        for (size_t n = 0; n < sizeof patterns / sizeof *patterns; n++) {
            int error;
            PCRE2_SIZE offset;
            pcre2_code *code = pcre2_compile((PCRE2_SPTR)patterns[n], PCRE2_ZERO_TERMINATED, PCRE2_MULTILINE, &error,
                                             &offset, NULL);
            if (!code) fail("pattern %s: error %d", patterns[n], error);
            pcre2_match_data *data = pcre2_match_data_create_from_pattern(code, NULL);
            sum = sum * 31 + matches(code, data, text, size);
            pcre2_match_data_free(data);
            pcre2_code_free(code);
        }
    return (struct outcome){now() - start, rounds, sum, NULL};
}

const struct program regex_program = {"regex", "compute", "five patterns in 128 KiB", run};
