// Reading protocol-buffer messages: fields one after another, every length checked against what is left.
#ifndef MELIES_TEXT_PROTOBUF_H
#define MELIES_TEXT_PROTOBUF_H

#include <melies/base.h>

typedef struct mel_proto {
    const char *at, *end;
} mel_proto;

typedef enum mel_proto_wire {
    MEL_PROTO_VARINT = 0,
    MEL_PROTO_FIXED64 = 1,
    MEL_PROTO_BYTES = 2,
    MEL_PROTO_FIXED32 = 5
} mel_proto_wire;

typedef struct mel_proto_field {
    uint32_t number;
    mel_proto_wire wire;
    uint64_t value;    // of VARINT, FIXED32 and FIXED64
    const char *bytes; // of BYTES, borrowed
    size_t size;
} mel_proto_field;

// *more is false at the end of the message. MEL_EFORMAT says which byte of the message is wrong.
mel_status mel_proto_next(mel_proto *message, mel_proto_field *field, bool *more, mel_error *err);
// MEL_EFORMAT unless the field has that wire type; what stands in the message.
mel_status mel_proto_expect(const mel_proto_field *field, mel_proto_wire wire, const char *what, mel_error *err);
float mel_proto_float(const mel_proto_field *field);

#endif
