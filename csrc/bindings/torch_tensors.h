// Tensors of PyTorch as arrays and back. Nothing of PyTorch is needed to build this.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "bindings/dlpack.h"
#include "bindings/network_calls.h"

namespace fusedrnn {

// Made once; it lives as long as the process.
inline PyObject* interned(const char* text) {
    PyObject* const made = PyUnicode_InternFromString(text);
    if (made == nullptr) throw py::error_already_set();
    return made;
}

inline py::object checked(PyObject* made) {
    if (made == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
}

// The functions for C behind PyTorch's tensors, where this version has them.
inline const dlpack::Exchange* exchange_of(py::handle tensor_type) {
    const py::object capsule = py::getattr(tensor_type, dlpack::kExchangeAttribute, py::none());
    if (PyCapsule_IsValid(capsule.ptr(), dlpack::kExchangeCapsule) == 0) return nullptr;
    const auto* const exchange =
        static_cast<const dlpack::Exchange*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kExchangeCapsule));
    return exchange->header.version.major == dlpack::kVersion.major ? exchange : nullptr;
}

// Memory of an array that a tensor is made on.
struct Shared {
    dlpack::VersionedManaged managed{};
    std::int64_t shape[3], strides[3];
    PyObject* array;

    explicit Shared(const py::array& owner) : array(owner.inc_ref().ptr()) {
        const auto bits = static_cast<std::uint8_t>(8 * owner.itemsize());
        for (int i = 0; i < owner.ndim(); ++i) {
            shape[i] = owner.shape(i);
            strides[i] = owner.strides(i) / owner.itemsize();
        }
        managed.version = dlpack::kVersion;
        managed.context = this;
        managed.deleter = [](dlpack::VersionedManaged* tensor) {
            auto* const self = static_cast<Shared*>(tensor->context);
            if (Py_IsInitialized() != 0) {
                const PyGILState_STATE state = PyGILState_Ensure();
                Py_DECREF(self->array);
                PyGILState_Release(state);
            }
            delete self;
        };
        managed.tensor = {const_cast<void*>(owner.data()),
                          {dlpack::kCpu, 0},
                          static_cast<std::int32_t>(owner.ndim()),
                          {dlpack::kFloat, bits, 1},
                          shape,
                          strides,
                          0};
    }
};

inline bool is_contiguous(const dlpack::Tensor& t) {
    std::int64_t stride = 1;
    for (int i = t.ndim - 1; i >= 0; --i) {
        if (t.shape[i] != 1 && t.strides != nullptr && t.strides[i] != stride) return false;
        stride *= t.shape[i];
    }
    return true;
}

// What is needed of PyTorch.
class Torch {
  public:
    explicit Torch(py::handle module)
        : tensor_(module.attr("Tensor")),
          parameter_(module.attr("nn").attr("Parameter")),
          from_numpy_(module.attr("from_numpy")),
          exchange_(exchange_of(tensor_)) {}

    // Whether it is one of PyTorch's own, and not of a subclass, which may be anything.
    bool is_tensor(py::handle value) const {
        const auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(value.ptr()));
        return type == tensor_.ptr() || type == parameter_.ptr();
    }
    // A tensor of the CPU's whose memory holds its elements as floats; none for a subclass, which may be anything. Good while
    // the tensor is not changed.
    std::optional<dlpack::Tensor> borrow(py::handle value) const {
        static PyObject* const negated = interned("is_neg");
        if (exchange_ == nullptr || !is_tensor(value)) return {};
        dlpack::Tensor found{};
        if (exchange_->borrow_object(value.ptr(), &found) != 0) {
            PyErr_Clear();
            return {};
        }
        const bool floats = found.dtype.code == dlpack::kFloat && found.dtype.lanes == 1 &&
                            (found.dtype.bits == 32 || found.dtype.bits == 64);
        if (found.device.type != dlpack::kCpu || !floats) return {};
        if (checked(PyObject_CallMethodNoArgs(value.ptr(), negated)).ptr() != Py_False) return {};
        return found;
    }

    // An array on the tensor's memory, which is kept whatever becomes of the tensor.
    static py::object array(py::handle tensor) {
        static PyObject* const name = interned("numpy");
        static PyObject* const keyword = PyTuple_Pack(1, interned("force"));
        PyObject* const arguments[] = {tensor.ptr(), Py_True};
        return checked(PyObject_VectorcallMethod(name, arguments, 1, keyword));
    }
    static py::object array_or_none(py::handle tensor) {
        return tensor.is_none() ? py::none() : array(tensor);
    }
    // A tensor on the array's memory.
    py::object tensor(const py::array& array) const {
        if (exchange_ == nullptr) return checked(PyObject_CallOneArg(from_numpy_.ptr(), array.ptr()));
        void* made = nullptr;
        if (exchange_->import_tensor(&(new Shared(array))->managed, &made) != 0)
            throw py::error_already_set();
        return py::reinterpret_steal<py::object>(static_cast<PyObject*>(made));
    }

    // The gradients of x (or None), of the initial states where there are some, and of the parameters (or None each), from
    // those of y and of the final states; those of final states alone for one step, which leaves out the first axes of x.
    py::list backward(const py::sequence& tapes, const py::sequence& drops, const py::tuple& flows,
                      bool need_x, bool need_states, bool need_params, bool batch_first,
                      int step_axes) const {
        if (step_axes < 0 || step_axes > 2) {
            throw py::value_error("step_axes: expected 0 to 2, got " + std::to_string(step_axes));
        }
        if (tapes.size() == 0) throw py::value_error("tapes: expected one or more, got none");
        const auto first = py::object(tapes[0]).cast<std::shared_ptr<LayerTape>>();
        if (first == nullptr) throw py::type_error("tape: expected a LayerTape, got None");
        const Dims& d = first->dims;
        const auto states = static_cast<std::size_t>(first->cell.states);
        const std::size_t outputs = step_axes > 0 ? 0 : 1;  // before the final states
        if (flows.size() != outputs + states) {
            throw py::value_error("flows: expected " + std::to_string(outputs + states) + ", got " +
                                  std::to_string(flows.size()));
        }
        const auto flow = [&](std::size_t i) {
            const py::object array = array_or_none(flows[i]);
            return array.is_none() ? array : py::object(with_axes(array, step_axes));
        };
        const auto in_steps = [&](const py::object& array) {
            return batch_first && !array.is_none() ? py::object(axes_swapped(py::array(array))) : array;
        };
        const py::object dy = outputs > 0 ? in_steps(flow(0)) : py::none();
        py::tuple ends(states);
        for (std::size_t k = 0; k < states; ++k) ends[k] = flow(outputs + k);
        py::object dx = py::none();
        if (need_x) {
            dx = batch_first ? new_array(first->dtype, {d.B, d.T, d.I})
                             : new_array(first->dtype, {d.T, d.B, d.I});
        }
        const py::tuple results = network_backward(tapes, drops, dy, ends, in_steps(dx), need_params);
        py::list found;
        const auto returned = [&](const py::array& array) { return tensor(without_axes(array, step_axes)); };
        found.append(need_x ? returned(dx) : dx);
        if (need_states) {
            for (const py::handle start : py::tuple(results[0]))
                found.append(returned(py::reinterpret_borrow<py::array>(start)));
        }
        for (const py::handle row : py::list(results[1])) {
            const auto grads = py::reinterpret_borrow<py::tuple>(row);
            for (std::size_t i = 0; i < grads.size(); ++i) {
                if (!first->has_parameter[i]) continue;
                found.append(need_params ? tensor(grads[i]) : py::none());
            }
        }
        return found;
    }

  private:
    py::object tensor_, parameter_, from_numpy_;
    const dlpack::Exchange* exchange_;
};

}  // namespace fusedrnn
