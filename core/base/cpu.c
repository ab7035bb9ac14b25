// Threads and instruction sets.
#define _GNU_SOURCE
#include <melies/base.h>

#include <cpuid.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int usable_cores(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        int n = CPU_COUNT(&set);
        if (n > 0) return n;
    }
    return 1;
}

static atomic_int threads;

mel_status mel_set_threads(int count, mel_error *err) {
    if (count < 0 || count > 1024) return mel_fail(err, MEL_EINVAL, "threads: %d is outside 0..1024", count);
    int n = count ? count : usable_cores();
    atomic_store(&threads, n);
    omp_set_num_threads(n);
    return MEL_OK;
}

int mel_threads(void) {
    int n = atomic_load(&threads);
    if (n) return n;
    const char *env = getenv("OMP_NUM_THREADS");
    int wanted = env ? atoi(env) : 0;
    mel_set_threads(wanted > 0 && wanted <= 1024 ? wanted : 0, NULL);
    return atomic_load(&threads);
}

// Linux hands a process the tiles' registers when it asks for them (arch/x86/include/uapi/asm/prctl.h).
static bool tiles_allowed(void) {
    enum {
        REQUEST = 0x1023, // ARCH_REQ_XCOMP_PERM
        TILE_DATA = 18    // XFEATURE_XTILEDATA
    };
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

static mel_isa detect(void) {
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    unsigned a, b, c, d;
    bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
    bool bf16 = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 5));
    bool vnni = __builtin_cpu_supports("avx512vnni"); // every processor with AVX512_BF16 has it
    if (!avx2 || !f16c) return MEL_ISA_PLAIN;
    if (!avx512) return MEL_ISA_AVX2;
    if (!bf16 || !vnni) return MEL_ISA_AVX512;
    bool amx = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 13) == 13; // AMX-BF16, -TILE, -INT8
    return amx && tiles_allowed() ? MEL_ISA_AMX : MEL_ISA_AVX512_BF16;
}

static atomic_int found = -1, cap = MEL_ISA_AMX;

mel_isa mel_cpu_isa(void) {
    int f = atomic_load(&found);
    if (f < 0) {
        f = (int)detect();
        atomic_store(&found, f);
    }
    int c = atomic_load(&cap);
    return (mel_isa)(f < c ? f : c);
}

void mel_set_isa(mel_isa highest) {
    atomic_store(&cap, (int)highest);
}

const char *mel_cpu_name(void) {
    static char name[64];
    if (name[0]) return name;
    unsigned r[12];
    if (__get_cpuid(0x80000002, &r[0], &r[1], &r[2], &r[3]) && __get_cpuid(0x80000003, &r[4], &r[5], &r[6], &r[7]) &&
        __get_cpuid(0x80000004, &r[8], &r[9], &r[10], &r[11])) {
        char text[49] = {0};
        memcpy(text, r, 48);
        const char *p = text;
        while (*p == ' ')
            p++;
        strncpy(name, p, sizeof name - 1);
    }
    if (!name[0]) strcpy(name, "unknown");
    return name;
}
