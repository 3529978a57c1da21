// LSTM with a forget gate: Hochreiter & Schmidhuber 1997; Gers et al. 2000. Gates i f g o, from one sum
// a = W_ih x + b_ih + W_hh h + b_hh:
//   i = sigmoid(a_i)   f = sigmoid(a_f)   g = tanh(a_g)   o = sigmoid(a_o)
//   c' = f c + i g     h' = o tanh(c')
// The contract of a cell is described in all.h.
#pragma once

#include "activations.h"
#include "cells/schema.h"

namespace fusedrnn::FUSEDRNN_ISA {

struct Lstm {
    static constexpr int kGates = 4, kStates = 2, kSaved = 4;
    static constexpr bool kSplitGates = false, kDirectHidden = false;
    static constexpr auto kParameters = dense_parameters(kGates, Need::kOptional);

    template <class V>
    static FUSEDRNN_INLINE void forward(const V (&a)[4], const V (&s)[2], V (&s_next)[2], V (&saved)[4]) {
        const V i = sigmoid(a[0]), f = sigmoid(a[1]), g = tanh(a[2]), o = sigmoid(a[3]);
        const V c = fma(f, s[1], i * g);
        s_next[0] = o * tanh(c);
        s_next[1] = c;
        saved[0] = i;
        saved[1] = f;
        saved[2] = g;
        saved[3] = o;
    }

    // tanh(c') is computed again rather than stored: a tenth of the tape for about a hundredth of the time.
    template <class V>
    static FUSEDRNN_INLINE void backward(const V (&saved)[4], const V (&s)[2], const V (&ds_next)[2],
                                         V (&da)[4], V (&ds)[2]) {
        const V one = V::set(1);
        const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
        const V tanh_c = tanh(fma(f, s[1], i * g));
        const V dh = ds_next[0];
        // Not one fma: as the same cell that is data (cells/program_list.h) adds it.
        const V dc = ds_next[1] + dh * o * (one - tanh_c * tanh_c);
        da[0] = dc * g * (i * (one - i));
        da[1] = dc * s[1] * (f * (one - f));
        da[2] = dc * i * (one - g * g);
        da[3] = dh * tanh_c * (o * (one - o));
        ds[0] = V::set(0);
        ds[1] = dc * f;
    }
};

}  // namespace fusedrnn::FUSEDRNN_ISA
