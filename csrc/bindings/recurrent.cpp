// forward, backward and their tape for one layer and direction: checks, then one plain problem struct for the kernels.
#include "bindings/recurrent.h"

#include <pybind11/stl.h>

#include <limits>

#include "bindings/bindings.h"
#include "bindings/run.h"
#include "cpu/partition.h"

namespace fusedrnn {

int cell_by_name(const std::string& name) {
    const auto& cells = kernel_table<float>().cells;
    std::string known;
    for (int i = 0; i < kCellCount; ++i) {
        if (name == cells[i].traits.name) return i;
        known += (i == 0 ? "" : ", ") + std::string(cells[i].traits.name);
    }
    throw py::value_error("cell: expected one of " + known + ", got '" + name + "'");
}

const CellTraits& traits_of(int cell) { return kernel_table<float>().cells[cell].traits; }

py::object item_of(py::handle sequence, const char* name, py::ssize_t size, py::ssize_t i) {
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

WeightArrays WeightArrays::read(int cell, py::handle params, const Array& x) {
    const std::int64_t gates = traits_of(cell).gates;
    const std::string g = std::to_string(gates) + "*H";
    WeightArrays w;
    w.w_ih = Array::like(item_of(params, "params", 5, 0), "weight_ih", x);
    if (w.w_ih.ndim() != 2 || w.w_ih.size(0) == 0 || w.w_ih.size(0) % gates != 0) {
        w.w_ih.shape({{g + " with H >= 1"}, {"I", x.size(x.ndim() - 1)}});
        throw py::value_error("weight_ih: expected shape (" + g + ", I) with H >= 1, got (" +
                              std::to_string(w.w_ih.size(0)) + ", " + std::to_string(w.w_ih.size(1)) + ")");
    }
    const std::int64_t rows = w.w_ih.size(0);
    w.dims.I = x.size(x.ndim() - 1);
    w.dims.H = rows / gates;
    w.w_ih.shape({{g, rows}, {"I", w.dims.I}}).made_contiguous();
    w.w_hr = Array::like(item_of(params, "params", 5, 4), "weight_hr", x, kOptional);
    w.w_hr.shape({{"P"}, {"H", w.dims.H}}).made_contiguous();
    w.dims.projected = w.w_hr.given();
    w.dims.P = w.dims.projected ? w.w_hr.size(0) : w.dims.H;
    if (w.dims.projected && (cell != kCell_lstm || w.dims.P == 0)) {
        throw py::value_error(
            "weight_hr: expected None, or shape (P, H) with P >= 1 and the cell lstm, got shape (" +
            std::to_string(w.dims.P) + ", " + std::to_string(w.dims.H) + ") and the cell " +
            traits_of(cell).name);
    }
    w.w_hh = Array::like(item_of(params, "params", 5, 1), "weight_hh", x);
    w.w_hh.shape({{g, rows}, {w.dims.projected ? "P" : "H", w.dims.P}}).made_contiguous();
    w.b_ih = Array::like(item_of(params, "params", 5, 2), "bias_ih", x, kOptional);
    w.b_ih.shape({{g, rows}}).made_contiguous();
    w.b_hh = Array::like(item_of(params, "params", 5, 3), "bias_hh", x, kOptional);
    w.b_hh.shape({{g, rows}}).made_contiguous();
    return w;
}

std::int64_t state_width(const Dims& dims, int k) { return k == 0 ? dims.P : dims.H; }

Array read_state(py::handle value, const std::string& name, int k, const Dims& dims, const Array& like) {
    Array a = Array::like(value, name + "[" + std::to_string(k) + "]", like, kOptional);
    a.shape({{"B", dims.B}, {k == 0 && dims.projected ? "P" : "H", state_width(dims, k)}}).made_contiguous();
    return a;
}

namespace {

// A replacement state: one row for all, or one each.
Array read_reset_state(py::handle value, int k, const Dims& dims, const Array& like) {
    Array a = Array::like(value, "reset_state[" + std::to_string(k) + "]", like, kOptional);
    if (!a.given()) return a;
    const Axis last{k == 0 && dims.projected ? "P" : "H", state_width(dims, k)};
    if (a.ndim() == 1) {
        a.shape({last});
    } else {
        a.shape({{"B", dims.B}, last});
    }
    a.made_contiguous();
    return a;
}

// A (T, B, n) array, or a table (V, n) whose row v is row(0, v).
template <class T>
Sequence<const T> sequence(const Array& a) {
    return {a.data<T>(), a.ndim() == 3 ? a.stride(0) : 0, a.stride(a.ndim() - 2)};
}
template <class T>
Sequence<T> writable_sequence(const Array& a) {
    return {a.mutable_data<T>(), a.ndim() == 3 ? a.stride(0) : 0, a.stride(a.ndim() - 2)};
}

// x (T, B, I), or a table (V, I) with indices (T, B) into it; sets T, B and V.
void read_inputs(py::handle indices, CallArrays& in, Dims& dims) {
    const Array index = Array::int64(indices, "indices", kOptional);
    if (!index.given()) {
        dims.T = in.x.size(0);
        dims.B = in.x.size(1);
        return;
    }
    Array rows = index;
    rows.shape({{"T"}, {"B"}}).made_contiguous();
    dims.T = rows.size(0);
    dims.B = rows.size(1);
    dims.V = in.x.size(0);
    in.index = std::make_shared<const std::vector<std::int64_t>>(checked_indices(rows, dims.V, "V"));
}

template <class Problem, class T>
void set_call(Problem& problem, const CallArrays& arrays, const Timetable& timetable, int states) {
    problem.schedule = timetable.view(arrays.resets.data<std::uint8_t>());
    problem.x = sequence<T>(arrays.x);
    if (arrays.index != nullptr) problem.index = arrays.index->data();
    for (int k = 0; k < states; ++k) {
        problem.initial[k] = arrays.initial[k].data<T>();
        problem.reset[k] = arrays.reset[k].data<T>();
        const bool per_row = arrays.reset[k].given() && arrays.reset[k].ndim() == 2;
        problem.reset_stride[k] = per_row ? state_width(problem.dims, k) : 0;
    }
}

// Arrays a forward call writes.
struct Outputs {
    Array y, final[kMaxStates];
};

Outputs make_outputs(py::handle out, py::handle state_out, const Dims& dims, int states,
                     const CallArrays& in) {
    Outputs o;
    const Axis width{dims.projected ? "P" : "H", dims.P};
    const DType dtype = in.x.dtype();
    if (out.is_none()) {
        o.y = Array::like(new_array(dtype, {dims.T, dims.B, dims.P}), "out", in.x);
        o.y.writable_rows();
    } else {
        o.y = Array::like(out, "out", in.x);
        o.y.shape({{"T", dims.T}, {"B", dims.B}, width}).writable_rows();
        o.y.apart_from(in.x);
        for (int k = 0; k < states; ++k) o.y.apart_from(in.initial[k]).apart_from(in.reset[k]);
    }
    for (int k = 0; k < states; ++k) {
        const std::string name = "state_out[" + std::to_string(k) + "]";
        if (state_out.is_none()) {
            o.final[k] = Array::like(new_array(dtype, {dims.B, state_width(dims, k)}), name, in.x);
            continue;
        }
        o.final[k] = Array::like(item_of(state_out, "state_out", states, k), name, in.x);
        o.final[k].shape({{"B", dims.B}, {k == 0 ? width.symbol : "H", state_width(dims, k)}}).writable();
        o.final[k].apart_from(in.x).apart_from(o.y);
        for (int j = 0; j < states; ++j) o.final[k].apart_from(in.initial[j]).apart_from(in.reset[j]);
        if (k > 0) o.final[k].apart_from(o.final[0]);
    }
    return o;
}

template <class T>
py::tuple forward_typed(int cell, const WeightArrays& w, CallArrays& in, const Outputs& out,
                        std::shared_ptr<const Timetable> timetable, bool save, bool recompute,
                        WeightCache* cache, std::int64_t version) {
    const RecurrentKernels<T>& kernels = kernel_table<T>().cells[cell];
    const int states = kernels.traits.states;
    const Params<const T> params = w.pointers<T>();
    std::shared_ptr<const WeightBlock<T>> weights;
    without_gil([&] {
        weights = cache != nullptr ? cache->get<T>(cell, w.dims, params, save, version)
                                   : pack_weights<T>(cell, w.dims, params, save, Identity{});
    });
    ForwardProblem<T> problem{};
    problem.dims = w.dims;
    set_call<ForwardProblem<T>, T>(problem, in, *timetable, states);
    problem.weights = weights->packed;
    problem.y = writable_sequence<T>(out.y);
    problem.backwards = cache != nullptr && cache->backwards(w.dims.T);
    for (int k = 0; k < states; ++k) problem.final[k] = out.final[k].mutable_data<T>();
    std::shared_ptr<TypedTape<T>> tape;
    if (save) {
        tape = make_tape<T>(cell, in.x.dtype(), timetable, params, recompute, problem);
        tape->weights = weights;
        in.y = out.y;
        tape->arrays = in;
    }
    const int wanted = recurrent_threads(w.dims, kernels.traits.gates, false);
    AlignedBuffer workspace;
    Team team(wanted);
    workspace = AlignedBuffer(kernels.forward_workspace(w.dims, team.size()));
    run_released(team, [&] { kernels.forward(problem, team, workspace.data()); });
    py::tuple final(states);
    for (int k = 0; k < states; ++k) final[k] = out.final[k].object();
    return py::make_tuple(out.y.object(), std::move(final),
                          save ? py::cast(std::static_pointer_cast<LayerTape>(tape)) : py::none());
}

py::tuple forward(const std::string& cell_name, py::handle x, py::handle params, py::handle state,
                  py::handle indices, py::handle lengths, py::handle resets, py::handle reset_state,
                  py::handle reverse_flag, py::handle save_flag, py::handle recompute_flag,
                  WeightCache* cache, py::handle version_number, py::handle out, py::handle state_out) {
    const std::int64_t version = version_number.is_none() ? -1
                                                          : integer(version_number, "version", 0,
                                                                    std::numeric_limits<std::int64_t>::max());
    const bool reverse = flag(reverse_flag, "reverse"), save = flag(save_flag, "save"),
               recompute = flag(recompute_flag, "recompute");
    const int cell = cell_by_name(cell_name);
    const int states = traits_of(cell).states;
    CallArrays in;
    in.x = Array::floats(x, "x");
    in.x.shape(indices.is_none() ? std::vector<Axis>{{"T"}, {"B"}, {"I"}} : std::vector<Axis>{{"V"}, {"I"}})
        .made_rows();
    WeightArrays w = WeightArrays::read(cell, params, in.x);
    read_inputs(indices, in, w.dims);
    for (int k = 0; k < states; ++k) {
        if (!state.is_none()) {
            in.initial[k] = read_state(item_of(state, "state", states, k), "state", k, w.dims, in.x);
        }
        if (!reset_state.is_none()) {
            in.reset[k] = read_reset_state(item_of(reset_state, "reset_state", states, k), k, w.dims, in.x);
        }
    }
    in.resets = Array::boolean(resets, "resets", kOptional);
    in.resets.shape({{"T", w.dims.T}, {"B", w.dims.B}}).made_contiguous();
    Array ends = Array::int64(lengths, "lengths", kOptional);
    ends.shape({{"B", w.dims.B}}).made_contiguous();
    std::vector<std::int64_t> checked;
    if (ends.given()) checked = checked_indices(ends, w.dims.T + 1, "T + 1");
    const Outputs outputs = make_outputs(out, state_out, w.dims, states, in);
    auto timetable = std::make_shared<const Timetable>(w.dims.T, w.dims.B,
                                                       ends.given() ? checked.data() : nullptr, reverse);
    return by_dtype(in.x.dtype(), [&]<class T>() {
        return forward_typed<T>(cell, w, in, outputs, std::move(timetable), save, recompute, cache, version);
    });
}

// The gradients of the parameters: the caller's arrays, or new ones at zero.
std::vector<Array> gradient_arrays(py::handle dparams, const LayerTape& tape) {
    const Dims& d = tape.dims;
    const std::int64_t rows = traits_of(tape.cell).gates * d.H;
    const std::string g = std::to_string(traits_of(tape.cell).gates) + "*H", p = d.projected ? "P" : "H";
    const std::vector<Axis> shapes[5] = {
        {{g, rows}, {"I", d.I}}, {{g, rows}, {p, d.P}}, {{g, rows}}, {{g, rows}}, {{"P", d.P}, {"H", d.H}}};
    const char* names[5] = {"dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh", "dweight_hr"};
    const bool present[5] = {true, true, tape.has_bias_ih, tape.has_bias_hh, d.projected};
    std::vector<Array> grads(5);
    for (int i = 0; i < 5; ++i) {
        if (!dparams.is_none()) {
            grads[i] = Array::like(item_of(dparams, "dparams", 5, i), names[i], tape.arrays.x, kOptional);
            if (grads[i].given() && !present[i]) {
                throw py::value_error(std::string(names[i]) +
                                      ": expected None, because the forward call had no such " +
                                      "parameter, got an array");
            }
            grads[i].shape(shapes[i]).writable();
            grads[i].apart_from(tape.arrays.x).apart_from(tape.arrays.y);
            for (int j = 0; j < i; ++j) grads[i].apart_from(grads[j]);
        } else if (present[i]) {
            std::vector<std::int64_t> sizes;
            for (const Axis& axis : shapes[i]) sizes.push_back(axis.size);
            py::array zeros = new_array(tape.dtype, sizes);
            std::memset(zeros.mutable_data(), 0, static_cast<std::size_t>(zeros.nbytes()));
            grads[i] = Array::like(zeros, names[i], tape.arrays.x);
        }
    }
    return grads;
}

struct BackwardArrays {
    Array dy, dx, dfinal[kMaxStates], dinitial[kMaxStates];
    std::vector<Array> grads;
    bool accumulate_dx;
};

template <class T>
void backward_typed(const LayerTape& base, const BackwardArrays& a) {
    const auto& tape = static_cast<const TypedTape<T>&>(base);
    const RecurrentKernels<T>& kernels = kernel_table<T>().cells[tape.cell];
    BackwardProblem<T> problem{};
    problem.dims = tape.dims;
    set_call<BackwardProblem<T>, T>(problem, tape.arrays, *tape.timetable, kernels.traits.states);
    problem.weights = tape.weights->packed;
    problem.y = sequence<T>(tape.arrays.y);
    problem.saved = tape.saved.template as<T>();
    problem.states = tape.states.template as<T>();
    problem.hidden = tape.hidden.template as<T>();
    if (a.dy.given()) problem.dy = sequence<T>(a.dy);
    if (a.dx.given()) problem.dx = writable_sequence<T>(a.dx);
    problem.accumulate_dx = a.accumulate_dx;
    for (int k = 0; k < kernels.traits.states; ++k) {
        problem.dfinal[k] = a.dfinal[k].data<T>();
        problem.dinitial[k] = a.dinitial[k].mutable_data<T>();
    }
    problem.dparams = {a.grads[0].mutable_data<T>(), a.grads[1].mutable_data<T>(),
                       a.grads[2].mutable_data<T>(), a.grads[3].mutable_data<T>(),
                       a.grads[4].mutable_data<T>()};
    Team team(recurrent_threads(tape.dims, kernels.traits.gates, true));
    const AlignedBuffer workspace(
        kernels.backward_workspace(tape.dims, problem.saved == nullptr, team.size()));
    run_released(team, [&] { kernels.backward(problem, team, workspace.data()); });
}

py::tuple backward(const std::shared_ptr<LayerTape>& tape, py::handle dy, py::handle dstate,
                   py::handle dparams, py::handle need_dx_flag, py::handle dx, py::handle accumulate_flag) {
    const bool need_dx = flag(need_dx_flag, "need_dx"),
               accumulate_dx = flag(accumulate_flag, "accumulate_dx");
    if (tape == nullptr) throw py::type_error("tape: expected a LayerTape, got None");
    const Dims& d = tape->dims;
    const Array& x = tape->arrays.x;
    const int states = traits_of(tape->cell).states;
    BackwardArrays a;
    a.accumulate_dx = accumulate_dx;
    a.dy = Array::like(dy, "dy", x, kOptional);
    a.dy.shape({{"T", d.T}, {"B", d.B}, {d.projected ? "P" : "H", d.P}}).made_rows();
    for (int k = 0; k < states; ++k) {
        if (!dstate.is_none())
            a.dfinal[k] = read_state(item_of(dstate, "dstate", states, k), "dstate", k, d, x);
    }
    a.grads = gradient_arrays(dparams, *tape);
    if (!dx.is_none()) {
        if (!need_dx) throw py::value_error("dx: expected None with need_dx=False, got an array");
        a.dx = Array::like(dx, "dx", x);
        a.dx.shape(x.ndim() == 2 ? std::vector<Axis>{{"V", d.V}, {"I", d.I}}
                                 : std::vector<Axis>{{"T", d.T}, {"B", d.B}, {"I", d.I}})
            .writable_rows();
        a.dx.apart_from(x).apart_from(a.dy).apart_from(tape->arrays.y);
        for (const Array& grad : a.grads) a.dx.apart_from(grad);
    } else if (need_dx) {
        if (accumulate_dx) throw py::value_error("accumulate_dx: expected False without dx, got True");
        a.dx = Array::like(
            x.ndim() == 2 ? new_array(tape->dtype, {d.V, d.I}) : new_array(tape->dtype, {d.T, d.B, d.I}),
            "dx", x);
    }
    for (Array& grad : a.grads) {
        grad.apart_from(a.dy);
        for (int k = 0; k < states; ++k) grad.apart_from(a.dfinal[k]);
    }
    py::tuple start(states), grads(5);
    for (int k = 0; k < states; ++k) {
        a.dinitial[k] = Array::like(new_array(tape->dtype, {d.B, state_width(d, k)}), "dstate", x);
        start[k] = a.dinitial[k].object();
    }
    by_dtype(tape->dtype, [&]<class T>() { backward_typed<T>(*tape, a); });
    for (int i = 0; i < 5; ++i) grads[i] = a.grads[i].object_or_none();
    return py::make_tuple(a.dx.object_or_none(), start, grads);
}

}  // namespace

void bind_recurrent(py::module_& m) {
    py::dict cells;
    for (int i = 0; i < kCellCount; ++i) {
        const CellTraits& t = traits_of(i);
        py::dict cell;
        cell["gates"] = t.gates;
        cell["states"] = t.states;
        cell["saved"] = t.saved;
        cell["split_gates"] = t.split_gates;
        cells[t.name] = cell;
    }
    m.attr("cells") = cells;

    py::class_<WeightCache, std::shared_ptr<WeightCache>>(m, "WeightCache")
        .def(py::init<>())
        .def_property_readonly("nbytes", &WeightCache::nbytes);

    py::class_<LayerTape, std::shared_ptr<LayerTape>>(m, "LayerTape")
        .def_property_readonly("nbytes", &LayerTape::nbytes)
        .def_property_readonly("seq_len", [](const LayerTape& t) { return t.dims.T; })
        .def_property_readonly("batch", [](const LayerTape& t) { return t.dims.B; })
        .def_property_readonly("input_size", [](const LayerTape& t) { return t.dims.I; })
        .def_property_readonly("hidden_size", [](const LayerTape& t) { return t.dims.H; })
        .def_property_readonly("proj_size",
                               [](const LayerTape& t) { return t.dims.projected ? t.dims.P : 0; })
        .def_property_readonly("cell", [](const LayerTape& t) { return traits_of(t.cell).name; })
        .def_property_readonly("dtype", [](const LayerTape& t) { return t.arrays.x.object().dtype(); })
        .def_property_readonly("reverse", [](const LayerTape& t) { return t.timetable->reverse(); });

    m.def("forward", &forward, py::arg("cell"), py::arg("x"), py::arg("params"),
          py::arg("state") = py::none(), py::kw_only(), py::arg("indices") = py::none(),
          py::arg("lengths") = py::none(), py::arg("resets") = py::none(),
          py::arg("reset_state") = py::none(), py::arg("reverse") = false, py::arg("save") = false,
          py::arg("recompute") = false, py::arg("cache") = py::none(), py::arg("version") = py::none(),
          py::arg("out") = py::none(), py::arg("state_out") = py::none());
    m.def("backward", &backward, py::arg("tape"), py::arg("dy") = py::none(), py::arg("dstate") = py::none(),
          py::kw_only(), py::arg("dparams") = py::none(), py::arg("need_dx") = true,
          py::arg("dx") = py::none(), py::arg("accumulate_dx") = false);
}

}  // namespace fusedrnn
