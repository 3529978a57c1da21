// CUDA's errors as the package's exception, fusedrnn.cuda.Error. Out of memory is MemoryError.
#include <exception>

#include "cuda/bindings/bindings.h"
#include "runtime.h"

namespace fusedrnn::cuda {

namespace py = pybind11;

void bind_errors(py::module_&) {
    py::register_local_exception_translator([](std::exception_ptr thrown) {
        try {
            if (thrown) std::rethrow_exception(thrown);
        } catch (const Error& error) {
            const py::object type = py::module_::import("fusedrnn.cuda.errors").attr("Error");
            const py::object raised = type(error.what(), error.code(), error.name(), error.place());
            PyErr_SetObject(type.ptr(), raised.ptr());
        }
    });
}

}  // namespace fusedrnn::cuda
