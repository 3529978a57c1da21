// exp, sigmoid and tanh of arrays.
#pragma once

#include "activations.h"
#include "layers/parallel.h"

namespace fusedrnn::FUSEDRNN_ISA {

struct ExpOp {
    template <class V>
    static FUSEDRNN_INLINE V apply(V x) {
        return exp(x);
    }
};

struct SigmoidOp {
    template <class V>
    static FUSEDRNN_INLINE V apply(V x) {
        return sigmoid(x);
    }
};

struct TanhOp {
    template <class V>
    static FUSEDRNN_INLINE V apply(V x) {
        return tanh(x);
    }
};

template <class T, class Op>
void elementwise(std::int64_t n, const T* x, T* y, Team& team) {
    using V = Vec<T>;
    constexpr int L = V::kLanes;
    interruptible_blocks(team, n, kBlock, [&](std::int64_t begin, std::int64_t end) {
        std::int64_t i = begin;
        for (; i + L <= end; i += L) Op::apply(V::load(x + i)).store(y + i);
        const int rest = static_cast<int>(end - i);
        if (rest > 0) Op::apply(V::load_n(x + i, rest)).store_n(y + i, rest);
    });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
