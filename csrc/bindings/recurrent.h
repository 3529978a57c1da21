// Arguments that the sequence calls and the stream share.
#pragma once

#include "bindings/checks.h"
#include "bindings/tape.h"
#include "bindings/tape_memory.h"

namespace fusedrnn {

// A compiled cell by its name, or one that was defined by its key; with ":bf16" or ":bf16x3" behind it that cell with products
// of bfloat16.
const RecurrentCell& cell_by_name(const std::string& key);
// What `compute` names; refused where the CPU does not have it.
Compute read_compute(const std::string& compute);
const RecurrentCell* defined_cell(const std::string& key);
// What src/fusedrnn/cells.py knows of a cell.
py::dict cell_description(const CellTraits& cell);

// The checked weights of one layer and direction, contiguous, in the order of the cell's schema, and the sizes that follow
// from them (T and B are not set).
struct WeightArrays {
    std::vector<Array> of;
    Dims dims{};

    // `x` gives the dtype and, in its last axis, the input size.
    static WeightArrays read(const RecurrentCell& cell, py::handle params, const Array& x);
    // The array that says how many inputs there are, before anything is checked.
    static Array input_weight(const RecurrentCell& cell, py::handle params);

    template <class T>
    Params<const T> pointers() const {
        Params<const T> params{};
        for (std::size_t i = 0; i < of.size(); ++i) params.of[i] = of[i].data<T>();
        return params;
    }
};

// NumPy arrays, the Place of call_arguments.h. What they hold is of one dtype.
struct HostPlace {
    using Sizes = std::initializer_list<std::int64_t>;

    Array read(py::handle value, Name name, Element element, const Array& x, Presence presence) const {
        return element == Element::kBool ? Array::boolean(value, name, presence)
                                         : Array::like(value, name, x, presence);
    }
    Array read_parameter(py::handle value, const Parameter& p, const Array& x) const {
        const auto read = p.role == Role::kInputWeight ? Array::parameter : Array::like;
        return read(value, p.name, x, p.need == Need::kRequired ? kRequired : kOptional);
    }
    Array make(Sizes sizes, Element, Name name, const Array& x) const {
        return Array::like(new_array(x.dtype(), sizes), name, x);
    }
    Array make(const std::vector<std::int64_t>& sizes, Element, Name name, const Array& x) const {
        return Array::like(new_array(x.dtype(), sizes), name, x);
    }
};

// The rows of one state, before the sequence and after it.
template <class T>
struct StateRows {
    const T* initial;  // null is zero
    T* final;
};

// What every forward call has, so that none forgets a part of it; `state` gives the StateRows of state k. Of what is not an
// argument here a call may have none.
template <class T, class F>
ForwardProblem<T> forward_problem(const RecurrentCell& cell, const Dims& dims, const Schedule& schedule,
                                  const Packed<T>& weights, const Sequence<const T>& x, const Sequence<T>& y,
                                  F&& state) {
    ForwardProblem<T> problem{};
    problem.cell = &cell;
    problem.dims = dims;
    problem.schedule = schedule;
    problem.weights = weights;
    problem.x = x;
    problem.y = y;
    for (int k = 0; k < cell.states; ++k) {
        const StateRows<T> rows = state(k);
        problem.initial[k] = rows.initial;
        problem.final[k] = rows.final;
    }
    return problem;
}

// The tape of a forward call, to be filled by it: `problem` gets the pointers. The caller adds `arrays` and `weights`. It is
// made in `memory` where that is given.
template <class T>
std::shared_ptr<TypedTape<T>> make_tape(DType dtype, std::shared_ptr<const Timetable> timetable,
                                        const Params<const T>& params, bool recompute,
                                        ForwardProblem<T>& problem, const Array& memory = Array()) {
    const RecurrentCell& cell = *problem.cell;
    const std::int64_t lanes = kernel_table<T>().lanes, item = sizeof(T), rows = timetable->rows();
    const std::int64_t padded = (problem.dims.H + lanes - 1) / lanes * lanes;
    auto tape = std::make_shared<TypedTape<T>>(cell, problem.dims, dtype, std::move(timetable));
    const TapeRow row(cell, problem.dims.projected, recompute);
    std::int64_t taken = 0;
    const auto take = [&](std::int64_t size) {
        if (size > memory.size() - taken) {
            throw py::value_error(memory.name() + ": expected " + std::to_string((taken + size) * item) +
                                  " bytes or more, got " + std::to_string(memory.size() * item));
        }
        taken += size;
        return memory.mutable_data<T>() + taken - size;
    };
    if (memory.given()) take(kTapeLabelBytes / item);
    const auto part = [&](std::int64_t width, std::int64_t count) {
        if (!memory.given()) return AlignedBuffer(checked_product({rows, width, count, item}));
        const std::int64_t size = checked_product({rows, width, count});
        return AlignedBuffer(take(size), size * item);
    };
    tape->memory = memory;
    if (row.saved > 0) tape->saved = part(padded, row.saved);
    if (row.states > 0) tape->states = part(padded, row.states);
    if (row.hidden > 0) tape->hidden = part(padded, row.hidden);
    if (row.moments > 0) tape->moments = part(row.moments, 1);
    problem.moments = tape->moments.template as<T>();
    problem.saved = tape->saved.template as<T>();
    problem.states = tape->states.template as<T>();
    problem.hidden = tape->hidden.template as<T>();
    for (int i = 0; i < cell.parameter_count; ++i) tape->has_parameter[i] = params.of[i] != nullptr;
    return tape;
}

}  // namespace fusedrnn
