#include "cuda/bindings/exchange.h"

#include <pybind11/stl.h>

#include <utility>

#include "cuda/bindings/bindings.h"

namespace fusedrnn::cuda {
namespace {

// Names are made once, and live as long as the process.
PyObject* interned(const char* name) {
    PyObject* made = PyUnicode_InternFromString(name);
    if (made == nullptr) throw py::error_already_set();
    return made;
}

// What a type itself defines, without its bases; borrowed.
PyObject* own_attribute(PyTypeObject* type, PyObject* name) {
    if (type->tp_dict == nullptr) return nullptr;
    PyObject* found = PyDict_GetItemWithError(type->tp_dict, name);
    if (found == nullptr) PyErr_Clear();
    return found;
}

// A table is made for the type that defines it. The subclasses next to it (as torch.nn.Parameter) are served,
// too, unless they say themselves how they are exported or keep their elements elsewhere.
PyObject* capsule_of(PyTypeObject* type) {
    static PyObject* const table = interned(dlpack::kExchangeAttribute);
    static PyObject* const others[] = {interned("__dlpack__"), interned("__dlpack_device__"),
                                       interned("__torch_dispatch__")};
    if (PyObject* found = own_attribute(type, table)) return found;
    if (type->tp_base == nullptr) return nullptr;
    PyObject* found = own_attribute(type->tp_base, table);
    for (PyObject* other : others) {
        if (found != nullptr && own_attribute(type, other) != nullptr) return nullptr;
    }
    return found;
}

// Whether a method without arguments, or a property, is there and true.
bool is_true(py::handle value, PyObject* name) {
    PyObject* found = PyObject_GetAttr(value.ptr(), name);
    if (found != nullptr && PyCallable_Check(found) != 0) {
        PyObject* result = PyObject_CallNoArgs(found);
        Py_DECREF(found);
        found = result;
    }
    const int truth = found == nullptr ? -1 : PyObject_IsTrue(found);
    Py_XDECREF(found);
    if (truth < 0) PyErr_Clear();
    return truth > 0;
}

// What a table does not say: the array is part of a graph of gradients, or its elements are to be negated.
bool is_more_than_memory(py::handle value) {
    static PyObject* const properties[] = {interned("requires_grad"), interned("is_neg")};
    return is_true(value, properties[0]) || is_true(value, properties[1]);
}

void drop(dlpack::VersionedManaged* tensor) {
    if (tensor->deleter != nullptr) tensor->deleter(tensor);
}

StreamNumber current_stream(const dlpack::Exchange& exchange, dlpack::Device device) {
    void* stream = nullptr;
    // Host memory has no streams.
    if (device.type == dlpack::kCpu) return kLegacyStream;
    if (exchange.current_stream(device.type, device.id, &stream) != 0) throw py::error_already_set();
    return stream == nullptr ? kLegacyStream : reinterpret_cast<StreamNumber>(stream);
}

}  // namespace

const dlpack::Exchange* exchange_of(py::handle value) {
    PyObject* capsule = capsule_of(Py_TYPE(value.ptr()));
    if (capsule == nullptr || PyCapsule_IsValid(capsule, dlpack::kExchangeCapsule) == 0) return nullptr;
    const auto* header =
        static_cast<const dlpack::ExchangeHeader*>(PyCapsule_GetPointer(capsule, dlpack::kExchangeCapsule));
    while (header != nullptr && header->version.major > dlpack::kVersion.major) header = header->previous;
    if (header == nullptr || header->version.major != dlpack::kVersion.major) return nullptr;
    return reinterpret_cast<const dlpack::Exchange*>(header);
}

std::optional<DeviceStream> device_stream_of(py::handle value) {
    const dlpack::Exchange* exchange = exchange_of(value);
    if (exchange == nullptr || exchange->borrow_object == nullptr) return {};
    dlpack::Tensor borrowed{};
    if (exchange->borrow_object(value.ptr(), &borrowed) != 0) {
        PyErr_Clear();
        return {};
    }
    const int device = device_number(borrowed.device);
    if (device < 0) return {};
    return DeviceStream{device, current_stream(*exchange, borrowed.device)};
}

std::optional<DeviceArray> import_exchanged(py::handle value, const std::string& name, StreamNumber stream) {
    const dlpack::Exchange* exchange = exchange_of(value);
    if (exchange == nullptr || is_more_than_memory(value)) return {};
    dlpack::VersionedManaged* made = nullptr;
    if (exchange->export_object(value.ptr(), &made) != 0) {
        PyErr_Clear();
        return {};
    }
    const dlpack::Device device = made->tensor.device;
    // Complex numbers may be to be conjugated.
    if (device_number(device) < 0 || made->tensor.dtype.code == dlpack::kComplex) {
        drop(made);
        return {};
    }
    DeviceArray array = import_managed(made, name);
    if (device.type != dlpack::kCpu) {
        order_streams(array.device, stream, current_stream(*exchange, device));
    }
    return array;
}

std::optional<DeviceArray> allocate_exchanged(const dlpack::Exchange& exchange,
                                              const std::vector<std::int64_t>& shape, dlpack::Type type,
                                              int device, const std::string& name) {
    std::vector<std::int64_t> sizes = shape;
    dlpack::Tensor like{};
    like.device = exported_device(device);
    like.ndim = static_cast<std::int32_t>(sizes.size());
    like.dtype = type;
    like.shape = sizes.data();
    dlpack::VersionedManaged* made = nullptr;
    const auto unreported = [](void*, const char*, const char*) {};
    if (exchange.allocate(&like, &made, nullptr, unreported) != 0) {
        PyErr_Clear();
        return {};
    }
    return import_managed(made, name);
}

void bind_exchange(py::module_& m) {
    m.def(
        "place",
        [](py::handle array) -> py::object {
            const std::optional<DeviceStream> place = device_stream_of(array);
            if (!place) return py::none();
            return py::make_tuple(place->device, place->stream);
        },
        py::arg("array"),
        "Return the device of an array and the current stream of its library, or None if only the general "
        "protocols know.");
}

}  // namespace fusedrnn::cuda
