// Ctrl-C, and the signals that ask the program to end (SIGTERM, SIGHUP): these do what a press does, and afterwards the
// program dies of them, as a shell expects. The first press sets the cancel flag, which native work looks at between
// tiles, and arms a hook that raises "interrupted" in Lua code that has not reacted a moment later (loops that call
// nothing native). A second press while the first is still unanswered ends the program with 130. Loops that LuaJIT has
// compiled do not look at hooks: the REPL therefore interprets what is typed at its prompt.
#define _GNU_SOURCE // ppoll
#include "host.h"

#include <errno.h>
#include <lauxlib.h>
#include <melies/base.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static lua_State *lua;
static pthread_t main_thread;
static volatile sig_atomic_t resized, continued, ending;
static volatile double pressed_at; // seconds; of the press that set the cancel flag
static struct termios terminal;
static bool have_terminal;

// Native work gets this long to notice the flag by itself, so that it can end in good order.
static const double grace_s = 0.2;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void on_hook(lua_State *L, lua_Debug *ar) {
    (void)ar;
    if (!mel_canceled()) {
        lua_sethook(L, NULL, 0, 0);
    } else if (now() - pressed_at > grace_s) {
        lua_sethook(L, NULL, 0, 0);
        luaL_error(L, "interrupted");
    }
}

static void on_interrupt(int number) {
    int saved = errno;
    if (!pthread_equal(pthread_self(), main_thread)) {
        pthread_kill(main_thread, number); // the hook may only be set by the thread that runs Lua
    } else if (mel_canceled() && now() - pressed_at > grace_s) {
        if (have_terminal) tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
        _exit(number == SIGINT ? 130 : 128 + number);
    } else {
        if (!mel_canceled()) // else the same press, hastily repeated
            pressed_at = now();
        mel_cancel();
        lua_sethook(lua, on_hook, LUA_MASKCALL | LUA_MASKRET | LUA_MASKCOUNT, 100);
    }
    errno = saved;
}

static void on_end(int number) {
    ending = number;
    on_interrupt(number);
}

static void on_resize(int number) {
    (void)number;
    resized = 1;
}

static void on_continue(int number) {
    (void)number;
    continued = 1;
}

static void handle(int number, void (*handler)(int)) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, NULL);
}

// A background job of a script is started with SIGINT ignored, that of nohup with SIGHUP; so it stays.
static void handle_unless_ignored(int number, void (*handler)(int)) {
    struct sigaction before;
    if (sigaction(number, NULL, &before) != 0 || before.sa_handler != SIG_IGN) handle(number, handler);
}

void host_interrupt_start(lua_State *L) {
    lua = L;
    main_thread = pthread_self();
    have_terminal = tcgetattr(STDIN_FILENO, &terminal) == 0;
    handle(SIGPIPE, SIG_IGN);
    handle_unless_ignored(SIGINT, on_interrupt);
    handle_unless_ignored(SIGTERM, on_end);
    handle_unless_ignored(SIGHUP, on_end);
    handle(SIGWINCH, on_resize);
    handle(SIGCONT, on_continue);
}

bool host_ending(void) {
    return ending != 0;
}

void host_die_if_ending(void) {
    if (!ending) return;
    handle(ending, SIG_DFL);
    raise(ending);
}

void host_interrupt_clear(void) {
    lua_sethook(lua, NULL, 0, 0);
    mel_cancel_clear();
}

host_wake host_wait_input(int fd) {
    sigset_t block, before;
    sigemptyset(&block);
    sigaddset(&block, SIGINT);
    sigaddset(&block, SIGTERM);
    sigaddset(&block, SIGHUP);
    sigaddset(&block, SIGWINCH);
    sigaddset(&block, SIGCONT);
    pthread_sigmask(SIG_BLOCK, &block, &before);
    host_wake wake = HOST_INPUT;
    for (;;) {
        if (ending || mel_canceled()) {
            wake = HOST_INTERRUPT;
            break;
        }
        if (resized) {
            resized = 0;
            wake = HOST_RESIZE;
            break;
        }
        if (continued) {
            continued = 0;
            wake = HOST_CONTINUE;
            break;
        }
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (ppoll(&p, 1, NULL, &before) >= 0 || errno != EINTR) break;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return wake;
}
