#include "bindings/network_calls.h"

#include <utility>

#include "bindings/backward_call.h"
#include "bindings/bindings.h"
#include "bindings/forward_call.h"

namespace fusedrnn {
namespace {

// Entry i of the first axis, and columns of the last one; both on the array's memory.
py::array row_of(const py::array& a, std::int64_t i) {
    const auto* const data = static_cast<const char*>(a.data()) + i * a.strides(0);
    return {a.dtype(), {a.shape(1), a.shape(2)}, {a.strides(1), a.strides(2)}, data, a};
}
py::array columns_of(const py::array& a, std::int64_t first, std::int64_t count) {
    const auto* const data = static_cast<const char*>(a.data()) + first * a.strides(2);
    return {a.dtype(), {a.shape(0), a.shape(1), count}, {a.strides(0), a.strides(1), a.strides(2)}, data, a};
}

// Row i of each state; None where there is none.
py::object rows_of(const py::tuple& states, std::int64_t i) {
    py::tuple rows(states.size());
    for (std::size_t k = 0; k < states.size(); ++k) {
        const py::object state = states[k];
        rows[k] = state.is_none() ? state : py::object(row_of(state, i));
    }
    return rows;
}

py::object direction_of(const py::object& both, int direction, int directions) {
    if (both.is_none() || directions == 1) return both;
    const auto array = py::reinterpret_borrow<py::array>(both);
    const std::int64_t width = array.shape(2) / directions;
    return columns_of(array, direction * width, width);
}

py::object dropped(const py::object& array, const py::tuple& drop, const py::object& out) {
    const py::object function = py::module_::import("fusedrnn._core").attr("dropout");
    return function(array, drop[0], drop[1], drop[2], out);
}

void require_axes(const py::object& given, const char* name, const char* symbols, std::int64_t rows = -1) {
    if (given.is_none()) return;
    const auto array = py::reinterpret_borrow<py::array>(given);
    if (array.ndim() != 3) {
        throw py::value_error(std::string(name) + ": expected 3 axes " + symbols + ", got " +
                              std::to_string(array.ndim()));
    }
    if (rows < 0 || array.shape(0) == rows) return;
    throw py::value_error(std::string(name) + ": expected layers*D = " + std::to_string(rows) + ", got " +
                          std::to_string(array.shape(0)));
}

// Layers one above the other, as many as there are drops.
int rows_each(const char* name, std::size_t rows, std::size_t layers) {
    if (layers > 0 && (rows == layers || rows == 2 * layers)) return static_cast<int>(rows / layers);
    throw py::value_error(std::string(name) + ": expected one or two for each of " + std::to_string(layers) +
                          " layers, got " + std::to_string(rows));
}

}  // namespace

py::list NetworkCalls::forward(const py::array& x, const py::tuple& states, py::handle lengths,
                               py::handle resets, const py::tuple& drops, bool save, const py::array& y,
                               const py::tuple& finals) const {
    const py::none none;
    const DType dtype = Array::floats(x, "x").dtype();
    if (rows_each("params", params.size(), drops.size()) != directions ||
        (!caches.empty() && caches.size() != params.size())) {
        throw py::value_error("caches: expected as many as rows of params, got " +
                              std::to_string(caches.size()));
    }
    require_axes(x, "x", "(T, B, I)");
    require_axes(y, "y", "(T, B, D*P)");
    for (const py::tuple* const each : {&states, &finals}) {
        for (const py::handle state : *each)
            require_axes(py::reinterpret_borrow<py::object>(state), "state", "(layers*D, B, width)",
                         static_cast<std::int64_t>(params.size()));
    }
    py::list tapes;
    StagedCalls::Calls calls;
    py::object steps = x;
    for (int layer = 0; layer < layers; ++layer) {
        const bool last = layer == layers - 1;
        const py::object out = last ? py::object(y) : new_array(dtype, {y.shape(0), y.shape(1), y.shape(2)});
        for (int direction = 0; direction < directions; ++direction) {
            const int row = layer * directions + direction;
            calls.push_back(ForwardCall::make(
                cell, steps, params[row], states.empty() ? py::object(none) : rows_of(states, row), none,
                lengths, resets, none, py::bool_(direction == 1), py::bool_(save), py::bool_(false),
                caches.empty() ? nullptr : caches[row].get(), none, direction_of(out, direction, directions),
                rows_of(finals, row), none, none));
        }
        steps = out;
        // A layer begins before the one below has ended, unless it needs that end or dropout in between.
        const py::object drop = drops[layer];
        if (!last && directions == 1 && drop.is_none()) continue;
        StagedCalls work({std::exchange(calls, {})});
        for (const auto& call : work.run()) {
            if (save) tapes.append(call->result()[2]);
        }
        if (!drop.is_none()) steps = dropped(out, drop, none);
    }
    return tapes;
}

py::tuple network_backward(const py::sequence& tapes, const py::sequence& drops, const py::object& dy,
                           const py::tuple& dfinals, const py::object& dx, bool need_params) {
    std::vector<std::shared_ptr<LayerTape>> rows;
    for (const py::handle tape : tapes) {
        rows.push_back(tape.cast<std::shared_ptr<LayerTape>>());
        if (rows.back() == nullptr) throw py::type_error("tape: expected a LayerTape, got None");
    }
    const int directions = rows_each("tapes", rows.size(), drops.size()),
              layers = static_cast<int>(drops.size());
    require_axes(dy, "dy", "(T, B, D*P)");
    for (const py::handle end : dfinals)
        require_axes(py::reinterpret_borrow<py::object>(end), "dstate", "(layers*D, B, width)",
                     static_cast<std::int64_t>(rows.size()));
    const LayerTape& first = *rows.front();
    const Dims& d = first.dims;
    const int states = first.cell.states;
    const py::none none;
    py::tuple starts(states), zeros(states);
    for (int k = 0; k < states; ++k) {
        starts[k] = new_array(first.dtype, {static_cast<std::int64_t>(rows.size()), d.B, state_width(d, k)});
    }
    bool given = dy.is_none();  // an error where nothing is
    for (const py::handle end : dfinals) given = given || !end.is_none();
    py::object frozen = none;
    if (!need_params) {
        py::tuple nothing(first.cell.parameter_count);
        for (std::size_t i = 0; i < nothing.size(); ++i) nothing[i] = none;
        frozen = nothing;
    }
    std::vector<py::object> targets{dx};
    for (int layer = 1; layer < layers; ++layer)
        targets.push_back(new_array(first.dtype, {d.T, d.B, d.P * directions}));
    std::vector<StagedCalls::Calls> stages;
    py::object flow = dy;
    for (int layer = layers - 1; layer >= 0; --layer) {
        const py::object& target = targets[layer];
        StagedCalls::Calls& calls = stages.emplace_back();
        for (int direction = 0; direction < directions; ++direction) {
            const int row = layer * directions + direction;
            calls.push_back(BackwardCall::make(rows[row], direction_of(flow, direction, directions),
                                               given ? rows_of(dfinals, row) : py::object(none), frozen,
                                               py::bool_(!target.is_none()), target,
                                               py::bool_(direction == 1), none, none));
        }
        flow = target;
    }
    StagedCalls work(std::move(stages));
    py::list grads;
    for (std::size_t i = 0; i < rows.size(); ++i) grads.append(none);
    for (int layer = layers - 1; layer >= 0; --layer) {
        int row = layer * directions;
        for (const auto& call : work.run()) {
            const py::tuple found = call->result();
            const py::tuple parts = found[1];
            for (int k = 0; k < states; ++k) starts[k][py::int_(row)] = parts[k];
            grads[row++] = found[2];
        }
        const py::object drop = layer > 0 ? py::object(drops[layer - 1]) : py::object(none);
        if (!drop.is_none()) dropped(targets[layer], drop, targets[layer]);
    }
    return py::make_tuple(starts, grads);
}

}  // namespace fusedrnn
