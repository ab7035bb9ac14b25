// Included first by clang-tidy (./dev lint): tells its analyzer that mel_fail returns the status it is given, so that
// it does not follow a failure as if it were a success. error.c, which defines mel_fail, is looked at without.
#include <melies/base.h>
#define mel_fail(err, status, ...) (mel_fail(err, status, __VA_ARGS__), (status))
