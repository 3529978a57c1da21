// All layers and directions of a network on arrays: the calls of each, which run beside each other where they can.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bindings/recurrent.h"

namespace fusedrnn {

// Layers one above the other, each with the directions beside each other. Of a row, a layer and direction, the parameters
// are a tuple, and the weights are packed into a cache if it is not null.
struct NetworkCalls {
    std::string cell;
    int layers, directions;
    std::vector<py::object> params;
    std::vector<std::shared_ptr<WeightCache>> caches;

    // Writes y (T, B, D*P) and the final states (layers*D, B, width) of x (T, B, I); returns the tapes, none without `save`.
    // `drops` has (p, seed, offset) of the dropout on the output of each layer, or None; `states` nothing for zeros.
    py::list forward(const py::array& x, const py::tuple& states, py::handle lengths, py::handle resets,
                     const py::tuple& drops, bool save, const py::array& y, const py::tuple& finals) const;
};

// (initial states (layers*D, B, width), gradients of the parameters of each row) from the tapes and drops of forward; dy and
// each of dfinals may be None. Writes dx, if it is an array.
py::tuple network_backward(const py::sequence& tapes, const py::sequence& drops, const py::object& dy,
                           const py::tuple& dfinals, const py::object& dx, bool need_params);

}  // namespace fusedrnn
