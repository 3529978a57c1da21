#include "cuda/bindings/argument.h"

namespace fusedrnn::cuda {
namespace {

std::string strides_text(const DeviceArray& array) {
    std::string text;
    for (const std::int64_t stride : array.strides) {
        text += (text.empty() ? "(" : ", ") + std::to_string(stride);
    }
    return text + (array.strides.size() == 1 ? ",)" : ")") + " in elements";
}

}  // namespace

Argument::Argument(py::handle value, Name name, StreamNumber stream, Presence presence) : name_(name) {
    if (value.is_none() && presence == kOptional) return;
    array_ = import_array(value, name_.str(), stream);
    object_ = py::reinterpret_borrow<py::object>(value);
    given_ = true;
}

Argument Argument::first(py::handle value, Name name, StreamNumber stream) {
    return {value, name, stream, kRequired};
}

Argument Argument::beside(py::handle value, Name name, dlpack::Type type, const Argument& first,
                          StreamNumber stream, Presence presence) {
    Argument a(value, name, stream, presence);
    if (!a.given_) return a;
    if (!same_type(a.type(), type)) {
        const bool same = same_type(first.type(), type);
        throw py::type_error(a.name() + ": expected dtype " + type_name(type) + (same ? " as " : " beside ") +
                             first.name() + (same ? "" : " of " + type_name(first.type())) + ", got " +
                             type_name(a.type()));
    }
    if (a.device() != first.device()) {
        throw std::runtime_error(a.name() + ": expected an array on cuda:" + std::to_string(first.device()) +
                                 " as " + first.name() + ", got one on cuda:" + std::to_string(a.device()));
    }
    return a;
}

Argument Argument::inside(DeviceArray array, Name name) {
    Argument a;
    a.array_ = std::move(array);
    a.name_ = name;
    a.given_ = true;
    return a;
}

Argument& Argument::shape(const std::vector<Axis>& expected) {
    if (!given_) return *this;
    bool same = array_.shape.size() == expected.size();
    for (std::size_t i = 0; same && i < expected.size(); ++i) {
        same = expected[i].size < 0 || expected[i].size == array_.shape[i];
    }
    if (same) return *this;
    throw py::value_error(name() + ": " + shape_problem(expected, array_.shape));
}

void Argument::require_aligned() const {
    const auto alignment = static_cast<std::uintptr_t>(array_.itemsize());
    if (array_.size() == 0 || reinterpret_cast<std::uintptr_t>(array_.data) % alignment == 0) return;
    throw py::value_error(name() + ": expected data aligned to its " + std::to_string(alignment) +
                          "-byte elements, got a misaligned array");
}

Argument& Argument::contiguous() {
    if (!given_) return *this;
    if (!array_.is_contiguous()) {
        throw py::value_error(name() + ": expected a C-contiguous array, got strides " +
                              strides_text(array_));
    }
    require_aligned();
    return *this;
}

Argument& Argument::made_rows() {
    if (!given_ || array_.size() == 0) return *this;
    if (array_.shape.back() > 1 && array_.strides.back() != 1) {
        throw py::value_error(name() + ": expected unit stride in the last axis, got strides " +
                              strides_text(array_));
    }
    require_aligned();
    return *this;
}

Argument& Argument::require_writable() {
    if (given_ && array_.read_only) {
        throw py::value_error(name() + ": expected a writable array, got a read-only one");
    }
    return *this;
}

Argument& Argument::writable_rows() { return made_rows().require_writable(); }
Argument& Argument::writable() { return contiguous().require_writable(); }

std::pair<std::uintptr_t, std::uintptr_t> Argument::extent() const {
    auto low = reinterpret_cast<std::intptr_t>(data()), high = low;
    if (!given_ || array_.size() == 0) return {0, 0};
    for (std::size_t i = 0; i < array_.shape.size(); ++i) {
        const std::int64_t reach = (array_.shape[i] - 1) * array_.strides[i] * array_.itemsize();
        (reach < 0 ? low : high) += reach;
    }
    return {low, high + array_.itemsize()};
}

Argument& Argument::apart_from(const Argument& other) {
    const auto [low, high] = extent();
    const auto [other_low, other_high] = other.extent();
    if (low == high || other_low == other_high || low >= other_high || other_low >= high) return *this;
    throw py::value_error(name() + ": expected memory of its own, got an overlap with " + other.name());
}

ConstRows Argument::as_const_rows() const {
    if (!given_) return {};
    // Libraries give axes of one element any stride.
    const auto stride = [&](std::size_t axis) { return array_.shape[axis] <= 1 ? 0 : array_.strides[axis]; };
    if (ndim() == 2) return {array_.data, 0, stride(0)};
    return {array_.data, stride(0), stride(1)};
}

Rows Argument::as_rows() const {
    const ConstRows rows = as_const_rows();
    return {const_cast<void*>(rows.data), rows.t_stride, rows.b_stride};
}

}  // namespace fusedrnn::cuda
