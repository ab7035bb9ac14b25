// Line editing for the REPL: libedit's own interface, with keys, history entries of several lines, and
// completion that asks Lua.
#include "host.h"

#include <errno.h>
#include <histedit.h>
#include <lauxlib.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

static EditLine *editor;
static History *past;
static char prompt[64];
static lua_State *lua; // the state of the read_line that is under way
static int completer = LUA_NOREF;
static bool interrupted;

static char *give_prompt(EditLine *el) {
    (void)el;
    return prompt;
}

// One character from the terminal. 0 at the end of input and where the program has to end, -1 on Ctrl-C and on errors.
static int read_key(EditLine *el, wchar_t *out) {
    mbstate_t state;
    memset(&state, 0, sizeof state);
    for (;;) {
        switch (host_wait_input(STDIN_FILENO)) {
        case HOST_INTERRUPT: interrupted = !host_ending(); return host_ending() ? 0 : -1;
        case HOST_RESIZE: el_resize(el); continue;
        case HOST_CONTINUE:
            el_set(el, EL_PREP_TERM, 1);
            el_set(el, EL_REFRESH);
            continue;
        case HOST_INPUT: break;
        }
        char byte;
        ssize_t n = read(STDIN_FILENO, &byte, 1);
        if (n == 0) return 0;
        if (n < 0) {
            if (errno == EINTR || errno == EAGAIN) continue;
            return -1;
        }
        size_t used = mbrtowc(out, &byte, 1, &state);
        if (used == (size_t)-1) { // not UTF-8: drop it, begin anew
            memset(&state, 0, sizeof state);
            continue;
        }
        if (used != (size_t)-2) return 1;
    }
}

// ---- completion -----------------------------------------------------------------------------
static size_t common_prefix(lua_State *L, int list, int count) {
    size_t length = 0;
    const char *first = NULL;
    for (int i = 1; i <= count; i++) {
        lua_rawgeti(L, list, i);
        const char *text = lua_tostring(L, -1);
        if (!first) {
            first = text; // the list keeps it alive
            length = strlen(text);
        }
        size_t same = 0;
        while (same < length && text[same] == first[same])
            same++;
        length = same;
        lua_pop(L, 1);
    }
    while (first && length > 0 && ((unsigned char)first[length] & 0xC0) == 0x80)
        length--; // whole UTF-8 characters
    return length;
}

static void print_columns(lua_State *L, int list, int count) {
    enum {
        SHOWN = 120
    };
    struct winsize w;
    int width = ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
    int longest = 1, shown = count < SHOWN ? count : SHOWN;
    for (int i = 1; i <= shown; i++) {
        lua_rawgeti(L, list, i);
        int n = (int)strlen(lua_tostring(L, -1));
        longest = n > longest ? n : longest;
        lua_pop(L, 1);
    }
    int columns = width / (longest + 2);
    columns = columns < 1 ? 1 : columns;
    int rows = (shown + columns - 1) / columns;
    fputc('\n', stdout);
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < columns && c * rows + r < shown; c++) {
            lua_rawgeti(L, list, c * rows + r + 1);
            bool last = c == columns - 1 || (c + 1) * rows + r >= shown;
            fprintf(stdout, "%-*s", last ? 0 : longest + 2, lua_tostring(L, -1));
            lua_pop(L, 1);
        }
        fputc('\n', stdout);
    }
    if (shown < count) fprintf(stdout, "... and %d more\n", count - shown);
    fflush(stdout);
}

static unsigned char on_tab(EditLine *el, int key) {
    (void)key;
    const LineInfo *line = el_line(el);
    const char *blank = line->buffer;
    while (blank < line->cursor && (*blank == ' ' || *blank == '\t'))
        blank++;
    if (blank == line->cursor) { // indentation, as in pasted code
        el_insertstr(el, "  ");
        return CC_REFRESH;
    }
    if (completer == LUA_NOREF) return CC_ERROR;
    lua_State *L = lua;
    int top = lua_gettop(L);
    lua_rawgeti(L, LUA_REGISTRYINDEX, completer);
    lua_pushlstring(L, line->buffer, (size_t)(line->cursor - line->buffer));
    unsigned char answer = CC_ERROR;
    if (lua_pcall(L, 1, 2, 0) == 0 && lua_isnumber(L, top + 1) && lua_istable(L, top + 2)) {
        size_t typed = (size_t)lua_tointeger(L, top + 1);
        int count = (int)lua_objlen(L, top + 2);
        size_t shared = common_prefix(L, top + 2, count);
        if (count > 0 && shared > typed) {
            lua_rawgeti(L, top + 2, 1);
            lua_pushlstring(L, lua_tostring(L, -1) + typed, shared - typed);
            el_insertstr(el, lua_tostring(L, -1));
            answer = CC_REFRESH;
        } else if (count > 1) {
            print_columns(L, top + 2, count);
            answer = CC_REDISPLAY;
        } else if (count == 1) {
            answer = CC_NORM;
        }
    }
    lua_settop(L, top);
    return answer;
}

int host_set_completer(lua_State *L) {
    luaL_checktype(L, 1, LUA_TFUNCTION);
    lua_settop(L, 1);
    luaL_unref(L, LUA_REGISTRYINDEX, completer);
    completer = luaL_ref(L, LUA_REGISTRYINDEX);
    return 0;
}

// ---- lines ------------------------------------------------------------------------------------
static bool start(void) {
    if (editor) return true;
    setlocale(LC_CTYPE, "");
    if (MB_CUR_MAX == 1) setlocale(LC_CTYPE, "C.UTF-8");
    editor = el_init("melies", stdin, stdout, stderr);
    past = history_init();
    if (!editor || !past) return false;
    HistEvent event;
    history(past, &event, H_SETSIZE, 5000);
    history(past, &event, H_SETUNIQUE, 1);
    el_set(editor, EL_PROMPT, give_prompt);
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_SIGNAL, 0);
    el_set(editor, EL_HIST, history, past);
    el_set(editor, EL_GETCFN, read_key);
    el_set(editor, EL_ADDFN, "melies-complete", "Complete the name before the cursor", on_tab);
    el_set(editor, EL_BIND, "^I", "melies-complete", NULL);
    el_set(editor, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_set(editor, EL_BIND, "^W", "ed-delete-prev-word", NULL);
    el_set(editor, EL_BIND, "\033[1;5C", "em-next-word", NULL);
    el_set(editor, EL_BIND, "\033[1;5D", "ed-prev-word", NULL);
    el_set(editor, EL_BIND, "\033[3~", "ed-delete-next-char", NULL);
    el_source(editor, NULL);
    return true;
}

int host_read_line(lua_State *L) {
    const char *text = luaL_checkstring(L, 1);
    if (!start()) return luaL_error(L, "line editing could not start: not enough memory");
    size_t n = strlen(text);
    n = n < sizeof prompt - 1 ? n : sizeof prompt - 1;
    memcpy(prompt, text, n);
    prompt[n] = '\0';
    lua = L;
    interrupted = false;
    host_interrupt_clear();
    fflush(stdout);
    // Before the prompt shows, so that no key typed after it meets the terminal's own editing.
    el_set(editor, EL_PREP_TERM, 1);
    int count = 0;
    const char *line = el_gets(editor, &count);
    if (interrupted) {
        fputs("^C\n", stdout);
        fflush(stdout);
        host_interrupt_clear();
        lua_pushnil(L);
        lua_pushliteral(L, "interrupt");
        return 2;
    }
    if (!line || count <= 0) {
        fputc('\n', stdout);
        lua_pushnil(L);
        lua_pushliteral(L, "eof");
        return 2;
    }
    size_t length = strlen(line);
    if (length > 0 && line[length - 1] == '\n') length--;
    lua_pushlstring(L, line, length);
    return 1;
}

int host_add_history(lua_State *L) {
    const char *text = luaL_checkstring(L, 1);
    HistEvent event;
    if (start() && *text) history(past, &event, H_ENTER, text);
    return 0;
}

void host_edit_finish(void) {
    if (editor) el_end(editor);
    if (past) history_end(past);
    editor = NULL;
    past = NULL;
}
