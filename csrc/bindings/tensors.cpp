// One layer and direction on tensors of PyTorch: what Python did between a module's call and the kernels took longer than
// these for a small network. Nothing of PyTorch is needed to build this.
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/backward_call.h"
#include "bindings/bindings.h"
#include "bindings/dlpack.h"
#include "bindings/plain_call.h"

namespace fusedrnn {
namespace {

// Made once; it lives as long as the process.
PyObject* interned(const char* text) {
    PyObject* const made = PyUnicode_InternFromString(text);
    if (made == nullptr) throw py::error_already_set();
    return made;
}

py::object checked(PyObject* made) {
    if (made == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(made);
}

// The functions for C behind PyTorch's tensors, where this version has them.
const dlpack::Exchange* exchange_of(py::handle tensor_type) {
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

bool is_contiguous(const dlpack::Tensor& t) {
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

    // A tensor of the CPU's whose memory holds its elements as floats; none for a subclass, which may be anything. Good while
    // the tensor is not changed.
    std::optional<dlpack::Tensor> borrow(py::handle value) const {
        static PyObject* const negated = interned("is_neg");
        const auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(value.ptr()));
        if (exchange_ == nullptr || (type != tensor_.ptr() && type != parameter_.ptr())) return {};
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
    // those of y and of the final states.
    py::list backward(const std::shared_ptr<LayerTape>& tape, const py::tuple& flows, bool need_x,
                      bool need_states, bool need_params, bool batch_first) const {
        if (tape == nullptr) throw py::type_error("tape: expected a LayerTape, got None");
        const Dims& d = tape->dims;
        const auto states = static_cast<std::size_t>(tape->cell.states);
        if (flows.size() != 1 + states) {
            throw py::value_error("flows: expected " + std::to_string(1 + states) + ", got " +
                                  std::to_string(flows.size()));
        }
        const auto in_steps = [&](const py::object& array) {
            return batch_first && !array.is_none() ? py::object(axes_swapped(py::array(array))) : array;
        };
        const py::object dy = in_steps(array_or_none(flows[0]));
        py::tuple ends(states);
        bool given = dy.is_none();  // an error where nothing is
        for (std::size_t k = 0; k < states; ++k) {
            const py::object end = array_or_none(flows[1 + k]);
            given = given || !end.is_none();
            ends[k] = end.is_none() ? end : checked(PySequence_GetItem(end.ptr(), 0));
        }
        py::object frozen = py::none(), dx = py::none();
        const auto count = static_cast<std::size_t>(tape->cell.parameter_count);
        if (!need_params) {
            const py::tuple nothing(count);
            for (std::size_t i = 0; i < count; ++i) nothing[i] = py::none();
            frozen = nothing;
        }
        if (need_x && batch_first) dx = new_array(tape->dtype, {d.B, d.T, d.I});
        const auto call =
            BackwardCall::make(tape, dy, given ? py::object(ends) : py::none(), frozen, py::bool_(need_x),
                               in_steps(dx), py::bool_(false), py::none(), py::none());
        run_alone(*call);
        const py::tuple results = call->result();
        if (dx.is_none()) dx = results[0];
        py::list found;
        found.append(dx.is_none() ? dx : tensor(dx));
        for (std::size_t k = 0; k < states && need_states; ++k) {
            const py::array start = py::tuple(results[1])[k];
            found.append(tensor(py::array(start.dtype(), {py::ssize_t{1}, start.shape(0), start.shape(1)},
                                          start.data(), start)));
        }
        const py::tuple grads = results[2];
        for (std::size_t i = 0; i < count; ++i) {
            if (tape->has_parameter[i]) found.append(need_params ? tensor(grads[i]) : py::none());
        }
        return found;
    }

  private:
    py::object tensor_, parameter_, from_numpy_;
    const dlpack::Exchange* exchange_;
};

// The calls of a module's layer.
class TensorLayer {
  public:
    TensorLayer(std::shared_ptr<const Torch> torch, std::string cell, const py::tuple& names,
                std::shared_ptr<WeightCache> cache)
        : torch_(std::move(torch)), cell_(std::move(cell)), cache_(std::move(cache)) {
        if (torch_ == nullptr) throw py::type_error("torch: expected a Torch, got None");
        lstm_ = cell_by_name(cell_).states > 1;
        for (const py::handle name : names) names_.push_back(py::reinterpret_borrow<py::object>(name));
    }

    // (y, final state) as torch.nn has them, through `record` with what backward needs: the function that autograd calls for
    // gradients, or None where none are wanted. None where only the general way takes or refuses the arguments, with nothing
    // done.
    py::object forward(py::handle module, py::handle x, py::handle hx, py::handle record, py::handle options,
                       bool batch_first) {
        const std::optional<dlpack::Tensor> input = torch_->borrow(x);
        const py::tuple states = states_of(hx);
        if (!input || !states) return py::none();
        const std::uint8_t bits = input->dtype.bits;
        const std::size_t given = states.size();
        py::tuple inputs(1 + given + names_.size()), arrays(given);
        inputs[0] = x;
        for (std::size_t k = 0; k < given; ++k) {
            const std::optional<dlpack::Tensor> state = torch_->borrow(states[k]);
            if (!state || state->dtype.bits != bits) return py::none();
            inputs[1 + k] = states[k];
            arrays[k] = Torch::array(states[k]);
        }
        const std::shared_ptr<PlainCall> call = call_on_parameters(module, bits, inputs, 1 + given);
        if (call == nullptr) return py::none();
        const bool save = !record.is_none() && any_tracked(inputs);
        const py::object one = given == 1 ? py::object(arrays[0]) : py::object(arrays);
        const py::object results =
            call->call(Torch::array(x), given == 0 ? py::none() : one, -1, save, false, batch_first);
        if (results.is_none()) return results;
        const auto parts = py::reinterpret_borrow<py::tuple>(results);
        const py::object final = parts[1];
        const auto ends = lstm_ ? py::reinterpret_borrow<py::tuple>(final) : py::make_tuple(final);
        py::tuple outputs(1 + ends.size());
        outputs[0] = torch_->tensor(parts[0]);
        for (std::size_t k = 0; k < ends.size(); ++k) outputs[1 + k] = torch_->tensor(ends[k]);
        if (save) {
            const py::object none = py::none();
            const py::object found = py::make_tuple(outputs, parts[2]), count = py::int_(given);
            std::vector<PyObject*> arguments{options.ptr(), found.ptr(), count.ptr(), x.ptr(),
                                             none.ptr(),    none.ptr(),  none.ptr()};
            for (std::size_t i = 1; i < inputs.size(); ++i)
                arguments.push_back(PyTuple_GET_ITEM(inputs.ptr(), i));
            outputs = checked(PyObject_Vectorcall(record.ptr(), arguments.data(), arguments.size(), nullptr));
        }
        return py::make_tuple(
            outputs[0], lstm_ ? py::object(py::make_tuple(outputs[1], outputs[2])) : py::object(outputs[1]));
    }

  private:
    struct Place {
        void* data;
        std::uint8_t bits;
        std::array<std::int64_t, 2> shape;
        bool operator==(const Place&) const = default;
    };

    // h as a tuple of one, or (h, c); null for what is neither.
    py::tuple states_of(py::handle hx) const {
        if (hx.is_none()) return py::tuple();
        const bool several = PyTuple_Check(hx.ptr()) != 0;
        if (several != lstm_) return py::reinterpret_steal<py::tuple>(py::handle());
        return several ? py::reinterpret_borrow<py::tuple>(hx) : py::make_tuple(hx);
    }

    // The call on the parameters as they are now, which are written to `tensors`; null where the kernels cannot read them.
    std::shared_ptr<PlainCall> call_on_parameters(py::handle module, std::uint8_t bits,
                                                  const py::tuple& tensors, std::size_t first) {
        static PyObject* const name = interned("_parameters");
        const py::object own = checked(PyObject_GetAttr(module.ptr(), name));
        std::vector<Place> places;
        for (std::size_t i = 0; i < names_.size(); ++i) {
            // By attribute where a parametrization or a call with others has put it.
            PyObject* const kept = PyDict_GetItemWithError(own.ptr(), names_[i].ptr());
            if (kept == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
            const py::object p = kept != nullptr ? py::reinterpret_borrow<py::object>(kept)
                                                 : checked(PyObject_GetAttr(module.ptr(), names_[i].ptr()));
            const std::optional<dlpack::Tensor> t = torch_->borrow(p);
            if (!t || t->data == nullptr || t->ndim < 1 || t->ndim > 2) return nullptr;
            if (t->dtype.bits != bits || !is_contiguous(*t)) return nullptr;
            places.push_back({t->data, bits, {t->shape[0], t->ndim == 2 ? t->shape[1] : -1}});
            tensors[first + i] = p;
        }
        if (call_ == nullptr || places_ != places) {
            call_ = call_at(places);
            places_ = std::move(places);
        }
        return call_;
    }

    // The parameters' arrays do not keep the tensors, and are read only while those are there. Tensor.numpy() would forbid for
    // good to resize their memory, which fully_shard frees between calls.
    std::shared_ptr<PlainCall> call_at(const std::vector<Place>& places) const {
        py::tuple weights(5);  // weight_ih, weight_hh, both biases or none, weight_hr or none
        for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = py::none();
        const bool biased = places.size() > 3;
        for (std::size_t i = 0; i < places.size(); ++i) {
            const auto& [data, bits, shape] = places[i];
            const DType dtype = bits == 32 ? DType::float32 : DType::float64;
            const std::vector<py::ssize_t> sizes(shape.begin(), shape.end() - (shape[1] < 0 ? 1 : 0));
            weights[i < 2 || biased ? i : i + 2] = py::array(dtype_object(dtype), sizes, data, py::none());
        }
        return std::make_shared<PlainCall>(cell_, weights, cache_);
    }

    static bool any_tracked(const py::tuple& tensors) {
        static PyObject* const name = interned("requires_grad");
        for (const py::handle tensor : tensors) {
            if (checked(PyObject_GetAttr(tensor.ptr(), name)).ptr() == Py_True) return true;
        }
        return false;
    }

    std::shared_ptr<const Torch> torch_;
    std::string cell_;
    std::shared_ptr<WeightCache> cache_;
    std::vector<py::object> names_;
    bool lstm_;
    std::shared_ptr<PlainCall> call_;
    std::vector<Place> places_;
};

}  // namespace

void bind_tensors(py::module_& m) {
    py::class_<Torch, std::shared_ptr<Torch>>(m, "Torch")
        .def(py::init<py::handle>(), py::arg("module"))
        .def("backward", &Torch::backward, py::arg("tape"), py::arg("flows"), py::arg("need_x"),
             py::arg("need_states"), py::arg("need_params"), py::arg("batch_first"));
    py::class_<TensorLayer>(m, "TensorLayer")
        .def(py::init<std::shared_ptr<Torch>, std::string, py::tuple, std::shared_ptr<WeightCache>>(),
             py::arg("torch"), py::arg("cell"), py::arg("names"), py::arg("cache"))
        .def("forward", &TensorLayer::forward, py::arg("module"), py::arg("x"), py::arg("hx"),
             py::arg("record"), py::arg("options"), py::arg("batch_first"));
}

}  // namespace fusedrnn
