// MEL_SPAN("linear"): records the rest of the enclosing block as a span. MEL_FLOP(n) adds its arithmetic.
#ifndef MELIES_CORE_SPAN_H
#define MELIES_CORE_SPAN_H

#include <melies/profile.h>

typedef struct mel_open_span {
    const char *name;
    double start, flop;
} mel_open_span;

static inline void mel_span_close(mel_open_span *s) {
    if (s->start > 0) mel_profile_add(s->name, s->start, mel_seconds() - s->start, s->flop);
}

#define MEL_SPAN(text)                                                                                                 \
    __attribute__((cleanup(mel_span_close)))                                                                           \
    mel_open_span mel_this_span = {text, mel_profile_on() ? mel_seconds() : 0, 0}
#define MEL_FLOP(n) (mel_this_span.flop = (double)(n))

#endif
