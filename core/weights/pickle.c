// A pickle interpreter that can only make data. The opcodes are those that torch.save emits for (nested) dictionaries
// and lists of tensors; the callables are the few below, each done here in C. Whatever else a pickle asks for is
// refused. Opcodes: CPython, Lib/pickletools.py.
#include "weights/pth.h"

#include <stdio.h>
#include <string.h>

#define WHY "pickles run code, so nothing but tensors is read"

enum {
    MAX_VALUES = 1 << 21, // about 13 a tensor are usual
    G_ORDERED_DICT = 0,
    G_REBUILD_TENSOR,
    G_REBUILD_PARAMETER,
    G_SIZE,
    G_STORAGE
};

static const struct {
    const char *module, *name;
    int which;
    const char *stored; // element type of a storage class
} globals[] = {
    {"collections", "OrderedDict", G_ORDERED_DICT, NULL},
    {"torch._utils", "_rebuild_tensor_v2", G_REBUILD_TENSOR, NULL},
    {"torch._utils", "_rebuild_parameter", G_REBUILD_PARAMETER, NULL},
    {"torch", "Size", G_SIZE, NULL},
    {"torch", "DoubleStorage", G_STORAGE, "F64"},
    {"torch", "FloatStorage", G_STORAGE, "F32"},
    {"torch", "HalfStorage", G_STORAGE, "F16"},
    {"torch", "BFloat16Storage", G_STORAGE, "BF16"},
    {"torch", "LongStorage", G_STORAGE, "I64"},
    {"torch", "IntStorage", G_STORAGE, "I32"},
    {"torch", "ShortStorage", G_STORAGE, "I16"},
    {"torch", "CharStorage", G_STORAGE, "I8"},
    {"torch", "ByteStorage", G_STORAGE, "U8"},
    {"torch", "BoolStorage", G_STORAGE, "BOOL"},
};

typedef struct machine {
    arena *arena;
    const char *path;
    const uint8_t *code;
    int64_t size, at, start; // start: of the opcode at work
    value **stack;           // mel_alloc, as memo
    int64_t depth, stack_capacity;
    value **memo;
    int64_t memo_count, memo_capacity;
    int64_t values;
    mel_error *err;
} machine;

static mel_status damaged(machine *p, const char *what) {
    mel_error *err = p->err;
    return REFUSE("%s: data.pkl: byte %lld: %s", p->path, (long long)p->start, what);
}

// ---- values and the stack ------------------------------------------------------------------------------
static value *make(machine *p, value_kind kind) {
    if (p->values++ >= MAX_VALUES) {
        mel_fail(p->err, MEL_EUNSUPPORTED, "%s: data.pkl: more than %d values", p->path, MAX_VALUES);
        return NULL;
    }
    value *v = mel_arena_alloc(p->arena, sizeof *v, p->err);
    if (v) v->kind = kind;
    return v;
}

static mel_status failed(const machine *p) { // after make or grow gave nothing
    return p->values > MAX_VALUES ? MEL_EUNSUPPORTED : MEL_ENOMEM;
}

static mel_status push(machine *p, value *v) {
    if (!v || !mel_grow((void **)&p->stack, p->depth, &p->stack_capacity, sizeof v, p->err)) return failed(p);
    p->stack[p->depth++] = v;
    return MEL_OK;
}

static mel_status push_int(machine *p, value_kind kind, int64_t integer) {
    value *v = make(p, kind);
    if (v) v->integer = integer;
    return push(p, v);
}

static value *pop(machine *p) { // NULL: the stack is empty, or a mark is on top
    if (p->depth == 0 || p->stack[p->depth - 1]->kind == VALUE_MARK) return NULL;
    return p->stack[--p->depth];
}

static value *top(const machine *p, value_kind kind) {
    value *v = p->depth ? p->stack[p->depth - 1] : NULL;
    return v && v->kind == kind ? v : NULL;
}

static mel_status append(machine *p, value *to, value *v) {
    if (to->count == to->capacity) {
        int64_t wanted = to->capacity ? to->capacity * 2 : 4;
        value **items = mel_arena_alloc(p->arena, (size_t)wanted * sizeof *items, p->err);
        if (!items) return MEL_ENOMEM;
        if (to->count) memcpy(items, to->items, (size_t)to->count * sizeof *items);
        to->items = items;
        to->capacity = wanted;
    }
    to->items[to->count++] = v;
    return MEL_OK;
}

// Moves the values above position from into to, and cuts the stack to depth cut.
static mel_status move_items(machine *p, int64_t from, int64_t cut, value *to) {
    for (int64_t i = from; i < p->depth; i++) {
        mel_status s = append(p, to, p->stack[i]);
        if (s != MEL_OK) return s;
    }
    p->depth = cut;
    return MEL_OK;
}

static mel_status find_mark(machine *p, int64_t *mark) {
    for (int64_t i = p->depth - 1; i >= 0; i--) {
        if (p->stack[i]->kind != VALUE_MARK) continue;
        *mark = i;
        return MEL_OK;
    }
    return damaged(p, "there is no mark on the stack");
}

// ---- operands ---------------------------------------------------------------------------------------------
static mel_status operand(machine *p, int bytes, uint64_t *out) {
    if (p->size - p->at < bytes) return damaged(p, "the pickle ends inside an opcode");
    *out = 0;
    for (int i = 0; i < bytes; i++)
        *out |= (uint64_t)p->code[p->at + i] << (8 * i);
    p->at += bytes;
    return MEL_OK;
}

static mel_status push_text(machine *p, int length_bytes) {
    uint64_t length;
    mel_status s = operand(p, length_bytes, &length);
    if (s != MEL_OK) return s;
    if (length > (uint64_t)(p->size - p->at)) return damaged(p, "a text ends after the pickle");
    value *v = make(p, VALUE_TEXT);
    if (!v) return failed(p);
    v->text = (const char *)p->code + p->at;
    v->length = (int64_t)length;
    p->at += (int64_t)length;
    return push(p, v);
}

// LONG1: a little-endian two's complement number; what is wider than 64 bits stands in no tensor.
static mel_status push_long(machine *p) {
    uint64_t bytes, bits = 0;
    mel_status s = operand(p, 1, &bytes);
    if (s == MEL_OK && bytes > 8) return damaged(p, "a whole number has more than 64 bits");
    if (s == MEL_OK) s = operand(p, (int)bytes, &bits);
    if (s != MEL_OK) return s;
    if (bytes > 0 && bytes < 8 && (bits >> (8 * bytes - 1) & 1)) bits |= ~UINT64_C(0) << (8 * bytes);
    return push_int(p, VALUE_INT, (int64_t)bits);
}

// ---- memo ---------------------------------------------------------------------------------------------------
static mel_status put_memo(machine *p, uint64_t index) {
    if (!p->depth) return damaged(p, "the stack is empty");
    if (index > (uint64_t)p->memo_count) return damaged(p, "a memo number is out of turn");
    if (index == (uint64_t)p->memo_count) {
        if (!mel_grow((void **)&p->memo, p->memo_count, &p->memo_capacity, sizeof *p->memo, p->err)) return MEL_ENOMEM;
        p->memo_count++;
    }
    p->memo[index] = p->stack[p->depth - 1];
    return MEL_OK;
}

static mel_status put_memo_operand(machine *p, int bytes) {
    uint64_t index;
    mel_status s = operand(p, bytes, &index);
    return s == MEL_OK ? put_memo(p, index) : s;
}

static mel_status get_memo(machine *p, int bytes) {
    uint64_t index;
    mel_status s = operand(p, bytes, &index);
    if (s != MEL_OK) return s;
    if (index >= (uint64_t)p->memo_count) return damaged(p, "a memo number that was never set");
    return push(p, p->memo[index]);
}

// ---- globals and what they make ------------------------------------------------------------------------------
static bool is_text(const char *text, int64_t length, const char *wanted) {
    return (int64_t)strlen(wanted) == length && memcmp(text, wanted, (size_t)length) == 0;
}

static mel_status push_global(machine *p, const char *module, int64_t module_bytes, const char *name, int64_t bytes) {
    for (size_t i = 0; i < sizeof globals / sizeof globals[0]; i++) {
        if (!is_text(module, module_bytes, globals[i].module) || !is_text(name, bytes, globals[i].name)) continue;
        value *v = make(p, VALUE_GLOBAL);
        if (!v) return failed(p);
        v->integer = globals[i].which;
        if (globals[i].stored) v->type = mel_stored_by_name(globals[i].stored);
        return push(p, v);
    }
    char a[SHOWN], b[SHOWN];
    return mel_fail(p->err, MEL_EUNSUPPORTED, "%s: data.pkl asks for '%s.%s'; " WHY, p->path,
        mel_shown(a, module, (size_t)module_bytes), mel_shown(b, name, (size_t)bytes));
}

// GLOBAL: two lines of text.
static mel_status global_lines(machine *p) {
    const char *line[2];
    int64_t length[2];
    for (int i = 0; i < 2; i++) {
        line[i] = (const char *)p->code + p->at;
        const char *end = memchr(line[i], '\n', (size_t)(p->size - p->at));
        if (!end) return damaged(p, "the pickle ends inside an opcode");
        length[i] = end - line[i];
        p->at += length[i] + 1;
    }
    return push_global(p, line[0], length[0], line[1], length[1]);
}

static mel_status stack_global(machine *p) {
    value *name = pop(p), *module = pop(p);
    if (!name || !module || name->kind != VALUE_TEXT || module->kind != VALUE_TEXT) {
        return damaged(p, "STACK_GLOBAL without two texts");
    }
    return push_global(p, module->text, module->length, name->text, name->length);
}

// BINPERSID: ("storage", class, key, device, elements).
static mel_status persistent(machine *p) {
    value *t = pop(p);
    if (!t || t->kind != VALUE_TUPLE || t->count != 5 || t->items[0]->kind != VALUE_TEXT ||
        !is_text(t->items[0]->text, t->items[0]->length, "storage") || t->items[1]->kind != VALUE_GLOBAL ||
        t->items[1]->integer != G_STORAGE || t->items[2]->kind != VALUE_TEXT || t->items[4]->kind != VALUE_INT ||
        t->items[4]->integer < 0) {
        return damaged(p, "a persistent object is not ('storage', class, key, device, elements)");
    }
    value *v = make(p, VALUE_STORAGE);
    if (!v) return failed(p);
    v->type = t->items[1]->type;
    v->text = t->items[2]->text;
    v->length = t->items[2]->length;
    v->integer = t->items[4]->integer;
    return push(p, v);
}

static mel_status rebuild_tensor(machine *p, const value *args) {
    if (args->count < 4 || args->items[0]->kind != VALUE_STORAGE || args->items[1]->kind != VALUE_INT ||
        args->items[2]->kind != VALUE_TUPLE || args->items[3]->kind != VALUE_TUPLE) {
        return damaged(p, "a tensor is not (storage, offset, shape, strides, ...)");
    }
    value *v = make(p, VALUE_TENSOR);
    if (!v) return failed(p);
    v->integer = args->items[1]->integer;
    mel_status s = append(p, v, args->items[0]);
    if (s == MEL_OK) s = append(p, v, args->items[2]);
    if (s == MEL_OK) s = append(p, v, args->items[3]);
    return s == MEL_OK ? push(p, v) : s;
}

static mel_status reduce(machine *p) {
    value *args = pop(p), *callable = pop(p);
    if (!args || !callable || args->kind != VALUE_TUPLE || callable->kind != VALUE_GLOBAL) {
        return damaged(p, "REDUCE without a callable and its arguments");
    }
    switch (callable->integer) {
    case G_ORDERED_DICT:
        if (args->count == 0) return push(p, make(p, VALUE_DICT));
        break;
    case G_REBUILD_TENSOR: return rebuild_tensor(p, args);
    case G_REBUILD_PARAMETER:
        if (args->count >= 1 && args->items[0]->kind == VALUE_TENSOR) return push(p, args->items[0]);
        break;
    case G_SIZE:
        if (args->count == 1 && args->items[0]->kind == VALUE_TUPLE) return push(p, args->items[0]);
        break;
    }
    return damaged(p, "a callable has arguments that it does not take");
}

// ---- containers ----------------------------------------------------------------------------------------------
static mel_status tuple_of(machine *p, int64_t from, int64_t cut) {
    value *v = make(p, VALUE_TUPLE);
    if (!v) return failed(p);
    mel_status s = move_items(p, from, cut, v);
    return s == MEL_OK ? push(p, v) : s;
}

static mel_status small_tuple(machine *p, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (p->depth <= i || p->stack[p->depth - 1 - i]->kind == VALUE_MARK) return damaged(p, "the stack is empty");
    }
    return tuple_of(p, p->depth - count, p->depth - count);
}

static mel_status marked_tuple(machine *p) {
    int64_t mark;
    mel_status s = find_mark(p, &mark);
    return s == MEL_OK ? tuple_of(p, mark + 1, mark) : s;
}

// Values above from go into the container below cut.
static mel_status fill(machine *p, value_kind kind, int64_t from, int64_t cut) {
    value *to = cut > 0 ? p->stack[cut - 1] : NULL;
    if (!to || to->kind != kind || from > p->depth) return damaged(p, "items without their container");
    if (kind == VALUE_DICT && (p->depth - from) % 2) return damaged(p, "a key without its value");
    for (int64_t i = from; i < p->depth; i++) {
        if (p->stack[i]->kind == VALUE_MARK) return damaged(p, "a mark among items");
    }
    return move_items(p, from, cut, to);
}

static mel_status fill_marked(machine *p, value_kind kind) {
    int64_t mark;
    mel_status s = find_mark(p, &mark);
    return s == MEL_OK ? fill(p, kind, mark + 1, mark) : s;
}

static mel_status skip(machine *p, int bytes) { // an operand that says nothing here
    uint64_t ignored;
    return operand(p, bytes, &ignored);
}

static mel_status step(machine *p, uint8_t opcode) {
    uint64_t n;
    mel_status s;
    switch (opcode) {
    case 0x80: return skip(p, 1); // PROTO
    case 0x95: return skip(p, 8); // FRAME
    case '(': return push(p, make(p, VALUE_MARK));
    case 'N': return push(p, make(p, VALUE_NONE));
    case 0x88: return push_int(p, VALUE_BOOL, 1);
    case 0x89: return push_int(p, VALUE_BOOL, 0);
    case 'K': s = operand(p, 1, &n); return s == MEL_OK ? push_int(p, VALUE_INT, (int64_t)n) : s;
    case 'M': s = operand(p, 2, &n); return s == MEL_OK ? push_int(p, VALUE_INT, (int64_t)n) : s;
    case 'J': s = operand(p, 4, &n); return s == MEL_OK ? push_int(p, VALUE_INT, (int32_t)(uint32_t)n) : s;
    case 0x8a: return push_long(p);
    case 'G': s = skip(p, 8); return s == MEL_OK ? push(p, make(p, VALUE_NONE)) : s; // BINFLOAT
    case 'X': return push_text(p, 4);
    case 0x8c: return push_text(p, 1);
    case 0x8d: return push_text(p, 8);
    case '}': return push(p, make(p, VALUE_DICT));
    case ']': return push(p, make(p, VALUE_LIST));
    case ')': return push(p, make(p, VALUE_TUPLE));
    case 0x85: return small_tuple(p, 1);
    case 0x86: return small_tuple(p, 2);
    case 0x87: return small_tuple(p, 3);
    case 't': return marked_tuple(p);
    case 's': return fill(p, VALUE_DICT, p->depth - 2, p->depth - 2);
    case 'u': return fill_marked(p, VALUE_DICT);
    case 'a': return fill(p, VALUE_LIST, p->depth - 1, p->depth - 1);
    case 'e': return fill_marked(p, VALUE_LIST);
    case 'q': return put_memo_operand(p, 1);
    case 'r': return put_memo_operand(p, 4);
    case 0x94: return put_memo(p, (uint64_t)p->memo_count); // MEMOIZE
    case 'h': return get_memo(p, 1);
    case 'j': return get_memo(p, 4);
    case 'c': return global_lines(p);
    case 0x93: return stack_global(p);
    case 'Q': return persistent(p);
    case 'R': return reduce(p);
    case 'b': // BUILD: attributes of a module's dictionary (_metadata); they name no tensors
        return pop(p) && top(p, VALUE_DICT) ? MEL_OK : damaged(p, "attributes for what is not a dictionary");
    case '0': return pop(p) ? MEL_OK : damaged(p, "the stack is empty");
    default:
        return mel_fail(p->err, MEL_EUNSUPPORTED, "%s: data.pkl: byte %lld: opcode 0x%02x; " WHY, p->path,
            (long long)p->start, opcode);
    }
}

static mel_status run(machine *p, const value **out) {
    while (p->at < p->size) {
        p->start = p->at;
        uint8_t opcode = p->code[p->at++];
        if (opcode == '.') {
            *out = pop(p);
            return *out ? MEL_OK : damaged(p, "the pickle makes nothing");
        }
        mel_status s = step(p, opcode);
        if (s != MEL_OK) return s;
    }
    p->start = p->at;
    return damaged(p, "the pickle does not stop");
}

mel_status mel_unpickle(
    mel_weights *w, const mapping *m, int64_t offset, int64_t size, const value **out, mel_error *err) {
    machine p = {.arena = &w->arena, .path = m->path, .code = m->data + offset, .size = size, .err = err};
    mel_status s = run(&p, out);
    mel_free(p.stack);
    mel_free(p.memo);
    return s;
}
