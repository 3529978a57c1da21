// Arrays in device memory: taken from other libraries without a copy, and given to them.
//
// Taken: DLPack capsules, versioned or not, and __cuda_array_interface__ version 3. Given: both.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bindings/dlpack.h"
#include "cuda/bindings/device.h"

namespace fusedrnn::cuda {

namespace py = pybind11;

bool same_type(dlpack::Type a, dlpack::Type b);
std::string type_name(dlpack::Type type);
// ValueError for a name that no argument or result has.
dlpack::Type type_by_name(const std::string& name);

struct DeviceArray {
    std::shared_ptr<void> owner;  // keeps the memory; let go of with the GIL held
    void* data = nullptr;
    int device = 0;
    dlpack::Type type{};
    std::vector<std::int64_t> shape, strides;  // strides in elements
    bool read_only = false;
    StreamNumber stream = kLegacyStream;  // where its contents are made

    std::int64_t size() const;
    std::int64_t itemsize() const { return type.bits / 8; }
    bool is_contiguous() const;
};

// The array behind an argument called `name`; what its producer has yet to write is ordered before `stream`.
// TypeError for what is no array, RuntimeError for an array in other memory, ValueError for a malformed one.
DeviceArray import_array(py::handle value, const std::string& name, StreamNumber stream);
// What a producer gave, whose writes are ordered; its deleter is called when the last use ends, or now where it
// is refused.
DeviceArray import_managed(dlpack::VersionedManaged* given, const std::string& name);
// From a capsule alone, whose producer has synchronised.
DeviceArray import_capsule(py::handle capsule, const std::string& name);

// New memory, not initialised.
DeviceArray new_device_array(const std::vector<std::int64_t>& shape, dlpack::Type type, int device,
                             StreamNumber stream);

// A capsule for a consumer; the array's owner lives until its deleter is called. BufferError where an
// unversioned one could not say that the array is read-only.
py::object export_capsule(const DeviceArray& array, bool versioned);
// The dictionary of __cuda_array_interface__ (and, of host memory, of __array_interface__).
py::dict interface_of(const DeviceArray& array);

void bind_array(py::module_& m);

}  // namespace fusedrnn::cuda
