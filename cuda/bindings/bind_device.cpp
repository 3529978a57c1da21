// What the module was built for, and what this machine has.
#include <pybind11/stl.h>

#include "cublas.h"
#include "cuda/bindings/bindings.h"
#include "cuda/bindings/device.h"
#include "runtime.h"

namespace fusedrnn::cuda {

namespace py = pybind11;

void bind_device(py::module_& m) {
    m.def("missing", &missing, "Return what is missing for a call to run; empty if nothing is.");
    m.def(
        "devices",
        [] {
            py::list result;
            for (const DeviceInfo& device : devices()) {
                result.append(py::make_tuple(device.name, device.architecture));
            }
            return result;
        },
        "Return (name, architecture) of each device; 90 is compute capability 9.0.");
    m.def("offer_cublas", &offer_cublas, py::arg("files"),
          "Name files of libcublas to look at, best first, before anything was multiplied.");
    m.def("cublas", &describe_cublas, "Return version and file of the cuBLAS in use, or 'none (reason)'.");
    m.def(
        "is_capturing", [](StreamNumber stream) { return is_capturing(native_stream(stream)); },
        py::arg("stream"), "Return whether a graph is made of what the stream is given.");
    m.def(
        "synchronize",
        [](int device, StreamNumber stream) {
            const py::gil_scoped_release released;
            const CurrentDevice current(device);
            synchronize(native_stream(stream));
        },
        py::arg("device"), py::arg("stream"), "Wait for a stream; raises what went wrong there until now.");
}

}  // namespace fusedrnn::cuda
