// A bytecode interpreter: Lua, with calls, tables, strings and floating point.
#include "bench.h"

#include <lua5.4/lauxlib.h>
#include <lua5.4/lualib.h>

static const char script[] =
    "local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end\n"
    "local function queens(n)\n"
    "  local columns, rising, falling, count = {}, {}, {}, 0\n"
    "  local function place(row)\n"
    "    if row > n then count = count + 1 return end\n"
    "    for c = 1, n do\n"
    "      if not columns[c] and not rising[row + c] and not falling[row - c + n] then\n"
    "        columns[c], rising[row + c], falling[row - c + n] = true, true, true\n"
    "        place(row + 1)\n"
    "        columns[c], rising[row + c], falling[row - c + n] = false, false, false\n"
    "      end\n"
    "    end\n"
    "  end\n"
    "  place(1)\n"
    "  return count\n"
    "end\n"
    "local function words(n)\n"
    "  local seen, parts = {}, {}\n"
    "  for i = 1, n do\n"
    "    local word = string.format('%x', i * 2654435761 % 4099)\n"
    "    seen[word] = (seen[word] or 0) + 1\n"
    "    parts[#parts + 1] = word:upper()\n"
    "  end\n"
    "  return #table.concat(parts, ' ') + seen['1f']\n"
    "end\n"
    "local function orbit(n)\n"
    "  local x, y, vx, vy = 1.0, 0.0, 0.0, 1.0\n"
    "  for i = 1, n do\n"
    "    local r = (x * x + y * y) ^ 1.5\n"
    "    vx, vy = vx - x / r * 0.01, vy - y / r * 0.01\n"
    "    x, y = x + vx * 0.01, y + vy * 0.01\n"
    "  end\n"
    "  return math.floor((x + y) * 1e6)\n"
    "end\n"
    "local rounds, sum = ..., 0\n"
    "for i = 1, rounds do sum = sum + fib(21) + queens(6) + words(5000) + orbit(20000) + i end\n"
    "return sum\n";

static struct outcome run(double scale) {
    uint64_t rounds = scaled(80, scale);
    lua_State *lua = luaL_newstate();
    luaL_openlibs(lua);
    if (luaL_loadstring(lua, script) != LUA_OK) fail("%s", lua_tostring(lua, -1));
    lua_pushinteger(lua, (lua_Integer)rounds);
    double start = now();
    if (lua_pcall(lua, 1, 1, 0) != LUA_OK) fail("%s", lua_tostring(lua, -1));
    double seconds = now() - start;
    uint64_t sum = (uint64_t)lua_tointeger(lua, -1);
    lua_close(lua);
    return (struct outcome){seconds, rounds, sum, NULL};
}

const struct program lua_program = {"lua", "compute", "round of four functions", run};
