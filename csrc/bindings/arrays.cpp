#include "bindings/arrays.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>
#include <string_view>
#include <utility>

namespace fusedrnn {
namespace {

std::string type_name(py::handle value) {
    return value.is_none() ? "None" : std::string(Py_TYPE(value.ptr())->tp_name);
}

std::string dtype_name(const py::array& array) { return py::str(py::object(array.dtype())); }

// (4*H, H) and (512, 128): a tuple as Python writes it.
std::string tuple_text(const std::vector<std::string>& items) {
    std::string text = "(";
    for (std::size_t i = 0; i < items.size(); ++i) text += (i > 0 ? ", " : "") + items[i];
    return text + (items.size() == 1 ? ",)" : ")");
}

std::string expected_shape_text(const std::vector<Axis>& expected) {
    std::vector<std::string> symbols, sizes;
    for (const Axis& axis : expected) {
        const std::string size = std::to_string(axis.size), times = std::to_string(axis.times) + "*";
        symbols.push_back(axis.symbol == nullptr ? size : (axis.times == 1 ? "" : times) + axis.symbol);
        sizes.push_back(axis.size < 0 ? symbols.back() : size);
    }
    const std::string symbolic = tuple_text(symbols), actual = tuple_text(sizes);
    return symbolic == actual ? symbolic : symbolic + " = " + actual;
}

// A NumPy array of its own on the same elements.
py::array view_of(const py::array& array) {
    return {array.dtype(), std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim()),
            std::vector<py::ssize_t>(array.strides(), array.strides() + array.ndim()), array.data(), array};
}

}  // namespace

py::dtype dtype_object(DType dtype) {
    using Numpy = py::detail::npy_api;
    constexpr int kNumbers[] = {Numpy::NPY_FLOAT_, Numpy::NPY_DOUBLE_, Numpy::NPY_INT64_, Numpy::NPY_BOOL_};
    return py::dtype(kNumbers[static_cast<int>(dtype)]);
}

bool Layout::elements_are_apart() const {
    std::vector<std::pair<std::int64_t, std::int64_t>> axes;  // stride, size
    for (int i = 0; i < ndim_; ++i) {
        if (shape()[i] > 1) axes.emplace_back(std::abs(strides()[i]), shape()[i]);
    }
    std::sort(axes.begin(), axes.end());
    std::int64_t reach = itemsize_;
    for (const auto& [stride, size] : axes) {
        if (stride < reach) return false;
        reach += stride * (size - 1);
    }
    return true;
}

Array::Array(py::handle value, Name name, Presence presence) : name_(name) {
    if (value.is_none() && presence == kOptional) return;
    if (!py::isinstance<py::array>(value)) {
        const bool tensor = py::hasattr(value, "detach"), array = py::hasattr(value, "__array__");
        const std::string said = name.str();
        throw py::type_error(said + ": expected a NumPy array" + (presence == kOptional ? " or None" : "") +
                             ", got " + type_name(value) +
                             (tensor  ? "; use " + said + ".detach().numpy()"
                              : array ? "; use numpy.asarray(" + said + ")"
                                      : ""));
    }
    if (!is_plain_array(value) &&
        py::isinstance(value, py::module_::import("numpy.ma").attr("MaskedArray"))) {
        throw py::type_error(name.str() +
                             ": expected an array without a mask, got a MaskedArray; see its filled()");
    }
    array_ = py::reinterpret_borrow<py::array>(value);
    if (array_.ndim() > Layout::kMost) array_ = view_of(array_);
    layout_ = Layout(array_);
}

// Native byte order only: a swapped dtype has the same kind and size.
void Array::require_dtype(char kind, bool right_size, const char* expected, const Array* as) const {
    const py::dtype dtype = array_.dtype();
    const char order = dtype.byteorder();
    if (dtype.kind() == kind && right_size && (order == '=' || order == '|')) return;
    const std::string wanted(expected), found(1, dtype.kind());
    const std::string number = wanted.substr(0, wanted.find(' '));
    throw py::type_error(name() + ": expected dtype " + wanted + (as == nullptr ? "" : " as " + as->name()) +
                         ", got " + dtype_name(array_) +
                         (std::string("fiub").find(found) == std::string::npos
                              ? ""
                              : "; use " + name() + ".astype('" + number + "')"));
}

Array Array::floats(py::handle value, Name name, Presence presence) {
    Array a(value, name, presence);
    if (!a.given()) return a;
    a.require_dtype('f', a.itemsize() == 4 || a.itemsize() == 8, "float32 or float64");
    a.dtype_ = a.itemsize() == 4 ? DType::float32 : DType::float64;
    return a;
}

Array Array::int64(py::handle value, Name name, Presence presence) {
    Array a(value, name, presence);
    if (!a.given()) return a;
    a.require_dtype('i', a.itemsize() == 8, "int64");
    a.dtype_ = DType::int64;
    return a;
}

Array Array::boolean(py::handle value, Name name, Presence presence) {
    Array a(value, name, presence);
    if (!a.given()) return a;
    a.require_dtype('b', true, "bool");
    a.dtype_ = DType::boolean;
    return a;
}

Array Array::like(py::handle value, Name name, const Array& other, Presence presence) {
    Array a(value, name, presence);
    a.dtype_ = other.dtype_;
    if (!a.given()) return a;
    const bool is_float32 = other.dtype_ == DType::float32;
    a.require_dtype('f', a.itemsize() == (is_float32 ? 4 : 8), is_float32 ? "float32" : "float64", &other);
    return a;
}

Array Array::parameter(py::handle value, Name name, const Array& x, Presence presence) {
    Array a = std::string_view(x.name_.text) == "x" ? floats(value, name, presence)
                                                    : like(value, name, x, presence);
    if (a.given() && a.dtype_ != x.dtype_) {
        const std::string wanted = py::str(dtype_object(a.dtype_)), got = py::str(dtype_object(x.dtype_));
        throw py::type_error("x: expected dtype " + wanted + " as " + a.name() + ", got " + got +
                             "; use x.astype('" + wanted + "'), or parameters with dtype='" + got + "'");
    }
    a.dtype_ = x.dtype_;
    return a;
}

Array& Array::shape(const Axis* expected, std::size_t count) {
    if (!given()) return *this;
    bool same = static_cast<std::size_t>(ndim()) == count;
    for (int i = 0; same && i < ndim(); ++i) same = expected[i].size < 0 || expected[i].size == size(i);
    if (same) return *this;
    throw py::value_error(name() + ": " + shape_problem({expected, expected + count}, sizes()));
}

Array& Array::shape_of(const Array& other) {
    if (!given()) return *this;
    const py::ssize_t *mine = layout_.shape(), *theirs = other.layout_.shape();
    if (std::equal(mine, mine + ndim(), theirs, theirs + other.ndim())) return *this;
    std::vector<Axis> axes;
    for (const std::int64_t size : other.sizes()) axes.push_back({nullptr, size});
    return shape(axes);
}

Array& Array::contiguous() {
    if (!given()) return *this;
    if (!layout_.contiguous()) {
        throw py::value_error(name() + ": expected a C-contiguous array, got strides " +
                              std::string(py::str(view().attr("strides"))));
    }
    if (!layout_.aligned()) {
        throw py::value_error(name() + ": expected data aligned to its " +
                              std::to_string(layout_.itemsize()) + "-byte elements, got a misaligned array");
    }
    return *this;
}

// What was given, whatever became of the caller's array.
py::array Array::view() const {
    return {dtype_object(dtype_), std::vector<py::ssize_t>(layout_.shape(), layout_.shape() + ndim()),
            std::vector<py::ssize_t>(layout_.strides(), layout_.strides() + ndim()), layout_.data(), array_};
}

void Array::copy() {
    constexpr int kAligned = 0x0100;  // NPY_ARRAY_ALIGNED
    py::array made = py::array::ensure(view(), py::array::c_style | kAligned);
    if (!made) throw std::bad_alloc();
    array_ = std::move(made);
    layout_ = Layout(array_);
    copied_ = true;
}

Array& Array::made_contiguous() {
    if (given() && !(layout_.contiguous() && layout_.aligned())) copy();
    return *this;
}

std::string Array::problem_with_rows(bool for_output) const {
    if (size() == 0) return "";
    const int last = ndim() - 1;
    const std::int64_t itemsize = layout_.itemsize();
    const py::ssize_t* const strides = layout_.strides();
    if (!layout_.aligned()) return "misaligned data";
    for (int i = 0; i <= last; ++i) {
        if (size(i) == 1) continue;
        if (i == last && strides[i] != itemsize) return "another stride";
        if (strides[i] % itemsize != 0) return "strides that split elements";
    }
    return for_output && !layout_.elements_are_apart() ? "elements that share memory" : "";
}

Array& Array::made_rows() {
    if (given() && !problem_with_rows(false).empty()) copy();
    return *this;
}

Array& Array::writable_rows() {
    if (!given()) return *this;
    if (!layout_.writable())
        throw py::value_error(name() + ": expected a writable array, got a read-only one");
    const std::string problem = problem_with_rows(true);
    if (problem.empty()) return *this;
    throw py::value_error(name() + ": expected unit stride in the last axis, got " + problem);
}

Array& Array::writable() {
    if (!given()) return *this;
    if (!layout_.writable())
        throw py::value_error(name() + ": expected a writable array, got a read-only one");
    return contiguous();
}

bool Array::shares_elements(const Array& other) const {
    if (layout_.contiguous() && other.layout_.contiguous()) return true;
    // Interleaved slices of one array: NumPy solves this exactly.
    return py::module_::import("numpy").attr("shares_memory")(view(), other.view()).cast<bool>();
}

void Array::refuse_overlap(const Array& other) const {
    throw py::value_error(name() + ": expected memory of its own, got an overlap with " + other.name());
}

std::int64_t Array::stride(int axis) const {
    // NumPy gives axes of one element any stride.
    return size(axis) <= 1 || size() == 0 ? 0 : layout_.strides()[axis] / layout_.itemsize();
}

std::string shape_problem(const std::vector<Axis>& expected, const std::vector<std::int64_t>& sizes) {
    std::vector<std::string> got;
    for (const std::int64_t size : sizes) got.push_back(std::to_string(size));
    return "expected shape " + expected_shape_text(expected) + ", got " + tuple_text(got);
}

namespace {

// By NumPy's own function: pybind11 would work out strides and keep three vectors on the way.
py::array array_of(DType dtype, const std::int64_t* sizes, std::size_t count) {
    constexpr std::size_t kMostAxes = 64;  // NumPy's
    py::dtype type = dtype_object(dtype);
    std::int64_t bytes = type.itemsize();
    py::ssize_t shape[kMostAxes];
    for (std::size_t i = 0; i < count; ++i) {
        bytes = checked_product({bytes, std::max<std::int64_t>(sizes[i], 1)});
        shape[i] = sizes[i];
    }
    const auto& numpy = py::detail::npy_api::get();
    PyObject* const made =
        numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, type.release().ptr(), static_cast<int>(count), shape,
                                    nullptr, nullptr, 0, nullptr);
    if (made == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::array>(made);
}

}  // namespace

py::array new_array(DType dtype, std::initializer_list<std::int64_t> sizes) {
    return array_of(dtype, sizes.begin(), sizes.size());
}
py::array new_array(DType dtype, const std::vector<std::int64_t>& sizes) {
    return array_of(dtype, sizes.data(), sizes.size());
}

py::array axes_swapped(const py::array& array) {
    return {array.dtype(),
            {array.shape(1), array.shape(0), array.shape(2)},
            {array.strides(1), array.strides(0), array.strides(2)},
            array.data(),
            array};
}

py::array with_axes(const py::array& array, int count) {
    if (count == 0) return array;
    std::vector<py::ssize_t> shape(static_cast<std::size_t>(count), 1), strides(shape.size(), array.nbytes());
    shape.insert(shape.end(), array.shape(), array.shape() + array.ndim());
    strides.insert(strides.end(), array.strides(), array.strides() + array.ndim());
    return {array.dtype(), shape, strides, array.data(), array};
}

py::array without_axes(const py::array& array, int count) {
    if (count == 0) return array;
    const std::vector<py::ssize_t> shape(array.shape() + count, array.shape() + array.ndim());
    return {
        array.dtype(), shape, {array.strides() + count, array.strides() + array.ndim()}, array.data(), array};
}

std::int64_t checked_product(std::initializer_list<std::int64_t> sizes) {
    std::int64_t product = 1;
    for (const std::int64_t size : sizes) {
        if (!__builtin_mul_overflow(product, size, &product)) continue;
        std::string text;
        for (const std::int64_t factor : sizes) text += (text.empty() ? "" : " * ") + std::to_string(factor);
        throw py::value_error("sizes: expected a product below 2^63, got " + text);
    }
    return product;
}

double real_number(py::handle value, const char* name) {
    const double number = PyFloat_AsDouble(value.ptr());
    if (number != -1.0 || PyErr_Occurred() == nullptr) return number;
    const bool too_large = PyErr_ExceptionMatches(PyExc_OverflowError) != 0;
    PyErr_Clear();
    if (too_large) throw py::value_error(std::string(name) + ": expected a number in the range of float64");
    throw py::type_error(std::string(name) + ": expected a real number, got " + type_name(value));
}

double finite_number(py::handle value, const char* name) {
    const double number = real_number(value, name);
    require(std::isfinite(number), name, "a finite number", number);
    return number;
}

namespace {

py::int_ python_integer(py::handle value, const char* name) {
    PyObject* index = PyNumber_Index(value.ptr());
    if (index != nullptr) return py::reinterpret_steal<py::int_>(index);
    PyErr_Clear();
    throw py::type_error(std::string(name) + ": expected an integer, got " + type_name(value));
}

[[noreturn]] void refuse_integer(const char* name, const std::string& low, const std::string& high,
                                 const py::int_& got) {
    throw py::value_error(std::string(name) + ": expected an integer from " + low + " to " + high + ", got " +
                          std::string(py::str(got)));
}

}  // namespace

std::int64_t integer(py::handle value, const char* name, std::int64_t low, std::int64_t high) {
    const py::int_ exact = python_integer(value, name);
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(exact.ptr(), &overflow);
    if (overflow == 0 && number >= low && number <= high) return number;
    refuse_integer(name, std::to_string(low), std::to_string(high), exact);
}

std::uint64_t unsigned_integer(py::handle value, const char* name) {
    const py::int_ exact = python_integer(value, name);
    const unsigned long long number = PyLong_AsUnsignedLongLong(exact.ptr());
    if (PyErr_Occurred() == nullptr) return number;
    PyErr_Clear();
    refuse_integer(name, "0", "2^64 - 1", exact);
}

bool flag(py::handle value, const char* name) {
    py::detail::make_caster<bool> caster;
    if (caster.load(value, false)) return py::detail::cast_op<bool>(caster);
    throw py::type_error(std::string(name) + ": expected a bool, got " + type_name(value));
}

void require(bool ok, const char* name, const std::string& expected, double value) {
    if (ok) return;
    throw py::value_error(std::string(name) + ": expected " + expected + ", got " +
                          std::string(py::str(py::float_(value))));
}

std::vector<std::int64_t> checked_indices(const Array& indices, std::int64_t limit, const char* limit_symbol,
                                          const std::int64_t* allowed) {
    const auto* data = indices.data<std::int64_t>();
    std::vector<std::int64_t> copy(data, data + indices.size());
    for (std::size_t i = 0; i < copy.size(); ++i) {
        if ((copy[i] >= 0 && copy[i] < limit) || (allowed != nullptr && copy[i] == *allowed)) continue;
        throw py::value_error(indices.name() + ": expected values in [0, " + limit_symbol + ") = [0, " +
                              std::to_string(limit) + "), got " + std::to_string(copy[i]) + " at position " +
                              std::to_string(i));
    }
    return copy;
}

}  // namespace fusedrnn
