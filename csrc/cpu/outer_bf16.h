// The sum over rows of outer.h with operands rounded to bfloat16: pairs of rows are the words of a product over rows. Of parts
// see gemm_bf16.h.
#pragma once

#include "cpu/gemm_bf16.h"
#include "cpu/outer_args.h"
#include "cpu/sizes.h"

namespace fusedrnn::FUSEDRNN_ISA {

// 32 rows of A for one vector of units, or of X for one of its columns: word l of line i has rows 2 i and 2 i + 1.
struct RowPairs {
    alignas(64) float words[kParts][kTileWords * kTileRows];
};
inline constexpr std::int64_t kOuterTiles = 16 / kParts;  // of A and X between two looks at the sums

// line(k), the vector of row k, of n rows.
template <class Line>
FUSEDRNN_INLINE void pair_rows(std::int64_t n, RowPairs& out, Line&& line) {
    const auto line_or_zero = [&](std::int64_t k) { return k < n ? line(k) : Vec<float>::set(0); };
    for (std::int64_t i = 0; i < kTileWords; ++i) {
        Vec<float> even = line_or_zero(2 * i), odd = line_or_zero(2 * i + 1);
        for (int part = 0; part < kParts; ++part) {
            if (part > 0) leave_rest(even, odd);
            interleaved(even, odd).store(out.words[part] + i * kTileRows);
        }
    }
}

// The sums of a vector of panel j of A, from `value` on, by one of columns: in dW itself, or, where either is not whole or of
// several gates, a copy of them.
class SumsTile {
  public:
    SumsTile(const OuterArgs<float>& p, std::int64_t j, std::int64_t value, std::int64_t column)
        : rows_(p, j, value), column_(column), columns_(p.columns - column) {
        copied_ = columns_ < kTileRows || p.apart(j) < kTileRows || p.units - j * kTileRows < kTileRows;
        if (!copied_) {
            at_ = SumRows<float>(rows_).next() + column;
            return;
        }
        SumRows<float> rows = rows_;
        for (float (&copy)[kTileRows] : copy_) {
            const float* const row = rows.next();
            (row != nullptr ? load_part(row + column, columns_) : Vec<float>::set(0)).store(copy);
        }
    }
    float* data() { return copied_ ? copy_[0] : at_; }
    std::int64_t stride() const { return copied_ ? kTileRows : rows_.stride(); }
    void finish() {
        if (!copied_) return;
        SumRows<float> rows = rows_;
        for (const float (&copy)[kTileRows] : copy_) {
            float* const row = rows.next();
            if (row != nullptr) store_part(Vec<float>::load(copy), row + column_, columns_);
        }
    }

  private:
    SumRows<float> rows_;
    std::int64_t column_, columns_;
    bool copied_;
    float* at_ = nullptr;
    alignas(64) float copy_[kTileRows][kTileRows];
};

#ifdef FUSEDRNN_AMX

// Two vectors of units by two of columns; either may be one vector twice, of which the first sums are kept.
FUSEDRNN_INLINE void multiply_pairs(const RowPairs* const (&a)[2], const RowPairs* const (&x)[2],
                                    std::int64_t tiles, SumsTile* const (&sums)[2][2]) {
    const auto bytes = [&](int r, int c) { return sums[r][c]->stride() * std::int64_t{sizeof(float)}; };
    settle(a[0]);
    settle(x[0]);
    for (const auto& row : sums) {
        for (SumsTile* tile : row) settle(tile->data());
    }
    _tile_loadd(0, sums[0][0]->data(), bytes(0, 0));
    _tile_loadd(1, sums[0][1]->data(), bytes(0, 1));
    _tile_loadd(2, sums[1][0]->data(), bytes(1, 0));
    _tile_loadd(3, sums[1][1]->data(), bytes(1, 1));
    for (std::int64_t k = 0; k < tiles; ++k) {
#pragma GCC unroll 3
        for (int product = 0; product < kProducts; ++product) {
            const Parts part = kPartsOf[product];
            _tile_loadd(4, a[0][k].words[part.a], 64);
            _tile_loadd(6, x[0][k].words[part.b], 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, x[1][k].words[part.b], 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, a[1][k].words[part.a], 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums[0][0]->data(), bytes(0, 0));
    _tile_stored(1, sums[0][1]->data(), bytes(0, 1));
    _tile_stored(2, sums[1][0]->data(), bytes(1, 0));
    _tile_stored(3, sums[1][1]->data(), bytes(1, 1));
}

#else

// As AMX's: the words of A are scalars, each times a vector of words of X.
FUSEDRNN_INLINE void multiply_pairs(const RowPairs* const (&a)[2], const RowPairs* const (&x)[2],
                                    std::int64_t tiles, SumsTile* const (&sums)[2][2]) {
    using V = Vec<float>;
    constexpr int R = 8;
    static_assert(kParts == 1);
    for (int r = 0; r < (a[0] == a[1] ? 1 : 2); ++r) {
        const float* const a_words = a[r]->words[0];
        for (std::int64_t unit = 0; unit < kTileRows; unit += R) {
            V acc[R][2];
            const auto at = [&](int i, int c) {
                return sums[r][c]->data() + (unit + i) * sums[r][c]->stride();
            };
#pragma GCC unroll 8
            for (int i = 0; i < R; ++i) {
                acc[i][0] = V::load(at(i, 0));
                acc[i][1] = V::load(at(i, 1));
            }
            for (std::int64_t k = 0; k < tiles * kTileWords; ++k) {
                using W = Operand<V>;
                W first = W::load(x[0]->words[0] + k * kTileRows),
                  second = W::load(x[1]->words[0] + k * kTileRows);
                keep_in_register(first);
                keep_in_register(second);
#pragma GCC unroll 8
                for (int i = 0; i < R; ++i) {
                    W scale = W::set(a_words[k * kTileRows + unit + i]);
                    keep_in_register(scale);
                    acc[i][0] = fma(scale, first, acc[i][0]);
                    acc[i][1] = fma(scale, second, acc[i][1]);
                }
            }
#pragma GCC unroll 8
            for (int i = 0; i < R; ++i) {
                acc[i][0].store(at(i, 0));
                acc[i][1].store(at(i, 1));
            }
        }
    }
}

#endif

// The columns of vectors [first, last) of X, whose words go to the buffer: [vector][row / 32].
inline void outer_bf16(const OuterArgs<float>& p, std::int64_t first, std::int64_t last) {
    constexpr int L = Vec<float>::kLanes;
    static_assert(L == kTileRows);
    if (p.rows == 0 || first >= last) return;
    const std::int64_t all = (p.rows + kTileDepth - 1) / kTileDepth;
    auto* const packed = reinterpret_cast<RowPairs*>(p.buffer);
    for (std::int64_t tile = 0; tile < all; ++tile) {
        if (p.team.cancelled(p.member, kTileDepth * (last - first) * L)) return;
        const float* const* const rows = p.x + tile * kTileDepth;
        for (std::int64_t v = first; v < last; ++v) {
            pair_rows(p.rows - tile * kTileDepth, packed[(v - first) * all + tile],
                      [&](std::int64_t k) { return load_part(rows[k] + v * L, p.columns - v * L); });
        }
    }
    RowPairs a[2][kOuterTiles];
#ifdef FUSEDRNN_AMX
    const Tiles configured(sizes_for(2 * kTileRows));
#endif
    const std::int64_t before = panels_of<float>(p.units) - 1;
    const std::int64_t vectors = before * p.gates + panels_of<float>(p.gates * p.apart(before));
    for (std::int64_t tile = 0; tile < all; tile += kOuterTiles) {
        const std::int64_t count = smaller(kOuterTiles, all - tile);
        for (std::int64_t q = 0; q < vectors; q += 2) {
            if (p.team.cancelled(p.member, 2 * count * kTileDepth * L * (last - first) * L)) return;
            const int lines = static_cast<int>(smaller(2, vectors - q));
            for (int i = 0; i < lines; ++i) {
                const float* const from = p.a + (q + i) / p.gates * p.a_panel + (q + i) % p.gates * L;
                for (std::int64_t k = 0; k < count; ++k) {
                    const std::int64_t row = (tile + k) * kTileDepth;
                    pair_rows(p.rows - row, a[i][k], [&](std::int64_t r) {
                        return Vec<float>::load(from + (row + r) * p.row_gates * L);
                    });
#ifdef FUSEDRNN_AMX
                    for (float* const part : a[i][k].words) {
                        Vec<float> words[kTileWords];
#pragma GCC unroll 16
                        for (int l = 0; l < kTileWords; ++l)
                            words[l] = Vec<float>::load(part + l * kTileRows);
                        transpose(words);
#pragma GCC unroll 16
                        for (int l = 0; l < kTileWords; ++l) words[l].store(part + l * kTileRows);
                    }
#endif
                }
            }
            const RowPairs* const units[2] = {a[0], a[lines - 1]};
            for (std::int64_t v = first; v < last; v += 2) {
                const int width = static_cast<int>(smaller(2, last - v));
                const RowPairs* const columns[2] = {packed + (v - first) * all + tile,
                                                    packed + (v + width - 1 - first) * all + tile};
                const auto sums_of = [&](int r, int c) {
                    return SumsTile(p, (q + r) / p.gates, (q + r) % p.gates * L, (v + c) * L);
                };
                SumsTile sums[2][2] = {{sums_of(0, 0), sums_of(0, width - 1)},
                                       {sums_of(lines - 1, 0), sums_of(lines - 1, width - 1)}};
                SumsTile* const of[2][2] = {{&sums[0][0], &sums[0][1]}, {&sums[1][0], &sums[1][1]}};
                multiply_pairs(units, columns, count, of);
                for (int r = 0; r < lines; ++r) {
                    for (int c = 0; c < width; ++c) sums[r][c].finish();
                }
            }
        }
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
