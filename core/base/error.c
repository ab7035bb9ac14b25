#include <melies/base.h>

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "melies_abi.h"

mel_status mel_fail(mel_error *err, mel_status status, const char *format, ...) {
    if (err) {
        err->status = status;
        va_list args;
        va_start(args, format);
        vsnprintf(err->message, sizeof err->message, format, args);
        va_end(args);
        // One line always: names from files may hold anything.
        for (char *p = err->message; *p; p++) {
            if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = ' ';
        }
    }
    return status;
}

const char *mel_version(void) {
    return MELIES_VERSION;
}

const char *mel_abi_hash(void) {
    return MELIES_ABI_HASH;
}
