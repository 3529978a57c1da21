// Weights into panels. See gemm.h for the panel and kernels.h for the list. Packing ends early, with the panels unfinished,
// once the team is cancelled.
#pragma once

#include "cells/call.h"
#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/layout.h"
#include "cpu/row_operations.h"
#include "cpu/sizes.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr std::int64_t kPackWork = 8;  // of an element, in multiply-adds

// What is packed of a weight: its elements,
template <class T>
struct Plain {
    FUSEDRNN_INLINE Vec<T> load(const T* p, std::int64_t n) const { return load_part(p, n); }
};
// or what a mask makes of them.
template <class T>
struct Masked {
    const T* w;
    const HiddenMask<T>& mask;

    FUSEDRNN_INLINE Vec<T> load(const T* p, std::int64_t n) const {
        const std::int64_t element = p - w;
        std::uint32_t bits;
        __builtin_memcpy(&bits, mask.kept + element / 8, sizeof bits);
        return select(Vec<T>::lanes(bits >> element % 8), load_part(p, n) * Vec<T>::set(mask.scale),
                      Vec<T>::set(0));
    }
};

// Up to L rows of W, from k0 to k1, to their places in a panel: column l has row l, zeros where that is null. `to`: of k0.
template <class T, class Weight>
FUSEDRNN_INLINE void pack_block(const Weight& weight, const T* const (&rows)[Vec<T>::kLanes], std::int64_t k0,
                                std::int64_t k1, std::int64_t step, T* to) {
    constexpr int L = Vec<T>::kLanes;
    if constexpr (Transposes<Vec<T>>) {
        // Of a panel in pairs of bfloat16 a row is a word, two of the k.
        constexpr std::int64_t kValues = kBf16 ? 2 * L : L;
        for (std::int64_t k = k0; k < k1; k += kValues) {
            for (int part = 0; part < kParts; ++part) {
                Vec<T> words[L];
#pragma GCC unroll 16
                for (int l = 0; l < L; ++l) {
                    const T* from = rows[l] + k;
                    words[l] = rows[l] != nullptr ? weight.load(from, k1 - k) : Vec<T>::set(0);
#ifdef FUSEDRNN_BF16
                    if (rows[l] == nullptr) continue;
                    Vec<T> next = weight.load(from + L, larger(0, k1 - k - L));
                    if (part > 0) leave_rest(words[l], next);
                    words[l] = neighbours(words[l], next);
#endif
                }
                transpose(words);
                const std::int64_t valid = kBf16 ? L : smaller(L, k1 - k);
#pragma GCC unroll 16
                for (int i = 0; i < L; ++i, to += step) {
                    if (i < valid) words[i].store(to);
                }
            }
        }
    } else {
        for (int l = 0; l < L; ++l) {
            for (std::int64_t k = k0; k < k1; ++k) {
                const Vec<T> one = rows[l] != nullptr ? weight.load(rows[l] + k, 1) : Vec<T>::set(0);
                one.store_n(to + (k - k0) * step + l, 1);
            }
        }
    }
}

// W (G*H, K) -> [H/L][K][G][L], or of bfloat16 [H/L][G][K/2][L] (see gemm.h): the rows of W become columns; of the last panel see
// gate_distance. `stride` is that of W's rows, K where it is 0.
template <class T, class Weight = Plain<T>>
void pack_rows(const T* w, std::int64_t gates, std::int64_t units, std::int64_t k_size, T* out, Team& team,
               int member, std::int64_t stride = 0, const Weight& weight = {}) {
    if (stride == 0) stride = k_size;
    constexpr int L = Vec<T>::kLanes;
    constexpr std::int64_t kBlock = kBf16 ? 2 * L : 16;  // of k: a cache line of each source row, or a tile
    const std::int64_t next = kBf16 ? panel_depth<T>(k_size) * L : L;  // vector of the same k
    for (std::int64_t j = 0; j < panels_of<T>(units); ++j) {
        if (team.cancelled(member, k_size * gates * L * kPackWork)) return;
        const std::int64_t left = units - j * L, vectors = panel_vectors<T>(gates, left);
        const std::int64_t step = kBf16 ? L : vectors * L, apart = gate_distance<T>(gates, left);
        // Vector by vector: as few rows of W at a time as caches can be ahead of.
        for (std::int64_t v = 0; v < vectors; ++v) {
            const T* rows[L];
            for (int l = 0; l < L; ++l) {
                const std::int64_t column = v * L + l, g = column / apart, unit = column % apart;
                rows[l] = g < gates && unit < left ? w + (g * units + j * L + unit) * stride : nullptr;
            }
            for (std::int64_t k0 = 0; k0 < k_size; k0 += kBlock) {
                pack_block(weight, rows, k0, smaller(k0 + kBlock, k_size), step,
                           out + panel_depth<T>(k0) * step + v * next);
            }
        }
        out += panel_depth<T>(k_size) * gates * L;
    }
}

// Writes the rows of a panel of one gate, in the order of k.
template <class T>
class PanelWriter {
  public:
    PanelWriter() = default;
    explicit PanelWriter(T* out) : out_(out) {}
    FUSEDRNN_INLINE void put(Vec<T> row) {
#ifdef FUSEDRNN_BF16
        if ((count_++ & 1) == 0) {
            even_ = row;
            return;
        }
        constexpr std::int64_t kTile = kTileWords * Vec<T>::kLanes;
        interleaved(even_, row).store(out_);
        for (int part = 1; part < kParts; ++part) {
            leave_rest(even_, row);
            interleaved(even_, row).store(out_ + part * kTile);
        }
        if (count_ % kTileDepth == 0) out_ += (kParts - 1) * kTile;
#else
        row.store(out_);
#endif
        out_ += Vec<T>::kLanes;
    }
    // Fills up the panel.
    FUSEDRNN_INLINE void finish() {
#ifdef FUSEDRNN_BF16
        while (count_ % kTileDepth != 0) put(Vec<T>::set(0));
#endif
    }

  private:
    T* out_ = nullptr;
#ifdef FUSEDRNN_BF16
    Vec<T> even_{};
    std::int64_t count_ = 0;
#endif
};

// W (G*H, N) -> [N/L][K][L]: the rows of W are the k of the product, in the order of the gate gradients, where each gate has
// `room` for units (unit_room): K = G * room, zeros past the units. `stride` is that of W's rows, N where it is 0.
template <class T, class Weight = Plain<T>>
void pack_columns(const T* w, std::int64_t gates, std::int64_t units, std::int64_t room, std::int64_t n_size,
                  T* out, Team& team, int member = 0, std::int64_t stride = 0, const Weight& weight = {}) {
    if (stride == 0) stride = n_size;
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    // Panels side by side, so that neighbouring cache lines of a row of W are read together.
    constexpr int kTogether = 4;
    const std::int64_t size = panel_depth<T>(gates * room) * L;
    for (std::int64_t column = 0; column < n_size; column += kTogether * L, out += kTogether * size) {
        if (team.cancelled(member, gates * units * kTogether * L * kPackWork)) return;
        const int count = static_cast<int>(smaller(kTogether, panels_of<T>(n_size - column)));
        PanelWriter<T> writers[kTogether];
        for (int i = 0; i < count; ++i) writers[i] = PanelWriter<T>(out + i * size);
        for (std::int64_t j = 0; j < panels_of<T>(units); ++j) {
            for (std::int64_t g = 0; g < gates; ++g) {
                for (std::int64_t unit = j * L; unit < smaller((j + 1) * L, room); ++unit) {
                    const T* from = w + (g * units + unit) * stride + column;
                    for (int i = 0; i < count; ++i) {
                        writers[i].put(unit < units ? weight.load(from + i * L, n_size - column - i * L)
                                                    : V::set(0));
                    }
                }
            }
        }
        for (int i = 0; i < count; ++i) writers[i].finish();
    }
}

// a + b (either may be null), gate by gate -> [H/L][G][L]; of the last panel the gates are so far `apart`.
template <class T>
void pack_bias(const T* a, const T* b, std::int64_t gates, std::int64_t units, T* out,
               std::int64_t apart = Vec<T>::kLanes) {
    constexpr int L = Vec<T>::kLanes;
    fill_zero(out, padded<T>(units) * gates);
    for (std::int64_t unit = 0; unit < units; ++unit) {
        const std::int64_t panel = unit / L, distance = units - panel * L < L ? apart : L;
        for (std::int64_t g = 0; g < gates; ++g) {
            const std::int64_t i = g * units + unit;
            out[panel * gates * L + g * distance + unit % L] =
                (a == nullptr ? T(0) : a[i]) + (b == nullptr ? T(0) : b[i]);
        }
    }
}

// The parameters of a dense cell by their roles, null where absent.
template <class T>
struct DenseParams {
    T *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;
};
template <class Cell, Role kRole, class T>
FUSEDRNN_INLINE T* parameter(const RecurrentCell& cell, const Params<T>& params) {
    if constexpr (CellSizes<Cell>::kIsProgram) {
        for (int i = 0; i < cell.parameter_count; ++i) {
            if (cell.parameters[i].role == kRole) return params.of[i];
        }
        return nullptr;
    } else {
        constexpr int kPlace = place_of(Cell::kParameters, kRole);
        return kPlace < 0 ? nullptr : params.of[kPlace < 0 ? 0 : kPlace];
    }
}
template <class Cell, class T>
FUSEDRNN_INLINE DenseParams<T> by_role(const RecurrentCell& cell, const Params<T>& params) {
    return {parameter<Cell, Role::kInputWeight>(cell, params),
            parameter<Cell, Role::kHiddenWeight>(cell, params),
            parameter<Cell, Role::kInputBias>(cell, params), parameter<Cell, Role::kHiddenBias>(cell, params),
            parameter<Cell, Role::kProjection>(cell, params)};
}

// Calls f(place, values, first) for each per-unit parameter: how many values of all that a unit has are its, from which on.
template <class F>
FUSEDRNN_INLINE void for_each_per_unit(const RecurrentCell& cell, F&& f) {
    int first = 0;
    for (int i = 0; i < cell.parameter_count; ++i) {
        if (cell.parameters[i].role != Role::kPerUnit) continue;
        f(i, cell.parameters[i].rows.times, first);
        first += cell.parameters[i].rows.times;
    }
}

// All per-unit parameters -> [H/L][values][L].
template <class T>
void pack_units(const RecurrentCell& cell, const Dims& d, const Params<const T>& params, T* out) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    for_each_per_unit(cell, [&](int place, int values, int first) {
        for (std::int64_t j = 0; j < panels_of<T>(d.H); ++j) {
            for (int v = 0; v < values; ++v) {
                load_part(params.of[place] + v * d.H + j * L, d.H - j * L)
                    .store(out + (j * cell.per_unit + first + v) * L);
            }
        }
    });
}

// W (G*H, K) -> what the products of a cell read: gates that they take together are interleaved.
template <class Cell, class T, class Weight = Plain<T>>
void pack_gates(const CellSizes<Cell>& c, const T* w, std::int64_t units, std::int64_t k_size, T* out,
                Team& team, const Weight& weight = {}) {
    constexpr int together = CellSizes<Cell>::kInterleaved;
    for (int g = 0; g < c.G; g += together) {
        pack_rows<T>(w + g * units * k_size, together, units, k_size,
                     out + g * padded<T>(units) * panel_depth<T>(k_size), team, 0, 0, weight);
    }
}

template <class Cell, class T>
void hidden_layout(const CellSizes<Cell>& c, const Dims& d, bool backward, Arena& arena, Packed<T>& out) {
    const std::int64_t h = padded<T>(d.H), p = padded<T>(d.P);
    if (!c.multiplies_h) return;
    out.w_hh = arena.template take<T>(h * c.G * panel_depth<T>(d.P));
    if (backward) out.w_hh_t = arena.template take<T>(p * c.G * panel_depth<T>(h));
}

template <class Cell, class T>
Packed<T> packed_layout(const CellSizes<Cell>& c, const Dims& d, bool backward, Arena& arena) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    const std::int64_t h = padded<T>(d.H), p = padded<T>(d.P), i = padded<T>(d.I);
    Packed<T> out{};
    hidden_layout<Cell, T>(c, d, backward, arena, out);
    out.w_ih = arena.take<T>(h * c.G * panel_depth<T>(d.I));
    out.b_x = arena.take<T>(h * c.G);
    if (c.split_gates) out.b_h = arena.take<T>(h * c.G);
    if (c.units > 0) out.units = arena.take<T>(h * c.units);
    if (d.projected) out.w_hr = arena.take<T>(p * panel_depth<T>(d.H));
    if (backward) {
        out.w_ih_t = arena.take<T>(i * c.G * panel_depth<T>(h));
        if (d.projected) out.w_hr_t = arena.take<T>(h * panel_depth<T>(p));
    }
    // Room for a whole vector at the end of the last panel.
    arena.take<T>(L);
    return out;
}

template <class Cell, class T>
std::int64_t packed_bytes(const RecurrentCell& cell, const Dims& d, bool backward) {
    Arena arena(nullptr);
    packed_layout<Cell, T>(CellSizes<Cell>(cell), d, backward, arena);
    return arena.used();
}

// W_hh, to where `out` has it.
template <class Cell, class T, class Weight = Plain<T>>
void fill_hidden(const CellSizes<Cell>& c, const RecurrentCell& cell, const Dims& d, const T* w_hh,
                 const Packed<T>& out, Team& team, const Weight& weight = {}) {
    if (!c.multiplies_h || w_hh == nullptr) return;
    pack_gates<Cell, T>(c, w_hh, d.H, d.P, out.w_hh, team, weight);
    if (out.w_hh_t == nullptr) return;
    pack_columns<T>(w_hh, c.first_gates, d.H, unit_room<Cell, T>(d.H), d.P, out.w_hh_t, team, 0, 0, weight);
    if constexpr (CellSizes<Cell>::kIsProgram) {
        // Each product within a step has a block of its own.
        for_each_product(*cell.programs, [&](const RowOperation& product) {
            const std::int64_t first = product.first_gate;
            pack_columns<T>(w_hh + first * d.H * d.P, product.count, d.H, padded<T>(d.H), d.P,
                            out.w_hh_t + first * panel_depth<T>(padded<T>(d.H)) * padded<T>(d.P), team, 0, 0,
                            weight);
        });
    }
}

template <class Cell, class T>
std::int64_t hidden_bytes(const RecurrentCell& cell, const Dims& d, bool backward) {
    Arena arena(nullptr);
    Packed<T> out{};
    hidden_layout<Cell, T>(CellSizes<Cell>(cell), d, backward, arena, out);
    arena.take<T>(Vec<T>::kLanes);
    return arena.used();
}

template <class Cell, class T>
void pack_hidden(const RecurrentCell& cell, const Dims& d, const T* w_hh, const HiddenMask<T>& mask,
                 bool backward, void* block, Packed<T>& out, Team& team) {
    const CellSizes<Cell> c(cell);
    Arena arena(block);
    hidden_layout<Cell, T>(c, d, backward, arena, out);
    if (!backward) out.w_hh_t = nullptr;
    fill_hidden<Cell, T>(c, cell, d, w_hh, out, team, Masked<T>{w_hh, mask});
}

template <class Cell, class T>
void pack(const RecurrentCell& cell, const Dims& d, const Params<const T>& params, bool backward, void* block,
          Packed<T>& out, Team& team) {
    const CellSizes<Cell> c(cell);
    const auto [w_ih, w_hh, b_ih, b_hh, w_hr] = by_role<Cell>(cell, params);
    Arena arena(block);
    out = packed_layout<Cell, T>(c, d, backward, arena);
    pack_gates<Cell, T>(c, w_ih, d.H, d.I, out.w_ih, team);
    fill_hidden<Cell, T>(c, cell, d, w_hh, out, team);
    const std::int64_t apart = gate_distance<T>(CellSizes<Cell>::kInterleaved, d.H % Vec<T>::kLanes);
    pack_bias<T>(b_ih, c.split_gates ? nullptr : b_hh, c.G, d.H, out.b_x, apart);
    if (c.split_gates) pack_bias<T>(b_hh, nullptr, c.G, d.H, out.b_h, apart);
    pack_units<T>(cell, d, params, out.units);
    if (d.projected) pack_rows<T>(w_hr, 1, d.P, d.H, out.w_hr, team, 0);
    if (backward) {
        pack_columns<T>(w_ih, c.G, d.H, unit_room<Cell, T>(d.H), d.I, out.w_ih_t, team);
        if (d.projected) pack_columns<T>(w_hr, 1, d.P, d.P, d.H, out.w_hr_t, team);
    }
}

}  // namespace fusedrnn::FUSEDRNN_ISA
