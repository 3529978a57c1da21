// Stands in for the compiler's immintrin.h when the AVX-512 kernels are compiled for a CPU without AVX-512:
// SIMDe (https://github.com/simd-everywhere/simde) makes every AVX-512 intrinsic out of AVX2 ones. Six are
// made here, because SIMDe 0.8.2 lacks the first two, reads past the mask in the loads and writes zeros past
// it in the stores.
#pragma once

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

#include <atomic>
#include <chrono>

namespace emulated_avx512 {

#define EMULATED static inline __attribute__((always_inline))

EMULATED simde__m512i cvtpd_epi64(simde__m512d a) {
    double from[8];
    long long to[8];
    simde_mm512_storeu_pd(from, a);
    for (int i = 0; i < 8; ++i) to[i] = _mm_cvtsd_si64(_mm_set_sd(from[i]));
    return simde_mm512_loadu_si512(to);
}
EMULATED simde__m128i cvtepi32_epi8(simde__m512i a) {
    int from[16];
    signed char to[16];
    simde_mm512_storeu_si512(from, a);
    for (int i = 0; i < 16; ++i) to[i] = static_cast<signed char>(from[i]);
    return simde_mm_loadu_si128(to);
}
EMULATED simde__m512 load(unsigned mask, const float* p) {
    float lanes[16];
    for (int i = 0; i < 16; ++i) lanes[i] = (mask >> i & 1) != 0 ? p[i] : 0;
    return simde_mm512_loadu_ps(lanes);
}
EMULATED simde__m512d load(unsigned mask, const double* p) {
    double lanes[8];
    for (int i = 0; i < 8; ++i) lanes[i] = (mask >> i & 1) != 0 ? p[i] : 0;
    return simde_mm512_loadu_pd(lanes);
}
EMULATED void store(float* p, unsigned mask, simde__m512 a) {
    float lanes[16];
    simde_mm512_storeu_ps(lanes, a);
    for (int i = 0; i < 16; ++i) {
        if ((mask >> i & 1) != 0) p[i] = lanes[i];
    }
}
EMULATED void store(double* p, unsigned mask, simde__m512d a) {
    double lanes[8];
    simde_mm512_storeu_pd(lanes, a);
    for (int i = 0; i < 8; ++i) {
        if ((mask >> i & 1) != 0) p[i] = lanes[i];
    }
}

#undef EMULATED

}  // namespace emulated_avx512

#undef _mm512_cvtpd_epi64
#define _mm512_cvtpd_epi64(a) emulated_avx512::cvtpd_epi64(a)
#undef _mm512_cvtepi32_epi8
#define _mm512_cvtepi32_epi8(a) emulated_avx512::cvtepi32_epi8(a)
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps(mask, p) emulated_avx512::load(mask, p)
#undef _mm512_maskz_loadu_pd
#define _mm512_maskz_loadu_pd(mask, p) emulated_avx512::load(mask, p)
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps(p, mask, a) emulated_avx512::store(p, mask, a)
#undef _mm512_mask_storeu_pd
#define _mm512_mask_storeu_pd(p, mask, a) emulated_avx512::store(p, mask, a)

#include "beyond.h"

// No register holds 64 bytes here: keep_in_register has nothing to say. The headers that it must not reach
// are above.
#define asm(...) static_assert(true)
