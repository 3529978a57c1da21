// Where a step finds the state before it, and its rows.
#pragma once

#include "kernels/arguments.h"
#include "kernels/math.h"
#include "previous_state.h"

namespace fusedrnn::cuda {

FUSEDRNN_DEVICE std::int64_t row_at(const std::int64_t* order, int p) {
    return order == nullptr ? p : load_constant(order + p);
}

}  // namespace fusedrnn::cuda
