// Where a step finds the state before it: in the step before, in a reset's state, or in the initial one. For the kernels of
// any device: those of a GPU have device/device.h before.
#pragma once

#include "cpu/kernels.h"
#include "simd/simd.h"

namespace fusedrnn::FUSEDRNN_ISA {

#ifndef FUSEDRNN_DEVICE
#define FUSEDRNN_DEVICE FUSEDRNN_INLINE
template <class T>
FUSEDRNN_INLINE T load_constant(const T* p) {
    return *p;
}
#endif

// Whether the row at position p has a step before `now`, in the direction of time travelled.
FUSEDRNN_DEVICE bool has_step_before(const StateSource& source, TimeStep now, std::int64_t p) {
    return source.reverse ? p < now.next : now.t > 0;
}

// Whether a reset cuts the state of row b, at position p, on its way into the step. Going back in time,
// resets[t + 1] is the border between t + 1 and t.
FUSEDRNN_DEVICE bool is_cut(const StateSource& source, TimeStep now, std::int64_t p, std::int64_t b) {
    if (source.resets == nullptr) return false;
    if (!source.reverse) return load_constant(source.resets + now.t * source.B + b) != 0;
    return p < now.next && load_constant(source.resets + (now.t + 1) * source.B + b) != 0;
}

template <class E>
FUSEDRNN_DEVICE const E* row_or_null(const void* array, std::int64_t at) {
    return array == nullptr ? nullptr : static_cast<const E*>(array) + at;
}
// The row of state k; null is zero. left() is that which the step before has left.
template <class E, class Left>
FUSEDRNN_DEVICE const E* find_before(const StateSource& source, TimeStep now, std::int64_t p, std::int64_t b,
                                     int k, Left&& left) {
    if (is_cut(source, now, p, b)) {
        return row_or_null<E>(source.reset[k], b * source.reset_stride[k]);
    }
    if (has_step_before(source, now, p)) return left();
    return row_or_null<E>(source.initial[k], b * source.initial_stride[k]);
}

// That of h, of elements T, and of a state k > 0, of elements C. `states` are those after the step before, all beyond h of
// a cell with S, by position.
template <class T>
FUSEDRNN_DEVICE const T* hidden_before(const StateSource& source, TimeStep now, std::int64_t p,
                                       std::int64_t b) {
    return find_before<T>(source, now, p, b, 0, [&] {
        const std::int64_t before = source.reverse ? now.t + 1 : now.t - 1;
        return static_cast<const T*>(source.y.data) + before * source.y.t_stride + b * source.y.b_stride;
    });
}
template <class C>
FUSEDRNN_DEVICE const C* state_before(const StateSource& source, TimeStep now, std::int64_t p, std::int64_t b,
                                      int k, const C* states, int S) {
    return find_before<C>(source, now, p, b, k,
                          [&] { return states + (p * (S - 1) + k - 1) * source.width; });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
