// Arguments that the sequence calls and the stream share.
#pragma once

#include "bindings/tape.h"

namespace fusedrnn {

int cell_by_name(const std::string& name);
const CellTraits& traits_of(int cell);
// Item i of an argument that has to be a tuple or list of `size`.
py::object item_of(py::handle sequence, const char* name, py::ssize_t size, py::ssize_t i);

// The checked weights of one layer and direction, contiguous, and the sizes that follow from them (T and B are not set).
struct WeightArrays {
    Array w_ih, w_hh, b_ih, b_hh, w_hr;
    Dims dims{};

    // `x` gives the dtype and, in its last axis, the input size.
    static WeightArrays read(int cell, py::handle params, const Array& x);

    template <class T>
    Params<const T> pointers() const {
        return {w_ih.data<T>(), w_hh.data<T>(), b_ih.data<T>(), b_hh.data<T>(), w_hr.data<T>()};
    }
};

// The width of state k, and one state array (B, width) of a call, contiguous.
std::int64_t state_width(const Dims& dims, int k);
Array read_state(py::handle value, const std::string& name, int k, const Dims& dims, const Array& like);

}  // namespace fusedrnn
