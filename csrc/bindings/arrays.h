// Every check of an argument: arrays, numbers and flags. An error names the argument, what was expected and what came.
//
// TypeError for the kind or the dtype, ValueError for shape, layout and value. Checks chain, and do nothing on an
// argument that is None where that is allowed:
//   const Array logits = Array::floats(value, "logits").shape({{"N"}, {"C"}}).contiguous();
//   const Array weight = Array::like(value, "weight", logits, kOptional).shape({{"C", logits.size(1)}}).contiguous();
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace fusedrnn {

namespace py = pybind11;

enum class DType { float32, float64, int64, boolean };
enum Presence : bool { kRequired = false, kOptional = true };

// What an error calls an argument, dstate[1] or dbias_ih. Put into words where there is an error: a call that has none need
// not pay for them. The parts are literals.
struct Name {
    Name(const char* text, int index = -1, const char* prefix = "")
        : text(text), prefix(prefix), index(index) {}
    std::string str() const {
        return std::string(prefix) + text + (index < 0 ? "" : "[" + std::to_string(index) + "]");
    }

    const char *text, *prefix;
    int index;
};

// One axis of an expected shape, 4*H with size 512; without a size, any size will do, without a symbol the size says all.
struct Axis {
    const char* symbol;
    std::int64_t size = -1;
    int times = 1;
};

// Whether a value is an array and of no subclass, for calls that take a short way with those.
inline bool is_plain_array(py::handle value) {
    return Py_TYPE(value.ptr()) == py::detail::npy_api::get().PyArray_Type_;
}

// Where an array's elements are. It is read once: Python code may set an array's shape, strides and dtype at any time,
// between two calls that use it and during one.
class Layout {
  public:
    static constexpr int kMost = 3;

    Layout() = default;
    // An array of more than kMost axes has to be one that nobody else can reach, and to outlive this.
    explicit Layout(const py::array& array)
        : data_(array.data()),
          far_{array.shape(), array.strides()},
          ndim_(static_cast<int>(array.ndim())),
          itemsize_(static_cast<int>(array.itemsize())),
          flags_(array.flags()),
          size_(1),
          low_(reinterpret_cast<std::intptr_t>(data_)),
          high_(low_) {
        for (int i = 0; i < ndim_; ++i) {
            const py::ssize_t size = far_[0][i], stride = far_[1][i], reach = (size - 1) * stride;
            size_ *= size;
            (reach < 0 ? low_ : high_) += reach;
            if (ndim_ > kMost) continue;
            near_[0][i] = size;
            near_[1][i] = stride;
        }
        if (size_ == 0) {
            low_ = high_ = reinterpret_cast<std::intptr_t>(data_);
        } else {
            high_ += itemsize_;
        }
    }

    const void* data() const { return data_; }
    int ndim() const { return ndim_; }
    std::int64_t itemsize() const { return itemsize_; }
    const py::ssize_t* shape() const { return ndim_ > kMost ? far_[0] : near_[0]; }
    const py::ssize_t* strides() const { return ndim_ > kMost ? far_[1] : near_[1]; }  // in bytes
    std::int64_t size() const { return size_; }
    bool contiguous() const { return (flags_ & py::array::c_style) != 0; }
    bool writable() const { return (flags_ & 0x0400) != 0; }  // NPY_ARRAY_WRITEABLE
    bool aligned() const {
        return size() == 0 || reinterpret_cast<std::uintptr_t>(data_) % static_cast<unsigned>(itemsize_) == 0;
    }
    // Whether another lies between the first and the last byte of the elements, or begins or ends there.
    bool meets(const Layout& other) const { return low_ < other.high_ && other.low_ < high_; }
    // Whether no two elements share memory, judged by nested strides: enough for every slice of a contiguous array.
    bool elements_are_apart() const;

  private:
    const void* data_ = nullptr;
    const py::ssize_t* far_[2]{};
    py::ssize_t near_[2][kMost]{};  // shape and strides
    int ndim_ = 0, itemsize_ = 0, flags_ = 0;
    std::int64_t size_ = 0;
    std::intptr_t low_ = 0, high_ = 0;  // first and one past the last byte
};

// An argument as it was when it was read. It keeps the memory, and does not look at the Python object again.
class Array {
  public:
    Array() = default;  // an argument that was not given

    static Array floats(py::handle value, Name name, Presence presence = kRequired);
    static Array int64(py::handle value, Name name, Presence presence = kRequired);
    static Array boolean(py::handle value, Name name, Presence presence = kRequired);
    // The dtype of another argument.
    static Array like(py::handle value, Name name, const Array& other, Presence presence = kRequired);
    // The same for a parameter beside an input `x`: where they differ, the error is one about x, which a caller gave.
    static Array parameter(py::handle value, Name name, const Array& x, Presence presence = kRequired);

    Array& shape(std::initializer_list<Axis> expected) { return shape(expected.begin(), expected.size()); }
    Array& shape(const std::vector<Axis>& expected) { return shape(expected.data(), expected.size()); }
    Array& shape_of(const Array& other);
    // Refuses what is not C-contiguous and aligned.
    Array& contiguous();
    // Copies what is not C-contiguous and aligned: for small inputs.
    Array& made_contiguous();
    // Unit stride in the last axis and strides of whole elements elsewhere: other layouts are copied.
    Array& made_rows();
    // The same for an array to be written: other layouts are refused, and elements that share memory.
    Array& writable_rows();
    // Writable, C-contiguous and aligned.
    Array& writable();
    // Refuses to share memory with another argument.
    Array& apart_from(const Array& other) {
        if (shares_memory(other)) refuse_overlap(other);
        return *this;
    }

    bool given() const { return static_cast<bool>(array_); }
    std::string name() const { return name_.str(); }
    DType dtype() const { return dtype_; }
    // The caller's array, or the copy that was made of it: to be returned, not to be read.
    const py::array& object() const { return array_; }
    py::object object_or_none() const { return given() ? py::object(array_) : py::none(); }
    int ndim() const { return layout_.ndim(); }
    std::int64_t size(int axis) const { return layout_.shape()[axis]; }
    std::int64_t size() const { return layout_.size(); }
    // Bytes of the copy that made_contiguous() or made_rows() had to take; 0 where the caller's array serves.
    std::int64_t copied_bytes() const { return copied_ ? size() * layout_.itemsize() : 0; }
    std::int64_t itemsize() const { return layout_.itemsize(); }
    std::int64_t stride(int axis) const;  // in elements
    std::vector<std::int64_t> sizes() const { return {layout_.shape(), layout_.shape() + layout_.ndim()}; }
    bool shares_memory(const Array& other) const {
        return layout_.meets(other.layout_) && shares_elements(other);
    }

    // Null where not given.
    template <class T>
    const T* data() const {
        return static_cast<const T*>(layout_.data());
    }
    template <class T>
    T* mutable_data() const {
        return const_cast<T*>(data<T>());
    }

  private:
    Array(py::handle value, Name name, Presence presence);
    void require_dtype(char kind, bool right_size, const char* expected, const Array* as = nullptr) const;
    Array& shape(const Axis* expected, std::size_t count);
    std::string problem_with_rows(bool for_output) const;
    bool shares_elements(const Array& other) const;
    [[noreturn]] void refuse_overlap(const Array& other) const;
    void copy();
    py::array view() const;

    py::array array_ = py::reinterpret_steal<py::array>(py::handle());
    Layout layout_;
    Name name_{""};
    DType dtype_ = DType::float32;
    bool copied_ = false;
};

// "expected shape (4*H, H) = (512, 128), got (512, 64)".
std::string shape_problem(const std::vector<Axis>& expected, const std::vector<std::int64_t>& sizes);

py::dtype dtype_object(DType dtype);

// A new C-contiguous array; ValueError where its size does not fit in 63 bits.
py::array new_array(DType dtype, std::initializer_list<std::int64_t> sizes);
py::array new_array(DType dtype, const std::vector<std::int64_t>& sizes);
// A view of three axes, the first two in the other order.
py::array axes_swapped(const py::array& array);
// Views with so many axes of length 1 more in front, or so many fewer.
py::array with_axes(const py::array& array, int count);
py::array without_axes(const py::array& array, int count);

// Calls f.operator()<T>() with float or double.
template <class F>
auto by_dtype(DType dtype, F&& f) {
    return dtype == DType::float32 ? f.template operator()<float>() : f.template operator()<double>();
}

// The product of sizes; ValueError where it does not fit in 63 bits.
std::int64_t checked_product(std::initializer_list<std::int64_t> sizes);

double real_number(py::handle value, const char* name);
double finite_number(py::handle value, const char* name);
std::int64_t integer(py::handle value, const char* name, std::int64_t low, std::int64_t high);
std::uint64_t unsigned_integer(py::handle value, const char* name);
bool flag(py::handle value, const char* name);
// Raises ValueError "name: expected `expected`, got value" unless ok.
void require(bool ok, const char* name, const std::string& expected, double value);

// A private copy of integers that have each to be in [0, limit) or equal to `allowed`: what another thread writes to
// the array while the kernels run cannot lead them astray.
std::vector<std::int64_t> checked_indices(const Array& indices, std::int64_t limit, const char* limit_symbol,
                                          const std::int64_t* allowed = nullptr);

}  // namespace fusedrnn
