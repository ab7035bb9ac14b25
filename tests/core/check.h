// A test harness of forty lines: RUN(fn) in main, CHECK inside; a failure names file, line and values.
#ifndef MELIES_CHECK_H
#define MELIES_CHECK_H

#include <math.h>
#include <melies/base.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check_failures, check_count;

#define CHECK(cond)                                                                                                    \
    do {                                                                                                               \
        check_count++;                                                                                                 \
        if (!(cond)) {                                                                                                 \
            check_failures++;                                                                                          \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #cond);                                         \
        }                                                                                                              \
    } while (0)
// For calls that return mel_status and fill `err`.
#define CHECK_OK(call)                                                                                                 \
    do {                                                                                                               \
        mel_error err_ = {0};                                                                                          \
        mel_error *err = &err_;                                                                                        \
        check_count++;                                                                                                 \
        mel_status s_ = (call);                                                                                        \
        if (s_ != MEL_OK) {                                                                                            \
            check_failures++;                                                                                          \
            fprintf(stderr, "%s:%d: %s: status %d: %s\n", __FILE__, __LINE__, #call, s_, err_.message);                \
        }                                                                                                              \
    } while (0)
// The call fails with the status and its message holds the text.
#define CHECK_FAILS(call, want, text)                                                                                  \
    do {                                                                                                               \
        mel_error err_ = {0};                                                                                          \
        mel_error *err = &err_;                                                                                        \
        check_count++;                                                                                                 \
        mel_status s_ = (call);                                                                                        \
        if (s_ != (want) || !strstr(err_.message, (text))) {                                                           \
            check_failures++;                                                                                          \
            fprintf(stderr, "%s:%d: %s: status %d (wanted %d), message '%s' (wanted '%s')\n", __FILE__, __LINE__,      \
                #call, s_, (want), err_.message, (text));                                                              \
        }                                                                                                              \
    } while (0)
#define CHECK_NEAR(a, b, tol)                                                                                          \
    do {                                                                                                               \
        double a_ = (a), b_ = (b);                                                                                     \
        check_count++;                                                                                                 \
        if (!(fabs(a_ - b_) <= (tol))) {                                                                               \
            check_failures++;                                                                                          \
            fprintf(stderr, "%s:%d: %s = %.9g, %s = %.9g\n", __FILE__, __LINE__, #a, a_, #b, b_);                      \
        }                                                                                                              \
    } while (0)
#define RUN(fn)                                                                                                        \
    do {                                                                                                               \
        int before_ = check_failures;                                                                                  \
        fn();                                                                                                          \
        printf("%s %s\n", check_failures == before_ ? "ok  " : "FAIL", #fn);                                           \
    } while (0)
#define CHECK_DONE() (printf("%d checks, %d failed\n", check_count, check_failures), check_failures ? 1 : 0)

#endif
