// A custom call of XLA's compiled programs, by the plain C structures of its foreign functions, version 0.1, which later ones
// only add to: nothing of XLA is needed to build this.
#include <pybind11/numpy.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "bindings/bindings.h"

namespace fusedrnn {
namespace {

namespace py = pybind11;

struct Error;  // XLA's own

struct Extension {
    std::size_t struct_size;
    int type;
    Extension* next;
};
constexpr int kMetadata = 1;

struct Version {
    std::size_t struct_size;
    Extension* extension;
    int major, minor;
};

struct Metadata {
    std::size_t struct_size;
    Version version;
    std::uint32_t traits;
};

struct MetadataExtension {
    Extension base;
    Metadata* metadata;
};

struct ErrorArguments {
    std::size_t struct_size;
    Extension* extension;
    const char* message;
    int code;
};
constexpr int kInvalidArgument = 3;

struct Api {
    std::size_t struct_size;
    Extension* extension;
    Version version;
    const void* internal;
    Error* (*create_error)(ErrorArguments*);
};

struct Buffer {
    std::size_t struct_size;
    Extension* extension;
    int dtype;
    void* data;
    std::int64_t rank;
    std::int64_t* dims;
};

struct Buffers {
    std::size_t struct_size;
    Extension* extension;
    std::int64_t size;
    int* types;
    void** of;
};

struct Span {
    const char* data;
    std::size_t size;
};

struct Attributes {
    std::size_t struct_size;
    Extension* extension;
    std::int64_t size;
    int* types;
    Span** names;
    void** of;
};
constexpr int kString = 4;

struct Frame {
    std::size_t struct_size;
    Extension* extension;
    const Api* api;
    void* context;
    int stage;
    Buffers arguments, results;
    Attributes attributes;
};
constexpr int kExecute = 3;

// Never freed: programs may run while the interpreter shuts down.
PyObject* function = nullptr;

py::dtype dtype_of(int dtype) {
    switch (dtype) {
        case 1:
            return py::dtype::of<bool>();
        case 4:
            return py::dtype::of<std::int32_t>();
        case 5:
            return py::dtype::of<std::int64_t>();
        case 8:
            return py::dtype::of<std::uint32_t>();
        case 9:
            return py::dtype::of<std::uint64_t>();
        case 11:
            return py::dtype::of<float>();
        case 12:
            return py::dtype::of<double>();
        default:
            throw py::type_error(
                std::string("dtype: expected bool, or int or float of 32 or 64 bits, got XLA's number ") +
                std::to_string(dtype));
    }
}

// XLA's memory itself.
py::list arrays_of(const Buffers& buffers) {
    const py::list owner;  // an array that has one is made without a copy
    py::list arrays;
    for (std::int64_t i = 0; i < buffers.size; ++i) {
        const auto& buffer = *static_cast<const Buffer*>(buffers.of[i]);
        const py::array::ShapeContainer shape(buffer.dims, buffer.dims + buffer.rank);
        arrays.append(py::array(dtype_of(buffer.dtype), shape, buffer.data, owner));
    }
    return arrays;
}

py::str call_of(const Attributes& attributes) {
    for (std::int64_t i = 0; i < attributes.size; ++i) {
        const Span& name = *attributes.names[i];
        if (attributes.types[i] != kString || std::string_view(name.data, name.size) != "call") continue;
        const auto& value = *static_cast<const Span*>(attributes.of[i]);
        return {value.data, value.size};
    }
    throw py::value_error("call: expected a string among the attributes, got none");
}

std::string run(const Frame& frame) {
    if (Py_IsInitialized() == 0) return "the interpreter has ended";
    const py::gil_scoped_acquire gil;
    try {
        py::reinterpret_borrow<py::function>(function)(call_of(frame.attributes), arrays_of(frame.arguments),
                                                       arrays_of(frame.results));
    } catch (const std::exception& error) {
        return error.what();
    }
    return {};
}

extern "C" Error* run_frame(Frame* frame) {
    if (frame->extension != nullptr && frame->extension->type == kMetadata) {
        Metadata& metadata = *reinterpret_cast<MetadataExtension*>(frame->extension)->metadata;
        metadata.version.major = 0;
        metadata.version.minor = 1;
        metadata.traits = 0;
        return nullptr;
    }
    if (frame->stage != kExecute) return nullptr;
    const std::string problem = run(*frame);
    if (problem.empty()) return nullptr;
    ErrorArguments arguments{sizeof(ErrorArguments), nullptr, problem.c_str(), kInvalidArgument};
    return frame->api->create_error(&arguments);
}

}  // namespace

void bind_xla(py::module_& m) {
    m.def(
        "xla_handler",
        [](const py::function& given) {
            Py_XSETREF(function, py::object(given).release().ptr());
            return py::capsule(reinterpret_cast<void*>(&run_frame));
        },
        py::arg("function"));
}

}  // namespace fusedrnn
