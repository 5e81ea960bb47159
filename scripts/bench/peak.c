/* What the cores can compute at best: multiply-adds on registers, nothing read from memory.
 *
 * peak THREADS SECONDS prints one line per kind of arithmetic that this processor has: its name, the instructions
 * measured, and operations per second of all threads together (a multiplication and an addition are two). The
 * instructions are chosen by what the processor says of itself. Compiled by scripts/bench/limits.py.
 */
#include <cpuid.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define ROUNDS 20000 /* between two looks at the clock */

/* Twelve independent sums hide the latency of a multiply-add. */
#define TWELVE(F) F("3") F("4") F("5") F("6") F("7") F("8") F("9") F("10") F("11") F("12") F("13") F("14")
#define SIX(F) F("3", "9") F("4", "10") F("5", "11") F("6", "12") F("7", "13") F("8", "14")

/* Registers 0 and 1 are multiplied and 2 holds 16-bit ones; all others are cleared. Zeros take as long as numbers. */
#define SETUP                                                        \
    "vpxor %%xmm0, %%xmm0, %%xmm0\n vpxor %%xmm1, %%xmm1, %%xmm1\n"  \
    "vpcmpeqw %%ymm2, %%ymm2, %%ymm2\n vpsrlw $15, %%ymm2, %%ymm2\n"
#define CLEAR(n) "vpxor %%xmm" n ", %%xmm" n ", %%xmm" n "\n"

#define LOOP(body)                                                                                        \
    long left = ROUNDS;                                                                                   \
    __asm__ volatile(SETUP TWELVE(CLEAR) "1:\n" body "dec %0\n jnz 1b\n vzeroupper\n"                     \
                     : "+r"(left)                                                                         \
                     :                                                                                    \
                     : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",      \
                       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14")

#define FMA_512(n) "vfmadd231ps %%zmm0, %%zmm1, %%zmm" n "\n"
#define FMA_256(n) "vfmadd231ps %%ymm0, %%ymm1, %%ymm" n "\n"
#define VNNI_512(n) "vpdpbusd %%zmm0, %%zmm1, %%zmm" n "\n"
#define VNNI_256(n) "%{vex%} vpdpbusd %%ymm0, %%ymm1, %%ymm" n "\n"
#define BF16_512(n) "vdpbf16ps %%zmm0, %%zmm1, %%zmm" n "\n"
#define PAIRS_256(n, t)                             \
    "vpmaddubsw %%ymm0, %%ymm1, %%ymm" t "\n"       \
    "vpmaddwd %%ymm2, %%ymm" t ", %%ymm" t "\n"     \
    "vpaddd %%ymm" t ", %%ymm" n ", %%ymm" n "\n"

static void fma_512(void) { LOOP(TWELVE(FMA_512)); }
static void fma_256(void) { LOOP(TWELVE(FMA_256)); }
static void vnni_512(void) { LOOP(TWELVE(VNNI_512)); }
static void vnni_256(void) { LOOP(TWELVE(VNNI_256)); }
static void bf16_512(void) { LOOP(TWELVE(BF16_512)); }
static void pairs_256(void) { LOOP(SIX(PAIRS_256)); }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* what other programs take does not count */
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

struct job {
    void (*round)(void);
    double seconds, rounds_per_s;
};

static void *work(void *given) {
    struct job *job = given;
    job->round(); /* the clock settles */
    double began = now(), ended = began;
    long rounds = 0;
    while (ended - began < job->seconds) {
        job->round();
        rounds += ROUNDS;
        ended = now();
    }
    job->rounds_per_s = rounds / (ended - began);
    return NULL;
}

/* `products`: multiplications in one round of the loop. */
static void measure(const char *kind, const char *name, void (*round)(void), int products, int threads, double s) {
    pthread_t id[threads];
    struct job jobs[threads];
    double all = 0;
    for (int i = 0; i < threads; i++) {
        jobs[i] = (struct job){round, s, 0};
        if (pthread_create(&id[i], NULL, work, &jobs[i])) {
            perror("pthread_create");
            exit(1);
        }
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(id[i], NULL);
        all += jobs[i].rounds_per_s;
    }
    printf("%s\t%s\t%.6e\n", kind, name, all * products * 2.0);
}

int main(int count, char **words) {
    int threads = count == 3 ? atoi(words[1]) : 0;
    double s = count == 3 ? atof(words[2]) : 0;
    if (threads < 1 || threads > 1024 || !(s > 0 && s <= 60)) {
        fprintf(stderr, "peak THREADS SECONDS: 1 to 1024 threads, at most 60 seconds\n");
        return 2;
    }
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        fprintf(stderr, "this processor has no AVX2\n");
        return 3;
    }
    int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    unsigned a = 0, b = 0, c = 0, d = 0;
    __get_cpuid_count(7, 1, &a, &b, &c, &d);
    int avx_vnni = a >> 4 & 1, avx512_bf16 = wide && a >> 5 & 1;
    if (wide)
        measure("f32", "vfmadd231ps, 512 bits", fma_512, 12 * 16, threads, s);
    else
        measure("f32", "vfmadd231ps, 256 bits", fma_256, 12 * 8, threads, s);
    if (wide && __builtin_cpu_supports("avx512vnni"))
        measure("int8", "vpdpbusd, 512 bits", vnni_512, 12 * 64, threads, s);
    else if (avx_vnni)
        measure("int8", "vpdpbusd, 256 bits", vnni_256, 12 * 32, threads, s);
    else
        measure("int8", "vpmaddubsw + vpmaddwd + vpaddd, 256 bits", pairs_256, 6 * 32, threads, s);
    if (avx512_bf16) measure("bf16", "vdpbf16ps, 512 bits", bf16_512, 12 * 32, threads, s);
    return 0;
}
