// Arrays in the memory of freed buffers.
#pragma once

#include <cstdint>
#include <vector>

#include "bindings/arrays.h"

namespace fusedrnn {

// A new C-contiguous array, as new_array makes it. What NumPy frees goes back to the system, which maps and clears it again for
// the next call; this does not, where it is large.
py::array spare_array(DType dtype, const std::vector<std::int64_t>& sizes);

}  // namespace fusedrnn
