// Inside of a tokenizer: one vocabulary for every kind, and what each kind adds to it.
#ifndef MELIES_TEXT_TOKENIZER_H
#define MELIES_TEXT_TOKENIZER_H

#include "text/buffer.h"
#include "text/normalizer.h"
#include "text/trie.h"

#include <melies/json.h>
#include <melies/text.h>

typedef enum mel_piece_type { // numbered as in sentencepiece_model.proto
    MEL_PIECE_NORMAL = 1,
    MEL_PIECE_UNKNOWN = 2,
    MEL_PIECE_CONTROL = 3,
    MEL_PIECE_USER_DEFINED = 4,
    MEL_PIECE_UNUSED = 5,
    MEL_PIECE_BYTE = 6
} mel_piece_type;

typedef struct mel_piece {
    const char *text; // in tokenizer->bytes
    uint32_t size;
    uint8_t type; // mel_piece_type
    uint8_t byte; // of MEL_PIECE_BYTE
    double score;
} mel_piece;

typedef struct mel_clip mel_clip; // tok_clip.c
typedef struct mel_hf mel_hf;     // tok_hf.c

struct mel_tokenizer {
    mel_tokenizer_kind kind;
    char *bytes; // owns the texts of pieces, and the normalisation rules
    mel_piece *pieces;
    int32_t size;
    // Ids by spelling: pieces that text may match; the others; user-defined ones alone.
    mel_trie matched, reserved, user_defined;
    int32_t special[4]; // by mel_token_role
    bool byte_fallback;
    int32_t byte_ids[256];
    double unknown_score; // unigram
    double max_score;     // unigram: the highest of a normal piece
    bool single;          // unigram: sums are rounded to float as in sentencepiece
    bool has_unused;
    mel_normalizer normalizer, denormalizer;
    const char *unk_surface; // what an unknown piece decodes to
    size_t unk_surface_size;
    mel_clip *clip;
    mel_hf *hf;
};

// From pieces and size: the three tries, byte ids, and checks that every piece is there once. MEL_EFORMAT.
mel_status mel_tokenizer_index(mel_tokenizer *t, mel_error *err);
// Reserved spelling first, as in sentencepiece; -1 for none.
int32_t mel_tokenizer_find(const mel_tokenizer *t, const char *piece, size_t size_bytes);
mel_status mel_ids_push(mel_buffer *ids, int32_t id, mel_error *err);
// Pushes unk, or the bytes of text where the vocabulary falls back on bytes. A run of unknowns is one: *run says
// whether the id before was unk, and is updated.
mel_status mel_ids_push_unknown(
    const mel_tokenizer *t, const char *text, size_t size_bytes, bool *run, mel_buffer *ids, mel_error *err);

// tok_spm.c. data is owned by t->bytes already.
mel_status mel_spm_load(mel_tokenizer *t, const char *data, size_t size_bytes, mel_error *err);
mel_status mel_spm_decode(const mel_tokenizer *t, const int32_t *ids, size_t count, mel_buffer *out, mel_error *err);

// Best cut of normalised text into pieces; ids of it are appended. unigram.c, bpe.c.
mel_status mel_unigram_encode(
    const mel_tokenizer *t, const char *text, size_t size_bytes, mel_buffer *ids, mel_error *err);
mel_status mel_bpe_encode(const mel_tokenizer *t, const char *text, size_t size_bytes, mel_buffer *ids, mel_error *err);

// tok_hf.c, tok_clip.c: size_bytes is that of the JSON text, which bounds the texts in it.
mel_status mel_hf_load(mel_tokenizer *t, const mel_json_value *root, size_t size_bytes, mel_error *err);
mel_status mel_hf_normalize(
    const mel_tokenizer *t, const char *text, size_t size_bytes, mel_buffer *out, mel_error *err);
mel_status mel_hf_encode(const mel_tokenizer *t, const char *text, size_t size_bytes, mel_buffer *ids, mel_error *err);
void mel_hf_free(mel_hf *hf);

mel_status mel_clip_load(mel_tokenizer *t, const mel_json_value *vocabulary, size_t size_bytes, const char *merges,
    size_t merges_size_bytes, mel_error *err);
mel_status mel_clip_normalize(
    const mel_tokenizer *t, const char *text, size_t size_bytes, mel_buffer *out, mel_error *err);
mel_status mel_clip_encode(
    const mel_tokenizer *t, const char *text, size_t size_bytes, mel_buffer *ids, mel_error *err);
mel_status mel_clip_decode(const mel_tokenizer *t, const int32_t *ids, size_t count, mel_buffer *out, mel_error *err);
void mel_clip_free(mel_clip *clip);

#endif
