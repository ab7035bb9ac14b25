// What the parts of the program share. The program is the only user of lua.h and of libedit; all it does is
// find the Lua tree, start LuaJIT, hand over the arguments, and give Lua what it cannot do by itself: line
// editing and signals.
#ifndef MELIES_HOST_H
#define MELIES_HOST_H

#include <lua.h>
#include <signal.h>
#include <stdbool.h>

// ---- interrupt.c --------------------------------------------------------------------------
// Installs the handlers: SIGINT, SIGTERM and SIGHUP cancel what runs, SIGPIPE is ignored (writes fail with EPIPE
// instead). Call once, from the main thread.
void host_interrupt_start(lua_State *L);
// Forgets a Ctrl-C that was dealt with: the cancel flag, the Lua hook and the count of presses.
void host_interrupt_clear(void);
// Whether SIGTERM or SIGHUP asked the program to end; dies of that signal where it did, for the end of main.
bool host_ending(void);
void host_die_if_ending(void);
// Waits for a byte or the end of input on fd while SIGINT, SIGTERM, SIGHUP, SIGWINCH and SIGCONT may end the wait; no
// signal can slip in between the look at the flags and the wait.
typedef enum host_wake {
    HOST_INPUT,
    HOST_INTERRUPT,
    HOST_RESIZE,
    HOST_CONTINUE
} host_wake;
host_wake host_wait_input(int fd);

// ---- edit.c -------------------------------------------------------------------------------
// Lua functions: read_line(prompt) -> line | nil, "eof" | "interrupt"; add_history(text);
// set_completer(function(text_before_cursor) -> bytes_replaced, {candidate...}).
int host_read_line(lua_State *L);
int host_add_history(lua_State *L);
int host_set_completer(lua_State *L);
void host_edit_finish(void);

// ---- paths.c ------------------------------------------------------------------------------
enum {
    HOST_PATH_MAX = 4096
};
typedef struct host_paths {
    char executable[HOST_PATH_MAX]; // absolute, links resolved
    char root[HOST_PATH_MAX];       // holds lua/ and recipes/
    char build_lua[HOST_PATH_MAX];  // generated Lua files of a build tree; "" in an installed tree
} host_paths;
// root: $MELIES_ROOT, else ../share/melies from the executable, else the source tree that it was built from.
// false where there is none of them; message (one line) says what was looked for.
bool host_find_paths(host_paths *paths, char *message, size_t size_bytes);

#endif
