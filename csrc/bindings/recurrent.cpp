// What the calls of one layer and direction share: cells by name, weights and states; and their place in the module.
#include "bindings/recurrent.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <string_view>

#include "bindings/backward_call.h"
#include "bindings/bindings.h"
#include "bindings/forward_call.h"

namespace fusedrnn {

Compute read_compute(const std::string& compute) {
    if (compute != "bf16" && compute != "bf16x3") return Compute::kFloat32;
    const Compute found = compute == "bf16" ? Compute::kBf16 : Compute::kBf16x3;
    if (bf16_kernels(found).table == nullptr) {
        throw py::value_error(
            "compute: expected \"float32\" on a CPU without its products of bfloat16, got \"" + compute +
            "\"");
    }
    return found;
}

const RecurrentCell& cell_by_name(const std::string& key) {
    // At the end alone: names that users give to their cells may hold it.
    for (const std::string_view compute : {"bf16", "bf16x3"}) {
        if (!key.ends_with(":" + std::string(compute))) continue;
        const std::string without = key.substr(0, key.size() - compute.size() - 1);
        return *bf16_cell(cell_by_name(without), read_compute(std::string(compute)));
    }
    const std::string& name = key;
    for (const RecurrentCell& cell : kernels().cells) {
        if (name == cell.name) return cell;
    }
    const RecurrentCell* const defined = defined_cell(name);
    return defined != nullptr ? *defined : cell_among(kernels().cells, name);
}

Array WeightArrays::input_weight(const RecurrentCell& cell, py::handle params) {
    const int place = cell.place(Role::kInputWeight);
    Array w = Array::floats(parameter_of(params, cell, place), cell.parameters[place].name);
    if (w.ndim() != 2) {
        throw py::value_error(w.name() + ": expected 2 dimensions, got " + std::to_string(w.ndim()));
    }
    return w;
}

WeightArrays WeightArrays::read(const RecurrentCell& cell, py::handle params, const Array& x) {
    WeightArrays w;
    w.of = read_parameters(HostPlace{}, cell, kernels().cells, params, x, w.dims);
    w.dims.whole_rows = cell.programs != nullptr && cell.programs->staged;
    w.dims.compute = cell.compute;
    return w;
}

namespace {

// A call as a class, to be run beside others by run_calls, and as a function that makes and runs it.
template <class Call, class... Extra>
auto bind_call(py::module_& m, const char* type, const char* function, const Extra&... arguments) {
    py::class_<Call, LayerCall, std::shared_ptr<Call>> bound(m, type);
    bound.def(py::init(&Call::make), arguments...);
    const auto run = []<class... A>(std::shared_ptr<Call> (*make)(A...)) {
        return [make](A... values) {
            const std::shared_ptr<Call> call = make(values...);
            run_alone(*call);
            return call->result();
        };
    };
    m.def(function, run(&Call::make), arguments...);
    return bound;
}

// Writes a state beyond h after every step to `out` (T, B, H), zeros past the ends of rows.
void copy_states(const LayerTape& tape, int number, py::handle out) {
    const Dims& d = tape.dims;
    if (number < 1 || number >= tape.cell.states) {
        throw py::value_error("number: expected one of the states beyond h, 1.." +
                              std::to_string(tape.cell.states - 1) + ", got " + std::to_string(number));
    }
    Array to = Array::like(out, "out", tape.arrays.x);
    to.shape({{"T", d.T}, {"B", d.B}, {"H", d.H}}).writable_rows();
    const Schedule schedule = tape.timetable->view(nullptr);
    by_dtype(tape.dtype, [&]<class T>() {
        const std::int64_t lanes = kernel_table<T>().lanes, padded = (d.H + lanes - 1) / lanes * lanes;
        const Sequence<T> rows = writable_sequence<T>(to);
        const T* states = tape.states.template as<T>();
        for (std::int64_t t = 0; t < d.T; ++t) {
            for (std::int64_t p = 0; p < d.B; ++p) {
                T* row = rows.row(t, schedule.order[p]);
                if (p >= schedule.active[t]) {
                    std::fill_n(row, d.H, T{0});
                    continue;
                }
                const std::int64_t place = (schedule.offset[t] + p) * (tape.cell.states - 1) + number - 1;
                std::copy_n(states + place * padded, d.H, row);
            }
        }
    });
}

StagedCalls::Calls calls_of(py::handle given) {
    if (!PyList_Check(given.ptr())) {
        throw py::type_error(std::string("calls: expected a list, got ") + Py_TYPE(given.ptr())->tp_name);
    }
    StagedCalls::Calls calls;
    for (const py::handle item : py::reinterpret_borrow<py::list>(given)) {
        if (!py::isinstance<LayerCall>(item)) {
            throw py::type_error(std::string("calls: expected ForwardCalls or BackwardCalls, got ") +
                                 Py_TYPE(item.ptr())->tp_name);
        }
        calls.push_back(item.cast<std::shared_ptr<LayerCall>>());
    }
    return calls;
}

py::list results_of(const StagedCalls::Calls& calls) {
    py::list results;
    for (const auto& call : calls) results.append(call->result());
    return results;
}

void bind_calls(py::module_& m) {
    py::class_<LayerCall, std::shared_ptr<LayerCall>>(m, "LayerCall");
    bind_call<ForwardCall>(
        m, "ForwardCall", "forward", py::arg("cell"), py::arg("x"), py::arg("params"),
        py::arg("state") = py::none(), py::arg("indices") = py::none(), py::arg("lengths") = py::none(),
        py::arg("resets") = py::none(), py::arg("reset_state") = py::none(), py::arg("reverse") = false,
        py::arg("save") = false, py::arg("recompute") = false, py::arg("cache") = py::none(),
        py::arg("version") = py::none(), py::arg("out") = py::none(), py::arg("state_out") = py::none(),
        py::arg("tape_out") = py::none(), py::arg("hidden_drop") = py::none())
        .def(
            "draw_masks",
            [](ForwardCall& call, py::handle seed, py::handle offset) {
                call.draw_masks(unsigned_integer(seed, "seed"), unsigned_integer(offset, "offset"));
            },
            py::arg("seed"), py::arg("offset"));
    bind_call<BackwardCall>(m, "BackwardCall", "backward", py::arg("tape"), py::arg("dy") = py::none(),
                            py::arg("dstate") = py::none(), py::arg("dparams") = py::none(),
                            py::arg("need_dx") = true, py::arg("dx") = py::none(),
                            py::arg("accumulate_dx") = false, py::arg("dreset") = py::none(),
                            py::arg("dsteps") = py::none());
    m.def("tape_from_arrays", &tape_from_arrays, py::arg("cell"), py::arg("x"), py::arg("params"),
          py::arg("y"), py::arg("tape"), py::arg("state") = py::none(), py::arg("lengths") = py::none(),
          py::arg("resets") = py::none(), py::arg("reset_state") = py::none(), py::arg("reverse") = false,
          py::arg("recompute") = false);
    m.attr("TAPE_LABEL_BYTES") = kTapeLabelBytes;
    m.def(
        "tape_row_bytes",
        [](const std::string& cell, std::int64_t hidden_size, bool projected, std::int64_t itemsize,
           bool recompute) {
            return TapeRow(cell_by_name(cell), projected, recompute).bytes(hidden_size, itemsize);
        },
        py::arg("cell"), py::arg("hidden_size"), py::arg("projected"), py::arg("itemsize"),
        py::arg("recompute"));
    m.def(
        "backward_rows",
        [](const std::shared_ptr<LayerTape>& tape, py::handle dy, py::handle dstate) {
            if (tape == nullptr) throw py::type_error("tape: expected a LayerTape, got None");
            py::tuple none(tape->cell.parameter_count);  // each entry None
            for (int i = 0; i < tape->cell.parameter_count; ++i) none[i] = py::none();
            const auto call = BackwardCall::make(tape, dy, dstate, none, py::bool_(true), py::none(),
                                                 py::bool_(false), py::none(), py::none());
            call->leave_rows();
            run_alone(*call);
            return call->result();
        },
        py::arg("tape"), py::arg("dy"), py::arg("dstate") = py::none(),
        "Return dx, dstate and (x, h, dgx, dgh), what the gradients of the weights are made of, (B, T, "
        "...).");
    m.def(
        "run_calls", [](py::handle calls) { return results_of(StagedCalls({calls_of(calls)}).run()); },
        py::arg("calls"));
    py::class_<StagedCalls>(m, "StagedCalls")
        .def(py::init([](py::handle given) {
                 if (!PyList_Check(given.ptr())) {
                     throw py::type_error(std::string("stages: expected a list, got ") +
                                          Py_TYPE(given.ptr())->tp_name);
                 }
                 std::vector<StagedCalls::Calls> stages;
                 for (const py::handle stage : py::reinterpret_borrow<py::list>(given)) {
                     stages.push_back(calls_of(stage));
                 }
                 return std::make_unique<StagedCalls>(std::move(stages));
             }),
             py::arg("stages"))
        .def("run", [](StagedCalls& self) { return results_of(self.run()); })
        .def("run_if_short", &StagedCalls::run_if_short);
}

py::object extent_object(const Extent& extent) {
    constexpr const char* kSymbols[] = {"1", "I", "H", "P"};
    return py::make_tuple(extent.times, kSymbols[static_cast<int>(extent.size)]);
}

}  // namespace

py::dict cell_description(const CellTraits& cell) {
    constexpr const char* kNeeds[] = {"required", "optional", "refused"};
    constexpr const char* kRoles[] = {"input_weight", "hidden_weight", "input_bias",
                                      "hidden_bias",  "projection",    "per_unit"};
    py::list parameters;
    for (int i = 0; i < cell.parameter_count; ++i) {
        const Parameter& p = cell.parameters[i];
        parameters.append(py::make_tuple(p.name, kRoles[static_cast<int>(p.role)],
                                         kNeeds[static_cast<int>(p.need)], extent_object(p.rows),
                                         extent_object(p.columns)));
    }
    py::dict d;
    d["gates"] = cell.gates;
    d["states"] = cell.states;
    d["saved"] = cell.saved;
    d["split_gates"] = cell.split_gates;
    d["parameters"] = py::tuple(parameters);
    return d;
}

void bind_recurrent(py::module_& m) {
    py::dict cells;
    for (const RecurrentCell& c : kernels().cells) cells[c.name] = cell_description(c);
    m.attr("cells") = cells;

    py::class_<WeightCache, std::shared_ptr<WeightCache>>(m, "WeightCache")
        .def(py::init<>())
        .def_property_readonly("nbytes", &WeightCache::nbytes);

    m.def(
        "set_detect_changes", [](py::handle enabled) { set_detect_changes(flag(enabled, "enabled")); },
        py::arg("enabled"));
    py::class_<LayerTape, std::shared_ptr<LayerTape>>(m, "LayerTape")
        .def("check_unchanged", &LayerTape::check_unchanged)
        .def("copy_states", &copy_states, py::arg("number"), py::arg("out"))
        .def_property_readonly("nbytes", &LayerTape::nbytes)
        .def_property_readonly("seq_len", [](const LayerTape& t) { return t.dims.T; })
        .def_property_readonly("batch", [](const LayerTape& t) { return t.dims.B; })
        .def_property_readonly("input_size", [](const LayerTape& t) { return t.dims.I; })
        .def_property_readonly("hidden_size", [](const LayerTape& t) { return t.dims.H; })
        .def_property_readonly("proj_size",
                               [](const LayerTape& t) { return t.dims.projected ? t.dims.P : 0; })
        .def_property_readonly("cell", [](const LayerTape& t) { return t.cell.name; })
        .def_property_readonly("dtype", [](const LayerTape& t) { return dtype_object(t.dtype); })
        .def_property_readonly("reverse", [](const LayerTape& t) { return t.timetable->reverse(); });

    bind_calls(m);
}

}  // namespace fusedrnn
