// One call of a layer and direction: its checked arguments, and what it keeps for backward.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/call_arguments.h"
#include "cells.h"
#include "cuda/bindings/argument.h"
#include "cuda/bindings/exchange.h"
#include "lookups.h"

namespace fusedrnn::cuda {

inline constexpr dlpack::Type kFloat32{dlpack::kFloat, 32, 1}, kFloat64{dlpack::kFloat, 64, 1},
    kFloat16{dlpack::kFloat, 16, 1}, kBfloat16{dlpack::kBfloat, 16, 1}, kBool{dlpack::kBool, 8, 1},
    kUint8{dlpack::kUInt, 8, 1};
// The arithmetic for an input of this dtype; `float32_mode` is the caller's choice for float32.
Math math_of(const Argument& x, const std::string& float32_mode);
// Of states beyond h, the tape and the gradients of weights.
dlpack::Type compute_type(Math math);

// Where a call runs and in what arithmetic, and how it gets memory: empty(shape, dtype name) -> array. What the caller does
// not see comes from the table of the library of x, where it has one that allocates for the stream of the call. The Place of
// bindings/call_arguments.h.
struct Context {
    StreamNumber stream;
    py::object empty;
    Math math;
    const dlpack::Exchange* exchange = nullptr;

    static Context of(StreamNumber stream, const py::object& empty, Math math, py::handle x);
    dlpack::Type type(Element element, const Argument& x) const;
    Argument read(py::handle value, Name name, Element element, const Argument& x, Presence presence) const {
        return Argument::beside(value, name, type(element, x), x, stream, presence);
    }
    Argument read_parameter(py::handle value, const Parameter& p, const Argument& x) const {
        return read(value, p.name, Element::kStored, x, p.need == Need::kRequired ? kRequired : kOptional);
    }
    Argument make(const std::vector<std::int64_t>& sizes, Element element, Name name,
                  const Argument& x) const {
        return make(sizes, type(element, x), name, x);
    }
    Argument make_inside(std::int64_t size, Element element, Name name, const Argument& x) const {
        return make_inside(size, type(element, x), name, x);
    }
    // Freed in the order of the stream, as its library frees whatever else this call has used there.
    Argument workspace(std::int64_t bytes, const Argument& x) const {
        return make_inside(bytes, kUint8, "workspace", x);
    }

  private:
    Argument make(const std::vector<std::int64_t>& sizes, dlpack::Type type, Name name,
                  const Argument& x) const;
    Argument make_inside(std::int64_t size, dlpack::Type type, Name name, const Argument& x) const;
};

// By the role of each, from arrays in the order of the cell's schema.
template <class Pointers>
Pointers by_role(const CellTraits& cell, const std::vector<Argument>& arrays) {
    const auto of = [&](Role role) {
        const int place = cell.place(role);
        return place < 0 ? nullptr : arrays[static_cast<std::size_t>(place)].data();
    };
    Pointers pointers{of(Role::kInputWeight), of(Role::kHiddenWeight), of(Role::kInputBias),
                      of(Role::kHiddenBias),  of(Role::kProjection),   {}};
    int unit = 0;
    for (std::size_t i = 0; i < arrays.size(); ++i) {
        if (cell.parameters[i].role == Role::kPerUnit) pointers.units[unit++] = arrays[i].data();
    }
    return pointers;
}

// The tape keeps them.
struct CallArguments : LayerArrays<Argument> {
    std::vector<Argument> weights;  // in the order of the cell's schema
    Dims dims{};
    std::shared_ptr<const LookupTable> lookups;  // null where x is a sequence
    Draws draws{};
};

// What one forward call of a layer and direction keeps for its backward.
struct LayerTape {
    const DeviceCell* cell;
    Math math;
    std::shared_ptr<const Timetable> timetable;
    CallArguments arguments;
    Argument saved, states, hidden, moments;
    const char* kernel;                        // that ran forward
    std::optional<std::string> forced_kernel;  // which the caller of forward named: for backward too

    const Dims& dims() const { return arguments.dims; }
    std::int64_t nbytes() const {
        const std::int64_t lookups = arguments.lookups == nullptr ? 0 : arguments.lookups->nbytes();
        return saved.bytes() + states.bytes() + hidden.bytes() + moments.bytes() + timetable->nbytes() +
               lookups;
    }
};

std::shared_ptr<LayerTape> make_tape(const DeviceCell& cell, std::shared_ptr<const Timetable> timetable,
                                     const CallArguments& in, bool recompute, const Context& context);

}  // namespace fusedrnn::cuda
