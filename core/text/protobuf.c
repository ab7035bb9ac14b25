#include "text/protobuf.h"

#include <string.h>

static bool read_varint(mel_proto *m, uint64_t *value) {
    uint64_t v = 0;
    for (int shift = 0; shift < 70 && m->at < m->end; shift += 7) {
        unsigned char byte = (unsigned char)*m->at++;
        if (shift < 64) v |= (uint64_t)(byte & 0x7F) << shift;
        if (!(byte & 0x80)) {
            *value = v;
            return true;
        }
    }
    return false;
}

static bool read_fixed(mel_proto *m, int size, uint64_t *value) {
    if (m->end - m->at < size) return false;
    *value = 0;
    for (int i = 0; i < size; i++)
        *value |= (uint64_t)(unsigned char)m->at[i] << (8 * i);
    m->at += size;
    return true;
}

mel_status mel_proto_next(mel_proto *m, mel_proto_field *field, bool *more, mel_error *err) {
    *more = m->at < m->end;
    if (!*more) return MEL_OK;
    uint64_t tag, length;
    if (!read_varint(m, &tag)) return mel_fail(err, MEL_EFORMAT, "protobuf: a field number that does not end");
    if (tag >> 3 == 0 || tag >> 3 > 0x1FFFFFFF)
        return mel_fail(err, MEL_EFORMAT, "protobuf: field number %llu", (unsigned long long)(tag >> 3));
    *field = (mel_proto_field){.number = (uint32_t)(tag >> 3), .wire = (mel_proto_wire)(tag & 7)};
    bool whole = false;
    switch (field->wire) {
    case MEL_PROTO_VARINT: whole = read_varint(m, &field->value); break;
    case MEL_PROTO_FIXED64: whole = read_fixed(m, 8, &field->value); break;
    case MEL_PROTO_FIXED32: whole = read_fixed(m, 4, &field->value); break;
    case MEL_PROTO_BYTES:
        if (!read_varint(m, &length)) break;
        if (length > (uint64_t)(m->end - m->at))
            return mel_fail(err, MEL_EFORMAT, "protobuf: field %u says %llu bytes, %lld are left", field->number,
                (unsigned long long)length, (long long)(m->end - m->at));
        field->bytes = m->at;
        field->size = (size_t)length;
        m->at += length;
        whole = true;
        break;
    default: return mel_fail(err, MEL_EFORMAT, "protobuf: field %u has wire type %d", field->number, (int)field->wire);
    }
    if (!whole) return mel_fail(err, MEL_EFORMAT, "protobuf: field %u is cut off", field->number);
    return MEL_OK;
}

mel_status mel_proto_expect(const mel_proto_field *field, mel_proto_wire wire, const char *what, mel_error *err) {
    if (field->wire == wire) return MEL_OK;
    return mel_fail(err, MEL_EFORMAT, "protobuf: %s has wire type %d, not %d", what, (int)field->wire, (int)wire);
}

float mel_proto_float(const mel_proto_field *field) {
    uint32_t bits = (uint32_t)field->value;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
