// Arguments that the sequence calls and the stream share.
#pragma once

#include "bindings/checks.h"
#include "bindings/tape.h"

namespace fusedrnn {

const CellTraits& traits_of(int cell);

// The checked weights of one layer and direction, contiguous, and the sizes that follow from them (T and B are not set).
struct WeightArrays {
    Array w_ih, w_hh, b_ih, b_hh, w_hr;
    Dims dims{};

    // `x` gives the dtype and, in its last axis, the input size.
    static WeightArrays read(int cell, py::handle params, const Array& x);

    template <class T>
    Params<const T> pointers() const {
        return {w_ih.data<T>(), w_hh.data<T>(), b_ih.data<T>(), b_hh.data<T>(), w_hr.data<T>()};
    }
};

// The width of state k, and one state array (B, width) of a call, contiguous.
std::int64_t state_width(const Dims& dims, int k);
Array read_state(py::handle value, const std::string& name, int k, const Dims& dims, const Array& like);

// The tape of a forward call, to be filled by it: `problem` gets the pointers. The caller adds `arrays` and `weights`.
template <class T>
std::shared_ptr<TypedTape<T>> make_tape(int cell, DType dtype, std::shared_ptr<const Timetable> timetable,
                                        const Params<const T>& params, bool recompute,
                                        ForwardProblem<T>& problem) {
    const CellTraits& traits = traits_of(cell);
    const std::int64_t lanes = kernel_table<T>().lanes, item = sizeof(T), rows = timetable->rows();
    const std::int64_t padded = (problem.dims.H + lanes - 1) / lanes * lanes;
    auto tape = std::make_shared<TypedTape<T>>(cell, problem.dims, dtype, std::move(timetable));
    if (!recompute) tape->saved = AlignedBuffer(checked_product({rows, padded, traits.saved, item}));
    if (traits.states > 1) {
        tape->states = AlignedBuffer(checked_product({rows, padded, traits.states - 1, item}));
    }
    if (problem.dims.projected) tape->hidden = AlignedBuffer(checked_product({rows, padded, item}));
    problem.saved = tape->saved.template as<T>();
    problem.states = tape->states.template as<T>();
    problem.hidden = tape->hidden.template as<T>();
    tape->has_bias_ih = params.b_ih != nullptr;
    tape->has_bias_hh = params.b_hh != nullptr;
    return tape;
}

}  // namespace fusedrnn
