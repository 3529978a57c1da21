// A custom call of XLA's compiled programs.
#include <pybind11/numpy.h>

#include <string>
#include <string_view>

#include "bindings/bindings.h"
#include "bindings/xla_forward.h"

namespace fusedrnn {
namespace {

namespace py = pybind11;
using namespace xla;

// Never freed: programs may run while the interpreter shuts down.
PyObject* function = nullptr;

py::dtype dtype_of(int dtype) {
    switch (dtype) {
        case kBool:
            return py::dtype::of<bool>();
        case kInt32:
            return py::dtype::of<std::int32_t>();
        case kInt64:
            return py::dtype::of<std::int64_t>();
        case kUint32:
            return py::dtype::of<std::uint32_t>();
        case kUint64:
            return py::dtype::of<std::uint64_t>();
        case kFloat32:
            return py::dtype::of<float>();
        case kFloat64:
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
        const Buffer& given = buffer(buffers, i);
        const py::array::ShapeContainer shape(given.dims, given.dims + given.rank);
        arrays.append(py::array(dtype_of(given.dtype), shape, given.data, owner));
    }
    return arrays;
}

std::string_view call_of(const Attributes& attributes) {
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
        const std::string_view call = call_of(frame.attributes);
        if (run_plain_forward(call, frame.arguments, frame.results)) return {};
        py::reinterpret_borrow<py::function>(function)(py::str(call.data(), call.size()),
                                                       arrays_of(frame.arguments), arrays_of(frame.results));
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
