#include "bindings/plain_call.h"

#include <limits>
#include <mutex>

#include "bindings/bindings.h"
#include "bindings/run.h"
#include "cpu/partition.h"

namespace fusedrnn {

PlainCall::PlainCall(const std::string& cell, py::handle params, std::shared_ptr<WeightCache> cache)
    : cell_(cell_by_name(cell)), cache_(std::move(cache)) {
    if (cache_ == nullptr) throw py::type_error("cache: expected a WeightCache, got None");
    const Array like = WeightArrays::input_weight(cell_, params);
    weights_ = WeightArrays::read(cell_, params, like);
    for (const Array& array : weights_.of) {
        if (array.copied_bytes() == 0) continue;
        throw py::value_error(array.name() + ": expected a C-contiguous array, got another layout");
    }
    dtype_ = like.dtype();
    dtype_object_ = dtype_object(dtype_);
}

py::object PlainCall::call(py::handle x, py::handle state, std::int64_t version, bool save, bool recompute,
                           bool batch_first) {
    return by_dtype(
        dtype_, [&]<class T>() { return call_typed<T>(x, state, version, save, recompute, batch_first); });
}

template <class T>
py::object PlainCall::call_typed(py::handle x, py::handle state, std::int64_t version, bool save,
                                 bool recompute, bool batch_first) {
    const RecurrentKernels<T>& kernels = cell_.kernels<T>();
    const int states = cell_.states;
    const py::array* inputs = plain(x);
    if (inputs == nullptr || inputs->shape(2) != weights_.dims.I) return py::none();
    Dims d = weights_.dims;
    d.T = inputs->shape(batch_first ? 1 : 0);
    d.B = inputs->shape(batch_first ? 0 : 1);
    const T* initial[kMaxStates] = {};
    if (!state.is_none() && !read_state(state, d, initial)) return py::none();
    const std::shared_ptr<const Timetable> timetable = timetable_of(d.T, d.B);
    py::array y = batch_first ? new_array(dtype_, {d.B, d.T, d.P}) : new_array(dtype_, {d.T, d.B, d.P});
    py::object made[kMaxStates];
    const auto rows = [&]<class U>(U* data, std::int64_t width) {
        return batch_first ? Sequence<U>{data, width, d.T * width} : Sequence<U>{data, d.B * width, width};
    };
    ForwardProblem<T> problem = forward_problem<T>(
        cell_, d, timetable->view(nullptr), {}, rows(static_cast<const T*>(inputs->data()), d.I),
        rows(static_cast<T*>(y.mutable_data()), d.P), [&](int k) {
            py::array array = new_array(dtype_, {1, d.B, state_width(d, k)});
            T* const data = static_cast<T*>(array.mutable_data());
            made[k] = std::move(array);
            return StateRows<T>{initial[k], data};
        });
    std::shared_ptr<TypedTape<T>> tape;
    if (save) {  // before anything that may run Python code, which could change the arrays
        tape = make_tape<T>(dtype_, timetable, weights_.pointers<T>(), recompute, problem);
        const auto kept = [&](const py::array& array, const char* name) {
            return Array::like(batch_first ? py::object(axes_swapped(array)) : py::object(array), name,
                               weights_.of.front());
        };
        tape->arrays.x = kept(*inputs, "x");
        tape->arrays.y = kept(y, "y");
        for (int k = 0; k < states && !state.is_none(); ++k) {
            const py::handle part = states == 1 ? state : py::handle(PyTuple_GET_ITEM(state.ptr(), k));
            tape->arrays.initial.at(k) = Array::like(part, "state", weights_.of.front());
        }
    }
    py::tuple final(states);
    for (int k = 0; k < states; ++k) final[k] = std::move(made[k]);
    problem.backwards = cache_->backwards(d.T);
    Team team(recurrent_threads(d, cell_.gates, false));
    const AlignedBuffer workspace(kernels.forward_workspace(cell_, d, team.size()));
    std::shared_ptr<const WeightBlock<T>> weights;
    run_released(team, [&] {
        weights = cache_->get<T>(cell_, d, weights_.pointers<T>(), save, version, team);
        if (team.was_cancelled()) return;
        problem.weights = weights->packed;
        kernels.forward(problem, team, workspace.data());
    });
    if (save) {
        tape->weights = weights;
        tape->remember();
    }
    return py::make_tuple(std::move(y), states == 1 ? py::object(final[0]) : py::object(final),
                          save ? py::cast(std::static_pointer_cast<LayerTape>(tape)) : py::none());
}

std::shared_ptr<const Timetable> PlainCall::timetable_of(std::int64_t seq_len, std::int64_t batch) {
    const std::lock_guard<std::mutex> lock(fork_safe_mutex(this));
    if (timetable_ == nullptr || seq_len_ != seq_len || batch_ != batch) {
        timetable_ = std::make_shared<const Timetable>(seq_len, batch, nullptr, false);
        seq_len_ = seq_len;
        batch_ = batch;
    }
    return timetable_;
}

const py::array* PlainCall::plain(const py::handle& value) const {
    constexpr int kPlain = py::array::c_style | 0x0100;  // contiguous, aligned
    if (!is_plain_array(value)) return nullptr;
    const auto* array = reinterpret_cast<const py::array*>(&value);
    if (array->ndim() != 3 || (array->flags() & kPlain) != kPlain) return nullptr;
    return array->dtype().equal(dtype_object_) ? array : nullptr;
}

template <class T>
bool PlainCall::read_state(py::handle state, const Dims& d, const T* (&initial)[kMaxStates]) const {
    const int states = cell_.states;
    if (states > 1 && (!PyTuple_CheckExact(state.ptr()) || PyTuple_GET_SIZE(state.ptr()) != states)) {
        return false;
    }
    for (int k = 0; k < states; ++k) {
        const py::handle part = states == 1 ? state : py::handle(PyTuple_GET_ITEM(state.ptr(), k));
        const py::array* array = plain(part);
        if (array == nullptr || array->shape(0) != 1 || array->shape(1) != d.B ||
            array->shape(2) != state_width(d, k)) {
            return false;
        }
        initial[k] = static_cast<const T*>(array->data());
    }
    return true;
}

void bind_plain_call(py::module_& m) {
    py::class_<PlainCall>(m, "PlainCall")
        .def(py::init<const std::string&, py::handle, std::shared_ptr<WeightCache>>(), py::arg("cell"),
             py::arg("params"), py::arg("cache"))
        .def(
            "__call__",
            [](PlainCall& self, py::handle x, py::handle state, py::handle version, bool save,
               bool recompute) {
                const std::int64_t number =
                    version.is_none()
                        ? -1
                        : integer(version, "version", 0, std::numeric_limits<std::int64_t>::max());
                return self.call(x, state, number, save, recompute);
            },
            py::arg("x"), py::arg("state"), py::arg("version"), py::arg("save"), py::arg("recompute"));
}

}  // namespace fusedrnn
