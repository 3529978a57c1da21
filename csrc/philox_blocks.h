// The words of several Philox blocks at a time, in vectors where the instruction set multiplies 32 bits to 64.
#pragma once

#include "philox.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

namespace fusedrnn::FUSEDRNN_ISA {

// Lanes of 64 bits that hold a word of the counter in their lower half; the product does not see the upper one.
#ifdef __AVX512F__
#define FUSEDRNN_WIDE_PHILOX
struct Wide {
    static constexpr int kLanes = 8, kAtOnce = 4;
    __m512i v;

    static FUSEDRNN_INLINE Wide load(const std::uint64_t* p) { return {_mm512_loadu_si512(p)}; }
    static FUSEDRNN_INLINE Wide set(std::uint64_t x) {
        return {_mm512_set1_epi64(static_cast<long long>(x))};
    }
    FUSEDRNN_INLINE Wide upper() const { return {_mm512_srli_epi64(v, 32)}; }
    // The words of lane i from 4 * i on.
    static FUSEDRNN_INLINE void store(const Wide (&c)[4], std::uint32_t* words) {
        const __m512i first = _mm512_mask_blend_epi32(0xAAAA, c[0].v, _mm512_slli_epi64(c[1].v, 32));
        const __m512i last = _mm512_mask_blend_epi32(0xAAAA, c[2].v, _mm512_slli_epi64(c[3].v, 32));
        const __m512i even = _mm512_unpacklo_epi64(first, last), odd = _mm512_unpackhi_epi64(first, last);
        const __m512i low = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
        const __m512i high = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
        _mm512_storeu_si512(words, _mm512_permutex2var_epi64(even, low, odd));
        _mm512_storeu_si512(words + 16, _mm512_permutex2var_epi64(even, high, odd));
    }
};
FUSEDRNN_INLINE Wide operator*(Wide a, Wide b) { return {_mm512_mul_epu32(a.v, b.v)}; }
FUSEDRNN_INLINE Wide operator^(Wide a, Wide b) { return {_mm512_xor_si512(a.v, b.v)}; }
#elif defined(__AVX2__)
#define FUSEDRNN_WIDE_PHILOX
struct Wide {
    static constexpr int kLanes = 4, kAtOnce = 2;
    __m256i v;

    static FUSEDRNN_INLINE Wide load(const std::uint64_t* p) {
        return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
    }
    static FUSEDRNN_INLINE Wide set(std::uint64_t x) {
        return {_mm256_set1_epi64x(static_cast<long long>(x))};
    }
    FUSEDRNN_INLINE Wide upper() const { return {_mm256_srli_epi64(v, 32)}; }
    // The words of lane i from 4 * i on.
    static FUSEDRNN_INLINE void store(const Wide (&c)[4], std::uint32_t* words) {
        const __m256i first = _mm256_blend_epi32(c[0].v, _mm256_slli_epi64(c[1].v, 32), 0xAA);
        const __m256i last = _mm256_blend_epi32(c[2].v, _mm256_slli_epi64(c[3].v, 32), 0xAA);
        const __m256i even = _mm256_unpacklo_epi64(first, last), odd = _mm256_unpackhi_epi64(first, last);
        auto* const to = reinterpret_cast<__m256i*>(words);
        _mm256_storeu_si256(to, _mm256_permute2x128_si256(even, odd, 0x20));
        _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
    }
};
FUSEDRNN_INLINE Wide operator*(Wide a, Wide b) { return {_mm256_mul_epu32(a.v, b.v)}; }
FUSEDRNN_INLINE Wide operator^(Wide a, Wide b) { return {_mm256_xor_si256(a.v, b.v)}; }
#endif

#ifdef FUSEDRNN_WIDE_PHILOX
inline constexpr int kPhiloxBlocks = Wide::kLanes == 8 ? 32 : 16;

// Of the blocks of several vectors, as many as fit in registers: the rounds of one wait for its products.
FUSEDRNN_INLINE void philox_wide(const std::uint64_t* block, std::uint64_t stream,
                                 const std::uint64_t (&keys)[20], std::uint32_t* words) {
    constexpr int N = Wide::kAtOnce;
    Wide c[N][4];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
        c[i][0] = Wide::load(block + Wide::kLanes * i);
        c[i][1] = c[i][0].upper();
        c[i][2] = Wide::set(stream);
        c[i][3] = c[i][2].upper();
    }
    const Wide by0 = Wide::set(0xD2511F53), by1 = Wide::set(0xCD9E8D57);
#pragma GCC unroll 10
    for (int round = 0; round < 10; ++round) {
        const Wide key0 = Wide::set(keys[2 * round]), key1 = Wide::set(keys[2 * round + 1]);
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) {
            const Wide p0 = c[i][0] * by0, p1 = c[i][2] * by1;
            c[i][0] = p1.upper() ^ (c[i][1] ^ key0);
            c[i][1] = p1;
            c[i][2] = p0.upper() ^ (c[i][3] ^ key1);
            c[i][3] = p0;
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) Wide::store(c[i], words + 4 * Wide::kLanes * i);
}
#else
inline constexpr int kPhiloxBlocks = 16;
#endif

// Bit h: whether half h of 16 words, the lower one of each first, is above `last`.
FUSEDRNN_INLINE std::uint32_t halves_above(const std::uint32_t* words, std::uint16_t last) {
#ifdef __AVX512BW__
    return _mm512_cmpgt_epu16_mask(_mm512_loadu_si512(words), _mm512_set1_epi16(static_cast<short>(last)));
#elif defined(__AVX2__)
    const auto* const from = reinterpret_cast<const __m256i*>(words);
    const __m256i most = _mm256_set1_epi16(static_cast<short>(last));
    const auto up_to = [&](__m256i halves) {
        return _mm256_cmpeq_epi16(_mm256_max_epu16(halves, most), most);
    };
    const __m256i both =
        _mm256_packs_epi16(up_to(_mm256_loadu_si256(from)), up_to(_mm256_loadu_si256(from + 1)));
    // Packing takes turns between the halves of both.
    return ~static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(both, 0xD8)));
#else
    std::uint32_t bits = 0;
    for (int w = 0; w < 16; ++w) {
        bits |= (words[w] & 0xFFFF) > last ? 1u << 2 * w : 0u;
        bits |= words[w] >> 16 > last ? 2u << 2 * w : 0u;
    }
    return bits;
#endif
}

// philox() of many blocks under one seed and stream.
class PhiloxBlocks {
  public:
    PhiloxBlocks(std::uint64_t seed, std::uint64_t stream) : seed_(seed), stream_(stream) {
#ifdef FUSEDRNN_WIDE_PHILOX
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
#ifdef FUSEDRNN_WIDE_PHILOX
        for (int i = 0; i < kPhiloxBlocks; i += Wide::kAtOnce * Wide::kLanes)
            philox_wide(block + i, stream_, keys_, words + 4 * i);
#else
        for (int i = 0; i < kPhiloxBlocks; ++i) {
            std::uint32_t four[4];
            philox(block[i], stream_, seed_, four);
            for (int w = 0; w < 4; ++w) words[4 * i + w] = four[w];
        }
#endif
    }

    // The words of blocks that follow each other.
    FUSEDRNN_INLINE void draw_from(std::int64_t first, std::uint32_t (&words)[4 * kPhiloxBlocks]) const {
        std::uint64_t block[kPhiloxBlocks];
        for (int b = 0; b < kPhiloxBlocks; ++b) block[b] = static_cast<std::uint64_t>(first + b);
        draw(block, words);
    }

  private:
    [[maybe_unused]] std::uint64_t seed_;
    std::uint64_t stream_;
#ifdef FUSEDRNN_WIDE_PHILOX
    std::uint64_t keys_[20];
#endif
};

}  // namespace fusedrnn::FUSEDRNN_ISA
