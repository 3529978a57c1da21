// The settings of an optimiser's step, checked; the same for parameters on every device.
#pragma once

#include "bindings/arrays.h"
#include "layers/layer_table.h"

namespace fusedrnn {

// The numbers of a type: what is smaller than `least` counts as 0 in the kernels, what is larger than `most` as infinite.
struct NumberRange {
    const char* name;
    double least, most;
};
NumberRange range_of(DType dtype);

SgdOptions read_sgd_options(const NumberRange& range, py::handle lr, py::handle momentum,
                            py::handle dampening, py::handle weight_decay, py::handle nesterov,
                            py::handle first);
AdamOptions read_adam_options(const NumberRange& range, py::handle lr, py::handle beta1, py::handle beta2,
                              py::handle eps, py::handle weight_decay, py::handle decoupled, py::handle step);

// ValueError: squares of elements of a gradient overflow, the largest of which is given.
[[noreturn]] void refuse_gradient(const NumberRange& range, double largest);

}  // namespace fusedrnn
