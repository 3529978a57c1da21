#pragma once

#include <cstdint>
#include <vector>

#include "bindings/arrays.h"
#include "cells/program_list.h"

namespace fusedrnn {

// The instructions (n, 5) of a program whose slots from `first_written` to `slots` may be written. A private copy, checked.
std::vector<Instruction> read_code(py::handle code, std::int64_t first_written, std::int64_t slots);

}  // namespace fusedrnn
