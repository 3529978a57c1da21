// The table of layer kernels of one instruction set.
#include "cells/program.h"
#include "layers/cross_entropy.h"
#include "layers/dropout.h"
#include "layers/elementwise.h"
#include "layers/embedding.h"
#include "layers/layer_norm.h"
#include "layers/layer_table.h"
#include "layers/limits.h"
#include "layers/norm.h"
#include "layers/optimiser.h"

namespace fusedrnn::FUSEDRNN_ISA {

// kernels_sequence.cpp
extern const SequenceKernels<float> kSequenceF32;
extern const SequenceKernels<double> kSequenceF64;
// kernels_quantum.cpp
extern const QuantumKernels<float> kQuantumF32;
extern const QuantumKernels<double> kQuantumF64;

namespace {

template <class T>
constexpr const SequenceKernels<T>* sequence_kernels() {
    if constexpr (sizeof(T) == sizeof(float)) {
        return &kSequenceF32;
    } else {
        return &kSequenceF64;
    }
}

template <class T>
constexpr const QuantumKernels<T>* quantum_kernels() {
    if constexpr (sizeof(T) == sizeof(float)) {
        return &kQuantumF32;
    } else {
        return &kQuantumF64;
    }
}

template <class T>
constexpr LayerTable<T> kTable = {
    .exp = elementwise<T, ExpOp>,
    .sigmoid = elementwise<T, SigmoidOp>,
    .tanh = elementwise<T, TanhOp>,
    .run_program = run_program<T>,
    .embedding_forward = embedding_forward<T>,
    .embedding_backward = embedding_backward<T>,
    .layer_norm_forward = layer_norm_forward<T>,
    .layer_norm_backward = layer_norm_backward<T>,
    .cross_entropy = cross_entropy<T>,
    .dropout = dropout<T>,
    .draw_mask = draw_mask,
    .add_masked = add_masked<T>,
    .sgd_step = sgd_step<T>,
    .adam_step = adam_step<T>,
    .norm = norm<T>,
    .scale = scale<T>,
    .clamp = clamp<T>,
    .sequence = sequence_kernels<T>(),
    .quantum = quantum_kernels<T>(),
    .multiply_adds = multiply_adds<T>,
    .read = read<T>,
    .lstm_pointwise = lstm_pointwise<T>,
    .multiply_adds_per_round = std::int64_t{kChains} * kRepeats * Vec<T>::kLanes,
};

}  // namespace

const LayerTable<float>& layers_f32();
const LayerTable<double>& layers_f64();

const LayerTable<float>& layers_f32() { return kTable<float>; }
const LayerTable<double>& layers_f64() { return kTable<double>; }

}  // namespace fusedrnn::FUSEDRNN_ISA
