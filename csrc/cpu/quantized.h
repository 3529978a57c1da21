// Weights of fewer bits: how they are stored, and their product with a few rows.
//
// A weight (G*H, K) becomes panels as in gemm.h, but with N neighbouring k side by side for each output, as the
// product reads them: [H/L][K/N][G][L][N], zeros past K and H. The rows of the other factor are prepared once for
// all panels.
//
//   bf16  N = 2. The upper half of a float32, rounded to nearest even. Products and sums in float32: one chain in
//         the order of k that starts from `init`.
//   int8  N = 4. A row of weights w, or a row x, becomes round(w / s) with s = max |w| / 127. The sum over k of
//         the products is exact in int32, and init + (s_w s_x) sum is the result. A row that is all below 1e-30
//         counts as zero; one with NaN or infinity has the scale NaN and gives NaN.
//
// The instructions multiply unsigned by signed bytes, and are exact if the unsigned ones are at most 127. So x
// enters as its magnitude, and where it is negative, w as w ^ -1 = -w - 1: then x w = |x| (w ^ -1) + |x|, and the
// sum over k starts from the sum of those |x|.
#pragma once

#include "cpu/gemm.h"
#include "cpu/layout.h"
#include "cpu/pack.h"

namespace fusedrnn::FUSEDRNN_ISA {

constexpr std::int64_t groups_of(std::int64_t k, std::int64_t group) { return (k + group - 1) / group; }

// What a prepared row has beside its values; bf16 needs neither.
struct RowScale {
    float scale;
    std::int32_t start;
};

struct Bf16 {
    using Weight = std::uint16_t;
    using Value = float;  // of a prepared row
    using V = Vec<float>;
    using Sum = V;
    struct Group {
        V even, odd;
    };
    static constexpr int kGroup = 2, kAccumulators = 16;
    static constexpr bool kScaled = false;

    static std::int64_t groups(std::int64_t k) { return groups_of(k, kGroup); }
    static std::int64_t row_values(std::int64_t k) { return groups(k) * kGroup; }
    static FUSEDRNN_INLINE Group load(const Weight* p) {
        Group w;
        load_bf16(p, w.even, w.odd);
        return w;
    }
    // Group k of a prepared row.
    static FUSEDRNN_INLINE Group broadcast(const Value* row, std::int64_t, std::int64_t k) {
        return {V::set(row[k * 2]), V::set(row[k * 2 + 1])};
    }
    static FUSEDRNN_INLINE Sum start(const float* init, const RowScale&) {
        return init == nullptr ? V::set(0) : V::load(init);
    }
    static FUSEDRNN_INLINE Sum multiply_add(const Group& x, const Group& w, Sum sum) {
        return fma(x.odd, w.odd, fma(x.even, w.even, sum));
    }
    static FUSEDRNN_INLINE V finish(Sum sum, const float*, const float*, const RowScale&) { return sum; }

    static void prepare(const float* row, std::int64_t n, Value* out, std::int64_t, RowScale*) {
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
    // All magnitudes of a row, then all masks: -1 where x is negative, else 0; then, where there are tiles, the row itself.
    using Value = std::int8_t;
    using V = Vec<float>;
    using Sum = VecI;
    struct Group {
        VecI magnitude, mask;
    };
    static constexpr int kGroup = 4, L = V::kLanes;
    static constexpr int kAccumulators = 8;  // each waits for one short addition only
    static constexpr bool kScaled = true;

#ifdef FUSEDRNN_AMX_INT8
    static constexpr int kParts = 3, kWhole = 64;  // what a row of a tile has
    static std::int64_t groups(std::int64_t k) { return groups_of(k, kWhole) * (kWhole / kGroup); }
    static std::int64_t signed_part(std::int64_t row) { return row / kParts * 2; }
#else
    static constexpr int kParts = 2, kWhole = 16;
    static std::int64_t groups(std::int64_t k) { return groups_of(k, kGroup); }
#endif
    // Whole vectors of each, so that they can be stored.
    static std::int64_t part_values(std::int64_t k) { return groups_of(k, kWhole) * kWhole; }
    static std::int64_t row_values(std::int64_t k) { return kParts * part_values(k); }
    static FUSEDRNN_INLINE VecI load(const Weight* p) { return VecI::load(p); }
    static FUSEDRNN_INLINE Group broadcast(const Value* row, std::int64_t size, std::int64_t k) {
        std::int32_t magnitude, mask;
        __builtin_memcpy(&magnitude, row + k * 4, 4);
        __builtin_memcpy(&mask, row + size / kParts + k * 4, 4);
        return {VecI::set(magnitude), VecI::set(mask)};
    }
    static FUSEDRNN_INLINE Sum start(const float*, const RowScale& row) { return VecI::set(row.start); }
    static FUSEDRNN_INLINE Sum multiply_add(const Group& x, VecI w, Sum sum) {
        return dot4(x.magnitude, w ^ x.mask, sum);
    }
    static FUSEDRNN_INLINE V finish(Sum sum, const float* init, const float* scale, const RowScale& row) {
        return fma(V::load(scale) * V::set(row.scale), to_float(sum),
                   init == nullptr ? V::set(0) : V::load(init));
    }

    // `out` has room for `size` values, at least row_values(n).
    static void prepare(const float* row, std::int64_t n, Value* out, std::int64_t size, RowScale* scale) {
        static_assert(16 % L == 0);
        const Scale s = scale_of(row, n);
        V below = V::set(0);
        for (std::int64_t k = 0; k < part_values(n); k += L) {
            const V q = quantized(load_part(row + k, larger(0, n - k)), s), minus = V::set(0) - q;
            const auto negative = less(q, V::set(0));
            store_int8(max(q, minus), out + k);
            store_int8(select(negative, V::set(-1), V::set(0)), out + size / kParts + k);
#ifdef FUSEDRNN_AMX_INT8
            store_int8(q, out + signed_part(size) + k);
#endif
            below = below + select(negative, minus, V::set(0));
        }
        // Exact: the sizes keep each lane below 2^24, and all of them together.
        *scale = {s.scale, static_cast<std::int32_t>(sum(below))};
    }
    template <class Put>
    static float encode(const float* row, std::int64_t n, Put&& put) {
        const Scale s = scale_of(row, n);
        for (std::int64_t k = 0; k < n; k += L) {
            Value values[L];
            store_int8(quantized(load_part(row + k, n - k), s), values);
            for (std::int64_t i = k; i < smaller(k + L, n); ++i) put(i, values[i - k]);
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
void quantize_rows(const float* w, std::int64_t gates, std::int64_t units, std::int64_t k_size,
                   const QuantizedWeights::Matrix& out, Team& team) {
    constexpr int L = Vec<float>::kLanes;
    constexpr std::int64_t N = Format::kGroup;
    using Weight = typename Format::Weight;
    const std::int64_t panels = panels_of<float>(units), size = out.groups * gates * L * N;
    fill_zero(static_cast<Weight*>(out.w), panels * size);
    if (Format::kScaled) fill_zero(out.scale, panels * gates * L);
    for (std::int64_t unit = 0; unit < units; ++unit) {
        if (team.cancelled(0, gates * k_size * kPackWork)) return;
        for (std::int64_t g = 0; g < gates; ++g) {
            Weight* to = static_cast<Weight*>(out.w) + unit / L * size + (g * L + unit % L) * N;
            const float scale = Format::encode(
                w + (g * units + unit) * k_size, k_size,
                [&](std::int64_t k, Weight weight) { to[k / N * gates * L * N + k % N] = weight; });
            if (Format::kScaled) out.scale[(unit / L * gates + g) * L + unit % L] = scale;
        }
    }
}

template <class Format, class Cell>
QuantizedWeights quantized_layout(const Dims& d, Arena& arena) {
    using Weight = typename Format::Weight;
    constexpr std::int64_t G = Cell::kGates, N = Format::kGroup;
    const std::int64_t h = padded<float>(d.H), p = padded<float>(d.P);
    QuantizedWeights out{};
    const auto take = [&](QuantizedWeights::Matrix& m, std::int64_t rows, std::int64_t k) {
        m.groups = Format::groups(k);
        m.w = arena.take<Weight>(rows * m.groups * N);
        if (Format::kScaled) m.scale = arena.take<float>(rows);
    };
    take(out.ih, h * G, d.I);
    take(out.hh, h * G, d.P);
    if (d.projected) take(out.hr, p, d.H);
    out.b_x = arena.take<float>(h * G);
    if (Cell::kSplitGates) out.b_h = arena.take<float>(h * G);
    if (kPerUnit<Cell> > 0) out.units = arena.take<float>(h * kPerUnit<Cell>);
    return out;
}

template <class Format, class Cell>
std::int64_t quantized_bytes(const RecurrentCell&, const Dims& d) {
    Arena arena(nullptr);
    quantized_layout<Format, Cell>(d, arena);
    return arena.used();
}

template <class Format, class Cell>
void quantized_pack(const RecurrentCell& cell, const Dims& d, const Params<const float>& params, void* block,
                    QuantizedWeights& out, Team& team) {
    constexpr std::int64_t G = Cell::kGates;
    const auto [w_ih, w_hh, b_ih, b_hh, w_hr] = by_role<Cell>(cell, params);
    Arena arena(block);
    out = quantized_layout<Format, Cell>(d, arena);
    quantize_rows<Format>(w_ih, G, d.H, d.I, out.ih, team);
    quantize_rows<Format>(w_hh, G, d.H, d.P, out.hh, team);
    if (d.projected) quantize_rows<Format>(w_hr, 1, d.P, d.H, out.hr, team);
    pack_bias<float>(b_ih, Cell::kSplitGates ? nullptr : b_hh, G, d.H, out.b_x);
    if (Cell::kSplitGates) pack_bias<float>(b_hh, nullptr, G, d.H, out.b_h);
    pack_units<float>(cell, d, params, out.units);
}

// Rows that are prepared: row r at x + r * x_row.
template <class Format>
struct PreparedRows {
    typename Format::Value* x;
    RowScale* x_scale;
    std::int64_t x_row;

    PreparedRows() = default;
    PreparedRows(std::int64_t rows, std::int64_t k, Arena& arena)
        : x(arena.take<typename Format::Value>(rows * Format::row_values(k))),
          x_scale(arena.take<RowScale>(rows)),
          x_row(Format::row_values(k)) {}
};

// out = init + A W^T for n prepared rows and all panels.
template <class Format>
struct Product : PreparedRows<Format> {
    std::int64_t n, groups;
    const typename Format::Weight* w;
    const float* w_scale;  // int8 only
    std::int64_t panels;
    const float* init;  // row r, panel u at init + u * init_panel + r * init_row; null: from 0
    std::int64_t init_panel, init_row;
    float* out;  // row r, panel u at out + u * out_panel + r * out_row
    std::int64_t out_panel, out_row;

    Product(const PreparedRows<Format>& rows, std::int64_t n, const QuantizedWeights::Matrix& matrix,
            std::int64_t panels)
        : PreparedRows<Format>(rows),
          n(n),
          groups(matrix.groups),
          w(static_cast<const typename Format::Weight*>(matrix.w)),
          w_scale(matrix.scale),
          panels(panels),
          init(nullptr),
          init_panel(0),
          init_row(0) {}
    void prepare(const float* const* rows, std::int64_t k) const {
        for (std::int64_t r = 0; r < n; ++r)
            Format::prepare(rows[r], k, this->x + r * this->x_row, this->x_row, this->x_scale + r);
    }
    void put(float* to, std::int64_t panel, std::int64_t row) { out = to, out_panel = panel, out_row = row; }
};

// Rows of the largest tile, and the panels a tile of R rows takes: beside the accumulators, two registers a row
// for x, two for a weight and one for a constant.
inline constexpr int kQuantizedTileRows = kRegisters == 32 ? 4 : 2;
template <class Format, int G>
constexpr int quantized_tile_panels(int rows) {
    const int left = kRegisters - 3 - 2 * rows;
    const int fit = (left < Format::kAccumulators ? left : Format::kAccumulators) / (rows * G);
    return fit < 1 ? 1 : (fit > 8 ? 8 : fit);
}

template <class Format, int R, int U, int G>
void quantized_tile(const Product<Format>& p, std::int64_t row, std::int64_t panel) {
    constexpr int L = Vec<float>::kLanes, N = U * G;
    const std::int64_t w_panel = p.groups * G * L * Format::kGroup;
    const float* init = p.init == nullptr ? nullptr : p.init + panel * p.init_panel + row * p.init_row;
    const auto init_at = [&](int r, int n) {
        return init == nullptr ? nullptr : init + (n / G) * p.init_panel + r * p.init_row + (n % G) * L;
    };
    typename Format::Sum acc[R][N];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) acc[r][n] = Format::start(init_at(r, n), p.x_scale[row + r]);
    }
    const typename Format::Value* x = p.x + row * p.x_row;
    const typename Format::Weight* w = p.w + panel * w_panel;
    for (std::int64_t k = 0; k < p.groups; ++k, w += G * L * Format::kGroup) {
        typename Format::Group values[R];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) values[r] = Format::broadcast(x + r * p.x_row, p.x_row, k);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
            const auto weights = Format::load(w + (n / G) * w_panel + (n % G) * L * Format::kGroup);
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
            Format::finish(acc[r][n], init_at(r, n), scale, p.x_scale[row + r])
                .store(out + (n / G) * p.out_panel + r * p.out_row + (n % G) * L);
        }
    }
}

template <class Format, int G, int R = 1>
FUSEDRNN_INLINE auto select_quantized_tile(int rows, bool wide)
    -> void (*)(const Product<Format>&, std::int64_t, std::int64_t) {
    if (rows == R) {
        return wide ? quantized_tile<Format, R, quantized_tile_panels<Format, G>(R), G>
                    : quantized_tile<Format, R, 1, G>;
    }
    if constexpr (R < kQuantizedTileRows) return select_quantized_tile<Format, G, R + 1>(rows, wide);
    return nullptr;
}

// Where there are tiles, from so many rows on.
inline constexpr std::int64_t kLeastTileRows = 4;
template <int G>
void multiply_in_tiles(const Product<Int8>& p, Team& team);  // quantized_tiles.h

// Row tiles as equal as they can be, each against a group of panels while it is in the L1 cache. Ends early once the team
// is cancelled.
template <class Format, int G>
void multiply(const Product<Format>& p, Team& team) {
#ifdef FUSEDRNN_AMX_INT8
    if constexpr (Format::kScaled) {
        if (p.n >= kLeastTileRows) return multiply_in_tiles<G>(p, team);
    }
#endif
    const std::int64_t tiles = (p.n + kQuantizedTileRows - 1) / kQuantizedTileRows;
    if (tiles == 0) return;
    const std::int64_t group = quantized_tile_panels<Format, G>(static_cast<int>((p.n + tiles - 1) / tiles));
    for (std::int64_t u = 0; u < p.panels; u += group) {
        const std::int64_t end = smaller(u + group, p.panels);
        std::int64_t row = 0;
        for (std::int64_t tile = 0; tile < tiles; ++tile) {
            const int rows = static_cast<int>((p.n - row) / (tiles - tile));
            const std::int64_t wide = quantized_tile_panels<Format, G>(rows);
            if (team.cancelled(0, rows * group * p.groups * G * Vec<float>::kLanes)) return;
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
