// The compiled module of the GPU part: a table of contents.
#include "bindings/seal.h"
#include "cuda/bindings/bindings.h"

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels of fusedrnn and the checks of their arguments.";
    m.attr("__version__") = FUSEDRNN_VERSION;
    pybind11::options options;
    options.disable_function_signatures();
    fusedrnn::cuda::bind_errors(m);
    fusedrnn::cuda::bind_device(m);
    fusedrnn::cuda::bind_array(m);
    fusedrnn::cuda::bind_exchange(m);
    fusedrnn::cuda::bind_recurrent(m);
    fusedrnn::cuda::bind_elements(m);
    fusedrnn::cuda::bind_ops(m);
    fusedrnn::cuda::bind_platform(m);
    fusedrnn::seal_types(m);
}
