// Checks of a recurrent layer's call that do not depend on where its arrays are.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "bindings/arrays.h"
#include "cpu/kernels.h"

namespace fusedrnn {

namespace py = pybind11;

// The cell of this name among `cells`, on whatever device they run.
template <class Cells>
auto& cell_among(const Cells& cells, const std::string& name) {
    std::string known;
    for (const auto& cell : cells) {
        if (name == cell.name) return cell;
        known += (known.empty() ? "" : ", ") + std::string(cell.name);
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

// Parameter i of a tuple of all that the cell has.
inline py::object parameter_of(py::handle params, const CellTraits& cell, int i) {
    return item_of(params, "params", cell.parameter_count, i);
}

// H of a weight_ih of shape (rows, inputs).
inline std::int64_t hidden_size(std::int64_t gates, std::int64_t rows, std::int64_t inputs) {
    if (rows > 0 && rows % gates == 0) return rows / gates;
    throw py::value_error("weight_ih: expected shape (" + std::to_string(gates) +
                          "*H, I) with H >= 1, got (" + std::to_string(rows) + ", " + std::to_string(inputs) +
                          ")");
}

inline std::int64_t size_of(const Extent& extent, const Dims& d) {
    const std::int64_t sizes[] = {1, d.I, d.H, d.P};
    return extent.times * sizes[static_cast<int>(extent.size)];
}
inline Axis axis_of(const Extent& extent, const Dims& d) {
    const char* const symbol = extent.size == Size::kInputs                   ? "I"
                               : extent.size == Size::kOutputs && d.projected ? "P"
                                                                              : "H";
    return {symbol, size_of(extent, d), extent.times};
}
inline std::vector<Axis> axes_of(const Parameter& p, const Dims& d) {
    std::vector<Axis> axes{axis_of(p.rows, d)};
    if (p.columns.size != Size::kOne) axes.push_back(axis_of(p.columns, d));
    return axes;
}
inline std::vector<std::int64_t> sizes_of(const Parameter& p, const Dims& d) {
    std::vector<std::int64_t> sizes;
    for (const Axis& axis : axes_of(p, d)) sizes.push_back(axis.size);
    return sizes;
}
inline std::int64_t elements_of(const Parameter& p, const Dims& d) {
    return size_of(p.rows, d) * size_of(p.columns, d);
}

// Refuses an array of another shape than its parameter's; what is right costs no words.
template <class A>
void check_shape(A& array, const Parameter& p, const Dims& d) {
    const bool matrix = p.columns.size != Size::kOne;
    const bool right = array.ndim() == (matrix ? 2 : 1) && array.size(0) == size_of(p.rows, d) &&
                       (!matrix || array.size(1) == size_of(p.columns, d));
    if (!right) array.shape(axes_of(p, d));
}

// Checks the parameters of a cell, arrays of any device; sets H, P and whether there is a
// projection. dims.I is the input's.
template <class A, class Cells>
void check_parameters(const CellTraits& cell, const Cells& cells, std::vector<A>& arrays, Dims& dims) {
    const int input = cell.place(Role::kInputWeight), projection = cell.place(Role::kProjection);
    const int gates = cell.parameters[input].rows.times;
    A& w = arrays[input];
    if (w.ndim() != 2 || w.size(1) != dims.I) {
        w.shape({{"H with H >= 1", -1, gates}, {"I", dims.I}});
    }
    dims.H = hidden_size(gates, w.size(0), dims.I);
    dims.P = dims.H;
    if (projection >= 0 && arrays[projection].given()) {
        A& given = arrays[projection];
        given.shape({{"P"}, {"H", dims.H}});
        dims.projected = true;
        dims.P = given.size(0);
        if (cell.parameters[projection].need == Need::kRefused || dims.P == 0) {
            std::string takers;
            for (const CellTraits& other : cells) {
                const int place = other.place(Role::kProjection);
                if (place < 0 || other.parameters[place].need == Need::kRefused) continue;
                takers += (takers.empty() ? "" : " or ") + std::string(other.name);
            }
            throw py::value_error(given.name() +
                                  ": expected None, or shape (P, H) with P >= 1 and the cell " + takers +
                                  ", got shape (" + std::to_string(dims.P) + ", " + std::to_string(dims.H) +
                                  ") and the cell " + cell.name);
        }
    }
    for (int i = 0; i < cell.parameter_count; ++i) {
        if (i != input && i != projection && arrays[i].given())
            check_shape(arrays[i], cell.parameters[i], dims);
    }
}

}  // namespace fusedrnn
