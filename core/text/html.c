// HTML character references. Source: the HTML standard, "Named character references" and "Numeric character
// reference end state", as Python's html.unescape applies them.
#include "text/lower.h"
#include "text/utf8.h"

#include <string.h>

// Names of U+00A0..U+00FF in order: they count without their semicolon too.
static const char latin1[][8] = {"nbsp", "iexcl", "cent", "pound", "curren", "yen", "brvbar", "sect", "uml", "copy",
    "ordf", "laquo", "not", "shy", "reg", "macr", "deg", "plusmn", "sup2", "sup3", "acute", "micro", "para", "middot",
    "cedil", "sup1", "ordm", "raquo", "frac14", "frac12", "frac34", "iquest", "Agrave", "Aacute", "Acirc", "Atilde",
    "Auml", "Aring", "AElig", "Ccedil", "Egrave", "Eacute", "Ecirc", "Euml", "Igrave", "Iacute", "Icirc", "Iuml", "ETH",
    "Ntilde", "Ograve", "Oacute", "Ocirc", "Otilde", "Ouml", "times", "Oslash", "Ugrave", "Uacute", "Ucirc", "Uuml",
    "Yacute", "THORN", "szlig", "agrave", "aacute", "acirc", "atilde", "auml", "aring", "aelig", "ccedil", "egrave",
    "eacute", "ecirc", "euml", "igrave", "iacute", "icirc", "iuml", "eth", "ntilde", "ograve", "oacute", "ocirc",
    "otilde", "ouml", "divide", "oslash", "ugrave", "uacute", "ucirc", "uuml", "yacute", "thorn", "yuml"};

typedef struct reference {
    char name[8];
    uint16_t code_point;
    bool bare; // counts without its semicolon
} reference;

static const reference others[] = {{"amp", '&', true}, {"lt", '<', true}, {"gt", '>', true}, {"quot", '"', true},
    {"AMP", '&', true}, {"LT", '<', true}, {"GT", '>', true}, {"QUOT", '"', true}, {"COPY", 0xA9, true},
    {"REG", 0xAE, true}, {"apos", '\'', false}, {"hellip", 0x2026, false}, {"mdash", 0x2014, false},
    {"ndash", 0x2013, false}, {"lsquo", 0x2018, false}, {"rsquo", 0x2019, false}, {"ldquo", 0x201C, false},
    {"rdquo", 0x201D, false}, {"bull", 0x2022, false}, {"trade", 0x2122, false}, {"euro", 0x20AC, false},
    {"deg", 0xB0, true}, {"prime", 0x2032, false}, {"Prime", 0x2033, false}};

// What 0x80..0x9F mean: Windows-1252.
static const uint16_t windows[32] = {0x20AC, 0x81, 0x201A, 0x192, 0x201E, 0x2026, 0x2020, 0x2021, 0x2C6, 0x2030, 0x160,
    0x2039, 0x152, 0x8D, 0x17D, 0x8F, 0x90, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014, 0x2DC, 0x2122,
    0x161, 0x203A, 0x153, 0x9D, 0x17E, 0x178};

// 0 means that the reference stands for nothing.
static uint32_t numeric(uint32_t c) {
    if (c == 0 || (c >= 0xD800 && c < 0xE000) || c > 0x10FFFF) return 0xFFFD;
    if (c >= 0x80 && c < 0xA0) return windows[c - 0x80];
    bool control = (c < 0x20 && c != '\t' && c != '\n' && c != '\r' && c != '\f') || c == 0x7F;
    bool noncharacter = (c >= 0xFDD0 && c <= 0xFDEF) || (c & 0xFFFE) == 0xFFFE;
    return control || noncharacter ? 0 : c;
}

static int digit(char c, bool hex) {
    if (c >= '0' && c <= '9') return c - '0';
    if (hex && ((c | 32) >= 'a' && (c | 32) <= 'f')) return (c | 32) - 'a' + 10;
    return -1;
}

// text begins behind "&#". Returns the bytes used, 0 where no number is.
static size_t read_numeric(const char *text, size_t size, uint32_t *c) {
    bool hex = size && (text[0] | 32) == 'x';
    size_t at = hex;
    uint32_t value = 0;
    for (int d; at < size && (d = digit(text[at], hex)) >= 0; at++)
        if (value <= 0x10FFFF) value = value * (hex ? 16 : 10) + (uint32_t)d;
    if (at == (size_t)hex) return 0;
    *c = numeric(value);
    return at + (at < size && text[at] == ';');
}

static bool starts(const char *text, size_t size, const char *name, size_t length) {
    return length <= size && !memcmp(text, name, length);
}

// text begins behind "&". The longest name wins. Returns the bytes used, 0 where none is known.
static size_t read_named(const char *text, size_t size, uint32_t *c) {
    size_t best = 0;
    bool letter = size && (text[0] | 32) >= 'a' && (text[0] | 32) <= 'z';
    for (size_t i = 0; letter && i < sizeof latin1 / sizeof *latin1 + sizeof others / sizeof *others; i++) {
        bool first = i < sizeof latin1 / sizeof *latin1;
        const reference *other = first ? NULL : &others[i - sizeof latin1 / sizeof *latin1];
        const char *name = first ? latin1[i] : other->name;
        size_t length = strlen(name);
        if (length <= best || !starts(text, size, name, length)) continue;
        bool closed = length < size && text[length] == ';';
        if (!closed && !first && !other->bare) continue;
        best = length + closed;
        *c = first ? 0xA0 + (uint32_t)i : other->code_point;
    }
    return best;
}

mel_status mel_html_unescape(const char *text, size_t size, mel_buffer *out, mel_error *err) {
    mel_status status = MEL_OK;
    for (size_t at = 0; at < size && !status;) {
        const char *mark = memchr(text + at, '&', size - at);
        size_t plain = mark ? (size_t)(mark - text) - at : size - at;
        status = mel_buffer_append(out, text + at, plain, err);
        at += plain;
        if (!mark || status) continue;
        uint32_t c = 0;
        bool number = at + 1 < size && text[at + 1] == '#';
        size_t skip = number ? 2 : 1;
        size_t used = number ? read_numeric(text + at + skip, size - at - skip, &c)
                             : read_named(text + at + skip, size - at - skip, &c);
        if (!used)
            status = mel_buffer_append(out, "&", 1, err);
        else if (c)
            status = mel_utf8_append(out, c, err);
        at += used ? skip + used : 1;
    }
    return status;
}
