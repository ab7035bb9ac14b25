// Reads model.safetensors.index.json: {"metadata": {...}, "weight_map": {"tensor": "file beside it"}}.
#include "weights/file.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    MAX_PATH_BYTES = 4096
};

static bool shard_path(const mapping *index, const char *file, char path[MAX_PATH_BYTES]) {
    const char *slash = strrchr(index->path, '/');
    int folder = slash ? (int)(slash - index->path + 1) : 0;
    int n = snprintf(path, MAX_PATH_BYTES, "%.*s%s", folder, index->path, file);
    return n > 0 && n < MAX_PATH_BYTES;
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// The files named in map, each once, sorted; all of them present. *out is in the arena.
static mel_status list_shards(
    mel_weights *w, const mapping *m, json_t *map, const char ***out, size_t *count, mel_error *err) {
    char buffer[SHOWN], path[MAX_PATH_BYTES], missing[600] = "";
    size_t n = 0, distinct = 0, lacking = 0, at = 0;
    const char *key;
    json_t *value;
    const char **files = mel_arena_alloc(&w->arena, json_object_size(map) * sizeof *files, err);
    if (!files) return MEL_ENOMEM;
    json_object_foreach(map, key, value) {
        const char *file = json_string_value(value);
        if (!file || !*file || strchr(file, '/') || strcmp(file, "..") == 0 || strcmp(file, ".") == 0) {
            return REFUSE("%s: weight_map: '%s' does not name a file in the same folder", m->path,
                mel_shown(buffer, key, strlen(key)));
        }
        files[n++] = file;
    }
    if (n == 0) return REFUSE("%s: weight_map is empty", m->path);
    qsort(files, n, sizeof *files, by_text);
    for (size_t i = 0; i < n; i++) {
        if (i > 0 && strcmp(files[i], files[i - 1]) == 0) continue;
        files[distinct++] = files[i];
        if (!shard_path(m, files[i], path)) return REFUSE("%s: weight_map: a path is too long", m->path);
        if (access(path, F_OK) == 0) continue;
        lacking++;
        int wrote = snprintf(
            missing + at, sizeof missing - at, "%s%s", at ? ", " : "", mel_shown(buffer, files[i], strlen(files[i])));
        at += (size_t)wrote < sizeof missing - at ? (size_t)wrote : sizeof missing - 1 - at;
    }
    if (lacking) {
        return FAIL(MEL_EIO, "%s: %zu of %zu shards missing beside it: %s", m->path, lacking, distinct, missing);
    }
    *out = files;
    *count = distinct;
    return MEL_OK;
}

// Every tensor of every shard is where weight_map says, and the other way round.
static mel_status check_map(mel_weights *w, const mapping *m, json_t *map, mel_error *err) {
    char buffer[SHOWN];
    const char *key;
    json_t *value;
    mel_status s = mel_weights_sort(w, err);
    if (s != MEL_OK) return s;
    for (int64_t i = 0; i < w->count; i++) {
        const entry *e = &w->entries[i];
        const char *wanted = json_string_value(json_object_get(map, e->name));
        const char *slash = strrchr(e->map->path, '/'), *file = slash ? slash + 1 : e->map->path;
        if (!wanted || strcmp(wanted, file) != 0) {
            return REFUSE("%s: weight_map: tensor '%s' stands in %s, %s", m->path,
                mel_shown(buffer, e->name, strlen(e->name)), file, wanted ? "not where it says" : "but is not listed");
        }
    }
    json_object_foreach(map, key, value) {
        if (mel_weights_find(w, key) < 0) {
            char other[SHOWN];
            return REFUSE("%s: weight_map: tensor '%s' is not in %s", m->path, mel_shown(buffer, key, strlen(key)),
                mel_shown(other, json_string_value(value), json_string_length(value)));
        }
    }
    return MEL_OK;
}

// Strings, whole numbers and reals of "metadata" (total_size mostly); other kinds carry nothing for us.
static mel_status read_metadata(mel_weights *w, json_t *map, mel_error *err) {
    const char *key;
    json_t *value;
    json_object_foreach(map, key, value) {
        meta one = {.length = -1};
        if (json_is_string(value)) {
            one.type = MEL_META_STRING;
            one.text_length = (int64_t)json_string_length(value);
            one.text = mel_arena_text(&w->arena, json_string_value(value), json_string_length(value), err);
            if (!one.text) return MEL_ENOMEM;
        } else if (json_is_integer(value) || json_is_real(value)) {
            one.type = json_is_integer(value) ? MEL_META_I64 : MEL_META_F64;
            int64_t integer = json_integer_value(value);
            double real = json_real_value(value);
            uint8_t *bytes = mel_arena_alloc(&w->arena, 8, err);
            if (!bytes) return MEL_ENOMEM;
            memcpy(bytes, json_is_integer(value) ? (const void *)&integer : (const void *)&real, 8);
            one.bytes = bytes;
        } else {
            continue;
        }
        one.key = mel_arena_text(&w->arena, key, strlen(key), err);
        mel_status s = one.key ? mel_weights_add_meta(w, &one, err) : MEL_ENOMEM;
        if (s != MEL_OK) return s;
    }
    return MEL_OK;
}

static mel_status read_root(mel_weights *w, const mapping *m, json_t *root, mel_error *err) {
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map)) return REFUSE("%s: is JSON, but has no weight_map: not an index of shards", m->path);
    if (!m->mapped) return FAIL(MEL_EUNSUPPORTED, "%s: an index of shards needs a folder", m->path);
    const char **files;
    size_t count;
    mel_status s = list_shards(w, m, map, &files, &count, err);
    if (s != MEL_OK) return s;
    for (size_t i = 0; i < count; i++) {
        char path[MAX_PATH_BYTES];
        mapping *shard;
        shard_path(m, files[i], path);
        s = mel_mapping_open(path, &shard, err);
        if (s == MEL_OK) s = mel_weights_map(w, shard, err);
        if (s == MEL_OK) s = mel_read_safetensors(w, shard, err);
        if (s != MEL_OK) return s;
    }
    w->meta_count = 0; // each shard repeats {"format": "pt"}; the index speaks for all
    s = read_metadata(w, json_object_get(root, "metadata"), err);
    return s == MEL_OK ? check_map(w, m, map, err) : s;
}

mel_status mel_read_index(mel_weights *w, const mapping *m, mel_error *err) {
    json_error_t why;
    json_t *root = json_loadb((const char *)m->data, m->size, JSON_REJECT_DUPLICATES, &why);
    if (!root) {
        char buffer[SHOWN];
        return REFUSE("%s: JSON: line %d: %s", m->path, why.line, mel_shown(buffer, why.text, strlen(why.text)));
    }
    mel_status s = read_root(w, m, root, err);
    w->format = "safetensors index";
    json_decref(root);
    return s;
}
