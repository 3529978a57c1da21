// Makes the types of a module safe from Python code that goes around their constructors.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedrnn {

// Python's own check of `T.__new__(T)` compares the addresses of the functions, and refuses one that the base does not have.
inline PyObject* new_instance(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
    auto* base = reinterpret_cast<PyTypeObject*>(pybind11::detail::get_internals().instance_base);
    return base->tp_new(type, arguments, keywords);
}

// pybind11 hands a method whatever memory an instance without a constructed object points to. After this, no such
// instance can be had: not from `T.__new__(T)`, not from a subclass that keeps `self` and leaves the constructor out, not
// from `instance.__class__ = T`. Called when everything is bound.
inline void seal_types(const pybind11::module_& m) {
    PyTypeObject* const bound = pybind11::detail::get_internals().default_metaclass;
    for (const auto& [name, value] : pybind11::reinterpret_borrow<pybind11::dict>(m.attr("__dict__"))) {
        if (Py_TYPE(value.ptr()) != bound) continue;
        auto* type = reinterpret_cast<PyTypeObject*>(value.ptr());
        type->tp_new = new_instance;
        type->tp_flags = (type->tp_flags & ~Py_TPFLAGS_BASETYPE) | Py_TPFLAGS_IMMUTABLETYPE;
        PyType_Modified(type);
    }
}

}  // namespace fusedrnn
