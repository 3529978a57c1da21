// Networks on tensors of PyTorch: what Python did between a module's call and the kernels took longer than
// these for a small network. Nothing of PyTorch is needed to build this.
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/network_calls.h"
#include "bindings/plain_call.h"
#include "bindings/torch_tensors.h"

namespace fusedrnn {
namespace {

// The calls of a module's network.
class TensorNetwork {
  public:
    // `names` of the parameters of each layer and direction. `make_tape` makes of the tapes of these, and of the dropouts
    // of layers, what `record` is given.
    TensorNetwork(std::shared_ptr<const Torch> torch, std::string cell, int directions, const py::list& names,
                  std::vector<std::shared_ptr<WeightCache>> caches, py::object make_tape)
        : torch_(std::move(torch)), make_tape_(std::move(make_tape)) {
        if (torch_ == nullptr) throw py::type_error("torch: expected a Torch, got None");
        lstm_ = cell_by_name(cell).states > 1;
        for (const py::handle row : names) {
            const auto own = py::reinterpret_borrow<py::sequence>(row);
            per_row_ = own.size();
            for (const py::handle name : own) names_.push_back(py::reinterpret_borrow<py::object>(name));
        }
        const int rows = static_cast<int>(names.size());
        no_drops_ = py::tuple(static_cast<std::size_t>(rows / directions));
        for (std::size_t i = 0; i < no_drops_.size(); ++i) no_drops_[i] = py::none();
        calls_ = {std::move(cell), rows / directions, directions, {}, std::move(caches)};
    }

    // (y, final state) as torch.nn has them, through `record` with what backward needs: the function that autograd calls for
    // gradients, or None where none are wanted. None where only the general way takes or refuses the arguments, with nothing
    // done.
    // `draw` returns a seed, for which it is called once there is nothing left to refuse; None where there is no dropout.
    py::object forward(py::handle module, py::handle x, py::handle hx, py::handle lengths, py::handle resets,
                       py::handle record, py::handle options, bool batch_first, py::handle draw) {
        const py::tuple found =
            outputs_of(module, x, hx, lengths, resets, record, options, batch_first, draw, false);
        return found ? py::object(py::make_tuple(found[0], state_of(found, 1))) : py::none();
    }

    // The next state of a cell, as forward: x is (B, I) or (I,), states are without the axis of layers.
    py::object step(py::handle module, py::handle x, py::handle hx, py::handle record, py::handle options) {
        const py::none none;
        const py::tuple found = outputs_of(module, x, hx, none, none, record, options, false, none, true);
        return found ? state_of(found, 0) : py::none();
    }

  private:
    // y and the final states, or of one step the next states; null where only the general way takes the arguments.
    py::tuple outputs_of(py::handle module, py::handle x, py::handle hx, py::handle lengths,
                         py::handle resets, py::handle record, py::handle options, bool batch_first,
                         py::handle draw, bool one_step) {
        const auto nothing = py::reinterpret_steal<py::tuple>(py::handle());
        const std::optional<dlpack::Tensor> input = torch_->borrow(x);
        const py::tuple states = states_of(hx);
        if (!input || !states) return nothing;
        const int axes = 3 - input->ndim;  // that x and states are without
        if (one_step ? axes != 1 && axes != 2 : axes != 0) return nothing;
        const auto whole = [&](py::handle tensor) { return with_axes(Torch::array(tensor), axes); };
        const std::uint8_t bits = input->dtype.bits;
        const std::size_t given = states.size();
        py::tuple inputs(1 + given + names_.size()), arrays(given);
        inputs[0] = x;
        for (std::size_t k = 0; k < given; ++k) {
            const std::optional<dlpack::Tensor> state = torch_->borrow(states[k]);
            if (!state || state->dtype.bits != bits || state->ndim != input->ndim) return nothing;
            inputs[1 + k] = states[k];
            arrays[k] = whole(states[k]);
        }
        const py::array steps = whole(x);
        if (!look_at_parameters(module, bits, inputs, 1 + given)) return nothing;
        const bool save = !record.is_none() && any_tracked(inputs);
        py::array y;
        py::tuple ends;
        py::object tape = py::none();
        Dropout dropout{options, draw, py::none(), no_drops_};
        const bool plain = plain_ != nullptr && lengths.is_none() && resets.is_none();
        if (!(plain && run_plain(steps, arrays, save, batch_first, y, ends, tape)) &&
            !run_calls(steps, arrays, lengths, resets, dropout, save, batch_first, y, ends, tape)) {
            return nothing;
        }
        // Of one step, y is h.
        py::list outputs;
        outputs.append(torch_->tensor(without_axes(y, axes)));
        for (std::size_t k = one_step ? 1 : 0; k < ends.size(); ++k)
            outputs.append(torch_->tensor(without_axes(py::array(ends[k]), axes)));
        if (!save) return outputs;
        const py::object kept = make_tape_(tape, dropout.drops);
        const py::object found = py::make_tuple(py::tuple(outputs), kept), count = py::int_(given);
        std::vector<PyObject*> arguments{options.ptr(), found.ptr(),  count.ptr(),       x.ptr(),
                                         lengths.ptr(), resets.ptr(), dropout.seed.ptr()};
        for (std::size_t i = 1; i < inputs.size(); ++i)
            arguments.push_back(PyTuple_GET_ITEM(inputs.ptr(), i));
        return checked(PyObject_Vectorcall(record.ptr(), arguments.data(), arguments.size(), nullptr));
    }

    // Of outputs from `first` on: h, or (h, c).
    py::object state_of(const py::tuple& outputs, std::size_t first) const {
        if (lstm_) return py::make_tuple(outputs[first], outputs[first + 1]);
        return outputs[first];
    }

    // Of a call: the seed that it draws, and of each layer (p, seed, layer) or None.
    struct Dropout {
        py::handle options, draw;
        py::object seed;
        py::tuple drops;
        void take() {
            if (draw.is_none()) return;
            seed = draw();
            const auto value = py::object(seed.attr("item")());
            const std::size_t last = drops.size() - 1;
            drops = py::tuple(last + 1);
            for (std::size_t i = 0; i < last; ++i)
                drops[i] = py::make_tuple(options.attr("dropout"), value, i);
            drops[last] = py::none();
        }
    };

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
        if (several != lstm_ || (several && PyTuple_GET_SIZE(hx.ptr()) != 2))
            return py::reinterpret_steal<py::tuple>(py::handle());
        return several ? py::reinterpret_borrow<py::tuple>(hx) : py::make_tuple(hx);
    }

    // The call of one layer and direction that has no options; false, with nothing done, where it is not for these arrays.
    bool run_plain(const py::array& x, const py::tuple& states, bool save, bool batch_first, py::array& y,
                   py::tuple& ends, py::object& tapes) {
        const std::shared_ptr<PlainCall> call = plain_;  // another thread may put its own in the place
        const py::object one = states.size() == 1 ? py::object(states[0]) : py::object(states);
        const py::object results =
            call->call(x, states.empty() ? py::none() : one, -1, save, false, batch_first);
        if (results.is_none()) return false;
        const auto parts = py::reinterpret_borrow<py::tuple>(results);
        const py::object final = parts[1];
        y = py::array(parts[0]);
        ends = lstm_ ? py::reinterpret_borrow<py::tuple>(final) : py::make_tuple(final);
        tapes = py::make_tuple(parts[2]);
        return true;
    }

    // All layers and directions; false, with nothing done, where shapes do not fit or lengths and resets are not tensors as
    // the kernels take them.
    bool run_calls(const py::array& x, const py::tuple& states, py::handle lengths, py::handle resets,
                   Dropout& dropout, bool save, bool batch_first, py::array& y, py::tuple& ends,
                   py::object& tapes) {
        const py::array steps = batch_first ? axes_swapped(x) : x;
        const std::int64_t seq_len = steps.shape(0), batch = steps.shape(1),
                           rows = calls_.layers * calls_.directions;
        const auto& hidden = places_[1].shape;  // of weight_hh
        const std::int64_t out = hidden[1], width = hidden[0] / cell_by_name(calls_.cell).gates;
        if (steps.shape(2) != places_[0].shape[1]) return false;
        for (std::size_t k = 0; k < states.size(); ++k) {
            const py::array state = states[k];
            if (state.ndim() != 3 || state.shape(0) != rows || state.shape(1) != batch) return false;
            if (state.shape(2) != (k == 0 ? out : width)) return false;
        }
        py::object ends_of = py::none(), borders = py::none();
        if (!lengths.is_none()) {
            if (!torch_->is_tensor(lengths)) return false;
            ends_of = Torch::array(lengths);
            const auto array = py::reinterpret_borrow<py::array>(ends_of);
            if (array.ndim() != 1 || array.shape(0) != batch ||
                !array.dtype().equal(py::dtype::of<std::int64_t>()))
                return false;
        }
        if (!resets.is_none()) {
            if (!torch_->is_tensor(resets)) return false;
            const py::array array = Torch::array(resets);
            if (array.ndim() != 2 || array.shape(0) != x.shape(0) || array.shape(1) != x.shape(1) ||
                !array.dtype().equal(py::dtype::of<bool>()))
                return false;
            borders = batch_first ? py::object(array.attr("T")) : py::object(array);
        }
        const DType dtype = places_[0].bits == 32 ? DType::float32 : DType::float64;
        const std::int64_t columns = out * calls_.directions;
        y = batch_first ? new_array(dtype, {batch, seq_len, columns})
                        : new_array(dtype, {seq_len, batch, columns});
        ends = py::tuple(lstm_ ? 2 : 1);
        for (std::size_t k = 0; k < ends.size(); ++k)
            ends[k] = new_array(dtype, {rows, batch, k == 0 ? out : width});
        dropout.take();
        const NetworkCalls calls = calls_;  // another thread may put its own parameters in the place
        tapes = calls.forward(steps, states, ends_of, borders, dropout.drops, save,
                              batch_first ? axes_swapped(y) : y, ends);
        return true;
    }

    // Reads the parameters as they are now, and writes them to `tensors`; false where the kernels cannot read them.
    bool look_at_parameters(py::handle module, std::uint8_t bits, const py::tuple& tensors,
                            std::size_t first) {
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
            if (!t || t->data == nullptr || t->ndim < 1 || t->ndim > 2) return false;
            if (t->dtype.bits != bits || !is_contiguous(*t)) return false;
            places.push_back({t->data, bits, {t->shape[0], t->ndim == 2 ? t->shape[1] : -1}});
            tensors[first + i] = p;
        }
        if (places_ == places) return true;
        places_ = std::move(places);
        calls_.params.clear();
        for (std::size_t i = 0; i < places_.size(); i += per_row_) calls_.params.push_back(arrays_at(i));
        plain_ = nullptr;
        if (places_.size() == per_row_)
            plain_ = std::make_shared<PlainCall>(calls_.cell, calls_.params[0], calls_.caches[0]);
        return true;
    }

    // The arrays of the parameters of one layer and direction do not keep the tensors, and are read only while those are
    // there. Tensor.numpy() would forbid for good to resize their memory, which fully_shard frees between calls.
    py::tuple arrays_at(std::size_t first) const {
        py::tuple weights(5);  // weight_ih, weight_hh, both biases or none, weight_hr or none
        for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = py::none();
        const bool biased = per_row_ > 3;
        for (std::size_t i = 0; i < per_row_; ++i) {
            const auto& [data, bits, shape] = places_[first + i];
            const DType dtype = bits == 32 ? DType::float32 : DType::float64;
            const std::vector<py::ssize_t> sizes(shape.begin(), shape.end() - (shape[1] < 0 ? 1 : 0));
            weights[i < 2 || biased ? i : i + 2] = py::array(dtype_object(dtype), sizes, data, py::none());
        }
        return weights;
    }

    static bool any_tracked(const py::tuple& tensors) {
        static PyObject* const name = interned("requires_grad");
        for (const py::handle tensor : tensors) {
            if (checked(PyObject_GetAttr(tensor.ptr(), name)).ptr() == Py_True) return true;
        }
        return false;
    }

    std::shared_ptr<const Torch> torch_;
    py::object make_tape_;
    NetworkCalls calls_;
    py::tuple no_drops_;
    std::vector<py::object> names_;
    std::size_t per_row_ = 0;
    bool lstm_ = false;
    std::shared_ptr<PlainCall> plain_;
    std::vector<Place> places_;
};

}  // namespace

void bind_tensors(py::module_& m) {
    py::class_<Torch, std::shared_ptr<Torch>>(m, "Torch")
        .def(py::init<py::handle>(), py::arg("module"))
        .def("backward", &Torch::backward, py::arg("tapes"), py::arg("drops"), py::arg("flows"),
             py::arg("need_x"), py::arg("need_states"), py::arg("need_params"), py::arg("batch_first"),
             py::arg("step_axes") = 0);
    py::class_<TensorNetwork>(m, "TensorNetwork")
        .def(py::init<std::shared_ptr<Torch>, std::string, int, py::list,
                      std::vector<std::shared_ptr<WeightCache>>, py::object>(),
             py::arg("torch"), py::arg("cell"), py::arg("directions"), py::arg("names"), py::arg("caches"),
             py::arg("make_tape"))
        .def("forward", &TensorNetwork::forward, py::arg("module"), py::arg("x"), py::arg("hx"),
             py::arg("lengths"), py::arg("resets"), py::arg("record"), py::arg("options"),
             py::arg("batch_first"), py::arg("draw"))
        .def("step", &TensorNetwork::step, py::arg("module"), py::arg("x"), py::arg("hx"), py::arg("record"),
             py::arg("options"));
    m.def(
        "run_network",
        [](const std::string& cell, int directions, const std::vector<py::object>& params,
           const std::vector<std::shared_ptr<WeightCache>>& caches, const py::array& x,
           const py::tuple& states, py::handle lengths, py::handle resets, const py::tuple& drops, bool save,
           const py::array& y, const py::tuple& finals) {
            const NetworkCalls calls{cell, static_cast<int>(drops.size()), directions, params, caches};
            return calls.forward(x, states, lengths, resets, drops, save, y, finals);
        },
        py::arg("cell"), py::arg("directions"), py::arg("params"), py::arg("caches"), py::arg("x"),
        py::arg("states"), py::arg("lengths"), py::arg("resets"), py::arg("drops"), py::arg("save"),
        py::arg("y"), py::arg("finals"));
}

}  // namespace fusedrnn
