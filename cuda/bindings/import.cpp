// Arrays of other libraries, through the two protocols that they speak; exchange.cpp has the short way.
#include <optional>
#include <utility>

#include "bindings/arrays.h"
#include "cuda/bindings/array.h"
#include "cuda/bindings/exchange.h"

namespace fusedrnn::cuda {
namespace {

std::string kind_of(py::handle value) {
    return value.is_none() ? "None" : std::string(Py_TYPE(value.ptr())->tp_name);
}

std::string expected_array() { return std::string(": expected an array ") + kReadableArray + ", "; }

std::string place_name(dlpack::Device device) {
    if (device.type == dlpack::kCpu) return "the CPU";
    if (device.type == dlpack::kCuda) return "cuda:" + std::to_string(device.id);
    return "a device of DLPack's type " + std::to_string(device.type);
}

// Calls a producer's deleter, which may run Python, without losing an exception that is on its way.
template <class Tensor>
void call_deleter(Tensor* tensor) {
    const py::error_scope kept;
    if (tensor->deleter != nullptr) tensor->deleter(tensor);
}

void check_tensor(const dlpack::Tensor& t, const std::string& name) {
    if (t.ndim < 0 || t.ndim > 64) {
        throw py::value_error(name + ": expected 0 to 64 axes in the DLPack tensor, got " +
                              std::to_string(t.ndim));
    }
    if (t.ndim > 0 && t.shape == nullptr) {
        throw py::value_error(name + ": expected a shape in the DLPack tensor, got none");
    }
    for (int i = 0; i < t.ndim; ++i) {
        if (t.shape[i] >= 0) continue;
        throw py::value_error(name + ": expected sizes >= 0 in the DLPack tensor, got " +
                              std::to_string(t.shape[i]));
    }
    if (t.dtype.lanes != 1 || t.dtype.bits == 0 || t.dtype.bits % 8 != 0) {
        throw py::type_error(name + ": expected elements of whole bytes, got " + type_name(t.dtype));
    }
    if (device_number(t.device) < 0) {
        throw std::runtime_error(name + expected_array() + "got one on " + place_name(t.device));
    }
}

DeviceArray array_of(const dlpack::Tensor& t, const std::string& name, std::shared_ptr<void> owner,
                     bool read_only) {
    check_tensor(t, name);
    DeviceArray array;
    array.owner = std::move(owner);
    array.device = device_number(t.device);
    array.type = t.dtype;
    array.read_only = read_only;
    array.shape.assign(t.shape, t.shape + t.ndim);
    array.strides.resize(array.shape.size());
    std::int64_t step = 1;
    for (std::size_t i = array.shape.size(); i-- > 0;) {
        array.strides[i] = t.strides == nullptr ? step : t.strides[i];
        step = checked_product({step, array.shape[i] > 0 ? array.shape[i] : 1});
    }
    if (t.data == nullptr && array.size() > 0) {
        throw py::value_error(name + ": expected data in the DLPack tensor, got a null pointer");
    }
    if (t.data != nullptr) array.data = static_cast<char*>(t.data) + t.byte_offset;
    return array;
}

// The tensor of a fresh capsule, which is renamed: from here on it is ours to delete.
template <class Tensor>
std::shared_ptr<Tensor> take(py::handle capsule, const char* name, const char* used) {
    auto* tensor = static_cast<Tensor*>(PyCapsule_GetPointer(capsule.ptr(), name));
    if (tensor == nullptr || PyCapsule_SetName(capsule.ptr(), used) != 0) throw py::error_already_set();
    return std::shared_ptr<Tensor>(tensor, &call_deleter<Tensor>);
}

DeviceArray array_of(const std::shared_ptr<dlpack::VersionedManaged>& tensor, const std::string& name) {
    if (tensor->version.major != dlpack::kVersion.major) {
        throw py::value_error(name + ": expected DLPack version 1, got " +
                              std::to_string(tensor->version.major) + "." +
                              std::to_string(tensor->version.minor));
    }
    return array_of(tensor->tensor, name, tensor, (tensor->flags & dlpack::kReadOnly) != 0);
}

// Without max_version for a producer from before it.
py::object capsule_from(py::handle value, const dlpack::Device& device, StreamNumber stream) {
    py::dict arguments;
    // Host memory has no streams.
    if (device.type != dlpack::kCpu) arguments["stream"] = stream;
    const py::object method = value.attr("__dlpack__");
    arguments["max_version"] = py::make_tuple(dlpack::kVersion.major, dlpack::kVersion.minor);
    try {
        return method(**arguments);
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError)) throw;
    }
    arguments.attr("pop")("max_version");
    return method(**arguments);
}

dlpack::Device dlpack_device(py::handle value, const std::string& name) {
    const py::object pair = value.attr("__dlpack_device__")();
    if (!PyTuple_Check(pair.ptr()) || PyTuple_GET_SIZE(pair.ptr()) != 2) {
        throw py::type_error(name + ": expected a pair from __dlpack_device__, got " + kind_of(pair));
    }
    const auto part = [&](int i) {
        const py::object number = py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(pair.ptr(), i));
        const long value = PyLong_AsLong(py::object(py::int_(number)).ptr());
        return static_cast<std::int32_t>(value);
    };
    return {part(0), part(1)};
}

DeviceArray import_dlpack(py::handle value, const std::string& name, StreamNumber stream) {
    const dlpack::Device device = dlpack_device(value, name);
    const int number = device_number(device);
    if (number < 0) {
        throw std::runtime_error(name + expected_array() + "got a " + kind_of(value) + " on " +
                                 place_name(device));
    }
    if (py::hasattr(value, "is_neg") && py::cast<bool>(value.attr("is_neg")())) {
        throw py::value_error(name +
                              ": expected an array that its library exports, got: one whose elements " +
                              "are to be negated; use tensor.resolve_neg()");
    }
    const CurrentDevice current(number);
    try {
        return import_capsule(capsule_from(value, device, stream), name);
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_BufferError)) throw;
        const std::string reason = py::str(error.value());
        py::raise_from(error, PyExc_ValueError,
                       (name + ": expected an array that its library exports, got: " + reason).c_str());
        throw py::error_already_set();
    }
}

// A required entry of the interface's dictionary.
py::object entry(const py::dict& interface, const std::string& name, const char* key) {
    if (interface.contains(key)) return interface[key];
    throw py::value_error(name + ": expected \"" + key + "\" in __cuda_array_interface__, got none");
}

std::vector<std::int64_t> integers(const py::object& value, const std::string& what) {
    if (!PyTuple_Check(value.ptr())) {
        throw py::type_error(what + ": expected a tuple of integers, got " + kind_of(value));
    }
    std::vector<std::int64_t> result;
    for (const py::handle item : py::reinterpret_borrow<py::tuple>(value)) {
        result.push_back(integer(item, what.c_str(), INT64_MIN, INT64_MAX));
    }
    return result;
}

dlpack::Type type_of(const std::string& typestr, const std::string& name) {
    const std::string kinds = "fiubc";
    const dlpack::TypeCode codes[] = {dlpack::kFloat, dlpack::kInt, dlpack::kUInt, dlpack::kBool,
                                      dlpack::kComplex};
    const std::size_t kind = typestr.size() >= 3 ? kinds.find(typestr[1]) : std::string::npos;
    const std::string digits = typestr.size() >= 3 ? typestr.substr(2) : "";
    const bool known = kind != std::string::npos && digits.size() <= 2 &&
                       digits.find_first_not_of("0123456789") == std::string::npos && digits != "0" &&
                       (typestr[0] == '<' || typestr[0] == '|');
    if (!known) {
        throw py::type_error(name + ": expected a dtype of floats, integers or bools in native byte order, " +
                             "got typestr '" + typestr + "'");
    }
    return {codes[kind], static_cast<std::uint8_t>(8 * std::stoi(digits)), 1};
}

void order_after_producer(const py::dict& interface, const std::string& name, int device,
                          StreamNumber stream) {
    if (!interface.contains("stream")) return;
    const py::object given = interface["stream"];
    if (given.is_none()) return;
    const std::string what = name + ": \"stream\" in __cuda_array_interface__";
    const std::int64_t producer = integer(given, what.c_str(), INT64_MIN, INT64_MAX);
    if (producer <= 0) {
        throw py::value_error(what + ": expected None, 1 (legacy), 2 (per-thread) or a handle, got " +
                              std::to_string(producer));
    }
    order_streams(device, stream, static_cast<StreamNumber>(producer));
}

DeviceArray import_interface(py::handle value, const std::string& name, StreamNumber stream) {
    const py::object found = value.attr("__cuda_array_interface__");
    if (!PyDict_Check(found.ptr())) {
        throw py::type_error(name + ": expected a dict in __cuda_array_interface__, got " + kind_of(found));
    }
    const auto interface = py::reinterpret_borrow<py::dict>(found);
    const auto version = integer(entry(interface, name, "version"), "version", 0, INT64_MAX);
    if (version < 2) {
        throw py::value_error(name + ": expected version 2 or 3 of __cuda_array_interface__, got " +
                              std::to_string(version));
    }
    if (interface.contains("mask") && !py::object(interface["mask"]).is_none()) {
        throw py::value_error(name + ": expected an array without a mask, got one with a mask");
    }
    DeviceArray array;
    array.shape = integers(entry(interface, name, "shape"), name + ": shape");
    for (const std::int64_t n : array.shape) {
        if (n < 0) throw py::value_error(name + ": shape: expected sizes >= 0, got " + std::to_string(n));
    }
    array.type = type_of(py::str(entry(interface, name, "typestr")), name);
    const py::object data = entry(interface, name, "data");
    if (!PyTuple_Check(data.ptr()) || PyTuple_GET_SIZE(data.ptr()) != 2) {
        throw py::type_error(name + ": expected data = (pointer, read_only), got " +
                             std::string(py::repr(data)));
    }
    const py::handle pointer = PyTuple_GET_ITEM(data.ptr(), 0);
    array.data = pointer.is_none() ? nullptr : PyLong_AsVoidPtr(pointer.ptr());
    if (PyErr_Occurred() != nullptr) throw py::error_already_set();
    array.read_only = py::cast<bool>(py::handle(PyTuple_GET_ITEM(data.ptr(), 1)));
    const py::object strides = interface.contains("strides") ? py::object(interface["strides"]) : py::none();
    if (strides.is_none()) {
        array.strides.resize(array.shape.size());
        std::int64_t step = 1;
        for (std::size_t i = array.shape.size(); i-- > 0;) {
            array.strides[i] = step;
            step = checked_product({step, array.shape[i] > 0 ? array.shape[i] : 1});
        }
    } else {
        array.strides = integers(strides, name + ": strides");
        if (array.strides.size() != array.shape.size()) {
            throw py::value_error(name + ": strides: expected " + std::to_string(array.shape.size()) +
                                  " of them as in shape, got " + std::to_string(array.strides.size()));
        }
        for (std::int64_t& stride : array.strides) {
            if (stride % array.itemsize() != 0) {
                throw py::value_error(name + ": strides: expected whole elements of " +
                                      std::to_string(array.itemsize()) + " bytes, got " +
                                      std::to_string(stride));
            }
            stride /= array.itemsize();
        }
    }
    if (array.data == nullptr && array.size() > 0) {
        throw py::value_error(name + ": data: expected an address, got 0");
    }
    array.device = array.data == nullptr ? 0 : device_of(array.data);
    if (array.device < 0) {
        throw std::runtime_error(name +
                                 ": expected an array on a CUDA device, got an address that is not in " +
                                 "the memory of one");
    }
    array.owner = std::make_shared<py::object>(py::reinterpret_borrow<py::object>(value));
    order_after_producer(interface, name, array.device, stream);
    return array;
}

}  // namespace

DeviceArray import_managed(dlpack::VersionedManaged* given, const std::string& name) {
    return array_of(std::shared_ptr<dlpack::VersionedManaged>(given, &call_deleter<dlpack::VersionedManaged>),
                    name);
}

DeviceArray import_capsule(py::handle capsule, const std::string& name) {
    if (!PyCapsule_CheckExact(capsule.ptr())) {
        throw py::type_error(name + ": expected a DLPack capsule, got " + kind_of(capsule));
    }
    const char* found = PyCapsule_GetName(capsule.ptr());
    const std::string label = found == nullptr ? "" : found;
    if (label == dlpack::kVersionedCapsule) {
        return array_of(
            take<dlpack::VersionedManaged>(capsule, dlpack::kVersionedCapsule, dlpack::kUsedVersionedCapsule),
            name);
    }
    if (label == dlpack::kCapsule) {
        const auto tensor = take<dlpack::Managed>(capsule, dlpack::kCapsule, dlpack::kUsedCapsule);
        return array_of(tensor->tensor, name, tensor, false);
    }
    const bool used = label == dlpack::kUsedCapsule || label == dlpack::kUsedVersionedCapsule;
    throw py::value_error(name + ": expected a DLPack capsule that nobody has taken yet, got " +
                          (used ? "a used one" : "one named '" + label + "'"));
}

DeviceArray import_array(py::handle value, const std::string& name, StreamNumber stream) {
    if (std::optional<DeviceArray> array = import_exchanged(value, name, stream)) return *std::move(array);
    if (py::isinstance<DeviceArray>(value)) {
        DeviceArray array = py::cast<const DeviceArray&>(value);
        if (array.stream != stream) order_streams(array.device, stream, array.stream);
        return array;
    }
    // Looked for on the type: a class itself is no array.
    const py::handle type = py::type::handle_of(value);
    if (py::hasattr(type, "__dlpack__") && py::hasattr(type, "__dlpack_device__")) {
        return import_dlpack(value, name, stream);
    }
    if (py::hasattr(value, "__cuda_array_interface__")) return import_interface(value, name, stream);
    throw py::type_error(name + expected_array() + "got " + kind_of(value));
}

}  // namespace fusedrnn::cuda
