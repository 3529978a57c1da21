// One layer and direction on tensors of PyTorch. Nothing of PyTorch is needed to build this: its own functions and methods do
// the work, called from here, because between calls from Python a small network's kernels would wait.
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/backward_call.h"
#include "bindings/bindings.h"
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

py::object attribute(py::handle object, PyObject* name) {
    return checked(PyObject_GetAttr(object.ptr(), name));
}
py::object result_of(py::handle object, PyObject* method) {
    return checked(PyObject_CallMethodNoArgs(object.ptr(), method));
}

bool equal(py::handle a, py::handle b) {
    const int truth = PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ);
    if (truth < 0) throw py::error_already_set();
    return truth > 0;
}

std::uintptr_t address_of(py::handle tensor) {
    static PyObject* const name = interned("data_ptr");
    const std::size_t address = PyLong_AsSize_t(result_of(tensor, name).ptr());
    if (address == static_cast<std::size_t>(-1) && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return address;
}

// Contiguous, and as its memory has it.
bool is_plain(py::handle tensor) {
    static PyObject* const contiguous = interned("is_contiguous");
    static PyObject* const negated = interned("is_neg");
    return result_of(tensor, contiguous).ptr() == Py_True && result_of(tensor, negated).ptr() == Py_False;
}

// What is needed of PyTorch.
class Torch {
  public:
    explicit Torch(py::handle module)
        : tensor_(module.attr("Tensor")),
          parameter_(module.attr("nn").attr("Parameter")),
          dtypes_{module.attr("float32"), module.attr("float64")},
          from_numpy_(module.attr("from_numpy")) {}

    // The dtype of a tensor of the CPU's that the kernels can read; none for a subclass, which may be anything.
    std::optional<DType> readable(py::handle value) const {
        static PyObject *const cpu = interned("is_cpu"), *const dtype = interned("dtype");
        const auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(value.ptr()));
        if (type != tensor_.ptr() && type != parameter_.ptr()) return {};
        if (attribute(value, cpu).ptr() != Py_True) return {};
        const py::object found = attribute(value, dtype);
        if (found.is(dtypes_[0])) return DType::float32;
        if (found.is(dtypes_[1])) return DType::float64;
        return {};
    }

    // An array on the tensor's memory, which from then on cannot be resized.
    static py::object array(py::handle tensor) {
        static PyObject* const name = interned("numpy");
        static PyObject* const keyword = PyTuple_Pack(1, interned("force"));
        PyObject* const arguments[] = {tensor.ptr(), Py_True};
        return checked(PyObject_VectorcallMethod(name, arguments, 1, keyword));
    }
    static py::object array_or_none(py::handle tensor) {
        return tensor.is_none() ? py::none() : array(tensor);
    }
    py::object tensor(py::handle array) const {
        return checked(PyObject_CallOneArg(from_numpy_.ptr(), array.ptr()));
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
    py::object tensor_, parameter_;
    std::array<py::object, 2> dtypes_;
    py::object from_numpy_;
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

    // (y and the final states, tape, and the tensors that backward depends on: x, states, parameters); the tape is None where
    // no gradients are wanted. None where only the general way takes or refuses the arguments, with nothing done.
    py::object forward(py::handle module, py::handle x, py::handle hx, bool tracking, bool batch_first) {
        const std::optional<DType> dtype = torch_->readable(x);
        const py::tuple states = states_of(hx);
        if (!dtype || !states) return py::none();
        const std::size_t given = states.size();
        py::tuple inputs(1 + given + names_.size()), arrays(given);
        inputs[0] = x;
        for (std::size_t k = 0; k < given; ++k) {
            if (torch_->readable(states[k]) != dtype) return py::none();
            inputs[1 + k] = states[k];
            arrays[k] = Torch::array(states[k]);
        }
        const std::shared_ptr<PlainCall> call = call_on_parameters(module, *dtype, inputs, 1 + given);
        if (call == nullptr) return py::none();
        const bool save = tracking && any_tracked(inputs);
        const py::object one = given == 1 ? py::object(arrays[0]) : py::object(arrays);
        const py::object results =
            call->call(Torch::array(x), given == 0 ? py::none() : one, -1, save, false, batch_first);
        if (results.is_none()) return results;
        const auto parts = py::reinterpret_borrow<py::tuple>(results);
        const py::object final = parts[1];
        const auto ends = PyTuple_Check(final.ptr()) != 0 ? py::reinterpret_borrow<py::tuple>(final)
                                                          : py::make_tuple(final);
        py::tuple outputs(1 + ends.size());
        outputs[0] = torch_->tensor(parts[0]);
        for (std::size_t k = 0; k < ends.size(); ++k) outputs[1 + k] = torch_->tensor(ends[k]);
        return py::make_tuple(outputs, parts[2], inputs);
    }

  private:
    struct Place {
        std::uintptr_t data;
        py::object shape;
        bool operator==(const Place& other) const { return data == other.data && equal(shape, other.shape); }
    };

    // h as a tuple of one, or (h, c); null for what is neither.
    py::tuple states_of(py::handle hx) const {
        if (hx.is_none()) return py::tuple();
        const bool several = PyTuple_Check(hx.ptr()) != 0;
        if (several != lstm_) return py::reinterpret_steal<py::tuple>(py::handle());
        return several ? py::reinterpret_borrow<py::tuple>(hx) : py::make_tuple(hx);
    }

    // The call on the parameters as they are now, which are written to `tensors`; null where the kernels cannot read them.
    std::shared_ptr<PlainCall> call_on_parameters(py::handle module, DType dtype, const py::tuple& tensors,
                                                  std::size_t first) {
        static PyObject *const own_name = interned("_parameters"), *const shape_name = interned("shape");
        const py::object own = attribute(module, own_name);
        std::vector<Place> places;
        for (std::size_t i = 0; i < names_.size(); ++i) {
            // By attribute where a parametrization or a call with others has put it.
            PyObject* const kept = PyDict_GetItemWithError(own.ptr(), names_[i].ptr());
            if (kept == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
            const py::object p = kept != nullptr ? py::reinterpret_borrow<py::object>(kept)
                                                 : attribute(module, names_[i].ptr());
            if (torch_->readable(p) != dtype || !is_plain(p)) return nullptr;
            places.push_back({address_of(p), attribute(p, shape_name)});
            if (places.back().data == 0) return nullptr;
            tensors[first + i] = p;
        }
        if (call_ != nullptr && dtype_ == dtype && places_ == places) return call_;
        call_ = call_at(places, dtype);
        places_ = std::move(places);
        dtype_ = dtype;
        return call_;
    }

    // The parameters' arrays do not keep the tensors, and are read only while those are there. Tensor.numpy() would forbid for
    // good to resize their memory, which fully_shard frees between calls.
    std::shared_ptr<PlainCall> call_at(const std::vector<Place>& places, DType dtype) const {
        py::tuple weights(5);  // weight_ih, weight_hh, both biases or none, weight_hr or none
        for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = py::none();
        const bool biased = places.size() > 3;
        for (std::size_t i = 0; i < places.size(); ++i) {
            const auto shape = places[i].shape.cast<std::vector<py::ssize_t>>();
            weights[i < 2 || biased ? i : i + 2] = py::array(
                dtype_object(dtype), shape, reinterpret_cast<const void*>(places[i].data), py::none());
        }
        return std::make_shared<PlainCall>(cell_, weights, cache_);
    }

    static bool any_tracked(const py::tuple& tensors) {
        static PyObject* const name = interned("requires_grad");
        for (const py::handle tensor : tensors) {
            if (attribute(tensor, name).ptr() == Py_True) return true;
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
    DType dtype_ = DType::float32;
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
             py::arg("tracking"), py::arg("batch_first"));
}

}  // namespace fusedrnn
