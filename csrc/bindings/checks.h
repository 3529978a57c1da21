// Checks of a recurrent layer's call that do not depend on where its arrays are.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "cpu/kernels.h"

namespace fusedrnn {

namespace py = pybind11;

inline CellId cell_by_name(const std::string& name) {
    std::string known;
    for (int i = 0; i < kCellCount; ++i) {
        if (name == kCellNames[i]) return static_cast<CellId>(i);
        known += (i == 0 ? "" : ", ") + std::string(kCellNames[i]);
    }
    throw py::value_error("cell: expected one of " + known + ", got '" + name + "'");
}

// Item i of an argument that has to be a tuple or list of `size`.
inline py::object item_of(py::handle sequence, const char* name, py::ssize_t size, py::ssize_t i) {
    if (!PyTuple_Check(sequence.ptr()) && !PyList_Check(sequence.ptr())) {
        throw py::type_error(std::string(name) + ": expected a tuple of " + std::to_string(size) +
                             " arrays, got " + Py_TYPE(sequence.ptr())->tp_name);
    }
    const py::ssize_t got = PySequence_Fast_GET_SIZE(sequence.ptr());
    if (got != size) {
        throw py::value_error(std::string(name) + ": expected a tuple of " + std::to_string(size) +
                              " arrays, got " + std::to_string(got));
    }
    return py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(sequence.ptr(), i));
}

// H of a weight_ih of shape (rows, inputs).
inline std::int64_t hidden_size(std::int64_t gates, std::int64_t rows, std::int64_t inputs) {
    if (rows > 0 && rows % gates == 0) return rows / gates;
    throw py::value_error("weight_ih: expected shape (" + std::to_string(gates) +
                          "*H, I) with H >= 1, got (" + std::to_string(rows) + ", " + std::to_string(inputs) +
                          ")");
}

inline void check_projection(int cell, const Dims& dims) {
    if (!dims.projected || (cell == kCell_lstm && dims.P > 0)) return;
    throw py::value_error(
        "weight_hr: expected None, or shape (P, H) with P >= 1 and the cell lstm, got shape (" +
        std::to_string(dims.P) + ", " + std::to_string(dims.H) + ") and the cell " + kCellNames[cell]);
}

}  // namespace fusedrnn
