// Every check of an array in device memory; the twin of csrc/bindings/arrays.h.
//
// An error names the argument, what was expected and what came: TypeError for the kind or the dtype,
// ValueError for shape and layout, RuntimeError for the device. Checks chain, and do nothing on an argument
// that is None where that is allowed. What arrays.h would copy is refused here.
#pragma once

#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "cuda/bindings/array.h"
#include "problem.h"
#include "runtime.h"

namespace fusedrnn::cuda {

class Argument {
  public:
    Argument() = default;  // an argument that was not given

    // The array that the others of a call have to fit: its producer's writes are ordered before `stream`.
    static Argument first(py::handle value, Name name, StreamNumber stream);
    // An array beside it, of a given dtype; `stream` as above.
    static Argument beside(py::handle value, Name name, dlpack::Type type, const Argument& first,
                           StreamNumber stream, Presence presence = kRequired);

    // An array that the caller does not see.
    static Argument inside(DeviceArray array, Name name);

    Argument& shape(const std::vector<Axis>& expected);
    // C-contiguous and aligned.
    Argument& contiguous();
    Argument& made_contiguous() { return contiguous(); }
    // Unit stride in the last axis and aligned.
    Argument& made_rows();
    // The same, and what may be written.
    Argument& writable_rows();
    // C-contiguous, aligned, and what may be written.
    Argument& writable();
    // Refuses to share memory with another argument, judged by the first and last element of each.
    Argument& apart_from(const Argument& other);

    bool given() const { return given_; }
    std::string name() const { return name_.str(); }
    const py::object& object() const { return object_; }
    py::object object_or_none() const { return given_ ? object_ : py::none(); }
    const DeviceArray& array() const { return array_; }
    dlpack::Type type() const { return array_.type; }
    int device() const { return array_.device; }
    int ndim() const { return static_cast<int>(array_.shape.size()); }
    std::int64_t size(int axis) const { return array_.shape[static_cast<std::size_t>(axis)]; }
    std::int64_t bytes() const { return given_ ? array_.size() * array_.itemsize() : 0; }
    void* data() const { return given_ ? array_.data : nullptr; }
    // A (T, B, n) array, or (B, n).
    Rows as_rows() const;
    ConstRows as_const_rows() const;
    // First and one past the last byte that the elements occupy.
    std::pair<std::uintptr_t, std::uintptr_t> extent() const;

  private:
    Argument(py::handle value, Name name, StreamNumber stream, Presence presence);
    void require_aligned() const;
    Argument& require_writable();

    DeviceArray array_;
    py::object object_ = py::reinterpret_steal<py::object>(py::handle());
    Name name_{""};
    bool given_ = false;
};

// What arguments occupy.
using Extents = std::vector<std::pair<std::uintptr_t, std::uintptr_t>>;

// Runs a driver on the device of a call, without the GIL.
template <class F>
void run_call(int device, Extents extents, F&& driver) {
    const py::gil_scoped_release released;
    const CallScope scope(device, std::move(extents));
    driver();
}

}  // namespace fusedrnn::cuda
