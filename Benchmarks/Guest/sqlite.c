// SQLite in memory: inserts with an index, then sums, ranges, a join and a search in text.
#include "bench.h"

#include <sqlite3.h>
#include <stdio.h>

static void execute(sqlite3 *database, const char *statement) {
    char *message = NULL;
    if (sqlite3_exec(database, statement, NULL, NULL, &message) != SQLITE_OK) fail("%s: %s", statement, message);
}

// A query's only number.
static uint64_t answer(sqlite3 *database, const char *query, int64_t argument) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(database, query, -1, &statement, NULL) != SQLITE_OK)
        fail("%s: %s", query, sqlite3_errmsg(database));
    sqlite3_bind_int64(statement, 1, argument);
    if (sqlite3_step(statement) != SQLITE_ROW) fail("%s: %s", query, sqlite3_errmsg(database));
    uint64_t value = (uint64_t)sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    return value;
}

static void insert(sqlite3 *database, int count, uint64_t seed) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(database, "insert into item values (?, ?, ?, ?)", -1, &statement, NULL) != SQLITE_OK)
        fail("%s", sqlite3_errmsg(database));
    for (int i = 0; i < count; i++) {
        char name[32];
        int length = snprintf(name, sizeof name, "item %llx", (unsigned long long)next_random(&seed));
        sqlite3_bind_int(statement, 1, i);
        sqlite3_bind_int(statement, 2, (int)(next_random(&seed) >> 54));
        sqlite3_bind_double(statement, 3, (double)(next_random(&seed) >> 44) / 16);
        sqlite3_bind_text(statement, 4, name, length, SQLITE_TRANSIENT);
        if (sqlite3_step(statement) != SQLITE_DONE) fail("%s", sqlite3_errmsg(database));
        sqlite3_reset(statement);
    }
    sqlite3_finalize(statement);
}

static struct outcome run(double scale) {
    uint64_t rounds = scaled(8, scale), sum = 0;
    double start = now();
    for (uint64_t i = 0; i < rounds; i++) {
        sqlite3 *database;
        if (sqlite3_open(":memory:", &database) != SQLITE_OK) fail("sqlite3_open");
        execute(database, "create table item (id integer primary key, kind integer, price real, name text);"
                          "create index by_kind on item (kind); create table kind (id integer primary key, weight);");
        execute(database, "begin");
        insert(database, 10000, i + 1);
        execute(database, "insert into kind select distinct kind, kind % 7 from item");
        execute(database, "commit");
        for (int n = 0; n < 200; n++)
            sum += answer(database, "select sum(id) from item where kind between ?1 and ?1 + 9", n * 5);
        sum += answer(database, "select sum(weight * item.id) from item join kind on item.kind = kind.id where price > ?", 20000);
        sum += answer(database, "select count(*) from item where name like '%a' || ? || '%'", 7);
        sum += answer(database, "select sum(n * ?) from (select kind, count(*) n from item group by kind order by 2)", 3);
        sum += answer(database, "select id from item order by price limit 1 offset ?", 99);
        execute(database, "update item set price = price * 2 where kind % 3 = 0; delete from item where kind % 5 = 0");
        sum += answer(database, "select sum(price) from item where id > ?", 50);
        sqlite3_close(database);
    }
    return (struct outcome){now() - start, rounds, sum, NULL};
}

const struct program sqlite_program = {"sqlite", "compute", "database of 10,000 rows", run};
