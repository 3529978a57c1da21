// AVX512_BF16, AVX512_VNNI and AMX for a CPU without them, after Intel's manual: products are fused, sums take the halves of words in the
// manual's order, denormals count as zero in the test's floating-point state anyway. A reciprocal is exact here, where the
// instruction has 14 bits: results are near those of the instructions, not equal to them.
#pragma once

#include <cstdint>
#include <cstring>

namespace emulated_avx512 {

inline float of_bf16(std::uint16_t half) {
    const std::uint32_t bits = std::uint32_t{half} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline std::uint16_t as_bf16(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
    return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

template <class To, class From>
To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class Sum, class Words>
Sum dpbf16(Sum c, Words a, Words b) {
    constexpr int kLanes = sizeof(Sum) / sizeof(float);
    struct Floats {
        float of[kLanes];
    } sums = bits_as<Floats>(c);
    struct Halves {
        std::uint16_t of[2 * kLanes];
    };
    const auto left = bits_as<Halves>(a), right = bits_as<Halves>(b);
    for (int i = 0; i < kLanes; ++i) {
        for (int k = 1; k >= 0; --k)
            sums.of[i] =
                __builtin_fmaf(of_bf16(left.of[2 * i + k]), of_bf16(right.of[2 * i + k]), sums.of[i]);
    }
    return bits_as<Sum>(sums);
}

template <class Floats>
simde__m512i cvtne2ps(Floats high, Floats low) {
    struct Lanes {
        float of[16];
    };
    const auto above = bits_as<Lanes>(high), below = bits_as<Lanes>(low);
    std::uint16_t halves[32];
    for (int i = 0; i < 16; ++i) {
        halves[i] = as_bf16(below.of[i]);
        halves[16 + i] = as_bf16(above.of[i]);
    }
    return simde_mm512_loadu_si512(halves);
}

struct Tile {
    int rows, bytes;
    float of[16][16];
};
inline thread_local Tile tiles[8];

inline void load_config(const void* from) {
    std::uint8_t config[64];
    std::memcpy(config, from, sizeof config);
    for (int i = 0; i < 8; ++i) {
        tiles[i] = {};
        tiles[i].rows = config[48 + i];
        tiles[i].bytes = config[16 + 2 * i] + 256 * config[17 + 2 * i];
    }
}
inline void load(int tile, const void* from, std::int64_t stride) {
    for (int r = 0; r < tiles[tile].rows; ++r) {
        std::memcpy(tiles[tile].of[r], static_cast<const char*>(from) + r * stride,
                    static_cast<std::size_t>(tiles[tile].bytes));
    }
}
inline void store(int tile, void* to, std::int64_t stride) {
    for (int r = 0; r < tiles[tile].rows; ++r) {
        std::memcpy(static_cast<char*>(to) + r * stride, tiles[tile].of[r],
                    static_cast<std::size_t>(tiles[tile].bytes));
    }
}
inline void zero(int tile) { std::memset(tiles[tile].of, 0, sizeof tiles[tile].of); }
inline void multiply(int c, int a, int b) {
    if (tiles[c].rows != tiles[a].rows || tiles[a].bytes != 4 * tiles[b].rows ||
        tiles[c].bytes != tiles[b].bytes)
        __builtin_trap();  // as the processor would
    for (int r = 0; r < tiles[c].rows; ++r) {
        for (int n = 0; 4 * n < tiles[c].bytes; ++n) {
            float sums[2] = {0, 0};
            for (int k = 0; k < tiles[b].rows; ++k) {
                std::uint16_t left[2], right[2];
                std::memcpy(left, &tiles[a].of[r][k], sizeof left);
                std::memcpy(right, &tiles[b].of[k][n], sizeof right);
                for (int i = 0; i < 2; ++i)
                    sums[i] = __builtin_fmaf(of_bf16(left[i]), of_bf16(right[i]), sums[i]);
            }
            tiles[c].of[r][n] += sums[0] + sums[1];
        }
    }
}

// Sums of four products of bytes, a of signed or unsigned ones.
template <class A>
std::int32_t dot_bytes(std::int32_t sum, const void* a, const void* b) {
    A left[4];
    std::int8_t right[4];
    std::memcpy(left, a, sizeof left);
    std::memcpy(right, b, sizeof right);
    for (int i = 0; i < 4; ++i) sum += left[i] * right[i];
    return sum;
}
inline void multiply_bytes(int c, int a, int b) {
    if (tiles[c].rows != tiles[a].rows || tiles[a].bytes != 4 * tiles[b].rows ||
        tiles[c].bytes != tiles[b].bytes)
        __builtin_trap();
    for (int r = 0; r < tiles[c].rows; ++r) {
        for (int n = 0; 4 * n < tiles[c].bytes; ++n) {
            std::int32_t sum;
            std::memcpy(&sum, &tiles[c].of[r][n], sizeof sum);
            for (int k = 0; k < tiles[b].rows; ++k)
                sum = dot_bytes<std::int8_t>(sum, &tiles[a].of[r][k], &tiles[b].of[k][n]);
            std::memcpy(&tiles[c].of[r][n], &sum, sizeof sum);
        }
    }
}
template <class Vector>
Vector dpbusd(Vector c, Vector a, Vector b) {
    struct Words {
        std::int32_t of[sizeof(Vector) / 4];
    };
    auto sums = bits_as<Words>(c);
    const auto left = bits_as<Words>(a), right = bits_as<Words>(b);
    for (std::size_t i = 0; i < sizeof(Vector) / 4; ++i)
        sums.of[i] = dot_bytes<std::uint8_t>(sums.of[i], &left.of[i], &right.of[i]);
    return bits_as<Vector>(sums);
}

}  // namespace emulated_avx512

#undef _mm512_dpbusd_epi32
#define _mm512_dpbusd_epi32(c, a, b) emulated_avx512::dpbusd(c, a, b)
#undef _tile_dpbssd
#define _tile_dpbssd(c, a, b) emulated_avx512::multiply_bytes(c, a, b)
#undef _mm512_dpbf16_ps
#define _mm512_dpbf16_ps(c, a, b) emulated_avx512::dpbf16(c, a, b)
#undef _mm256_dpbf16_ps
#define _mm256_dpbf16_ps(c, a, b) emulated_avx512::dpbf16(c, a, b)
#undef _mm512_cvtne2ps_pbh
#define _mm512_cvtne2ps_pbh(high, low) emulated_avx512::cvtne2ps(high, low)
#undef _mm512_rcp14_ps
#define _mm512_rcp14_ps(a) _mm512_div_ps(_mm512_set1_ps(1.0f), a)
#undef _tile_loadconfig
#define _tile_loadconfig(from) emulated_avx512::load_config(from)
#undef _tile_release
#define _tile_release() static_cast<void>(0)
#undef _tile_loadd
#define _tile_loadd(tile, from, stride) emulated_avx512::load(tile, from, stride)
#undef _tile_stored
#define _tile_stored(tile, to, stride) emulated_avx512::store(tile, to, stride)
#undef _tile_zero
#define _tile_zero(tile) emulated_avx512::zero(tile)
#undef _tile_dpbf16ps
#define _tile_dpbf16ps(c, a, b) emulated_avx512::multiply(c, a, b)
