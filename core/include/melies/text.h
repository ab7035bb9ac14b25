// Tokenizers: text to the ids that a text encoder was trained on, and back. Text is UTF-8; bytes that are not
// become U+FFFD. A tokenizer is read-only after loading: any number of threads may use one.
#ifndef MELIES_TEXT_H
#define MELIES_TEXT_H

#include <melies/base.h>

typedef struct mel_tokenizer mel_tokenizer;

typedef enum mel_tokenizer_kind {
    MEL_TOKENIZER_SPM_UNIGRAM = 0, // sentencepiece .model
    MEL_TOKENIZER_SPM_BPE = 1,     // sentencepiece .model
    MEL_TOKENIZER_HF_UNIGRAM = 2,  // Hugging Face tokenizer.json
    MEL_TOKENIZER_CLIP = 3         // byte-level BPE: vocab.json and merges.txt
} mel_tokenizer_kind;

typedef enum mel_token_role {
    MEL_TOKEN_UNK = 0,
    MEL_TOKEN_BOS = 1,
    MEL_TOKEN_EOS = 2,
    MEL_TOKEN_PAD = 3
} mel_token_role;

// The kind is seen from the content. merges_path is the second file of MEL_TOKENIZER_CLIP, else NULL.
// On success *out is owned by the caller; on failure *out is untouched and the message names the file.
// MEL_EIO, MEL_EFORMAT; MEL_EUNSUPPORTED names the feature that is not known here.
MEL_API mel_status mel_tokenizer_load(const char *path, const char *merges_path, mel_tokenizer **out, mel_error *err);
// The same from memory, which is not kept. name stands in messages. merges may be NULL.
MEL_API mel_status mel_tokenizer_load_memory(const char *name, const void *data, size_t size_bytes, const void *merges,
    size_t merges_size_bytes, mel_tokenizer **out, mel_error *err);
MEL_API void mel_tokenizer_free(mel_tokenizer *tokenizer); // NULL is fine

MEL_API mel_tokenizer_kind mel_tokenizer_kind_of(const mel_tokenizer *tokenizer);
MEL_API const char *mel_tokenizer_kind_name(mel_tokenizer_kind kind);                       // "spm_unigram", ...
MEL_API int32_t mel_tokenizer_size(const mel_tokenizer *tokenizer);                         // ids are 0..size-1
MEL_API int32_t mel_tokenizer_special(const mel_tokenizer *tokenizer, mel_token_role role); // -1: it has none
// Spelling of an id as in the vocabulary, not NUL-terminated, borrowed. NULL: no such id.
MEL_API const char *mel_tokenizer_piece(const mel_tokenizer *tokenizer, int32_t id, size_t *size_bytes);
// -1: no piece is spelled so.
MEL_API int32_t mel_tokenizer_id(const mel_tokenizer *tokenizer, const char *piece, size_t size_bytes);

// Without begin and end marks: the caller adds what its model wants. On success *ids (count entries, mel_free)
// is the caller's; on failure the outputs are untouched. Time is linear in the text (n log n for BPE).
MEL_API mel_status mel_tokenizer_encode(
    const mel_tokenizer *tokenizer, const char *text, size_t size_bytes, int32_t **ids, size_t *count, mel_error *err);
// Marks (begin, end, padding) decode to nothing. *text ends in NUL, *text_size_bytes does not count it; mel_free.
// MEL_EINVAL: an id outside the vocabulary.
MEL_API mel_status mel_tokenizer_decode(const mel_tokenizer *tokenizer, const int32_t *ids, size_t count, char **text,
    size_t *text_size_bytes, mel_error *err);
// What encode cuts into pieces. Output as in decode.
MEL_API mel_status mel_tokenizer_normalize(const mel_tokenizer *tokenizer, const char *text, size_t size_bytes,
    char **normalized, size_t *normalized_size_bytes, mel_error *err);

#endif
