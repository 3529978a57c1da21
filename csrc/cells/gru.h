// GRU, reset after the matmul: Cho et al. 2014, arXiv:1406.1078v1 (also PyTorch's and cuDNN's). Gates r z n, from
// gx = W_ih x + b_ih and gh = W_hh h + b_hh, kept apart because r scales gh_n alone:
//   r = sigmoid(gx_r + gh_r)   z = sigmoid(gx_z + gh_z)   n = tanh(gx_n + r gh_n)
//   h' = (1 - z) n + z h
// The contract of a cell is described in all.h.
#pragma once

#include "activations.h"
#include "cells/schema.h"

namespace fusedrnn::FUSEDRNN_ISA {

struct Gru {
    static constexpr int kGates = 3, kStates = 1, kSaved = 4;
    static constexpr bool kSplitGates = true, kDirectHidden = true;
    static constexpr auto kParameters = dense_parameters(kGates, Need::kRefused);

    template <class V>
    static FUSEDRNN_INLINE void forward(const V (&gx)[3], const V (&gh)[3], const V (&s)[1], V (&s_next)[1],
                                        V (&saved)[4]) {
        const V r = sigmoid(gx[0] + gh[0]), z = sigmoid(gx[1] + gh[1]);
        const V n = tanh(fma(r, gh[2], gx[2]));
        s_next[0] = fma(z, s[0] - n, n);
        saved[0] = r;
        saved[1] = z;
        saved[2] = n;
        saved[3] = gh[2];
    }

    template <class V>
    static FUSEDRNN_INLINE void backward(const V (&saved)[4], const V (&s)[1], const V (&ds_next)[1],
                                         V (&dgx)[3], V (&dgh)[3], V (&ds)[1]) {
        const V one = V::set(1);
        const V r = saved[0], z = saved[1], n = saved[2], gh_n = saved[3];
        const V dh = ds_next[0];
        const V da_n = dh * (one - z) * (one - n * n);
        dgx[0] = da_n * gh_n * (r * (one - r));
        dgx[1] = dh * (s[0] - n) * (z * (one - z));
        dgx[2] = da_n;
        dgh[0] = dgx[0];
        dgh[1] = dgx[1];
        dgh[2] = da_n * r;
        ds[0] = dh * z;
    }
};

}  // namespace fusedrnn::FUSEDRNN_ISA
