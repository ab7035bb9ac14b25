#define _GNU_SOURCE
#include <melies/base.h>

#include <stdatomic.h>
#include <time.h>

static atomic_bool canceled; // lock-free: a signal handler may set it

void mel_cancel(void) {
    atomic_store_explicit(&canceled, true, memory_order_relaxed);
}

void mel_cancel_clear(void) {
    atomic_store_explicit(&canceled, false, memory_order_relaxed);
}

bool mel_canceled(void) {
    return atomic_load_explicit(&canceled, memory_order_relaxed);
}

mel_status mel_check_cancel(mel_error *err) {
    return mel_canceled() ? mel_fail(err, MEL_ECANCELED, "canceled") : MEL_OK;
}

double mel_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
