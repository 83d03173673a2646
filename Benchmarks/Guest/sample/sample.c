// What the compile benchmark compiles: a small calculator and a word counter, with a few headers of the C library.
#include <ctype.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { table_size = 1024 };

struct entry {
    char *word;
    unsigned count;
    struct entry *next;
};

static struct entry *table[table_size];

static unsigned hash(const char *word) {
    unsigned value = 2166136261u;
    while (*word) value = (value ^ (unsigned char)*word++) * 16777619u;
    return value % table_size;
}

static struct entry *look_up(const char *word) {
    unsigned place = hash(word);
    struct entry *entry;
    for (entry = table[place]; entry; entry = entry->next)
        if (strcmp(entry->word, word) == 0) return entry;
    entry = malloc(sizeof *entry);
    if (!entry) {
        fprintf(stderr, "no memory: %s\n", strerror(errno));
        exit(1);
    }
    entry->word = strdup(word);
    entry->count = 0;
    entry->next = table[place];
    table[place] = entry;
    return entry;
}

static void count_words(FILE *input) {
    char word[128];
    int length = 0, c;
    while ((c = getc(input)) != EOF) {
        if (isalnum(c) && length < (int)sizeof word - 1) {
            word[length++] = (char)tolower(c);
        } else if (length > 0) {
            word[length] = 0;
            look_up(word)->count++;
            length = 0;
        }
    }
}

static int by_count(const void *a, const void *b) {
    const struct entry *x = *(struct entry *const *)a, *y = *(struct entry *const *)b;
    if (x->count != y->count) return x->count < y->count ? 1 : -1;
    return strcmp(x->word, y->word);
}

static void print_words(int most) {
    size_t count = 0;
    for (int i = 0; i < table_size; i++)
        for (struct entry *entry = table[i]; entry; entry = entry->next) count++;
    struct entry **all = malloc(count * sizeof *all + 1);
    size_t n = 0;
    for (int i = 0; i < table_size; i++)
        for (struct entry *entry = table[i]; entry; entry = entry->next) all[n++] = entry;
    qsort(all, count, sizeof *all, by_count);
    for (size_t i = 0; i < count && (int)i < most; i++) printf("%8u %s\n", all[i]->count, all[i]->word);
    free(all);
}

struct parser {
    const char *at;
    int failed;
};

static double sum(struct parser *parser);

static void skip_space(struct parser *parser) {
    while (isspace((unsigned char)*parser->at)) parser->at++;
}

static double atom(struct parser *parser) {
    skip_space(parser);
    if (*parser->at == '(') {
        parser->at++;
        double value = sum(parser);
        skip_space(parser);
        if (*parser->at == ')')
            parser->at++;
        else
            parser->failed = 1;
        return value;
    }
    if (*parser->at == '-') {
        parser->at++;
        return -atom(parser);
    }
    char *end;
    double value = strtod(parser->at, &end);
    if (end == parser->at) parser->failed = 1;
    parser->at = end;
    return value;
}

static double product(struct parser *parser) {
    double value = atom(parser);
    for (;;) {
        skip_space(parser);
        switch (*parser->at) {
            case '*': parser->at++, value *= atom(parser); break;
            case '/': parser->at++, value /= atom(parser); break;
            default: return value;
        }
    }
}

static double sum(struct parser *parser) {
    double value = product(parser);
    for (;;) {
        skip_space(parser);
        switch (*parser->at) {
            case '+': parser->at++, value += product(parser); break;
            case '-': parser->at++, value -= product(parser); break;
            default: return value;
        }
    }
}

int main(int count, char **arguments) {
    if (count > 2 && strcmp(arguments[1], "calculate") == 0) {
        struct parser parser = {arguments[2], 0};
        double value = sum(&parser);
        if (parser.failed || *parser.at) {
            fprintf(stderr, "cannot read the rest: %s\n", parser.at);
            return 1;
        }
        printf("%.15g\n", value);
        return 0;
    }
    FILE *input = count > 1 ? fopen(arguments[1], "r") : stdin;
    if (!input) {
        fprintf(stderr, "%s: %s\n", arguments[1], strerror(errno));
        return 1;
    }
    count_words(input);
    print_words(20);
    return 0;
}
