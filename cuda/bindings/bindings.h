// The parts of the compiled module; module.cpp is the table of contents.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedrnn::cuda {

void bind_errors(pybind11::module_& m);     // CUDA's errors as exceptions
void bind_device(pybind11::module_& m);     // what is there, and what is missing
void bind_array(pybind11::module_& m);      // arrays in device memory
void bind_exchange(pybind11::module_& m);   // arrays whose libraries offer functions for C
void bind_recurrent(pybind11::module_& m);  // forward, backward and their tape
void bind_elements(pybind11::module_& m);   // rounding and dropout
void bind_ops(pybind11::module_& m);        // layer normalisation, cross-entropy, optimisers
void bind_platform(pybind11::module_& m);   // what this build runs on: bindings/device.cpp of the platform

}  // namespace fusedrnn::cuda
