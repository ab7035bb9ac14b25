// The program: LuaJIT with libmelies linked in (Lua finds its functions in ffi.C), and lua/melies/cli.lua.
#include "host.h"

#include <errno.h>
#include <lauxlib.h>
#include <lualib.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int clear_interrupt(lua_State *L) {
    (void)L;
    host_interrupt_clear();
    return 0;
}

// require "melies.host": there only in this program.
static int open_host(lua_State *L) {
    const host_paths *paths = lua_touserdata(L, lua_upvalueindex(1));
    static const luaL_Reg functions[] = {{"read_line", host_read_line}, {"add_history", host_add_history},
        {"set_completer", host_set_completer}, {"clear_interrupt", clear_interrupt}, {NULL, NULL}};
    lua_newtable(L);
    luaL_register(L, NULL, functions);
    lua_pushstring(L, paths->executable);
    lua_setfield(L, -2, "executable");
    lua_pushstring(L, paths->root);
    lua_setfield(L, -2, "root");
    return 1;
}

// Runs protected: sets package.path, then returns require("melies.cli").main(arguments), an exit code.
static int start(lua_State *L) {
    host_paths *paths = lua_touserdata(L, 1);
    char **argv = lua_touserdata(L, 2);
    luaL_openlibs(L);
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "path");
    const char *before = lua_tostring(L, -1);
    if (paths->build_lua[0])
        lua_pushfstring(L, "%s/?.lua;", paths->build_lua);
    else
        lua_pushliteral(L, "");
    lua_pushfstring(
        L, "%s%s/lua/?.lua;%s/lua/?/init.lua;%s", lua_tostring(L, -1), paths->root, paths->root, before ? before : "");
    lua_setfield(L, -4, "path");
    lua_pop(L, 2);
    lua_getfield(L, -1, "preload");
    lua_pushlightuserdata(L, paths);
    lua_pushcclosure(L, open_host, 1);
    lua_setfield(L, -2, "melies.host");

    lua_getglobal(L, "require");
    lua_pushliteral(L, "melies.cli");
    lua_call(L, 1, 1);
    lua_getfield(L, -1, "main");
    lua_newtable(L);
    for (int i = 1; argv[i]; i++) {
        lua_pushstring(L, argv[i]);
        lua_rawseti(L, -2, i);
    }
    lua_call(L, 1, 1);
    return 1;
}

// Output that could not be written is a failure, unless its reader has left (a closed pipe): then all is well.
static int finish_output(int code) {
    errno = 0;
    bool failed = fflush(stdout) != 0;
    int reason = errno;
    if (!failed && !ferror(stdout)) return code;
    struct pollfd p = {.fd = STDOUT_FILENO, .events = POLLOUT};
    if (reason == EPIPE || (poll(&p, 1, 0) == 1 && (p.revents & POLLERR))) return code;
    fprintf(
        stderr, "melies: the output could not be written%s%s\n", reason ? ": " : "", reason ? strerror(reason) : "");
    return code == 0 ? 1 : code;
}

// OpenMP reads its settings when it is loaded, before main: threads that wait by spinning cost a busy machine far more
// than they save an idle one, so the program starts itself again with the other policy, once.
static void wait_politely(char **argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT") || !argv[0]) return;
    if (setenv("OMP_WAIT_POLICY", "passive", 1) == 0) execv("/proc/self/exe", argv);
}

int main(int argc, char **argv) {
    static host_paths paths;
    wait_politely(argv);
    static char *none[] = {NULL, NULL};
    char message[2 * HOST_PATH_MAX];
    if (!host_find_paths(&paths, message, sizeof message)) {
        fprintf(stderr, "melies: %s\n", message);
        return 1;
    }
    lua_State *L = luaL_newstate();
    if (!L) {
        fputs("melies: LuaJIT could not start: not enough memory\n", stderr);
        return 1;
    }
    host_interrupt_start(L);
    lua_pushcfunction(L, start);
    lua_pushlightuserdata(L, &paths);
    lua_pushlightuserdata(L, argc > 0 ? argv : none);
    int code = 1;
    if (lua_pcall(L, 2, 1, 0) == 0) {
        code = (int)lua_tointeger(L, -1);
    } else {
        const char *text = lua_tostring(L, -1);
        fprintf(stderr, "melies: %s\n", text ? text : "an error that is not a string");
    }
    code = finish_output(code);
    host_edit_finish();
    lua_close(L);
    host_die_if_ending();
    return code;
}
