// The operations of programs (cells/program_list.h) that neither activations.h nor elementary.h has, on a vector V.
#pragma once

#include "elementary.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class V>
FUSEDRNN_INLINE V zero_or_one(typename V::Mask m) {
    return select(m, V::set(1), V::set(0));
}
// a <= b. |a| + |b| is NaN where either is.
template <class V>
FUSEDRNN_INLINE V less_equal(V a, V b) {
    const V ordered = zero_or_one<V>(less(V::set(-1), abs(a) + abs(b)));
    return select(less(b, a), V::set(0), ordered);
}
// min and max themselves give b where either is NaN.
template <class V>
FUSEDRNN_INLINE V minimum(V a, V b) {
    return select(less(V::set(-1), abs(a)), min(a, b), a);
}
template <class V>
FUSEDRNN_INLINE V maximum(V a, V b) {
    return select(less(V::set(-1), abs(a)), max(a, b), a);
}

}  // namespace fusedrnn::FUSEDRNN_ISA
