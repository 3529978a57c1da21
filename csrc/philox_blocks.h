// The words of several Philox blocks at a time, in vectors where the instruction set multiplies 32 bits to 64.
#pragma once

#include "philox.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr int kPhiloxBlocks = 16;

#ifdef __AVX2__
// Of 8 blocks. A lane of 64 bits holds a word of the counter in its lower half; the product does not see the upper one.
// Twice as many would not fit in the registers.
FUSEDRNN_INLINE void philox_8(const std::uint64_t* block, std::uint64_t stream,
                              const std::uint64_t (&keys)[20], std::uint32_t* words) {
    constexpr int N = 2;
    __m256i c0[N], c1[N], c2[N], c3[N];
    for (int i = 0; i < N; ++i) {
        c0[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 4 * i));
        c1[i] = _mm256_srli_epi64(c0[i], 32);
        c2[i] = _mm256_set1_epi64x(static_cast<long long>(stream));
        c3[i] = _mm256_srli_epi64(c2[i], 32);
    }
    const __m256i by0 = _mm256_set1_epi64x(0xD2511F53), by1 = _mm256_set1_epi64x(0xCD9E8D57);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        const __m256i key0 = _mm256_set1_epi64x(static_cast<long long>(keys[2 * round]));
        const __m256i key1 = _mm256_set1_epi64x(static_cast<long long>(keys[2 * round + 1]));
#pragma GCC unroll 2
        for (int i = 0; i < N; ++i) {
            const __m256i p0 = _mm256_mul_epu32(c0[i], by0), p1 = _mm256_mul_epu32(c2[i], by1);
            c0[i] = _mm256_xor_si256(_mm256_srli_epi64(p1, 32), _mm256_xor_si256(c1[i], key0));
            c1[i] = p1;
            c2[i] = _mm256_xor_si256(_mm256_srli_epi64(p0, 32), _mm256_xor_si256(c3[i], key1));
            c3[i] = p0;
        }
    }
#pragma GCC unroll 2
    for (int i = 0; i < N; ++i) {
        const __m256i first = _mm256_blend_epi32(c0[i], _mm256_slli_epi64(c1[i], 32), 0xAA);
        const __m256i last = _mm256_blend_epi32(c2[i], _mm256_slli_epi64(c3[i], 32), 0xAA);
        const __m256i even = _mm256_unpacklo_epi64(first, last), odd = _mm256_unpackhi_epi64(first, last);
        auto* const to = reinterpret_cast<__m256i*>(words + 16 * i);
        _mm256_storeu_si256(to, _mm256_permute2x128_si256(even, odd, 0x20));
        _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
    }
}
#endif

// philox() of many blocks under one seed and stream.
class PhiloxBlocks {
  public:
    PhiloxBlocks(std::uint64_t seed, std::uint64_t stream) : seed_(seed), stream_(stream) {
#ifdef __AVX2__
        std::uint32_t k0 = static_cast<std::uint32_t>(seed), k1 = static_cast<std::uint32_t>(seed >> 32);
        for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
            keys_[2 * round] = k0;
            keys_[2 * round + 1] = k1;
        }
#endif
    }
    // words[4 * i + w] is word w of block[i].
    FUSEDRNN_INLINE void draw(const std::uint64_t (&block)[kPhiloxBlocks],
                              std::uint32_t (&words)[4 * kPhiloxBlocks]) const {
#ifdef __AVX2__
        for (int i = 0; i < kPhiloxBlocks; i += 8) philox_8(block + i, stream_, keys_, words + 4 * i);
#else
        for (int i = 0; i < kPhiloxBlocks; ++i) {
            std::uint32_t four[4];
            philox(block[i], stream_, seed_, four);
            for (int w = 0; w < 4; ++w) words[4 * i + w] = four[w];
        }
#endif
    }

  private:
    [[maybe_unused]] std::uint64_t seed_;
    std::uint64_t stream_;
#ifdef __AVX2__
    std::uint64_t keys_[20];
#endif
};

}  // namespace fusedrnn::FUSEDRNN_ISA
