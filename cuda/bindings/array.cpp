// The array that the module itself can make, and what it gives to other libraries.
#include "cuda/bindings/array.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <new>
#include <optional>
#include <utility>

#include "bindings/arrays.h"
#include "runtime.h"

namespace fusedrnn::cuda {
namespace {

using dlpack::Type;

struct NamedType {
    const char* name;
    Type type;
    const char* typestr;  // of the array interfaces; null where they have none
};

constexpr NamedType kTypes[] = {
    {"float32", {dlpack::kFloat, 32, 1}, "<f4"}, {"float64", {dlpack::kFloat, 64, 1}, "<f8"},
    {"float16", {dlpack::kFloat, 16, 1}, "<f2"}, {"bfloat16", {dlpack::kBfloat, 16, 1}, nullptr},
    {"int64", {dlpack::kInt, 64, 1}, "<i8"},     {"uint8", {dlpack::kUInt, 8, 1}, "|u1"},
    {"bool", {dlpack::kBool, 8, 1}, "|b1"},      {"uint16", {dlpack::kUInt, 16, 1}, "<u2"},
};

// What a capsule points to: the tensor, its sizes and the array's owner, until the consumer lets go.
template <class Tensor>
struct Exported {
    Tensor tensor{};
    std::vector<std::int64_t> shape, strides;
    std::shared_ptr<void> owner;

    // A consumer may drop the tensor without the GIL, even when Python is gone.
    static void drop(Tensor* tensor) {
        auto* self = static_cast<Exported*>(tensor->context);
        if (Py_IsInitialized() == 0) return;
        const py::gil_scoped_acquire acquired;
        delete self;
    }
};

template <class Tensor>
py::object capsule_of(const DeviceArray& array, const char* name, std::uint64_t flags) {
    auto exported = std::make_unique<Exported<Tensor>>();
    exported->shape = array.shape;
    exported->strides = array.strides;
    exported->owner = array.owner;
    Tensor& managed = exported->tensor;
    managed.context = exported.get();
    managed.deleter = &Exported<Tensor>::drop;
    managed.tensor = {
        array.data, exported_device(array.device), static_cast<std::int32_t>(array.shape.size()),
        array.type, exported->shape.data(),        exported->strides.data(),
        0};
    if constexpr (std::is_same_v<Tensor, dlpack::VersionedManaged>) {
        managed.version = dlpack::kVersion;
        managed.flags = flags;
    } else {
        static_cast<void>(flags);
    }
    const auto unused = [](PyObject* capsule) {
        const char* found = PyCapsule_GetName(capsule);
        const std::string given =
            std::is_same_v<Tensor, dlpack::Managed> ? dlpack::kCapsule : dlpack::kVersionedCapsule;
        if (found == nullptr || found != given) return;  // the consumer owns the tensor
        auto* tensor = static_cast<Tensor*>(PyCapsule_GetPointer(capsule, found));
        tensor->deleter(tensor);
    };
    PyObject* capsule = PyCapsule_New(&managed, name, unused);
    if (capsule == nullptr) throw py::error_already_set();
    exported.release();
    return py::reinterpret_steal<py::object>(capsule);
}

[[noreturn]] void buffer_error(const std::string& text) {
    py::set_error(PyExc_BufferError, text.c_str());
    throw py::error_already_set();
}

py::object dlpack_of(const DeviceArray& array, const py::object& stream, const py::object& max_version,
                     const py::object& device, const py::object& copy) {
    if (!copy.is_none() && flag(copy, "copy")) {
        buffer_error("copy: expected None or False, got True: the array is given as it is");
    }
    const dlpack::Device own = exported_device(array.device);
    if (!device.is_none() && !device.equal(py::make_tuple(static_cast<int>(own.type), own.id))) {
        buffer_error("dl_device: expected None or the array's own device (" + std::to_string(own.type) +
                     ", " + std::to_string(own.id) + "), got " + std::string(py::repr(device)));
    }
    if (own.type == dlpack::kCpu) {
        if (!stream.is_none()) {
            throw py::value_error("stream: expected None for an array in host memory, got " +
                                  std::string(py::repr(stream)));
        }
    } else {
        const std::int64_t consumer = stream.is_none() ? 1 : integer(stream, "stream", -1, INT64_MAX);
        if (consumer == 0) {
            throw py::value_error("stream: expected 1 (legacy), 2 (per-thread), a handle or -1, got 0");
        }
        if (consumer > 0) order_streams(array.device, static_cast<StreamNumber>(consumer), array.stream);
    }
    const bool versioned = !max_version.is_none() && max_version[py::int_(0)].cast<int>() >= 1;
    return export_capsule(array, versioned);
}

// The same memory, its elements read as numbers of another type of their size.
DeviceArray view_of(py::handle value, StreamNumber stream, const std::optional<std::string>& dtype) {
    DeviceArray array = import_array(value, "array", stream);
    array.stream = stream;
    if (!dtype) return array;
    const Type type = type_by_name(*dtype);
    if (type.bits != array.type.bits) {
        throw py::type_error("array: expected elements of " + std::to_string(type.bits) + " bits as " +
                             *dtype + ", got " + type_name(array.type));
    }
    array.type = type;
    return array;
}

py::tuple tuple_of(const std::vector<std::int64_t>& sizes) {
    py::tuple result(sizes.size());
    for (std::size_t i = 0; i < sizes.size(); ++i) result[i] = sizes[i];
    return result;
}

}  // namespace

bool same_type(Type a, Type b) { return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes; }

std::string type_name(Type type) {
    for (const NamedType& known : kTypes) {
        if (same_type(known.type, type)) return known.name;
    }
    const char* kind = type.code == dlpack::kInt       ? "int"
                       : type.code == dlpack::kUInt    ? "uint"
                       : type.code == dlpack::kFloat   ? "float"
                       : type.code == dlpack::kComplex ? "complex"
                                                       : nullptr;
    const std::string lanes = type.lanes == 1 ? "" : "x" + std::to_string(type.lanes);
    if (kind != nullptr) return kind + std::to_string(type.bits) + lanes;
    return "DLPack type " + std::to_string(type.code) + " of " + std::to_string(type.bits) + " bits" + lanes;
}

Type type_by_name(const std::string& name) {
    for (const NamedType& known : kTypes) {
        if (name == known.name) return known.type;
    }
    throw py::value_error(
        "dtype: expected float32, float64, float16, bfloat16, int64, uint8, uint16 or bool, got '" + name +
        "'");
}

std::int64_t DeviceArray::size() const {
    std::int64_t product = 1;
    for (const std::int64_t n : shape) product = checked_product({product, n});
    return product;
}

bool DeviceArray::is_contiguous() const {
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return true;
    std::int64_t expected = 1;
    for (std::size_t i = shape.size(); i-- > 0;) {
        if (shape[i] != 1 && strides[i] != expected) return false;
        expected *= shape[i];
    }
    return true;
}

DeviceArray new_device_array(const std::vector<std::int64_t>& shape, Type type, int device,
                             StreamNumber stream) {
    DeviceArray array;
    array.device = device;
    array.type = type;
    array.shape = shape;
    array.strides.resize(shape.size());
    array.stream = stream;
    std::int64_t step = 1;
    for (std::size_t i = shape.size(); i-- > 0;) {
        array.strides[i] = step;
        step = checked_product({step, std::max<std::int64_t>(shape[i], 1)});
    }
    const std::int64_t bytes = checked_product({array.size(), array.itemsize()});
    const CurrentDevice current(device);
    array.data = allocate(static_cast<std::size_t>(bytes), native_stream(stream));
    array.owner = std::shared_ptr<void>(array.data, [device](void* memory) {
        // The legacy stream comes after whoever used the memory: consumers let go of it when they are done.
        try {
            const CurrentDevice current(device);
            free(memory, native_stream(kLegacyStream));
        } catch (const std::exception&) {
            return;  // the device itself failed
        }
    });
    return array;
}

py::object export_capsule(const DeviceArray& array, bool versioned) {
    if (versioned) {
        return capsule_of<dlpack::VersionedManaged>(array, dlpack::kVersionedCapsule,
                                                    array.read_only ? dlpack::kReadOnly : 0);
    }
    if (array.read_only) {
        buffer_error("max_version: expected (1, 0) or later for a read-only array, got None or less");
    }
    return capsule_of<dlpack::Managed>(array, dlpack::kCapsule, 0);
}

py::dict interface_of(const DeviceArray& array) {
    const char* typestr = nullptr;
    for (const NamedType& known : kTypes) {
        if (same_type(known.type, array.type)) typestr = known.typestr;
    }
    if (typestr == nullptr) {
        throw py::attribute_error("an array of " + type_name(array.type) + " has no array interface");
    }
    py::dict result;
    result["shape"] = tuple_of(array.shape);
    result["typestr"] = typestr;
    result["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(array.data), array.read_only);
    result["version"] = 3;
    std::vector<std::int64_t> bytes;
    for (const std::int64_t stride : array.strides) bytes.push_back(stride * array.itemsize());
    result["strides"] = array.is_contiguous() ? py::object(py::none()) : py::object(tuple_of(bytes));
    return result;
}

void bind_array(py::module_& m) {
    using Class = py::class_<DeviceArray, std::shared_ptr<DeviceArray>>;
    Class array(m, "Array");
    array.def_property_readonly("shape", [](const DeviceArray& a) { return tuple_of(a.shape); })
        .def_property_readonly("strides", [](const DeviceArray& a) { return tuple_of(a.strides); })
        .def_property_readonly("dtype", [](const DeviceArray& a) { return type_name(a.type); })
        .def_readonly("device", &DeviceArray::device)
        .def_readonly("read_only", &DeviceArray::read_only)
        .def_property_readonly("ndim", [](const DeviceArray& a) { return a.shape.size(); })
        .def_property_readonly("nbytes", [](const DeviceArray& a) { return a.size() * a.itemsize(); })
        .def("__dlpack_device__",
             [](const DeviceArray& a) {
                 const dlpack::Device device = exported_device(a.device);
                 return py::make_tuple(static_cast<int>(device.type), device.id);
             })
        .def("__dlpack__", &dlpack_of, py::kw_only(), py::arg("stream") = py::none(),
             py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
             py::arg("copy") = py::none());
    array.def_property_readonly(kInterface, [](const DeviceArray& a) {
        py::dict result = interface_of(a);
        result["stream"] = a.stream;
        return result;
    });
    m.def(
        "empty",
        [](const std::vector<std::int64_t>& shape, const std::string& dtype, int device,
           StreamNumber stream) { return new_device_array(shape, type_by_name(dtype), device, stream); },
        py::arg("shape"), py::arg("dtype"), py::arg("device") = 0, py::arg("stream") = kLegacyStream);
    m.def("view", &view_of, py::arg("array"), py::arg("stream") = kLegacyStream,
          py::arg("dtype") = py::none());
    m.def(
        "from_capsule", [](py::handle capsule) { return import_capsule(capsule, "capsule"); },
        py::arg("capsule"));
}

}  // namespace fusedrnn::cuda
