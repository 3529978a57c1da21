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
    problem.dims = a.dims;
    problem.schedule = timetable.view(static_cast<const std::uint8_t*>(a.resets.data()));
    problem.weights = by_role<Weights>(cell, a.weights);
    problem.x = a.x.as_const_rows();
    problem.draws = a.draws;
    if (a.lookups != nullptr) problem.lookups = a.lookups->view();
    for (int k = 0; k < cell.states; ++k) {
        problem.initial[k] = a.initial[k].data();
        problem.reset[k] = a.reset[k].data();
        problem.reset_stride[k] = reset_stride(a.reset[k], a.dims, k);
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
    for (const Argument& array : a.weights) extents.push_back(array.extent());
    for (const Argument* array : {&a.x, &a.y, &a.resets}) extents.push_back(array->extent());
    for (int k = 0; k < kMaxStates; ++k) {
        extents.push_back(a.initial[k].extent());
        extents.push_back(a.reset[k].extent());
    }
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
    CallArguments in;
    in.draws = read_draws(draws);
    in.x = Argument::first(x, "x", stream);
    const Context context = Context::of(stream, empty, math_of(in.x, float32_mode), x);
    check_input(in.x, indices);
    Dims& d = in.dims;
    in.weights = read_parameters(context, cell, device_cells(), params, in.x, d);
    const auto timetable =
        read_sequence(context, {state, indices, lengths, resets, reset_state, reverse}, cell, in, d);
    if (in.index != nullptr) {
        auto lookups = std::make_shared<LookupTable>(in.index);
        if (save) lookups->sort(d, *timetable);
        in.lookups = std::move(lookups);
    }
    const Outputs<Argument> outputs = make_outputs(context, out, state_out, cell.states, in, d);
    in.y = outputs.y;
    ForwardProblem problem{};
    set_call(problem, cell, context.math, in, *timetable);
    problem.y = outputs.y.as_rows();
    Extents extents;
    add_extents(extents, in);
    for (int k = 0; k < cell.states; ++k) {
        problem.final[k] = outputs.final[k].data();
        extents.push_back(outputs.final[k].extent());
    }
    std::shared_ptr<LayerTape> tape;
    if (save) {
        tape = make_tape(cell, timetable, in, recompute, context);
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
    return py::make_tuple(outputs.y.object(), objects_of(outputs.final, cell.states),
                          save ? py::cast(tape) : py::none());
}

py::tuple backward(const std::shared_ptr<LayerTape>& tape, py::handle dy, py::handle dstate,
                   py::handle dparams, py::handle need_dx_flag, py::handle dx, py::handle accumulate_flag,
                   const py::object& empty, StreamNumber stream) {
    const bool need_dx = flag(need_dx_flag, "need_dx"),
               accumulate_dx = flag(accumulate_flag, "accumulate_dx");
    if (tape == nullptr) throw py::type_error("tape: expected a LayerTape, got None");
    const CallArguments& in = tape->arguments;
    const Context context = Context::of(stream, empty, tape->math, in.x.object());
    const GradientArrays<Argument> a = read_gradients(
        context, {dy, dstate, dparams, dx, need_dx, accumulate_dx}, *tape->cell,
        [&](int i) { return in.weights[static_cast<std::size_t>(i)].given(); }, in, tape->dims());
    BackwardProblem problem{};
    set_call(problem, *tape->cell, tape->math, in, *tape->timetable);
    problem.y = in.y.as_const_rows();
    problem.saved = tape->saved.data();
    problem.states = tape->states.data();
    problem.hidden = tape->hidden.data();
    problem.moments = tape->moments.data();
    problem.dy = a.dy.as_const_rows();
    problem.dx = a.dx.as_rows();
    problem.accumulate_dx = accumulate_dx;
    problem.dparams = by_role<WeightGradients>(*tape->cell, a.grads);
    Extents extents{a.dy.extent(),         a.dx.extent(),         tape->saved.extent(),
                    tape->states.extent(), tape->hidden.extent(), tape->moments.extent()};
    add_extents(extents, in);
    for (const Argument& grad : a.grads) extents.push_back(grad.extent());
    for (int k = 0; k < tape->cell->states; ++k) {
        problem.dfinal[k] = a.dfinal[k].data();
        problem.dinitial[k] = a.dinitial[k].data();
        extents.push_back(a.dfinal[k].extent());
        extents.push_back(a.dinitial[k].extent());
    }
    const Plan plan = plan_call(problem, in.x.device(), tape->forced_kernel);
    const Argument workspace = context.workspace(plan.workspace_bytes, in.x);
    extents.push_back(workspace.extent());
    run_call(in.x.device(), std::move(extents), [&] {
        for (const Argument& grad : a.grads) {
            if (dparams.is_none() && grad.bytes() > 0) {
                fill(grad.data(), 0, static_cast<std::size_t>(grad.bytes()), native_stream(stream));
            }
        }
        plan.kernel.backward(problem, workspace.data(), native_stream(stream));
    });
    return a.result(tape->cell->states);
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
