// sentencepiece .model files: reading the protocol buffer, and decoding.
// Source: google/sentencepiece, src/sentencepiece_model.proto, src/model_interface.cc, src/sentencepiece_processor.cc.
#include "text/protobuf.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    MODEL_PIECES = 1,
    MODEL_TRAINER = 2,
    MODEL_NORMALIZER = 3,
    MODEL_DENORMALIZER = 5
};
enum {
    TYPE_UNIGRAM = 1,
    TYPE_BPE = 2
};

typedef struct text_field {
    const char *text;
    size_t size;
} text_field;

typedef struct trainer {
    uint64_t model_type;
    text_field names[4]; // by mel_token_role
} trainer;

static mel_status count_pieces(const char *data, size_t size, int32_t *count, mel_error *err) {
    mel_proto model = {data, data + size};
    mel_proto_field f;
    mel_status status;
    bool more;
    *count = 0;
    while (!(status = mel_proto_next(&model, &f, &more, err)) && more)
        if (f.number == MODEL_PIECES && ++*count == INT32_MAX) return mel_fail(err, MEL_EFORMAT, "too many pieces");
    if (!status && !*count) return mel_fail(err, MEL_EFORMAT, "no pieces: not a sentencepiece model");
    return status;
}

static mel_status read_piece(const mel_proto_field *message, mel_piece *piece, int32_t id, mel_error *err) {
    mel_status status = mel_proto_expect(message, MEL_PROTO_BYTES, "piece", err);
    if (status) return status;
    mel_proto m = {message->bytes, message->bytes + message->size};
    mel_proto_field f;
    bool more;
    *piece = (mel_piece){.text = "", .type = MEL_PIECE_NORMAL};
    while (!(status = mel_proto_next(&m, &f, &more, err)) && more) {
        switch (f.number) {
        case 1:
            if ((status = mel_proto_expect(&f, MEL_PROTO_BYTES, "piece.piece", err))) return status;
            if (f.size > MEL_TRIE_KEY_MAX)
                return mel_fail(
                    err, MEL_EFORMAT, "piece %d is %zu bytes long, more than %d", id, f.size, MEL_TRIE_KEY_MAX);
            piece->text = f.bytes;
            piece->size = (uint32_t)f.size;
            break;
        case 2:
            if ((status = mel_proto_expect(&f, MEL_PROTO_FIXED32, "piece.score", err))) return status;
            piece->score = mel_proto_float(&f);
            if (!isfinite(piece->score)) return mel_fail(err, MEL_EFORMAT, "piece %d: score is not finite", id);
            break;
        case 3:
            if ((status = mel_proto_expect(&f, MEL_PROTO_VARINT, "piece.type", err))) return status;
            if (f.value < MEL_PIECE_NORMAL || f.value > MEL_PIECE_BYTE)
                return mel_fail(err, MEL_EFORMAT, "piece %d: type %llu", id, (unsigned long long)f.value);
            piece->type = (uint8_t)f.value;
            break;
        default: break;
        }
    }
    if (!status && !piece->size) return mel_fail(err, MEL_EFORMAT, "piece %d is empty", id);
    if (!status && piece->type == MEL_PIECE_BYTE) {
        char spelled[8];
        unsigned byte = 0;
        if (piece->size == 6 && sscanf(piece->text, "<0x%2X>", &byte) == 1) piece->byte = (uint8_t)byte;
        snprintf(spelled, sizeof spelled, "<0x%02X>", byte & 0xFF);
        if (piece->size != 6 || memcmp(spelled, piece->text, 6) != 0)
            return mel_fail(err, MEL_EFORMAT, "piece %d: '%.*s' is not a byte", id, (int)piece->size, piece->text);
    }
    return status;
}

static mel_status read_trainer(const mel_proto_field *message, mel_tokenizer *t, trainer *spec, mel_error *err) {
    mel_status status = mel_proto_expect(message, MEL_PROTO_BYTES, "trainer_spec", err);
    if (status) return status;
    mel_proto m = {message->bytes, message->bytes + message->size};
    mel_proto_field f;
    bool more;
    while (!(status = mel_proto_next(&m, &f, &more, err)) && more) {
        text_field *name = NULL;
        switch (f.number) {
        case 3: spec->model_type = f.value; break;
        case 24: t->normalizer.whitespace_as_suffix = f.value != 0; break;
        case 35: t->byte_fallback = f.value != 0; break;
        case 44:
            if ((status = mel_proto_expect(&f, MEL_PROTO_BYTES, "trainer_spec.unk_surface", err))) return status;
            t->unk_surface = f.bytes;
            t->unk_surface_size = f.size;
            break;
        case 45: name = &spec->names[MEL_TOKEN_UNK]; break;
        case 46: name = &spec->names[MEL_TOKEN_BOS]; break;
        case 47: name = &spec->names[MEL_TOKEN_EOS]; break;
        case 48: name = &spec->names[MEL_TOKEN_PAD]; break;
        default: break;
        }
        if (!name) continue;
        if ((status = mel_proto_expect(&f, MEL_PROTO_BYTES, "trainer_spec: name of a piece", err))) return status;
        if (f.size) *name = (text_field){f.bytes, f.size};
    }
    return status;
}

static mel_status read_normalizer(const mel_proto_field *message, mel_normalizer *n, mel_error *err) {
    mel_status status = mel_proto_expect(message, MEL_PROTO_BYTES, "normalizer_spec", err);
    if (status) return status;
    mel_proto m = {message->bytes, message->bytes + message->size};
    mel_proto_field f;
    bool more;
    while (!(status = mel_proto_next(&m, &f, &more, err)) && more) {
        switch (f.number) {
        case 2:
            status = mel_proto_expect(&f, MEL_PROTO_BYTES, "normalizer_spec.precompiled_charsmap", err);
            if (!status) status = mel_normalizer_set_rules(n, f.bytes, f.size, err);
            break;
        case 3: n->add_dummy_prefix = f.value != 0; break;
        case 4: n->remove_extra_whitespaces = f.value != 0; break;
        case 5: n->escape_whitespaces = f.value != 0; break;
        default: break;
        }
        if (status) return status;
    }
    return status;
}

static mel_status read_model(mel_tokenizer *t, const char *data, size_t size, trainer *spec, mel_error *err) {
    mel_proto model = {data, data + size};
    mel_proto_field f;
    mel_status status;
    bool more;
    int32_t id = 0;
    while (!(status = mel_proto_next(&model, &f, &more, err)) && more && !status) {
        switch (f.number) {
        case MODEL_PIECES:
            status = read_piece(&f, &t->pieces[id], id, err);
            id++;
            break;
        case MODEL_TRAINER: status = read_trainer(&f, t, spec, err); break;
        case MODEL_NORMALIZER: status = read_normalizer(&f, &t->normalizer, err); break;
        case MODEL_DENORMALIZER: status = read_normalizer(&f, &t->denormalizer, err); break;
        default: break;
        }
        if (status) return status;
    }
    return status;
}

static mel_status check_pieces(mel_tokenizer *t, mel_error *err) {
    float lowest = FLT_MAX, highest = FLT_MIN;
    int32_t unknown = -1, bytes = 0;
    for (int32_t i = 0; i < t->size; i++) {
        const mel_piece *piece = &t->pieces[i];
        if (piece->type == MEL_PIECE_NORMAL) {
            lowest = fminf(lowest, (float)piece->score);
            highest = fmaxf(highest, (float)piece->score);
        }
        bytes += piece->type == MEL_PIECE_BYTE;
        if (piece->type != MEL_PIECE_UNKNOWN) continue;
        if (unknown >= 0) return mel_fail(err, MEL_EFORMAT, "pieces %d and %d are both the unknown one", unknown, i);
        unknown = i;
    }
    if (unknown < 0) return mel_fail(err, MEL_EFORMAT, "no piece is the unknown one");
    if (t->byte_fallback && bytes != 256)
        return mel_fail(err, MEL_EFORMAT, "byte_fallback needs 256 byte pieces, here are %d", bytes);
    if (!t->byte_fallback && bytes)
        return mel_fail(err, MEL_EFORMAT, "%d byte pieces, but byte_fallback is off", bytes);
    t->unknown_score = lowest - 10.0f;
    t->max_score = highest;
    t->special[MEL_TOKEN_UNK] = unknown;
    return MEL_OK;
}

mel_status mel_spm_load(mel_tokenizer *t, const char *data, size_t size, mel_error *err) {
    static const text_field defaults[4] = {{"<unk>", 5}, {"<s>", 3}, {"</s>", 4}, {"<pad>", 5}};
    trainer spec = {.model_type = TYPE_UNIGRAM};
    memcpy(spec.names, defaults, sizeof defaults);
    t->normalizer = t->denormalizer =
        (mel_normalizer){.add_dummy_prefix = true, .remove_extra_whitespaces = true, .escape_whitespaces = true};
    int32_t count;
    mel_status status = count_pieces(data, size, &count, err);
    if (status) return status;
    if (!(t->pieces = mel_alloc((size_t)count * sizeof *t->pieces, err))) return MEL_ENOMEM;
    t->size = count;
    if ((status = read_model(t, data, size, &spec, err))) return status;
    if (spec.model_type != TYPE_UNIGRAM && spec.model_type != TYPE_BPE) {
        const char *name = spec.model_type == 3 ? "word" : spec.model_type == 4 ? "char" : "unknown";
        return mel_fail(
            err, MEL_EUNSUPPORTED, "sentencepiece model type %llu (%s)", (unsigned long long)spec.model_type, name);
    }
    t->kind = spec.model_type == TYPE_BPE ? MEL_TOKENIZER_SPM_BPE : MEL_TOKENIZER_SPM_UNIGRAM;
    t->single = true;
    if ((status = check_pieces(t, err)) || (status = mel_tokenizer_index(t, err))) return status;
    if (t->user_defined.nodes) t->normalizer.verbatim = &t->user_defined;
    for (int role = MEL_TOKEN_BOS; role <= MEL_TOKEN_PAD; role++) {
        int32_t id = mel_tokenizer_find(t, spec.names[role].text, spec.names[role].size);
        t->special[role] = id >= 0 && t->pieces[id].type == MEL_PIECE_CONTROL ? id : -1;
    }
    return MEL_OK;
}

static mel_status decode_piece(
    const mel_tokenizer *t, const mel_piece *piece, bool at_start, bool *ate_space, mel_buffer *out, mel_error *err) {
    const char *text = piece->text;
    size_t size = piece->size;
    *ate_space = false;
    if (piece->type == MEL_PIECE_CONTROL) return MEL_OK;
    if (piece->type == MEL_PIECE_UNKNOWN) return mel_buffer_append(out, t->unk_surface, t->unk_surface_size, err);
    const mel_normalizer *n = &t->normalizer;
    if (at_start && (n->add_dummy_prefix || n->remove_extra_whitespaces) && size >= 3 &&
        !memcmp(text, MEL_SPACE_MARK, 3)) {
        text += 3;
        size -= 3;
        // Where extra white space is removed, every leading space goes, not only the first.
        *ate_space = !n->remove_extra_whitespaces;
    }
    mel_status status = MEL_OK;
    for (size_t i = 0; i < size && !status;) {
        bool mark = size - i >= 3 && !memcmp(text + i, MEL_SPACE_MARK, 3);
        status = mel_buffer_append(out, mark ? " " : text + i, 1, err);
        i += mark ? 3 : 1;
    }
    return status;
}

mel_status mel_spm_decode(const mel_tokenizer *t, const int32_t *ids, size_t count, mel_buffer *out, mel_error *err) {
    mel_buffer bytes = {0}, text = {0};
    bool at_start = true, ate_space = false;
    mel_status status = MEL_OK;
    for (size_t i = 0; i <= count && !status; i++) {
        const mel_piece *piece = i < count ? &t->pieces[ids[i]] : NULL;
        if (piece && piece->type == MEL_PIECE_BYTE) {
            status = mel_buffer_append(&bytes, &piece->byte, 1, err);
            continue;
        }
        status = mel_utf8_append_valid(&text, bytes.data, bytes.size, err);
        bytes.size = 0;
        if (!piece || status) break;
        if (ate_space || text.size) at_start = false;
        status = decode_piece(t, piece, at_start, &ate_space, &text, err);
    }
    if (!status && t->denormalizer.units)
        status = mel_normalizer_run(&t->denormalizer, text.data, text.size, out, err);
    else if (!status)
        status = mel_buffer_append(out, text.data, text.size, err);
    mel_buffer_finish(&bytes);
    mel_buffer_finish(&text);
    return status;
}
