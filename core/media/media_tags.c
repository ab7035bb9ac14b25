// Metadata in image files: PNG text chunks, JPEG and GIF comments, WebP XMP. FFmpeg 5.1 neither writes them nor reads
// them all. JPEG and GIF comments have no keys: one comment an entry, "key=value"; another comment's key is "comment".
#include "media_internal.h"

#include <errno.h>
#include <libavutil/crc.h>
#include <libavutil/intreadwrite.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_TEXT = 16 << 20, // a longer text is not read
    MAX_COMMENT = 65533, // of one JPEG segment
    VP8X_XMP = 0x04,     // flag of the WebP header chunk
    VP8X_SIZE = 18       // with its chunk header
};
static const char xmp_head[] = "<x:xmpmeta xmlns:x=\"adobe:ns:meta/\"><rdf:RDF "
                               "xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\"><rdf:Description "
                               "rdf:about=\"\" xmlns:melies=\"urn:melies:metadata\"";
static const char xmp_tail[] = "/></rdf:RDF></x:xmpmeta>";

// ---- writing ----------------------------------------------------------------------------------

static void put(AVBPrint *out, const void *data, size_t size) {
    av_bprint_append_data(out, data, (unsigned)size);
}

static bool is_ascii(const char *text) {
    for (; *text; text++)
        if ((unsigned char)*text >= 0x80) return false;
    return true;
}

// PNG 1.2, 11.3.4: tEXt is Latin-1, iTXt is UTF-8 (here uncompressed, without a language).
static void put_png(AVBPrint *out, const AVDictionaryEntry *tag) {
    bool ascii = is_ascii(tag->value);
    size_t key = strlen(tag->key), value = strlen(tag->value), start = out->len;
    uint8_t word[4];
    AV_WB32(word, (uint32_t)(key + 1 + (ascii ? 0 : 4) + value));
    put(out, word, 4);
    put(out, ascii ? "tEXt" : "iTXt", 4);
    put(out, tag->key, key + 1);
    if (!ascii) put(out, "\0\0\0\0", 4);
    put(out, tag->value, value);
    if (!av_bprint_is_complete(out)) return;
    const AVCRC *table = av_crc_get_table(AV_CRC_32_IEEE_LE);
    const uint8_t *chunk = (const uint8_t *)out->str + start + 4;
    AV_WB32(word, av_crc(table, UINT32_MAX, chunk, out->len - start - 4) ^ UINT32_MAX);
    put(out, word, 4);
}

static void put_jpeg(AVBPrint *out, const AVDictionaryEntry *tag) {
    size_t size = strlen(tag->key) + 1 + strlen(tag->value);
    uint8_t head[4] = {0xff, 0xfe, 0, 0};
    AV_WB16(head + 2, (uint16_t)(size + 2));
    put(out, head, 4);
    av_bprintf(out, "%s=%s", tag->key, tag->value);
}

// GIF89a, 24: a comment extension is a chain of blocks of up to 255 bytes.
static void put_gif(AVBPrint *out, const AVDictionaryEntry *tag) {
    AVBPrint text;
    av_bprint_init(&text, 0, AV_BPRINT_SIZE_UNLIMITED);
    av_bprintf(&text, "%s=%s", tag->key, tag->value);
    put(out, "\x21\xfe", 2);
    for (unsigned at = 0; at < text.len && av_bprint_is_complete(&text); at += 255) {
        uint8_t size = text.len - at < 255 ? (uint8_t)(text.len - at) : 255;
        put(out, &size, 1);
        put(out, text.str + at, size);
    }
    put(out, "", 1);
    av_bprint_finalize(&text, NULL);
}

static void put_xmp(AVBPrint *out, const AVDictionaryEntry *tag) {
    av_bprintf(out, " melies:%s=\"", tag->key);
    for (const char *c = tag->value; *c; c++) {
        if (*c == '&')
            av_bprintf(out, "&amp;");
        else if (*c == '<')
            av_bprintf(out, "&lt;");
        else if (*c == '"')
            av_bprintf(out, "&quot;");
        else if ((unsigned char)*c < 0x20)
            av_bprintf(out, "&#%d;", *c);
        else
            av_bprint_chars(out, *c, 1);
    }
    av_bprint_chars(out, '"', 1);
}

mel_status media_encode_tags(
    media_tag_format format, const AVDictionary *tags, const char *named, AVBPrint *out, mel_error *err) {
    if (av_dict_count(tags) == 0) return MEL_OK;
    unsigned start = out->len;
    if (format == MEDIA_TAGS_WEBP) av_bprintf(out, "XMP %4s%s", "", xmp_head);
    const AVDictionaryEntry *tag = NULL;
    while ((tag = av_dict_get(tags, "", tag, AV_DICT_IGNORE_SUFFIX))) {
        if (format == MEDIA_TAGS_JPEG && strlen(tag->key) + 1 + strlen(tag->value) > MAX_COMMENT)
            return mel_fail(err, MEL_EINVAL, "%s: metadata %s has %zu bytes; a JPEG comment holds %d", named, tag->key,
                strlen(tag->value), MAX_COMMENT);
        switch (format) {
        case MEDIA_TAGS_PNG: put_png(out, tag); break;
        case MEDIA_TAGS_JPEG: put_jpeg(out, tag); break;
        case MEDIA_TAGS_GIF: put_gif(out, tag); break;
        case MEDIA_TAGS_WEBP: put_xmp(out, tag); break;
        }
    }
    if (format == MEDIA_TAGS_WEBP) av_bprintf(out, "%s", xmp_tail);
    if (format == MEDIA_TAGS_WEBP && (out->len - start) % 2) av_bprint_chars(out, ' ', 1);
    if (!av_bprint_is_complete(out)) return mel_fail(err, MEL_ENOMEM, "%s: no memory for the metadata", named);
    if (format == MEDIA_TAGS_WEBP) AV_WL32(out->str + start + 4, out->len - start - 8);
    return MEL_OK;
}

// A GIF ends in one trailer byte: the comments take its place and put it after them.
static int append_gif(FILE *file, const AVBPrint *block) {
    if (fseeko(file, -1, SEEK_END) != 0) return errno;
    if (fwrite(block->str, 1, block->len, file) != block->len || putc(0x3b, file) == EOF) return errno;
    return 0;
}

// WebP container: an XMP chunk needs the extended header, which a still image may lack.
static int append_webp(FILE *file, const AVBPrint *block, int width, int height) {
    uint8_t head[30];
    if (fread(head, 1, sizeof head, file) != sizeof head) return ferror(file) ? errno : EIO;
    if (memcmp(head + 12, "VP8X", 4) == 0) {
        head[20] |= VP8X_XMP;
        if (fseeko(file, 20, SEEK_SET) != 0 || fwrite(head + 20, 1, 1, file) != 1) return errno;
    } else {
        if (fseeko(file, 0, SEEK_END) != 0) return errno;
        off_t end = ftello(file);
        if (end < 12 || end > INT32_MAX) return EFBIG;
        size_t rest = (size_t)end - 12;
        uint8_t *body = mel_alloc(rest + VP8X_SIZE, NULL);
        if (!body) return ENOMEM;
        memset(body, 0, VP8X_SIZE);
        memcpy(body, "VP8X", 4);
        body[4] = VP8X_SIZE - 8;
        body[8] = VP8X_XMP;
        AV_WL24(body + 12, (unsigned)(width - 1));
        AV_WL24(body + 15, (unsigned)(height - 1));
        int failed = 0;
        if (fseeko(file, 12, SEEK_SET) != 0 || fread(body + VP8X_SIZE, 1, rest, file) != rest ||
            fseeko(file, 12, SEEK_SET) != 0 || fwrite(body, 1, rest + VP8X_SIZE, file) != rest + VP8X_SIZE)
            failed = errno ? errno : EIO;
        mel_free(body);
        if (failed) return failed;
    }
    if (fseeko(file, 0, SEEK_END) != 0 || fwrite(block->str, 1, block->len, file) != block->len) return errno;
    off_t size = ftello(file) - 8;
    if (size > UINT32_MAX) return EFBIG;
    AV_WL32(head, (uint32_t)size);
    return fseeko(file, 4, SEEK_SET) == 0 && fwrite(head, 1, 4, file) == 4 ? 0 : errno;
}

mel_status media_append_tags(media_tag_format format, const char *path, const AVDictionary *tags, int width, int height,
    const char *named, mel_error *err) {
    if (av_dict_count(tags) == 0) return MEL_OK;
    AVBPrint block;
    av_bprint_init(&block, 0, AV_BPRINT_SIZE_UNLIMITED);
    mel_status status = media_encode_tags(format, tags, named, &block, err);
    FILE *file = status == MEL_OK ? fopen(path, "r+b") : NULL;
    if (status == MEL_OK) {
        errno = 0;
        int failed = !file                      ? errno
                     : format == MEDIA_TAGS_GIF ? append_gif(file, &block)
                                                : append_webp(file, &block, width, height);
        if (file && fclose(file) != 0 && !failed) failed = errno;
        if (failed) status = media_fail_errno(err, named, "cannot be written", failed);
    }
    av_bprint_finalize(&block, NULL);
    return status;
}

// ---- reading ------------------------------------------------------------------------------------

// bytes of key=value, or of a comment without a key.
static void take_comment(AVDictionary **tags, const char *text) {
    size_t key = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-");
    char name[80];
    if (key > 0 && key < sizeof name && text[key] == '=') {
        memcpy(name, text, key);
        name[key] = 0;
        av_dict_set(tags, name, text + key + 1, 0);
    } else {
        av_dict_set(tags, "comment", text, 0);
    }
}

// The next size bytes as a text with a final NUL (NULs inside stay); NULL: too long, cut short, no memory.
static char *read_text(FILE *file, uint32_t size) {
    if (size > MAX_TEXT) return NULL;
    char *text = mel_alloc((size_t)size + 1, NULL);
    if (!text) return NULL;
    if (fread(text, 1, size, file) != size) {
        mel_free(text);
        return NULL;
    }
    text[size] = 0;
    return text;
}

static void read_png(FILE *file, AVDictionary **tags) {
    uint8_t head[8];
    if (fseeko(file, 8, SEEK_SET) != 0) return;
    while (fread(head, 1, 8, file) == 8) {
        uint32_t size = AV_RB32(head);
        bool plain = memcmp(head + 4, "tEXt", 4) == 0, utf8 = memcmp(head + 4, "iTXt", 4) == 0;
        if (memcmp(head + 4, "IEND", 4) == 0 || size > INT32_MAX) return;
        if (!plain && !utf8) {
            if (fseeko(file, (off_t)size + 4, SEEK_CUR) != 0) return;
            continue;
        }
        char *text = read_text(file, size);
        if (!text) return;
        size_t key = strlen(text);
        if (plain && key < size) {
            AVBPrint value;
            av_bprint_init(&value, 0, AV_BPRINT_SIZE_UNLIMITED);
            for (const unsigned char *c = (unsigned char *)text + key + 1; *c; c++) { // Latin-1 to UTF-8
                if (*c >= 0x80) av_bprint_chars(&value, (char)(0xc0 | *c >> 6), 1);
                av_bprint_chars(&value, (char)(*c >= 0x80 ? 0x80 | (*c & 0x3f) : *c), 1);
            }
            if (av_bprint_is_complete(&value)) av_dict_set(tags, text, value.str, 0);
            av_bprint_finalize(&value, NULL);
        } else if (utf8 && key + 3 < size && text[key + 1] == 0) { // not compressed
            size_t at = key + 3;
            at += strlen(text + at) + 1;                // language
            if (at < size) at += strlen(text + at) + 1; // translated keyword
            if (at <= size) av_dict_set(tags, text, text + at, 0);
        }
        mel_free(text);
        if (fseeko(file, 4, SEEK_CUR) != 0) return;
    }
}

static void read_jpeg(FILE *file, AVDictionary **tags) {
    uint8_t head[4];
    if (fseeko(file, 2, SEEK_SET) != 0) return;
    while (fread(head, 1, 4, file) == 4 && head[0] == 0xff) {
        uint32_t size = AV_RB16(head + 2);
        if (head[1] == 0xda || head[1] == 0xd9 || size < 2) return; // image data begin
        if (head[1] != 0xfe) {
            if (fseeko(file, (off_t)size - 2, SEEK_CUR) != 0) return;
            continue;
        }
        char *text = read_text(file, size - 2);
        if (!text) return;
        take_comment(tags, text);
        mel_free(text);
    }
}

// Reads a chain of blocks, into text where it is not NULL. False at the end of the file.
static bool read_gif_blocks(FILE *file, AVBPrint *text) {
    uint8_t block[255];
    int size;
    while ((size = getc(file)) > 0) {
        if (fread(block, 1, (size_t)size, file) != (size_t)size) return false;
        if (text && text->len < MAX_TEXT) av_bprint_append_data(text, (char *)block, (unsigned)size);
    }
    return size == 0;
}

// False where the file ends inside a block.
static bool read_gif(FILE *file, AVDictionary **tags) {
    uint8_t head[13];
    if (fseeko(file, 0, SEEK_SET) != 0 || fread(head, 1, 13, file) != 13) return false;
    if (head[10] & 0x80 && fseeko(file, 3 << ((head[10] & 7) + 1), SEEK_CUR) != 0) return false;
    for (;;) {
        int kind = getc(file);
        if (kind == 0x2c) { // an image: descriptor, its own palette, code size, blocks
            if (fread(head, 1, 9, file) != 9) return false;
            if (head[8] & 0x80 && fseeko(file, 3 << ((head[8] & 7) + 1), SEEK_CUR) != 0) return false;
            if (getc(file) == EOF || !read_gif_blocks(file, NULL)) return false;
        } else if (kind == 0x21) { // an extension
            bool comment = getc(file) == 0xfe;
            AVBPrint text;
            av_bprint_init(&text, 0, AV_BPRINT_SIZE_UNLIMITED);
            bool more = read_gif_blocks(file, comment ? &text : NULL);
            if (comment && av_bprint_is_complete(&text)) take_comment(tags, text.str);
            av_bprint_finalize(&text, NULL);
            if (!more) return false;
        } else {
            return true; // the trailer; also where others leave it out
        }
    }
}

// The melies:key="value" attributes that put_xmp wrote.
static void take_xmp(AVDictionary **tags, const char *text) {
    while ((text = strstr(text, " melies:"))) {
        text += 8;
        const char *equals = strstr(text, "=\""), *end = equals ? strchr(equals + 2, '"') : NULL;
        char name[80];
        if (!end) return;
        if ((size_t)(equals - text) >= sizeof name) continue;
        memcpy(name, text, (size_t)(equals - text));
        name[equals - text] = 0;
        AVBPrint value;
        av_bprint_init(&value, 0, AV_BPRINT_SIZE_UNLIMITED);
        for (const char *c = equals + 2; c < end; c++) {
            int code = 0, used = 0;
            if (*c != '&')
                av_bprint_chars(&value, *c, 1);
            else if (strncmp(c, "&amp;", 5) == 0)
                av_bprint_chars(&value, '&', 1), c += 4;
            else if (strncmp(c, "&lt;", 4) == 0)
                av_bprint_chars(&value, '<', 1), c += 3;
            else if (strncmp(c, "&quot;", 6) == 0)
                av_bprint_chars(&value, '"', 1), c += 5;
            else if (sscanf(c, "&#%2d;%n", &code, &used) == 1 && used > 0)
                av_bprint_chars(&value, (char)code, 1), c += used - 1;
            else
                av_bprint_chars(&value, *c, 1);
        }
        if (av_bprint_is_complete(&value)) av_dict_set(tags, name, value.str, 0);
        av_bprint_finalize(&value, NULL);
        text = end;
    }
}

// False where the file is shorter than it says.
static bool read_webp(FILE *file, AVDictionary **tags) {
    uint8_t head[8];
    if (fseeko(file, 0, SEEK_END) != 0) return false;
    off_t end = ftello(file);
    if (fseeko(file, 4, SEEK_SET) != 0 || fread(head, 1, 8, file) != 8 || end < 8 + (off_t)AV_RL32(head)) return false;
    while (fread(head, 1, 8, file) == 8) {
        uint32_t size = AV_RL32(head + 4);
        if (memcmp(head, "XMP ", 4) == 0) {
            char *text = read_text(file, size);
            if (text) take_xmp(tags, text);
            mel_free(text);
            return true;
        }
        if (fseeko(file, (off_t)size + size % 2, SEEK_CUR) != 0) return true;
    }
    return true;
}

mel_status media_read_tags(const char *path, AVDictionary **tags, bool *cut, mel_error *err) {
    uint8_t magic[12] = {0};
    FILE *file = fopen(path, "rb");
    if (!file) return media_fail_errno(err, path, "cannot be opened", errno);
    size_t n = fread(magic, 1, sizeof magic, file);
    if (n >= 8 && memcmp(magic, "\x89PNG\r\n\x1a\n", 8) == 0)
        read_png(file, tags);
    else if (n >= 3 && memcmp(magic, "\xff\xd8\xff", 3) == 0)
        read_jpeg(file, tags);
    else if (n >= 6 && (memcmp(magic, "GIF89a", 6) == 0 || memcmp(magic, "GIF87a", 6) == 0))
        *cut = !read_gif(file, tags);
    else if (n == 12 && memcmp(magic, "RIFF", 4) == 0 && memcmp(magic + 8, "WEBP", 4) == 0)
        *cut = !read_webp(file, tags);
    fclose(file);
    return MEL_OK;
}
