// Weights of fewer bits as a `Product` of forward.h, without a tape, by one thread.
#pragma once

#include "cpu/forward.h"
#include "cpu/quantized.h"
#ifdef FUSEDRNN_AMX_INT8
#include "cpu/quantized_tiles.h"
#endif

namespace fusedrnn::FUSEDRNN_ISA {

// Of projected inputs, and of prepared x: they stay in the L2 cache, which is larger where there are tiles; products in tiles
// wait for nothing but W_ih, which each block reads once.
#ifdef FUSEDRNN_AMX_INT8
inline constexpr std::int64_t kQuantizedBlockBytes = 512 * 1024;
#else
inline constexpr std::int64_t kQuantizedBlockBytes = 128 * 1024;
#endif

template <class Format>
struct QuantizedProduct {
    static constexpr bool kPreparesRows = true;
    PreparedRows<Format> x, h;
    const QuantizedWeights* weights;
    const float* units;
    Team* team;

    QuantizedProduct() = default;
    QuantizedProduct(const Dims& d, std::int64_t block_rows, std::int64_t rows, Arena& arena)
        : x(block_rows, d.I, arena), h(rows, larger(d.P, d.H), arena) {}
    void use(const QuantizedWeights& w, Team& of) { weights = &w, units = w.units, team = &of; }
};

template <class Cell, class T, class Format>
std::int64_t block_steps(const QuantizedProduct<Format>&, const Dims& d, const CellSizes<Cell>& c,
                         std::int64_t rows, std::int64_t panels) {
    const std::int64_t values = larger(panels * c.G * Vec<T>::kLanes, Format::row_values(d.I));
    return kQuantizedBlockBytes / larger(1, rows * values * std::int64_t{sizeof(T)});
}

template <class Cell, class T, class Format>
void input_product(const CellSizes<Cell>& c, const Dims& d, const QuantizedProduct<Format>& by,
                   const T* const* rows, std::int64_t n, Range panels, T* out, std::int64_t out_rows,
                   Ahead* = nullptr) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    Product<Format> m(by.x, n, by.weights->ih, panels.end);
    m.prepare(rows, d.I);
    m.init = by.weights->b_x;
    m.init_panel = c.G * L;
    m.put(out, out_rows * c.G * L, c.G * L);
    multiply<Format, Cell::kGates>(m, *by.team);
}

template <class Cell, class T, class Format>
void hidden_product(const CellSizes<Cell>& c, const Dims& d, const QuantizedProduct<Format>& by,
                    const T* const* rows, std::int64_t n, Range panels, const T* gx, std::int64_t gx_rows,
                    T* out, std::int64_t out_rows, Ahead*) {
    constexpr std::int64_t L = Vec<T>::kLanes;
    Product<Format> m(by.h, n, by.weights->hh, panels.end);
    m.prepare(rows, d.P);
    m.init = c.split_gates ? by.weights->b_h : gx;
    m.init_panel = (c.split_gates ? 1 : gx_rows) * c.G * L;
    m.init_row = c.split_gates ? 0 : c.G * L;
    m.put(out, out_rows * c.G * L, c.G * L);
    multiply<Format, Cell::kGates>(m, *by.team);
}

template <class T, class Format>
void output_product(const Dims& d, const QuantizedProduct<Format>& by, const T* const* rows, std::int64_t n,
                    Range panels, T* out, std::int64_t out_rows) {
    Product<Format> m(by.h, n, by.weights->hr, panels.end);
    m.prepare(rows, d.H);
    m.put(out, out_rows * Vec<T>::kLanes, Vec<T>::kLanes);
    multiply<Format, 1>(m, *by.team);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
