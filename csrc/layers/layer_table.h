// The kernels beside the recurrent ones: activations, layers, losses, optimisers. One table per instruction set and type.
//
// Plain data only: this header is compiled into the baseline and into every instruction set's objects. Arrays are
// contiguous; arrays that are written overlap no other argument. Results do not depend on the team's size. Kernels that
// only fill new arrays stop early once the team is cancelled; those that update arrays in place always finish.
#pragma once

#include <cstdint>

#include "cells/program_list.h"
#include "cpu/team.h"
#include "quantum/quantum_table.h"
#include "sequence/sequence_table.h"

namespace fusedrnn {

// The sum behind a norm is taken in blocks; `partial` holds one value for each.
inline constexpr std::int64_t kNormBlock = 4096;

template <class T>
struct CrossEntropyArgs {
    std::int64_t n, classes;
    const T* logits;              // (n, classes)
    const std::int64_t* targets;  // (n), each in [0, classes) or ignore_index
    const T* weight;              // (classes) or null: all `unit`
    double unit;
    std::int64_t ignore_index;
    double label_smoothing;
    double* losses;  // (n): float's range does not hold all of them
    T* dlogits;      // (n, classes): the gradient of the sum of the losses
};

struct SgdOptions {
    double lr, momentum, dampening, weight_decay;
    bool nesterov;
    bool first;  // the momentum buffer starts as the gradient
};

struct AdamOptions {
    double lr, beta1, beta2, eps, weight_decay;
    bool decoupled;     // AdamW: the decay acts on the parameters, not on the gradient
    std::int64_t step;  // from 1
};

template <class T>
struct LayerTable {
    // y (n) = f(x (n)).
    void (*exp)(std::int64_t n, const T* x, T* y, Team&);
    void (*sigmoid)(std::int64_t n, const T* x, T* y, Team&);
    void (*tanh)(std::int64_t n, const T* x, T* y, Team&);

    // A program's instructions, for `rows` vectors of each slot.
    void (*run_program)(const Instruction* code, std::int64_t length, std::int64_t rows,
                        const Slot<T>* slots);

    // y (n, dim): row i is row indices[i] of weight. Backward adds row i of dy to that row of dweight, in the order of i.
    void (*embedding_forward)(std::int64_t n, std::int64_t dim, const std::int64_t* indices, const T* weight,
                              T* y, Team&);
    void (*embedding_backward)(std::int64_t n, std::int64_t dim, const std::int64_t* indices, const T* dy,
                               T* dweight, Team&);

    // y (n, dim) = xhat w + b, xhat = (x - mean) / sqrt(variance + eps) over rows; w and b (dim) may be null. A row's
    // mean[0], mean[1], rstd[0], rstd[1] make its xhat = (mean[0] x - mean[1]) rstd[0] + rstd[1].
    void (*layer_norm_forward)(std::int64_t n, std::int64_t dim, const T* x, const T* w, const T* b,
                               double eps, T* y, T* mean, T* rstd, Team&);
    // dw and db (dim) are added to; each may be null.
    void (*layer_norm_backward)(std::int64_t n, std::int64_t dim, const T* x, const T* w, const T* dy,
                                const T* mean, const T* rstd, T* dx, T* dw, T* db, Team&);

    void (*cross_entropy)(const CrossEntropyArgs<T>&, Team&);

    // y (n) = x / (1 - p) where kept, else 0. Element e takes the draw (seed, offset, e).
    void (*dropout)(std::int64_t n, const T* x, T* y, double p, std::uint64_t seed, std::uint64_t offset,
                    Team&);
    // The mask of a weight, bit e % 8 of byte e / 8 whether element e is kept, with draws of its own, whose rate is a
    // multiple of 2^-16; and y (n) += x * scale where kept, or, with x null, y * scale there and 0 elsewhere.
    void (*draw_mask)(std::int64_t n, double p, std::uint64_t seed, std::uint64_t offset, std::uint8_t* kept,
                      Team&);
    void (*add_masked)(std::int64_t n, const std::uint8_t* kept, T scale, const T* x, T* y, Team&);

    // One step of the optimiser on n parameters. momentum_buf is null without momentum.
    void (*sgd_step)(std::int64_t n, T* param, const T* grad, T* momentum_buf, const SgdOptions&, Team&);
    // Adam returns false if there were elements whose exp_avg_sq overflows: these keep their values.
    bool (*adam_step)(std::int64_t n, T* param, const T* grad, T* exp_avg, T* exp_avg_sq, const AdamOptions&,
                      Team&);

    // (sum |x|^p)^(1/p), the maximum for p = inf; `partial` holds ceil(n / kNormBlock) values.
    double (*norm)(std::int64_t n, const T* x, double p, double* partial, Team&);
    void (*scale)(std::int64_t n, T* x, double factor, Team&);
    void (*clamp)(std::int64_t n, T* x, double lo, double hi, Team&);

    const SequenceKernels<T>* sequence;
    const QuantumKernels<T>* quantum;

    // For measuring limits; each returns a value that keeps the work from being optimised away.
    double (*multiply_adds)(std::int64_t rounds,
                            const T* values);  // `lanes` values; multiply_adds_per_round a round
    double (*read)(std::int64_t n, const T* x);
    double (*lstm_pointwise)(std::int64_t units, T* block);  // (6, units): gates i f g o, state c, output h
    std::int64_t multiply_adds_per_round;
};

template <class T>
const LayerTable<T>& layer_table();
template <>
const LayerTable<float>& layer_table<float>();
template <>
const LayerTable<double>& layer_table<double>();

}  // namespace fusedrnn
