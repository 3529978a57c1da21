// Every cell, and the one list that names them: FUSEDRNN_CELLS(X) expands X(name, Type, driver, families) for each. Kernels,
// bindings and Python follow it.
//
// A cell is a struct of equations with no loop, pointer or instruction set in it. V is a vector of units.
//   kGates       gates, in PyTorch's order; the rows of weight_ih and weight_hh are kGates x H
//   kStates      states carried from step to step, kMaxStates at most; state 0 is the hidden state h, which the matmul and
//                the output see
//   kSaved       values a step keeps for its backward
//   kParameters  what the user gives, in order (schema.h)
//   kSplitGates  false: forward sees only the sum a = W_ih x + b_ih + W_hh h + b_hh, backward gives its gradient da
//                true: forward sees gx = W_ih x + b_ih and gh = W_hh h + b_hh apart, backward gives dgx and dgh
//   kDirectHidden  whether h enters the step outside the matmul; ds[0] is read only then
//   forward ((a) or (gx, gh), [u,] s, s_next, saved)
//   backward(saved, [u,] s, ds_next, (da) or (dgx, dgh), [du,] ds)
// u are the unit's values of all per-unit parameters in their order, where the schema has any, du this step's part of their
// gradients. s are the states before the step, ds_next the gradients of s_next, ds the pointwise part of the gradient of s:
// the part through the matmul, dgh W_hh, is the driver's.
//
// The columns of the list:
//   driver    dense: both products of every step, then the cell (forward.h, backward.h)
//   families  what is compiled besides the CPU's kernels: weights of fewer bits, and the families of CUDA kernels
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"

namespace fusedrnn::FUSEDRNN_ISA {

enum Families : unsigned { kQuantized = 1, kStep = 2, kPersistent = 4, kCluster = 8, kAllFamilies = 15 };

}  // namespace fusedrnn::FUSEDRNN_ISA

#define FUSEDRNN_CELLS(X)                     \
    X(lstm, Lstm, dense, kAllFamilies)        \
    X(gru, Gru, dense, kAllFamilies)          \
    X(rnn_tanh, RnnTanh, dense, kAllFamilies) \
    X(rnn_relu, RnnRelu, dense, kAllFamilies)
