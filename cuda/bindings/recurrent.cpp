// forward and backward of one layer and direction on a device: checks, then one plain problem struct for the
// drivers. The twin of csrc/bindings/recurrent.cpp.
#include <pybind11/stl.h>

#include <optional>
#include <type_traits>

#include "cuda/bindings/bindings.h"
#include "cuda/bindings/defined_cells.h"
#include "cuda/bindings/layer_call.h"
#include "kernel_table.h"

namespace fusedrnn::cuda {
namespace {

template <class Problem>
void set_call(Problem& problem, const DeviceCell& cell, Math math, const CallArguments& a,
              const Timetable& timetable) {
    problem.cell = &cell;
    problem.math = math;
    problem.dims = a.weights.dims;
    problem.schedule = timetable.view(static_cast<const std::uint8_t*>(a.resets.data()));
    problem.weights = by_role<Weights>(cell, a.weights.of);
    problem.x = a.x.as_const_rows();
    problem.draws = a.draws;
    if (a.lookups != nullptr) problem.lookups = a.lookups->view();
    for (int k = 0; k < cell.states; ++k) {
        problem.initial[k] = a.initial[k].data();
        problem.reset[k] = a.reset[k].data();
        const bool per_row = a.reset[k].given() && a.reset[k].ndim() == 2;
        problem.reset_stride[k] = per_row ? a.reset[k].size(1) : 0;
    }
}

// The kernel for a problem, and the memory it works in. `forced` as choose_kernel().
struct Plan {
    const Kernel& kernel;
    std::int64_t workspace_bytes;
};

template <class Problem>
Plan plan_call(const Problem& problem, int device, const std::optional<std::string>& forced) {
    constexpr bool backward = std::is_same_v<Problem, BackwardProblem>;
    const CurrentDevice current(device);
    const Device facts = current_device();
    const Kernel& kernel = choose_kernel(
        {problem.cell, problem.math, problem.dims, facts.architecture, facts.processors, backward},
        forced ? forced->c_str() : nullptr);
    if constexpr (backward) return {kernel, kernel.backward_workspace(problem)};
    if constexpr (!backward) return {kernel, kernel.forward_workspace(problem)};
}

void add_extents(Extents& extents, const CallArguments& a) {
    for (const Argument& array : a.weights.of) extents.push_back(array.extent());
    for (const Argument* array : {&a.x, &a.y, &a.resets}) extents.push_back(array->extent());
    for (int k = 0; k < kMaxStates; ++k) {
        extents.push_back(a.initial[k].extent());
        extents.push_back(a.reset[k].extent());
    }
}

// Arrays a forward call writes: the caller's, or new ones.
struct Outputs {
    Argument y, final[kMaxStates];
};

Outputs make_outputs(py::handle out, py::handle state_out, const DeviceCell& cell, Math math,
                     const CallArguments& in, const Context& context) {
    const int states = cell.states;
    const Dims& d = in.weights.dims;
    Outputs o;
    // All that was given is checked before memory is asked for.
    if (!out.is_none()) {
        o.y = Argument::beside(out, "out", in.x.type(), in.x, context.stream);
        o.y.shape({{"T", d.T}, {"B", d.B}, {d.projected ? "P" : "H", d.P}}).rows().writable();
        o.y.apart_from(in.x);
        for (int k = 0; k < states; ++k) o.y.apart_from(in.initial[k]).apart_from(in.reset[k]);
    }
    for (int k = 0; k < states && !state_out.is_none(); ++k) {
        const StateForm form = state_form(k, d, math, in.x.type());
        Argument& a = o.final[k];
        a = Argument::beside(item_of(state_out, "state_out", states, k), indexed("state_out", k), form.type,
                             in.x, context.stream);
        a.shape({{"B", d.B}, {form.symbol, form.width}}).contiguous().writable();
        a.apart_from(in.x).apart_from(o.y);
        for (int j = 0; j < states; ++j) a.apart_from(in.initial[j]).apart_from(in.reset[j]);
        for (int j = 0; j < k; ++j) a.apart_from(o.final[j]);
    }
    if (out.is_none()) o.y = context.make({d.T, d.B, d.P}, in.x.type(), "y", in.x);
    for (int k = 0; k < states && state_out.is_none(); ++k) {
        const StateForm form = state_form(k, d, math, in.x.type());
        o.final[k] = context.make({d.B, form.width}, form.type, indexed("state", k), in.x);
    }
    return o;
}

// x (T, B, I), or a table (V, I) with `indices` (T, B) into it; sets T, B and V. Returns the checked indices.
std::vector<std::int64_t> read_inputs(const Array& indices, const Argument& x, Dims& d) {
    if (!indices.given()) {
        d.T = x.size(0);
        d.B = x.size(1);
        return {};
    }
    Array index = indices;
    index.shape({{"T"}, {"B"}}).made_contiguous();
    d.T = index.size(0);
    d.B = index.size(1);
    d.V = x.size(0);
    return checked_indices(index, d.V, "V");
}

py::tuple forward(const std::string& cell_name, py::handle x, py::handle params, py::handle state,
                  py::handle indices, py::handle lengths, py::handle resets, py::handle reset_state,
                  py::handle reverse_flag, py::handle save_flag, py::handle recompute_flag,
                  const std::string& float32_mode, const std::optional<std::string>& forced,
                  const py::object& empty, StreamNumber stream, py::handle out, py::handle state_out,
                  py::handle draws) {
    const bool reverse = flag(reverse_flag, "reverse"), save = flag(save_flag, "save"),
               recompute = flag(recompute_flag, "recompute");
    const DeviceCell& cell = cell_of_call(cell_name);
    const int states = cell.states;
    const Context context = Context::of(stream, empty, x);
    CallArguments in;
    in.draws = read_draws(draws);
    in.x = Argument::first(x, "x", stream);
    const Math math = math_of(in.x, float32_mode);
    const Array index = Array::int64(indices, "indices", kOptional);
    in.x.shape(index.given() ? std::vector<Axis>{{"V"}, {"I"}} : std::vector<Axis>{{"T"}, {"B"}, {"I"}})
        .rows();
    in.weights = read_weights(cell, params, in.x, stream);
    Dims& d = in.weights.dims;
    std::vector<std::int64_t> looked_up = read_inputs(index, in.x, d);
    read_states(state, reset_state, cell, math, in, stream);
    in.resets = Argument::beside(resets, "resets", kBool, in.x, stream, kOptional);
    in.resets.shape({{"T", d.T}, {"B", d.B}}).contiguous();
    Array ends = Array::int64(lengths, "lengths", kOptional);
    ends.shape({{"B", d.B}}).made_contiguous();
    std::vector<std::int64_t> checked;
    if (ends.given()) checked = checked_indices(ends, d.T + 1, "T + 1");
    auto timetable =
        std::make_shared<const Timetable>(d.T, d.B, ends.given() ? checked.data() : nullptr, reverse);
    if (index.given()) {
        auto lookups = std::make_shared<LookupTable>(std::move(looked_up));
        if (save) lookups->sort(d, *timetable);
        in.lookups = std::move(lookups);
    }
    const Outputs outputs = make_outputs(out, state_out, cell, math, in, context);
    in.y = outputs.y;
    ForwardProblem problem{};
    set_call(problem, cell, math, in, *timetable);
    problem.y = outputs.y.as_rows();
    Extents extents;
    add_extents(extents, in);
    for (int k = 0; k < states; ++k) {
        problem.final[k] = outputs.final[k].data();
        extents.push_back(outputs.final[k].extent());
    }
    std::shared_ptr<LayerTape> tape;
    if (save) {
        tape = make_tape(cell, math, timetable, in, recompute, context);
        tape->arguments = in;
        problem.saved = tape->saved.data();
        problem.states = tape->states.data();
        problem.hidden = tape->hidden.data();
        problem.moments = tape->moments.data();
        for (const Argument* a : {&tape->saved, &tape->states, &tape->hidden, &tape->moments})
            extents.push_back(a->extent());
    }
    const Plan plan = plan_call(problem, in.x.device(), forced);
    const Argument workspace = context.workspace(plan.workspace_bytes, in.x);
    extents.push_back(workspace.extent());
    if (save) {
        tape->kernel = plan.kernel.name;
        tape->forced_kernel = forced;
    }
    run_call(in.x.device(), std::move(extents),
             [&] { plan.kernel.forward(problem, workspace.data(), native_stream(stream)); });
    py::tuple final(states);
    for (int k = 0; k < states; ++k) final[k] = outputs.final[k].object();
    return py::make_tuple(outputs.y.object(), std::move(final), save ? py::cast(tape) : py::none());
}

// The gradients of the parameters: the caller's arrays, or new ones; `fresh` says which have to be zeroed.
std::vector<Argument> gradient_arguments(py::handle dparams, const LayerTape& tape, const Context& context) {
    const CallArguments& in = tape.arguments;
    const Dims& d = tape.dims();
    const DeviceCell& cell = *tape.cell;
    const dlpack::Type type = compute_type(tape.math);
    std::vector<Argument> grads(static_cast<std::size_t>(cell.parameter_count));
    for (std::size_t i = 0; i < grads.size(); ++i) {
        const Parameter& p = cell.parameters[i];
        const std::string name = std::string("d") + p.name;
        const bool present = in.weights.of[i].given();
        if (dparams.is_none()) {
            if (present) grads[i] = context.make(sizes_of(p, d), type, name, in.x);
            continue;
        }
        grads[i] = Argument::beside(item_of(dparams, "dparams", cell.parameter_count, static_cast<int>(i)),
                                    name, type, in.x, context.stream, kOptional);
        if (grads[i].given() && !present) {
            throw py::value_error(name + ": expected None, because the forward call had no such " +
                                  "parameter, got an array");
        }
        grads[i].shape(axes_of(p, d)).contiguous().writable().apart_from(in.x).apart_from(in.y);
        for (std::size_t j = 0; j < i; ++j) grads[i].apart_from(grads[j]);
    }
    return grads;
}

// The gradient of the input: the caller's array, or a new one, or none.
Argument input_gradient(py::handle dx, bool need_dx, bool accumulate_dx, const LayerTape& tape,
                        const Argument& flow, const std::vector<Argument>& grads, const Context& context) {
    const CallArguments& in = tape.arguments;
    const Dims& d = tape.dims();
    const std::vector<Axis> shape = in.lookups != nullptr
                                        ? std::vector<Axis>{{"V", d.V}, {"I", d.I}}
                                        : std::vector<Axis>{{"T", d.T}, {"B", d.B}, {"I", d.I}};
    Argument out;
    if (!dx.is_none()) {
        if (!need_dx) throw py::value_error("dx: expected None with need_dx=False, got an array");
        out = Argument::beside(dx, "dx", in.x.type(), in.x, context.stream);
        out.shape(shape).rows().writable();
        out.apart_from(in.x).apart_from(flow).apart_from(in.y);
        for (const Argument& grad : grads) out.apart_from(grad);
    } else if (need_dx) {
        if (accumulate_dx) throw py::value_error("accumulate_dx: expected False without dx, got True");
        std::vector<std::int64_t> sizes;
        for (const Axis& axis : shape) sizes.push_back(axis.size);
        out = context.make(sizes, in.x.type(), "dx", in.x);
    }
    return out;
}

py::tuple backward(const std::shared_ptr<LayerTape>& tape, py::handle dy, py::handle dstate,
                   py::handle dparams, py::handle need_dx_flag, py::handle dx, py::handle accumulate_flag,
                   const py::object& empty, StreamNumber stream) {
    const bool need_dx = flag(need_dx_flag, "need_dx"),
               accumulate_dx = flag(accumulate_flag, "accumulate_dx");
    if (tape == nullptr) throw py::type_error("tape: expected a LayerTape, got None");
    const CallArguments& in = tape->arguments;
    const Context context = Context::of(stream, empty, in.x.object());
    const Dims& d = tape->dims();
    const int states = tape->cell->states;
    const dlpack::Type type = in.x.type();
    Argument flow = Argument::beside(dy, "dy", type, in.x, stream, kOptional);
    flow.shape({{"T", d.T}, {"B", d.B}, {d.projected ? "P" : "H", d.P}}).rows();
    Argument dfinal[kMaxStates], dinitial[kMaxStates];
    for (int k = 0; k < states; ++k) {
        if (dstate.is_none()) continue;
        const StateForm form = state_form(k, d, tape->math, type);
        dfinal[k] = Argument::beside(item_of(dstate, "dstate", states, k), indexed("dstate", k), form.type,
                                     in.x, stream, kOptional);
        dfinal[k].shape({{"B", d.B}, {form.symbol, form.width}}).contiguous();
    }
    std::vector<Argument> grads = gradient_arguments(dparams, *tape, context);
    for (Argument& grad : grads) {
        grad.apart_from(flow);
        for (int k = 0; k < states; ++k) grad.apart_from(dfinal[k]);
    }
    const Argument out = input_gradient(dx, need_dx, accumulate_dx, *tape, flow, grads, context);
    BackwardProblem problem{};
    set_call(problem, *tape->cell, tape->math, in, *tape->timetable);
    problem.y = in.y.as_const_rows();
    problem.saved = tape->saved.data();
    problem.states = tape->states.data();
    problem.hidden = tape->hidden.data();
    problem.moments = tape->moments.data();
    problem.dy = flow.as_const_rows();
    problem.dx = out.as_rows();
    problem.accumulate_dx = accumulate_dx;
    problem.dparams = by_role<WeightGradients>(*tape->cell, grads);
    Extents extents{flow.extent(),         out.extent(),          tape->saved.extent(),
                    tape->states.extent(), tape->hidden.extent(), tape->moments.extent()};
    add_extents(extents, in);
    py::tuple start(states), gradients(grads.size());
    for (int k = 0; k < states; ++k) {
        const StateForm form = state_form(k, d, tape->math, type);
        dinitial[k] = context.make({d.B, form.width}, form.type, indexed("dstate", k), in.x);
        problem.dfinal[k] = dfinal[k].data();
        problem.dinitial[k] = dinitial[k].data();
        extents.push_back(dfinal[k].extent());
        extents.push_back(dinitial[k].extent());
        start[k] = dinitial[k].object();
    }
    for (std::size_t i = 0; i < grads.size(); ++i) {
        extents.push_back(grads[i].extent());
        gradients[i] = grads[i].object_or_none();
    }
    const Plan plan = plan_call(problem, in.x.device(), tape->forced_kernel);
    const Argument workspace = context.workspace(plan.workspace_bytes, in.x);
    extents.push_back(workspace.extent());
    run_call(in.x.device(), std::move(extents), [&] {
        for (const Argument& grad : grads) {
            if (dparams.is_none() && grad.bytes() > 0) {
                fill(grad.data(), 0, static_cast<std::size_t>(grad.bytes()), native_stream(stream));
            }
        }
        plan.kernel.backward(problem, workspace.data(), native_stream(stream));
    });
    return py::make_tuple(out.object_or_none(), start, gradients);
}

}  // namespace

void bind_recurrent(py::module_& m) {
    py::list kernels;
    for (const Kernel& kernel : kernel_list()) kernels.append(kernel.name);
    m.attr("kernels") = py::tuple(kernels);
    py::class_<LayerTape, std::shared_ptr<LayerTape>>(m, "LayerTape")
        .def_property_readonly("nbytes", &LayerTape::nbytes)
        .def_property_readonly("seq_len", [](const LayerTape& t) { return t.dims().T; })
        .def_property_readonly("batch", [](const LayerTape& t) { return t.dims().B; })
        .def_property_readonly("device", [](const LayerTape& t) { return t.arguments.x.device(); })
        .def_property_readonly("math",
                               [](const LayerTape& t) { return kMathNames[static_cast<int>(t.math)]; })
        .def_property_readonly("kernel", [](const LayerTape& t) { return t.kernel; });
    m.def("forward", &forward, py::arg("cell"), py::arg("x"), py::arg("params"),
          py::arg("state") = py::none(), py::kw_only(), py::arg("indices") = py::none(),
          py::arg("lengths") = py::none(), py::arg("resets") = py::none(),
          py::arg("reset_state") = py::none(), py::arg("reverse") = false, py::arg("save") = false,
          py::arg("recompute") = false, py::arg("float32_mode") = "ieee", py::arg("kernel") = py::none(),
          py::arg("empty"), py::arg("stream") = kLegacyStream, py::arg("out") = py::none(),
          py::arg("state_out") = py::none(), py::arg("draws") = py::none());
    m.def("backward", &backward, py::arg("tape"), py::arg("dy") = py::none(), py::arg("dstate") = py::none(),
          py::kw_only(), py::arg("dparams") = py::none(), py::arg("need_dx") = true,
          py::arg("dx") = py::none(), py::arg("accumulate_dx") = false, py::arg("empty"),
          py::arg("stream") = kLegacyStream);
}

}  // namespace fusedrnn::cuda
