// What the 32 lanes of a warp do together, from the operands of all of them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "grid.h"
#include "include/platform/device.h"

namespace fusedrnn::cuda::emulator {

namespace {

struct Shuffle {
    unsigned char* v;
    unsigned char before[8];
    int size, from;
};

void run_shuffle(void* const (&lanes)[32]) {
    for (void* lane : lanes) {
        auto& to = *static_cast<Shuffle*>(lane);
        std::memcpy(to.v, static_cast<const Shuffle*>(lanes[to.from])->before,
                    static_cast<std::size_t>(to.size));
    }
}

struct LoadMatrix {
    unsigned* r;
    const unsigned char* row;
};

template <int matrices, bool transposed>
void run_ldmatrix(void* const (&lanes)[32]) {
    for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int matrix = 0; matrix < matrices; ++matrix) {
            const auto element = [&](int row, int column) {
                std::uint16_t v;
                std::memcpy(&v, static_cast<const LoadMatrix*>(lanes[8 * matrix + row])->row + 2 * column, 2);
                return unsigned{v};
            };
            static_cast<LoadMatrix*>(lanes[lane])->r[matrix] =
                transposed ? element(2 * t, g) | element(2 * t + 1, g) << 16
                           : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
        }
    }
}

struct Mma {
    float* c;
    const unsigned *a, *b;
};

// The elements of a register: two of two bytes, or one of four.
struct Bf16 {
    static constexpr int kPerRegister = 2;
    static float element(unsigned r, int i) { return as_float(r >> (16 * i) << 16); }
};
struct F16 {
    static constexpr int kPerRegister = 2;
    static float element(unsigned r, int i) {
        return from_f16_bits(static_cast<std::uint16_t>(r >> (16 * i)));
    }
};
struct Tf32 {
    static constexpr int kPerRegister = 1;
    static float element(unsigned r, int) {
        return as_float(r & ~0x1FFFu);
    }  // the other bits are not looked at
};

// Products are exact and are added in float64; the sum is rounded once. A GPU rounds more often.
template <class Format>
void run_mma(void* const (&lanes)[32]) {
    constexpr int n = Format::kPerRegister, depth = 8 * n;
    float a[16][depth], b[depth][8];
    for (int lane = 0; lane < 32; ++lane) {
        const auto& operands = *static_cast<const Mma*>(lanes[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < n; ++i) {
            const int k = n * t + i;
            a[g][k] = Format::element(operands.a[0], i);
            a[g + 8][k] = Format::element(operands.a[1], i);
            a[g][k + 4 * n] = Format::element(operands.a[2], i);
            a[g + 8][k + 4 * n] = Format::element(operands.a[3], i);
            b[k][g] = Format::element(operands.b[0], i);
            b[k + 4 * n][g] = Format::element(operands.b[1], i);
        }
    }
    for (int lane = 0; lane < 32; ++lane) {
        float* c = static_cast<const Mma*>(lanes[lane])->c;
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            double sum = c[i];
            for (int k = 0; k < depth; ++k) sum += double{a[row][k]} * double{b[k][column]};
            c[i] = static_cast<float>(sum);
        }
    }
}

}  // namespace

void order_warp() {
    Block& block = *self->block;
    const auto first = static_cast<std::size_t>(self->place.thread / 32 * 32);
    merge_seen(std::span<const std::unique_ptr<Thread>>(block.threads).subspan(first, 32));
    std::uint64_t fresh = 0;
    for (std::size_t i = first; i < first + 32; ++i) {
        block.threads[i]->stores.move_to(block.warps[first / 32].stores);
        fresh = std::max(fresh, block.threads[i]->fresh);
    }
    for (std::size_t i = first; i < first + 32; ++i) block.threads[i]->fresh = fresh;
}

void shuffle(void* v, int size, int from, Site site) {
    if (from < 0 || from > 31)
        grid->fail("shuffle: expected a lane 0 to 31, got " + std::to_string(from), site);
    Shuffle operands{static_cast<unsigned char*>(v), {}, size, from};
    std::memcpy(operands.before, v, static_cast<std::size_t>(size));
    grid->warp_operation("shuffle", &run_shuffle, &operands, site);
}

void shuffle_xor(void* v, int size, int mask, Site site) {
    if (mask < 0 || mask > 31)
        grid->fail("shuffle_xor: expected a mask 0 to 31, got " + std::to_string(mask), site);
    Shuffle operands{static_cast<unsigned char*>(v), {}, size, place->thread % 32 ^ mask};
    std::memcpy(operands.before, v, static_cast<std::size_t>(size));
    grid->warp_operation("shuffle_xor", &run_shuffle, &operands, site);
}

void ldmatrix(unsigned* r, int matrices, bool transposed, const void* row, Site site) {
    const auto* byte = static_cast<const unsigned char*>(row);
    if (place->thread % 32 < 8 * matrices) {
        if (reinterpret_cast<Address>(row) % 16 != 0) grid->fail("misaligned row of ldmatrix", site);
        if (byte < place->shared || byte + 16 > place->shared + place->shared_bytes) {
            grid->fail("a row of ldmatrix is outside of the shared memory of the block", site);
        }
        check_received(row, 16, site);
    }
    LoadMatrix operands{r, byte};
    if (matrices == 2) {
        grid->warp_operation("ldmatrix", transposed ? &run_ldmatrix<2, true> : &run_ldmatrix<2, false>,
                             &operands, site);
    } else {
        grid->warp_operation("ldmatrix", transposed ? &run_ldmatrix<4, true> : &run_ldmatrix<4, false>,
                             &operands, site);
    }
}

void mma_bf16(float* c, const unsigned* a, const unsigned* b, Site site) {
    Mma operands{c, a, b};
    grid->warp_operation("mma_bf16", &run_mma<Bf16>, &operands, site);
}
void mma_f16(float* c, const unsigned* a, const unsigned* b, Site site) {
    Mma operands{c, a, b};
    grid->warp_operation("mma_f16", &run_mma<F16>, &operands, site);
}
void mma_tf32(float* c, const unsigned* a, const unsigned* b, Site site) {
    Mma operands{c, a, b};
    grid->warp_operation("mma_tf32", &run_mma<Tf32>, &operands, site);
}

// ---- conversions ---------------------------------------------------------------------------------------

std::uint16_t bf16_bits(float x) {
    if (std::isnan(x)) return 0x7FFF;
    const unsigned bits = as_unsigned(x);
    return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

std::uint16_t f16_bits(float x) {
    if (std::isnan(x)) return 0x7FFF;
    const unsigned sign = as_unsigned(x) >> 31 << 15;
    const float magnitude = std::fabs(x);
    if (magnitude == 0) return static_cast<std::uint16_t>(sign);
    if (magnitude >= 65520.0f) return static_cast<std::uint16_t>(sign | 0x7C00);
    int exponent = 0;
    std::frexp(magnitude, &exponent);               // magnitude = [0.5, 1) 2^exponent
    const int unit = std::max(exponent - 11, -24);  // of the last place
    const auto significand = static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, -unit)));
    // The leading 1 of a normal number counts as one more in the exponent; rounding up may carry into it,
    // too.
    const unsigned bits = (static_cast<unsigned>(unit + 24) << 10) + significand;
    return static_cast<std::uint16_t>(sign | bits);
}

float from_f16_bits(std::uint16_t bits) {
    const unsigned exponent = bits >> 10 & 31, fraction = bits & 1023;
    float magnitude;
    if (exponent == 31) {
        magnitude = fraction == 0 ? HUGE_VALF : as_float(0x7FFFFFFF);
    } else if (exponent == 0) {
        magnitude = std::ldexp(static_cast<float>(fraction), -24);
    } else {
        magnitude = std::ldexp(static_cast<float>(1024 + fraction), static_cast<int>(exponent) - 25);
    }
    return bits >> 15 ? -magnitude : magnitude;
}

unsigned tf32_bits(float x) {
    const unsigned bits = as_unsigned(x);
    if (std::isnan(x)) return 0x7FFFFFFF;
    if (std::isinf(x)) return bits;
    return (bits + 0x1000) & ~0x1FFFu;
}

}  // namespace fusedrnn::cuda::emulator
