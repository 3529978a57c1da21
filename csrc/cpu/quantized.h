// Weights of fewer bits: how they are stored, and their product with a few rows.
//
// A weight (G*H, K) becomes panels as in gemm.h, with two neighbouring k side by side for each output, which is how both
// formats are read: [H/L][K/2][G][L][2], zeros past K and H. The rows of the other factor are prepared once for all
// panels: padded to whole pairs, and for int8 quantized too.
//
//   bfloat16  the upper half of a float32, rounded to nearest even; products and sums in float32, one chain in the order
//             of k that starts from `init`
//   int8      a row of weights w, and a row x, become round(w / s), s = max |w| / 127; the sum over k of their products
//             is exact in int32, and the result is init + (s_w s_x) sum. A row that is all below 1e-30 counts as zero.
//             One with NaN or infinity has the scale NaN, and so NaN comes out.
#pragma once

#include "cpu/gemm.h"
#include "cpu/layout.h"
#include "cpu/pack.h"

namespace fusedrnn::FUSEDRNN_ISA {

constexpr std::int64_t pairs_of(std::int64_t k) { return (k + 1) / 2; }

struct Bf16 {
    using Weight = std::uint16_t;
    using Value = float;  // of a prepared row
    using V = Vec<float>;
    using Sum = V;
    struct Pair {
        V even, odd;
    };
    static constexpr bool kScaled = false;

    static FUSEDRNN_INLINE Pair load(const Weight* p) {
        Pair w;
        load_bf16(p, w.even, w.odd);
        return w;
    }
    static FUSEDRNN_INLINE Pair broadcast(const Value* p) { return {V::set(p[0]), V::set(p[1])}; }
    static FUSEDRNN_INLINE Sum start(const float* init) {
        return init == nullptr ? V::set(0) : V::load(init);
    }
    static FUSEDRNN_INLINE Sum multiply_add(const Pair& x, const Pair& w, Sum sum) {
        return fma(x.odd, w.odd, fma(x.even, w.even, sum));
    }
    static FUSEDRNN_INLINE V finish(Sum sum, const float*, const float*, float) { return sum; }

    static void prepare(const float* row, std::int64_t n, Value* out, float*) {
        copy(row, out, n);
        if (n % 2 != 0) out[n] = 0;
    }
    // Calls put(k, weight) for each weight of a row; returns its scale.
    template <class Put>
    static float encode(const float* row, std::int64_t n, Put&& put) {
        for (std::int64_t k = 0; k < n; ++k) put(k, rounded(row[k]));
        return 1;
    }

  private:
    static Weight rounded(float x) {
        std::uint32_t bits;
        __builtin_memcpy(&bits, &x, sizeof bits);
        if (x != x) return static_cast<Weight>(bits >> 16 | 0x40);  // NaN, whatever its payload
        return static_cast<Weight>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
    }
};

struct Int8 {
    using Weight = std::int8_t;
    using Value = std::int16_t;
    using V = Vec<float>;
    using Sum = VecI;
    using Pair = VecI;
    static constexpr bool kScaled = true;
    static constexpr int L = V::kLanes;

    static FUSEDRNN_INLINE Pair load(const Weight* p) { return VecI::load_int8(p); }
    static FUSEDRNN_INLINE Pair broadcast(const Value* p) {
        std::int32_t both;
        __builtin_memcpy(&both, p, sizeof both);
        return VecI::set(both);
    }
    static FUSEDRNN_INLINE Sum start(const float*) { return VecI::set(0); }
    static FUSEDRNN_INLINE Sum multiply_add(const Pair& x, const Pair& w, Sum sum) {
        return dot_pairs(x, w, sum);
    }
    static FUSEDRNN_INLINE V finish(Sum sum, const float* init, const float* scale, float row_scale) {
        return fma(V::load(scale) * V::set(row_scale), to_float(sum),
                   init == nullptr ? V::set(0) : V::load(init));
    }

    // `out` has room for n rounded up to whole pairs; no more of it is written.
    static void prepare(const float* row, std::int64_t n, Value* out, float* scale) {
        const Scale s = scale_of(row, n);
        *scale = s.scale;
        std::int64_t k = 0;
        for (; k + L <= n; k += L) store_int16(quantized(V::load(row + k), s), out + k);
        if (k < pairs_of(n) * 2) {
            Value last[L];
            store_int16(quantized(load_part(row + k, n - k), s), last);
            for (std::int64_t i = k; i < n; ++i) out[i] = last[i - k];
            if (n % 2 != 0) out[n] = 0;
        }
    }
    template <class Put>
    static float encode(const float* row, std::int64_t n, Put&& put) {
        const Scale s = scale_of(row, n);
        for (std::int64_t k = 0; k < n; k += L) {
            Value values[L];
            store_int16(quantized(load_part(row + k, n - k), s), values);
            for (std::int64_t i = k; i < smaller(k + L, n); ++i) put(i, static_cast<Weight>(values[i - k]));
        }
        return s.scale;
    }

  private:
    struct Scale {
        float scale, inverse;
    };

    static Scale scale_of(const float* row, std::int64_t n) {
        V most = V::set(0), bad = V::set(0);  // bad: NaN where a value is not finite, else 0
        for (std::int64_t k = 0; k < n; k += L) {
            const V v = load_part(row + k, n - k);
            most = max(most, abs(v));
            bad = fma(v, V::set(0), bad);
        }
        float lanes[L];
        most.store(lanes);
        float largest = 0;
        for (int l = 0; l < L; ++l) largest = lanes[l] > largest ? lanes[l] : largest;
        if (!(sum(bad) == 0)) return {__builtin_nanf(""), 0};
        if (largest < 1e-30f) return {0, 0};  // 127 / largest must be a number
        return {largest / 127.0f, 127.0f / largest};
    }
    // The bounds come last: they turn NaN, and what is rounded past 127, into numbers that fit.
    static FUSEDRNN_INLINE V quantized(V x, const Scale& s) {
        return round(max(min(x * V::set(s.inverse), V::set(127)), V::set(-127)));
    }
};

// W (G*H, K) -> panels, and for int8 the scales [H/L][G][L].
template <class Format>
void quantize_rows(const float* w, std::int64_t gates, std::int64_t units, std::int64_t k_size, void* out,
                   float* scales) {
    constexpr int L = Vec<float>::kLanes;
    using Weight = typename Format::Weight;
    const std::int64_t panels = panels_of<float>(units), size = pairs_of(k_size) * gates * L * 2;
    fill_zero(static_cast<Weight*>(out), panels * size);
    if (Format::kScaled) fill_zero(scales, panels * gates * L);
    for (std::int64_t unit = 0; unit < units; ++unit) {
        for (std::int64_t g = 0; g < gates; ++g) {
            Weight* to = static_cast<Weight*>(out) + unit / L * size + (g * L + unit % L) * 2;
            const float scale = Format::encode(
                w + (g * units + unit) * k_size, k_size,
                [&](std::int64_t k, Weight weight) { to[k / 2 * gates * L * 2 + k % 2] = weight; });
            if (Format::kScaled) scales[(unit / L * gates + g) * L + unit % L] = scale;
        }
    }
}

template <class Format, class Cell>
QuantizedWeights quantized_layout(const Dims& d, Arena& arena) {
    using Weight = typename Format::Weight;
    constexpr std::int64_t G = Cell::kGates;
    const std::int64_t h = padded<float>(d.H), p = padded<float>(d.P);
    QuantizedWeights out{};
    out.w_ih = arena.take<Weight>(h * G * pairs_of(d.I) * 2);
    out.w_hh = arena.take<Weight>(h * G * pairs_of(d.P) * 2);
    if (d.projected) out.w_hr = arena.take<Weight>(p * pairs_of(d.H) * 2);
    if (Format::kScaled) {
        out.s_ih = arena.take<float>(h * G);
        out.s_hh = arena.take<float>(h * G);
        if (d.projected) out.s_hr = arena.take<float>(p);
    }
    out.b_x = arena.take<float>(h * G);
    if (Cell::kSplitGates) out.b_h = arena.take<float>(h * G);
    return out;
}

template <class Format, class Cell>
std::int64_t quantized_bytes(const Dims& d) {
    Arena arena(nullptr);
    quantized_layout<Format, Cell>(d, arena);
    return arena.used();
}

template <class Format, class Cell>
void quantized_pack(const Dims& d, const Params<const float>& w, void* block, QuantizedWeights& out) {
    constexpr std::int64_t G = Cell::kGates;
    Arena arena(block);
    out = quantized_layout<Format, Cell>(d, arena);
    quantize_rows<Format>(w.w_ih, G, d.H, d.I, out.w_ih, out.s_ih);
    quantize_rows<Format>(w.w_hh, G, d.H, d.P, out.w_hh, out.s_hh);
    if (d.projected) quantize_rows<Format>(w.w_hr, 1, d.P, d.H, out.w_hr, out.s_hr);
    pack_bias<float>(w.b_ih, Cell::kSplitGates ? nullptr : w.b_hh, G, d.H, out.b_x);
    if (Cell::kSplitGates) pack_bias<float>(w.b_hh, nullptr, G, d.H, out.b_h);
}

// out = init + A W^T for n prepared rows and all panels.
template <class Format>
struct Product {
    const typename Format::Value* x;  // row r at x + r * x_row
    const float* x_scale;             // (n); int8 only
    std::int64_t x_row, n, pairs;
    const typename Format::Weight* w;
    const float* w_scale;  // int8 only
    std::int64_t panels;
    const float* init;  // row r, panel u at init + u * init_panel + r * init_row; null: from 0
    std::int64_t init_panel, init_row;
    float* out;  // row r, panel u at out + u * out_panel + r * out_row
    std::int64_t out_panel, out_row;
};

// Rows of the largest tile, and the panels a tile of R rows takes: beside the accumulators, both halves of a pair of
// weights and of each row's pair need registers.
template <int G>
constexpr int quantized_tile_rows() {
    return kRegisters == 32 || G == 1 ? 4 : 2;
}
template <int G>
constexpr int quantized_tile_panels(int rows) {
    const int fit = (kRegisters == 32 ? 16 : 8) / (rows * G);
    return fit < 1 ? 1 : (fit > 8 ? 8 : fit);
}

template <class Format, int R, int U, int G>
void quantized_tile(const Product<Format>& p, std::int64_t row, std::int64_t panel) {
    constexpr int L = Vec<float>::kLanes, N = U * G;
    const std::int64_t w_panel = p.pairs * G * L * 2;
    const float* init = p.init == nullptr ? nullptr : p.init + panel * p.init_panel + row * p.init_row;
    const auto init_at = [&](int r, int n) {
        return init == nullptr ? nullptr : init + (n / G) * p.init_panel + r * p.init_row + (n % G) * L;
    };
    typename Format::Sum acc[R][N];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) acc[r][n] = Format::start(init_at(r, n));
    }
    const typename Format::Value* x = p.x + row * p.x_row;
    const typename Format::Weight* w = p.w + panel * w_panel;
    for (std::int64_t k = 0; k < p.pairs; ++k, x += 2, w += G * L * 2) {
        typename Format::Pair values[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) values[r] = Format::broadcast(x + r * p.x_row);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
            const typename Format::Pair weights = Format::load(w + (n / G) * w_panel + (n % G) * L * 2);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) acc[r][n] = Format::multiply_add(values[r], weights, acc[r][n]);
        }
    }
    float* out = p.out + panel * p.out_panel + row * p.out_row;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
            const float* scale =
                Format::kScaled ? p.w_scale + (panel + n / G) * G * L + (n % G) * L : nullptr;
            const float row_scale = Format::kScaled ? p.x_scale[row + r] : 1;
            Format::finish(acc[r][n], init_at(r, n), scale, row_scale)
                .store(out + (n / G) * p.out_panel + r * p.out_row + (n % G) * L);
        }
    }
}

template <class Format, int G, int R = 1>
FUSEDRNN_INLINE auto select_quantized_tile(int rows, bool wide)
    -> void (*)(const Product<Format>&, std::int64_t, std::int64_t) {
    if (rows == R) {
        return wide ? quantized_tile<Format, R, quantized_tile_panels<G>(R), G>
                    : quantized_tile<Format, R, 1, G>;
    }
    if constexpr (R < quantized_tile_rows<G>()) return select_quantized_tile<Format, G, R + 1>(rows, wide);
    return nullptr;
}

// Row tiles as equal as they can be, each against a group of panels while it is in the L1 cache.
template <class Format, int G>
void multiply(const Product<Format>& p) {
    constexpr int kRows = quantized_tile_rows<G>();
    const std::int64_t tiles = (p.n + kRows - 1) / kRows;
    if (tiles == 0) return;
    const std::int64_t group = quantized_tile_panels<G>(static_cast<int>((p.n + tiles - 1) / tiles));
    for (std::int64_t u = 0; u < p.panels; u += group) {
        const std::int64_t end = smaller(u + group, p.panels);
        std::int64_t row = 0;
        for (std::int64_t tile = 0; tile < tiles; ++tile) {
            const int rows = static_cast<int>((p.n - row) / (tiles - tile));
            const std::int64_t wide = quantized_tile_panels<G>(rows);
            for (std::int64_t v = u; v < end;) {
                const bool is_wide = v + wide <= end;
                select_quantized_tile<Format, G>(rows, is_wide)(p, row, v);
                v += is_wide ? wide : 1;
            }
            row += rows;
        }
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
