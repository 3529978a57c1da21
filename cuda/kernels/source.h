// Where a step finds the state before it: in the step before, in a reset's state, or in the initial one.
#pragma once

#include "kernels/arguments.h"
#include "kernels/math.h"

namespace fusedrnn::cuda {

// Whether the row at position p has a step before `now`, in the direction of time travelled.
FUSEDRNN_DEVICE bool has_step_before(const StateSource& source, TimeStep now, int p) {
    return source.reverse ? p < now.next : now.t > 0;
}

// Whether a reset cuts the state of row b, at position p, on its way into the step. Going back in time,
// resets[t + 1] is the border between t + 1 and t.
FUSEDRNN_DEVICE bool is_cut(const StateSource& source, TimeStep now, int p, std::int64_t b) {
    if (source.resets == nullptr) return false;
    if (!source.reverse) return load_constant(source.resets + now.t * source.B + b) != 0;
    return p < now.next && load_constant(source.resets + (now.t + 1) * source.B + b) != 0;
}

// The row of state 0, T, and of a state k > 0, C; null is zero. `states` are those after the step before, all beyond h of
// a cell with S.
template <class T>
FUSEDRNN_DEVICE const T* hidden_before(const StateSource& source, TimeStep now, int p, std::int64_t b) {
    if (is_cut(source, now, p, b)) {
        const T* const reset = static_cast<const T*>(source.reset[0]);
        return reset == nullptr ? nullptr : reset + b * source.reset_stride[0];
    }
    if (has_step_before(source, now, p)) {
        const std::int64_t before = source.reverse ? now.t + 1 : now.t - 1;
        return static_cast<const T*>(source.y.data) + before * source.y.t_stride + b * source.y.b_stride;
    }
    const T* const initial = static_cast<const T*>(source.initial[0]);
    return initial == nullptr ? nullptr : initial + b * source.P;
}

template <class C>
FUSEDRNN_DEVICE const C* state_before(const StateSource& source, TimeStep now, int p, std::int64_t b, int k,
                                      const C* states, int S) {
    if (is_cut(source, now, p, b)) {
        const C* const reset = static_cast<const C*>(source.reset[k]);
        return reset == nullptr ? nullptr : reset + b * source.reset_stride[k];
    }
    if (has_step_before(source, now, p)) {
        return states + (static_cast<std::int64_t>(p) * (S - 1) + k - 1) * source.H;
    }
    const C* const initial = static_cast<const C*>(source.initial[k]);
    return initial == nullptr ? nullptr : initial + b * source.H;
}
template <class C, int S>
FUSEDRNN_DEVICE const C* state_before(const StateSource& source, TimeStep now, int p, std::int64_t b, int k,
                                      const C* states) {
    return state_before(source, now, p, b, k, states, S);
}

FUSEDRNN_DEVICE std::int64_t row_at(const std::int64_t* order, int p) {
    return order == nullptr ? p : load_constant(order + p);
}

}  // namespace fusedrnn::cuda
