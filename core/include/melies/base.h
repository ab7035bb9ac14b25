// Errors, memory accounting, cancellation, threads: what every other header stands on.
// This header and its neighbours are also parsed by LuaJIT's ffi.cdef: declarations only,
// no macros in them but MEL_API, no function bodies.
#ifndef MELIES_BASE_H
#define MELIES_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef MEL_API
#define MEL_API __attribute__((visibility("default")))
#endif

typedef enum mel_status {
    MEL_OK = 0,
    MEL_EINVAL = 1,       // an argument is wrong: shape, dtype, range
    MEL_ENOMEM = 2,       // the memory limit or the system refused
    MEL_EIO = 3,          // a file or device failed: open, read, write, rename
    MEL_EFORMAT = 4,      // bytes from elsewhere are not what they claim to be
    MEL_EUNSUPPORTED = 5, // valid, but not built or not known here
    MEL_ECANCELED = 6,    // mel_cancel() was seen
    MEL_EINTERNAL = 7     // a library below failed where it should not
} mel_status;

// Filled on failure only. message is one line, names the values, has no trailing newline.
typedef struct mel_error {
    int32_t status;
    char message[1020];
} mel_error;

// Sets *err (may be NULL) and returns status. printf-style; long texts are cut.
MEL_API mel_status mel_fail(mel_error *err, mel_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

// Library version "major.minor.patch", and the hash of these headers that the Lua side compares.
MEL_API const char *mel_version(void);
MEL_API const char *mel_abi_hash(void);

// ---- memory -------------------------------------------------------------------------------
// Every native byte of tensors, packed weights and scratch comes from here. Blocks are 64-byte
// aligned and not cleared. Freed blocks are kept in a pool for reuse (large fresh pages are slow).
// size 0 gives a valid pointer. On failure NULL and *err says what was asked, live and the limit.
MEL_API void *mel_alloc(size_t size_bytes, mel_error *err);
MEL_API void *mel_alloc_zero(size_t size_bytes, mel_error *err);
MEL_API void mel_free(void *block); // NULL is fine
// Bytes handed out and not yet freed; their highest value since start or mel_mem_reset_peak().
MEL_API int64_t mel_mem_live(void);
MEL_API int64_t mel_mem_peak(void);
MEL_API void mel_mem_reset_peak(void);
// Bytes kept in the pool; mel_mem_trim gives its largest blocks back to the system until at most keep_bytes are left.
MEL_API int64_t mel_mem_pooled(void);
MEL_API void mel_mem_trim(int64_t keep_bytes);
// Limit on live bytes; 0 means none. An allocation past it fails with MEL_ENOMEM.
MEL_API void mel_mem_set_limit(int64_t limit_bytes);
MEL_API int64_t mel_mem_limit(void);
// Test hook: the nth allocation from now (1 is the next) fails once; 0 turns it off.
MEL_API void mel_mem_fail_nth(int64_t nth);
MEL_API int64_t mel_mem_alloc_count(void); // allocations since start

// ---- cancellation -------------------------------------------------------------------------
// One flag for the process. Safe in a signal handler. Long operations look at it between tiles.
MEL_API void mel_cancel(void);
MEL_API void mel_cancel_clear(void);
MEL_API bool mel_canceled(void);
MEL_API mel_status mel_check_cancel(mel_error *err); // MEL_OK or MEL_ECANCELED

// ---- threads and processor ----------------------------------------------------------------
// 1..1024; 0 asks for one a usable core (the default). Results do not depend on it.
MEL_API mel_status mel_set_threads(int count, mel_error *err);
MEL_API int mel_threads(void);
typedef enum mel_isa {
    MEL_ISA_PLAIN = 0,
    MEL_ISA_AVX2 = 1,
    MEL_ISA_AVX512 = 2,
    MEL_ISA_AVX512_BF16 = 3,
    MEL_ISA_AMX = 4
} mel_isa;
MEL_API mel_isa mel_cpu_isa(void); // what kernels use: the processor's, capped by mel_set_isa
MEL_API void mel_set_isa(mel_isa highest);
MEL_API const char *mel_cpu_name(void); // brand string, "unknown" where there is none

// Seconds of a monotonic clock, for timing.
MEL_API double mel_seconds(void);

#endif
