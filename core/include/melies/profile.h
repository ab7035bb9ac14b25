// A profile of what ran: spans with a name, a start, a length and (for matrix work) the arithmetic in them.
#ifndef MELIES_PROFILE_H
#define MELIES_PROFILE_H

#include <melies/base.h>

typedef struct mel_span {
    char name[40];
    double start; // mel_seconds()
    double seconds;
    double flop; // 0 where it is not matrix work
} mel_span;

// Forgets earlier spans and records from now on; stops recording (spans stay readable).
MEL_API void mel_profile_start(void);
MEL_API void mel_profile_stop(void);
MEL_API bool mel_profile_on(void);
MEL_API int64_t mel_profile_count(void);
// false: no such span.
MEL_API bool mel_profile_span(int64_t index, mel_span *out);
// Records a span; nothing where profiling is off. Names are cut at 39 bytes.
MEL_API void mel_profile_add(const char *name, double start, double seconds, double flop);

#endif
