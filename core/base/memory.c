// Aligned blocks with accounting, a limit, and a pool of freed large blocks: fresh pages cost a fault
// each, and a denoising step frees and asks for the same sizes again and again.
#define _GNU_SOURCE
#include <melies/base.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    ALIGN = 64,
    HEADER = 64,
    CLASSES = 512,
    MAGIC = 0x6d656c31
};
static const size_t POOL_FROM = 64u << 10;     // smaller blocks are malloc's business
static const size_t HUGE_FROM = 4u << 20;      // from here on huge pages are asked for
static const int64_t POOL_MOST = 1024ll << 20; // bytes kept at most

typedef struct block {
    size_t size; // bytes the user may use, rounded up to the class
    struct block *next;
    uint32_t magic;
    int32_t class_index; // -1: not pooled
} block;
_Static_assert(sizeof(block) <= HEADER, "the header fits its room");

static struct {
    pthread_mutex_t lock;
    block *free_list[CLASSES];
    int64_t live, peak, pooled, limit, count, fail_at;
} g = {.lock = PTHREAD_MUTEX_INITIALIZER};

// Classes: eight steps a power of two, so that at most an eighth is lost.
static size_t round_to_class(size_t size, int *class_index) {
    if (size < POOL_FROM) {
        *class_index = -1;
        return (size + ALIGN - 1) & ~(size_t)(ALIGN - 1);
    }
    int top = 63 - __builtin_clzll(size);
    size_t step = (size_t)1 << (top - 3);
    size_t steps = (size - ((size_t)1 << top) + step - 1) / step;
    *class_index = top * 8 + (int)steps;
    return ((size_t)1 << top) + steps * step;
}

static void trim_locked(int64_t keep) {
    for (int i = CLASSES - 1; i >= 0 && g.pooled > keep; i--) {
        while (g.free_list[i] && g.pooled > keep) {
            block *b = g.free_list[i];
            g.free_list[i] = b->next;
            g.pooled -= (int64_t)b->size;
            free(b);
        }
    }
}

static block *fresh(size_t size, int class_index) {
    size_t align = size >= HUGE_FROM ? 2u << 20 : ALIGN;
    size_t total = (HEADER + size + align - 1) / align * align;
    block *b = aligned_alloc(align, total);
    if (!b) return NULL;
    if (size >= HUGE_FROM) madvise(b, total, MADV_HUGEPAGE);
    b->size = size;
    b->magic = MAGIC;
    b->class_index = class_index;
    return b;
}

void *mel_alloc(size_t size_bytes, mel_error *err) {
    if (size_bytes > (size_t)1 << 47) {
        mel_fail(err, MEL_ENOMEM, "out of memory: %zu bytes asked for", size_bytes);
        return NULL;
    }
    int class_index;
    size_t size = round_to_class(size_bytes, &class_index);
    pthread_mutex_lock(&g.lock);
    g.count++;
    bool forced = g.fail_at && g.count == g.fail_at;
    if (forced) g.fail_at = 0;
    bool over = g.limit && g.live + (int64_t)size > g.limit;
    block *b = NULL;
    if (!forced && !over) {
        b = class_index >= 0 ? g.free_list[class_index] : NULL;
        if (b) {
            g.free_list[class_index] = b->next;
            g.pooled -= (int64_t)b->size;
        } else {
            // What the pool keeps counts against the limit too.
            if (g.limit && g.live + g.pooled + (int64_t)size > g.limit) trim_locked(0);
            b = fresh(size, class_index);
            if (!b) {
                trim_locked(0);
                b = fresh(size, class_index);
            }
        }
        if (b) {
            g.live += (int64_t)size;
            if (g.live > g.peak) g.peak = g.live;
        }
    }
    double live = (double)g.live / 1048576, limit = (double)g.limit / 1048576;
    pthread_mutex_unlock(&g.lock);
    if (b) return (char *)b + HEADER;
    double asked = (double)size_bytes / 1048576;
    if (forced)
        mel_fail(err, MEL_ENOMEM, "out of memory: %.1f MiB asked for (failure injected)", asked);
    else if (over)
        mel_fail(err, MEL_ENOMEM, "out of memory: %.1f MiB asked for, %.1f MiB in use, the limit is %.1f MiB", asked,
            live, limit);
    else
        mel_fail(err, MEL_ENOMEM, "out of memory: the system refused %.1f MiB with %.1f MiB in use", asked, live);
    return NULL;
}

void *mel_alloc_zero(size_t size_bytes, mel_error *err) {
    void *p = mel_alloc(size_bytes, err);
    if (p) memset(p, 0, size_bytes);
    return p;
}

void mel_free(void *ptr) {
    if (!ptr) return;
    block *b = (block *)((char *)ptr - HEADER);
    if (b->magic != MAGIC) abort(); // a pointer that never came from mel_alloc: nothing sane is left to do
    pthread_mutex_lock(&g.lock);
    g.live -= (int64_t)b->size;
    bool keep = b->class_index >= 0 && g.pooled + (int64_t)b->size <= POOL_MOST;
#ifdef __SANITIZE_ADDRESS__
    keep = false; // so that a use after free is seen
#endif
    if (keep && g.limit && g.live + g.pooled + (int64_t)b->size > g.limit) keep = false;
    if (keep) {
        b->next = g.free_list[b->class_index];
        g.free_list[b->class_index] = b;
        g.pooled += (int64_t)b->size;
    }
    pthread_mutex_unlock(&g.lock);
    if (!keep) free(b);
}

#define LOCKED_READ(field)                                                                                             \
    pthread_mutex_lock(&g.lock);                                                                                       \
    int64_t value = g.field;                                                                                           \
    pthread_mutex_unlock(&g.lock);                                                                                     \
    return value

int64_t mel_mem_live(void) {
    LOCKED_READ(live);
}
int64_t mel_mem_peak(void) {
    LOCKED_READ(peak);
}
int64_t mel_mem_pooled(void) {
    LOCKED_READ(pooled);
}
int64_t mel_mem_limit(void) {
    LOCKED_READ(limit);
}
int64_t mel_mem_alloc_count(void) {
    LOCKED_READ(count);
}

void mel_mem_reset_peak(void) {
    pthread_mutex_lock(&g.lock);
    g.peak = g.live;
    pthread_mutex_unlock(&g.lock);
}

void mel_mem_trim(int64_t keep_bytes) {
    pthread_mutex_lock(&g.lock);
    trim_locked(keep_bytes);
    pthread_mutex_unlock(&g.lock);
}

void mel_mem_set_limit(int64_t limit_bytes) {
    pthread_mutex_lock(&g.lock);
    g.limit = limit_bytes > 0 ? limit_bytes : 0;
    if (g.limit && g.live + g.pooled > g.limit) trim_locked(0);
    pthread_mutex_unlock(&g.lock);
}

void mel_mem_fail_nth(int64_t nth) {
    pthread_mutex_lock(&g.lock);
    g.fail_at = nth > 0 ? g.count + nth : 0;
    pthread_mutex_unlock(&g.lock);
}
