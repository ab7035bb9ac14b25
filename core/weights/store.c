// What the formats stand on: the arena, growing arrays, mapped files, names made fit for a message.
#include "weights/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "weight files are little-endian, and so must the machine be"
#endif

// ---- arena ----------------------------------------------------------------------------------------
typedef struct arena_chunk {
    struct arena_chunk *next;
    size_t used, size;
    _Alignas(16) uint8_t bytes[];
} arena_chunk;

enum {
    CHUNK_BYTES = 8192
};

void *mel_arena_alloc(arena *a, size_t size_bytes, mel_error *err) {
    if (size_bytes > SIZE_MAX / 2) {
        mel_fail(err, MEL_ENOMEM, "out of memory: %zu bytes asked", size_bytes);
        return NULL;
    }
    size_t need = (size_bytes + 15) & ~(size_t)15;
    arena_chunk *c = a->chunks;
    if (!c || c->size - c->used < need) {
        size_t size = need > CHUNK_BYTES ? need : CHUNK_BYTES;
        c = mel_alloc(sizeof *c + size, err);
        if (!c) return NULL;
        *c = (arena_chunk){a->chunks, 0, size};
        a->chunks = c;
    }
    void *p = c->bytes + c->used;
    c->used += need;
    return memset(p, 0, need);
}

char *mel_arena_text(arena *a, const char *text, size_t length, mel_error *err) {
    char *copy = mel_arena_alloc(a, length + 1, err);
    if (copy && length) memcpy(copy, text, length);
    return copy;
}

void mel_arena_free(arena *a) {
    while (a->chunks) {
        arena_chunk *next = a->chunks->next;
        mel_free(a->chunks);
        a->chunks = next;
    }
}

bool mel_grow(void **items, int64_t count, int64_t *capacity, size_t item_bytes, mel_error *err) {
    if (count < *capacity) return true;
    int64_t wanted = *capacity ? *capacity * 2 : 16;
    void *bigger = mel_alloc((size_t)wanted * item_bytes, err);
    if (!bigger) return false;
    if (count) memcpy(bigger, *items, (size_t)count * item_bytes);
    mel_free(*items);
    *items = bigger;
    *capacity = wanted;
    return true;
}

// ---- mappings ---------------------------------------------------------------------------------------
static mel_status mapping_create(
    const void *data, size_t size, bool mapped, const char *path, mapping **out, mel_error *err) {
    size_t length = strlen(path) + 1;
    mapping *m = mel_alloc(sizeof *m + length, err);
    if (!m) return MEL_ENOMEM;
    atomic_init(&m->refs, 1);
    m->data = data;
    m->size = size;
    m->mapped = mapped;
    memcpy(m->path, path, length);
    *out = m;
    return MEL_OK;
}

mel_status mel_mapping_open(const char *path, mapping **out, mel_error *err) {
    // O_NONBLOCK: a pipe of that name must not hold us up; it is refused below.
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return FAIL(MEL_EIO, "%s: cannot be opened: %s", path, strerror(errno));
    struct stat st;
    if (fstat(fd, &st) != 0) {
        int why = errno;
        close(fd);
        return FAIL(MEL_EIO, "%s: cannot be looked at: %s", path, strerror(why));
    }
    if (!S_ISREG(st.st_mode)) {
        close(fd);
        return FAIL(MEL_EIO, "%s: is %s, not a file", path, S_ISDIR(st.st_mode) ? "a folder" : "a device or pipe");
    }
    if (st.st_size == 0) {
        close(fd);
        return REFUSE("%s: the file is empty", path);
    }
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    int why = errno;
    close(fd);
    if (data == MAP_FAILED) {
        return FAIL(MEL_EIO, "%s: cannot map %lld bytes: %s", path, (long long)st.st_size, strerror(why));
    }
    mel_status s = mapping_create(data, (size_t)st.st_size, true, path, out, err);
    if (s != MEL_OK) munmap(data, (size_t)st.st_size);
    return s;
}

mel_status mel_mapping_borrow(const void *data, size_t size, const char *name, mapping **out, mel_error *err) {
    if (size == 0) return REFUSE("%s: the file is empty", name);
    return mapping_create(data, size, false, name, out, err);
}

void mel_mapping_unref(void *owner) {
    mapping *m = owner;
    if (!m || atomic_fetch_sub(&m->refs, 1) != 1) return;
    if (m->mapped) munmap((void *)m->data, m->size);
    mel_free(m);
}

// ---- messages ----------------------------------------------------------------------------------------
const char *mel_shown(char buffer[SHOWN], const char *text, size_t length) {
    size_t at = 0, room = SHOWN - 8;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if (at + 4 > room) {
            memcpy(buffer + at, "...", 3);
            at += 3;
            break;
        }
        if (c < 0x20 || c == 0x7f) {
            at += (size_t)snprintf(buffer + at, 5, "\\x%02x", c);
        } else {
            buffer[at++] = (char)c;
        }
    }
    buffer[at] = 0;
    return buffer;
}
