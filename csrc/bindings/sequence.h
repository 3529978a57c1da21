// What the bindings of sequence losses and decoders share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/buffer.h"

namespace fusedrnn {

template <class T>
T* values_of(py::array& array) {
    return static_cast<T*>(array.mutable_data());
}

// A private copy of lengths (B,) in [0, most], all `most` where there are none.
inline std::vector<std::int64_t> read_lengths(const py::object& value, const char* name, std::int64_t batch,
                                              std::int64_t most, const char* symbol, Presence presence) {
    const Array lengths = Array::int64(value, name, presence).shape({{"B", batch}}).contiguous();
    if (!lengths.given()) {
        require_memory(checked_product({batch, sizeof(std::int64_t)}));
        return std::vector<std::int64_t>(static_cast<std::size_t>(batch), most);
    }
    const auto* const data = lengths.data<std::int64_t>();
    std::vector<std::int64_t> copy(data, data + batch);
    for (std::size_t b = 0; b < copy.size(); ++b) {
        if (copy[b] >= 0 && copy[b] <= most) continue;
        throw py::value_error(std::string(name) + ": expected values in 0.." + symbol + " = 0.." +
                              std::to_string(most) + ", got " + std::to_string(copy[b]) + " at position " +
                              std::to_string(b));
    }
    return copy;
}

inline std::int64_t largest(const std::vector<std::int64_t>& values) {
    return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

}  // namespace fusedrnn
