// The directory of a zip container whose records are stored as they are, as torch.save writes it.
// Format: PKWARE APPNOTE.TXT 6.3, sections 4.3.7 (local header), 4.3.12 (directory), 4.3.14-16 (its end, zip64).
#include "weights/pth.h"

#include <stdlib.h>
#include <string.h>

enum {
    END_BYTES = 22,
    LOCATOR64_BYTES = 20,
    END64_BYTES = 56,
    RECORD_BYTES = 46,
    LOCAL_BYTES = 30,
    MAX_COMMENT = 65535
};

static uint32_t u16(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t u32(const uint8_t *p) {
    return u16(p) | u16(p + 2) << 16;
}

static uint64_t u64(const uint8_t *p) {
    return u32(p) | (uint64_t)u32(p + 4) << 32;
}

static bool within(const mapping *m, uint64_t offset, uint64_t bytes) {
    return offset <= m->size && bytes <= m->size - offset;
}

// Where the directory stands: offset, bytes, records.
static mel_status find_directory(
    const mapping *m, uint64_t *offset, uint64_t *bytes, uint64_t *records, mel_error *err) {
    const uint8_t *d = m->data;
    if (m->size < 4 || memcmp(d, "PK\3\4", 4) != 0) return REFUSE("%s: is not a zip container", m->path);
    if (m->size < END_BYTES) return REFUSE("%s: zip: %zu bytes are too few", m->path, m->size);
    size_t at = m->size - END_BYTES, lowest = at > MAX_COMMENT ? at - MAX_COMMENT : 0;
    while (u32(d + at) != 0x06054b50) {
        if (at == lowest) return REFUSE("%s: zip: no directory at the end: the file is cut off", m->path);
        at--;
    }
    *records = u16(d + at + 10);
    *bytes = u32(d + at + 12);
    *offset = u32(d + at + 16);
    if (*records != 0xffff && *bytes != 0xffffffff && *offset != 0xffffffff) return MEL_OK;
    if (at < LOCATOR64_BYTES || u32(d + at - LOCATOR64_BYTES) != 0x07064b50) return MEL_OK;
    uint64_t end = u64(d + at - LOCATOR64_BYTES + 8);
    if (!within(m, end, END64_BYTES) || u32(d + end) != 0x06064b50) {
        return REFUSE("%s: zip: no zip64 directory at byte %llu", m->path, (unsigned long long)end);
    }
    *records = u64(d + end + 32);
    *bytes = u64(d + end + 40);
    *offset = u64(d + end + 48);
    return MEL_OK;
}

// 64-bit values stand in the extra field 1, in this order, for those that are all ones.
static void read_extra(const uint8_t *extra, size_t length, uint64_t *values[3]) {
    for (size_t at = 0; at + 4 <= length;) {
        size_t id = u16(extra + at), bytes = u16(extra + at + 2);
        const uint8_t *p = extra + at + 4;
        at += 4 + bytes;
        if (at > length) return;
        if (id != 1) continue;
        for (int i = 0; i < 3; i++) {
            if (*values[i] != 0xffffffff) continue;
            if (bytes < 8) return;
            *values[i] = u64(p);
            p += 8;
            bytes -= 8;
        }
    }
}

// One directory record of rest bytes at p; *used: its length.
static mel_status read_record(mel_weights *w, const mapping *m, const uint8_t *p, uint64_t rest, zip_record *out,
    uint64_t *used, mel_error *err) {
    char shown_name[SHOWN];
    if (rest < RECORD_BYTES || u32(p) != 0x02014b50) return REFUSE("%s: zip: the directory is damaged", m->path);
    uint64_t name_bytes = u16(p + 28), extra_bytes = u16(p + 30);
    *used = RECORD_BYTES + name_bytes + extra_bytes + u16(p + 32);
    if (*used > rest) return REFUSE("%s: zip: the directory is damaged", m->path);
    const char *name = (const char *)p + RECORD_BYTES;
    uint64_t packed = u32(p + 20), bytes = u32(p + 24), local = u32(p + 42);
    read_extra(p + RECORD_BYTES + name_bytes, extra_bytes, (uint64_t *[3]){&bytes, &packed, &local});
    mel_shown(shown_name, name, name_bytes);
    if (memchr(name, 0, name_bytes)) return REFUSE("%s: zip: a record's name holds a zero byte", m->path);
    if ((u16(p + 8) & 1) || u16(p + 10) != 0) {
        return FAIL(MEL_EUNSUPPORTED, "%s: zip: record '%s' is %s", m->path, shown_name,
            u16(p + 8) & 1 ? "encrypted" : "compressed");
    }
    if (packed != bytes || !within(m, local, LOCAL_BYTES) || u32(m->data + local) != 0x04034b50) {
        return REFUSE("%s: zip: record '%s': no header at byte %llu", m->path, shown_name, (unsigned long long)local);
    }
    uint64_t start = local + LOCAL_BYTES + u16(m->data + local + 26) + u16(m->data + local + 28);
    if (!within(m, start, bytes)) {
        return REFUSE("%s: zip: record '%s': %llu bytes at %llu end after the file", m->path, shown_name,
            (unsigned long long)bytes, (unsigned long long)start);
    }
    out->name = mel_arena_text(&w->arena, name, name_bytes, err);
    out->offset = (int64_t)start;
    out->bytes = (int64_t)bytes;
    return out->name ? MEL_OK : MEL_ENOMEM;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const zip_record *)a)->name, ((const zip_record *)b)->name);
}

mel_status mel_zip_list(mel_weights *w, const mapping *m, zip_record **out, int64_t *count, mel_error *err) {
    uint64_t offset, bytes, n;
    mel_status s = find_directory(m, &offset, &bytes, &n, err);
    if (s != MEL_OK) return s;
    if (!within(m, offset, bytes) || n > bytes / RECORD_BYTES) {
        return REFUSE("%s: zip: a directory of %llu records in %llu bytes at %llu does not fit", m->path,
            (unsigned long long)n, (unsigned long long)bytes, (unsigned long long)offset);
    }
    zip_record *records = mel_arena_alloc(&w->arena, (size_t)n * sizeof *records, err);
    if (!records) return MEL_ENOMEM;
    uint64_t at = 0, used;
    for (uint64_t i = 0; i < n; i++, at += used) {
        s = read_record(w, m, m->data + offset + at, bytes - at, &records[i], &used, err);
        if (s != MEL_OK) return s;
    }
    if (n) qsort(records, (size_t)n, sizeof *records, by_name);
    for (uint64_t i = 1; i < n; i++) {
        if (by_name(&records[i - 1], &records[i]) == 0) {
            char buffer[SHOWN];
            return REFUSE("%s: zip: two records are called '%s'", m->path,
                mel_shown(buffer, records[i].name, strlen(records[i].name)));
        }
    }
    *out = records;
    *count = (int64_t)n;
    return MEL_OK;
}

const zip_record *mel_zip_find(const zip_record *records, int64_t count, const char *name) {
    zip_record key = {.name = name};
    return count ? bsearch(&key, records, (size_t)count, sizeof key, by_name) : NULL;
}
