#include "host.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool readable(const char *folder, const char *file) {
    char path[HOST_PATH_MAX + 64];
    int n = snprintf(path, sizeof path, "%s/%s", folder, file);
    return n > 0 && (size_t)n < sizeof path && access(path, R_OK) == 0;
}

// "a/b/c" -> "a/b"
static void cut_last(char *path) {
    char *slash = strrchr(path, '/');
    if (slash) *slash = '\0';
}

// out = text .. tail; "" and false where that is too long.
static bool set_path(char *out, const char *text, const char *tail) {
    size_t n = strlen(text), m = strlen(tail);
    out[0] = '\0';
    if (n + m >= HOST_PATH_MAX) return false;
    memcpy(out, text, n);
    memcpy(out + n, tail, m + 1);
    return true;
}

bool host_find_paths(host_paths *paths, char *message, size_t size_bytes) {
    static const char entry[] = "lua/melies/cli.lua";
    memset(paths, 0, sizeof *paths);
    ssize_t n = readlink("/proc/self/exe", paths->executable, sizeof paths->executable - 1);
    if (n < 0) n = 0;
    paths->executable[n] = '\0';

    char folder[HOST_PATH_MAX], installed[HOST_PATH_MAX] = "";
    set_path(folder, paths->executable, "");
    cut_last(folder);
    if (readable(folder, "lua/melies/ffi/cdef.lua"))
        set_path(paths->build_lua, folder, "/lua");
    else {
        char prefix[HOST_PATH_MAX];
        set_path(prefix, folder, "");
        cut_last(prefix);
        set_path(installed, prefix, "/share/melies");
        if (!readable(installed, entry) && readable(MELIES_BUILD_DIR, "lua/melies/ffi/cdef.lua"))
            set_path(paths->build_lua, MELIES_BUILD_DIR, "/lua");
    }

    const char *asked = getenv("MELIES_ROOT");
    if (asked && *asked) {
        if (readable(asked, entry) && set_path(paths->root, asked, "")) return true;
        snprintf(message, size_bytes, "MELIES_ROOT is %s, which has no %s", asked, entry);
        return false;
    }
    const char *candidates[] = {installed, MELIES_SOURCE_DIR};
    for (int i = 0; i < 2; i++)
        if (candidates[i][0] && readable(candidates[i], entry) && set_path(paths->root, candidates[i], "")) return true;
    snprintf(message, size_bytes, "the Lua files are neither in %s/../share/melies nor in %s; set MELIES_ROOT", folder,
        MELIES_SOURCE_DIR);
    return false;
}
