#include "text/utf8.h"

static bool is_trail(char c) {
    return ((unsigned char)c & 0xC0) == 0x80;
}

size_t mel_utf8_decode(const char *text, size_t size_bytes, uint32_t *code_point) {
    static const uint32_t lowest[] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned char lead = (unsigned char)text[0];
    size_t length = lead < 0x80             ? 1
                    : (lead & 0xE0) == 0xC0 ? 2
                    : (lead & 0xF0) == 0xE0 ? 3
                    : (lead & 0xF8) == 0xF0 ? 4
                                            : 0;
    if (!length || length > size_bytes) return 0;
    uint32_t c = length == 1 ? lead : lead & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if (!is_trail(text[i])) return 0;
        c = c << 6 | ((unsigned char)text[i] & 0x3Fu);
    }
    if (c < lowest[length] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return 0;
    if (code_point) *code_point = c;
    return length;
}

size_t mel_utf8_step(const char *text, size_t size_bytes) {
    static const unsigned char steps[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 3, 4};
    size_t step = steps[(unsigned char)text[0] >> 4];
    return step < size_bytes ? step : size_bytes;
}

mel_status mel_utf8_append(mel_buffer *buffer, uint32_t c, mel_error *err) {
    char bytes[4];
    size_t length = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = length; i-- > 1; c >>= 6)
        bytes[i] = (char)(0x80 | (c & 0x3F));
    static const unsigned char leads[] = {0, 0, 0xC0, 0xE0, 0xF0};
    bytes[0] = (char)(leads[length] | c);
    return mel_buffer_append(buffer, bytes, length, err);
}

mel_status mel_utf8_append_valid(mel_buffer *buffer, const char *text, size_t size_bytes, mel_error *err) {
    size_t from = 0, at = 0;
    mel_status status = MEL_OK;
    if (!size_bytes) return MEL_OK;
    while (at < size_bytes && !status) {
        size_t length = mel_utf8_decode(text + at, size_bytes - at, NULL);
        if (!length) {
            status = mel_buffer_append(buffer, text + from, at - from, err);
            if (!status) status = mel_buffer_append(buffer, MEL_REPLACEMENT, 3, err);
            from = at + 1;
            length = 1;
        }
        at += length;
    }
    return status ? status : mel_buffer_append(buffer, text + from, at - from, err);
}

bool mel_utf8_is_space(uint32_t c) {
    return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}
