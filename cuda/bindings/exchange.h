// Libraries whose arrays are exchanged without Python: those with DLPack's table for C (dlpack::Exchange).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cuda/bindings/array.h"

namespace fusedrnn::cuda {

// The table that serves an object, or null.
const dlpack::Exchange* exchange_of(py::handle value);

// The device of an array and the current stream of its library there.
struct DeviceStream {
    int device;
    StreamNumber stream;
};

// Nothing for what has no table, or is in memory that kernels cannot read.
std::optional<DeviceStream> device_stream_of(py::handle value);

// As import_array(), or nothing where the general protocol has to be asked, which knows why.
std::optional<DeviceArray> import_exchanged(py::handle value, const std::string& name, StreamNumber stream);

// New memory of the library, for its current stream; nothing where it has none, which the library itself
// reports better.
std::optional<DeviceArray> allocate_exchanged(const dlpack::Exchange& exchange,
                                              const std::vector<std::int64_t>& shape, dlpack::Type type,
                                              int device, const std::string& name);

void bind_exchange(py::module_& m);

}  // namespace fusedrnn::cuda
