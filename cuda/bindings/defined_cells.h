// Cells that are data: what the module of the CPU's kernels has read and checked, made ready for a GPU.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "cells.h"

namespace fusedrnn::cuda {

// A compiled cell by its name or a defined one by its key; ValueError for another.
const DeviceCell& cell_of_call(const std::string& name);

// (seed, offset) of the masks of a call, or None for their expectation.
Draws read_draws(pybind11::handle draws);

}  // namespace fusedrnn::cuda
