// Elman RNN (Elman 1990), one gate a = W_ih x + b_ih + W_hh h + b_hh:
//   h' = tanh(a)   or   h' = relu(a)
// The contract of a cell is described in all.h.
#pragma once

#include "activations.h"
#include "cells/schema.h"

namespace fusedrnn::FUSEDRNN_ISA {

struct RnnTanh {
    static constexpr int kGates = 1, kStates = 1, kSaved = 1;
    static constexpr bool kSplitGates = false, kDirectHidden = false;
    static constexpr auto kParameters = dense_parameters(kGates, Need::kRefused);

    template <class V>
    static FUSEDRNN_INLINE void forward(const V (&a)[1], const V (&)[1], V (&s_next)[1], V (&saved)[1]) {
        s_next[0] = saved[0] = tanh(a[0]);
    }

    template <class V>
    static FUSEDRNN_INLINE void backward(const V (&saved)[1], const V (&)[1], const V (&ds_next)[1],
                                         V (&da)[1], V (&ds)[1]) {
        da[0] = ds_next[0] * (V::set(1) - saved[0] * saved[0]);
        ds[0] = V::set(0);
    }
};

struct RnnRelu {
    static constexpr int kGates = 1, kStates = 1, kSaved = 1;
    static constexpr bool kSplitGates = false, kDirectHidden = false;
    static constexpr auto kParameters = dense_parameters(kGates, Need::kRefused);

    template <class V>
    static FUSEDRNN_INLINE void forward(const V (&a)[1], const V (&)[1], V (&s_next)[1], V (&saved)[1]) {
        s_next[0] = saved[0] = relu(a[0]);
    }

    template <class V>
    static FUSEDRNN_INLINE void backward(const V (&saved)[1], const V (&)[1], const V (&ds_next)[1],
                                         V (&da)[1], V (&ds)[1]) {
        // Where h' is not positive it is 0 or NaN: the product gives 0 and keeps the NaN.
        da[0] = select(less(V::set(0), saved[0]), ds_next[0], ds_next[0] * saved[0]);
        ds[0] = V::set(0);
    }
};

}  // namespace fusedrnn::FUSEDRNN_ISA
