// The list of cells: FUSEDRNN_CELLS(X) expands X(name, Type) for each. Kernels, bindings and Python follow this list.
//
// A cell is a struct of equations with no loop, pointer or instruction set in it. V is a vector of units.
//   kGates       gates, in PyTorch's order; the rows of weight_ih and weight_hh are kGates x H
//   kStates      states carried from step to step; state 0 is the hidden state h, which the matmul and the output see
//   kSaved       values a step keeps for its backward
//   kSplitGates  false: forward sees only the sum a = W_ih x + b_ih + W_hh h + b_hh, backward gives its gradient da
//                true: forward sees gx = W_ih x + b_ih and gh = W_hh h + b_hh apart, backward gives dgx and dgh
//   kDirectHidden  whether h enters the step outside the matmul; ds[0] is read only then
//   forward ((a) or (gx, gh), s, s_next, saved)
//   backward(saved, s, ds_next, (da) or (dgx, dgh), ds)
// s are the states before the step, ds_next the gradients of s_next, ds the pointwise part of the gradient of s: the
// part through the matmul, dgh W_hh, is the driver's.
#pragma once

#define FUSEDRNN_CELLS(X) \
    X(lstm, Lstm)         \
    X(gru, Gru)           \
    X(rnn_tanh, RnnTanh)  \
    X(rnn_relu, RnnRelu)
