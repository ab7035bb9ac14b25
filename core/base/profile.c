// Where the time goes: spans of operations and stages, kept only while profiling is on.
#include <melies/profile.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    FIRST = 4096
};

static atomic_bool on;
static struct {
    pthread_mutex_t lock;
    mel_span *spans;
    int64_t count, room;
} g = {.lock = PTHREAD_MUTEX_INITIALIZER};

void mel_profile_start(void) {
    pthread_mutex_lock(&g.lock);
    g.count = 0;
    pthread_mutex_unlock(&g.lock);
    atomic_store(&on, true);
}

void mel_profile_stop(void) {
    atomic_store(&on, false);
}

bool mel_profile_on(void) {
    return atomic_load_explicit(&on, memory_order_relaxed);
}

int64_t mel_profile_count(void) {
    pthread_mutex_lock(&g.lock);
    int64_t n = g.count;
    pthread_mutex_unlock(&g.lock);
    return n;
}

bool mel_profile_span(int64_t index, mel_span *out) {
    pthread_mutex_lock(&g.lock);
    bool there = index >= 0 && index < g.count;
    if (there) *out = g.spans[index];
    pthread_mutex_unlock(&g.lock);
    return there;
}

// What does not fit (no memory) is not recorded: a profile is never worth a failure.
void mel_profile_add(const char *name, double start, double seconds, double flop) {
    if (!mel_profile_on()) return;
    pthread_mutex_lock(&g.lock);
    if (g.count == g.room) {
        int64_t room = g.room ? g.room * 2 : FIRST;
        mel_span *more = realloc(g.spans, sizeof *more * (size_t)room);
        if (more) {
            g.spans = more;
            g.room = room;
        }
    }
    if (g.count < g.room) {
        mel_span *s = &g.spans[g.count++];
        memset(s, 0, sizeof *s);
        strncpy(s->name, name, sizeof s->name - 1);
        s->start = start;
        s->seconds = seconds;
        s->flop = flop;
    }
    pthread_mutex_unlock(&g.lock);
}
