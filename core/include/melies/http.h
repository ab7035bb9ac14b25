// Requests over HTTP(S), for planners that ask a language model. Nothing else in melies talks to a network.
#ifndef MELIES_HTTP_H
#define MELIES_HTTP_H

#include <melies/base.h>

typedef struct mel_http_options {
    int64_t timeout_ms;   // of the whole request; 0: 120 s
    int64_t connect_ms;   // until there is a connection; 0: 10 s
    uint64_t limit_bytes; // of the answer; 0: 16 MiB
    const char *headers;  // lines "Name: value" with '\n' between, or NULL
} mel_http_options;

// POSTs body to an http:// or https:// address; other schemes and redirections are not followed, certificates are
// checked. An answer of any status is a success. On success *out (with a zero byte after it) is the caller's
// (mel_free), *out_bytes its size and *http_status such as 200 or 404; on failure the outputs are untouched. Threads
// may call it at once. MEL_EINVAL: address or headers are not what they should be. MEL_EIO: no connection, a broken
// answer, or too late. MEL_EFORMAT: the answer is longer than limit_bytes. MEL_ECANCELED: mel_cancel() was seen.
MEL_API mel_status mel_http_post(const char *url, const void *body, size_t size_bytes, const mel_http_options *options,
    char **out, size_t *out_bytes, int *http_status, mel_error *err);

#endif
