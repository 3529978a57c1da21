// The kernels of recurrent networks whose gates are simulated quantum circuits. One table per instruction set and type.
//
// Plain data only, as layers/layer_table.h. T, B, H stand for steps, sequences and hidden size, Q and D for the qubits and the
// variational layers of a circuit; gates stand in the order i f g o. Arrays of steps have the batch last, so that its rows
// are the lanes of vectors: rows are independent, and results depend neither on the team's size nor on the lanes.
#pragma once

#include <cstdint>

#include "cpu/team.h"

namespace fusedrnn {

inline constexpr int kMostQubits = 8, kQuantumGates = 4;
// Real and imaginary parts of a unitary [2][2] of one qubit.
inline constexpr int kUnitaryParts = 8;

struct QuantumSizes {
    std::int64_t T, B, H, Q, D;
};

// What forward and backward read alike.
template <class T>
struct QuantumNetwork {
    QuantumSizes sizes;
    const std::int64_t* lengths;  // (B), each in [0, T]
    const T* weight_hh;           // (4Q, H)
    const T* unitaries;           // (4, D, Q, 8)
    const T* weight_out;          // (4H, Q)
};

// What each step leaves for backward; past a sequence's end numbers that are not looked at. Null where nothing is kept.
template <class T>
struct QuantumTape {
    T *angles, *measured;  // (T, 4Q, B): what is encoded, and the expectations of Z
    T *gates, *cells;      // (T, 4H, B) after the activations, (T, H, B)
};

template <class T>
struct QuantumForwardArgs {
    QuantumNetwork<T> network;
    const T* gx;        // (T, 4Q, B): W_ih x + b_ih
    const T* bias_out;  // (4H)
    const T *h, *c;     // (H, B)
    QuantumTape<T> tape;
    T* y;                  // (T, H, B)
    T *h_final, *c_final;  // (H, B)
};

template <class T>
struct QuantumBackwardArgs {
    QuantumNetwork<T> network;
    QuantumTape<const T> tape;
    const T* c;                         // (H, B), before the first step
    const T *dy, *dh_final, *dc_final;  // as y and the final states
    T *dgx, *dgates;                    // (T, 4Q, B), (T, 4H, B) before the activations
    T* dunitaries;                      // (4, D, Q, 8, B): the part of each row
    T *dh, *dc;                         // (H, B)
};

template <class T>
struct QuantumKernels {
    // Bytes of workspace for so many members.
    std::int64_t (*workspace)(const QuantumSizes&, int members);
    void (*forward)(const QuantumForwardArgs<T>&, Team&, void* workspace);
    void (*backward)(const QuantumBackwardArgs<T>&, Team&, void* workspace);
};

}  // namespace fusedrnn
