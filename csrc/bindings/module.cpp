// The compiled module: a table of contents.
#include <exception>

#include "bindings/bindings.h"
#include "bindings/seal.h"

PYBIND11_MODULE(core, m) {
    m.doc() = "Kernels of fusedrnn and the checks of their arguments.";
    m.attr("__version__") = FUSEDRNN_VERSION;
    pybind11::options options;
    options.disable_function_signatures();
    fusedrnn::bind_config(m);
    fusedrnn::bind_recurrent(m);
    fusedrnn::bind_plain_call(m);
    fusedrnn::bind_tensors(m);
    fusedrnn::bind_stream(m);
    fusedrnn::bind_quantized(m);
    fusedrnn::bind_quantized_stream(m);
    fusedrnn::bind_layers(m);
    fusedrnn::bind_programs(m);
    fusedrnn::bind_define_program(m);
    fusedrnn::bind_ctc(m);
    fusedrnn::bind_crf(m);
    fusedrnn::bind_decoder(m);
    fusedrnn::bind_beam(m);
    fusedrnn::bind_ctc_prefix(m);
    fusedrnn::bind_transducer(m);
    fusedrnn::bind_quantum(m);
    fusedrnn::bind_xla(m);
    fusedrnn::bind_optim(m);
    fusedrnn::bind_limits(m);
    fusedrnn::seal_types(m);
}

// pybind11 would report an error of the configuration as ImportError: it is checked before pybind11 begins.
extern "C" PYBIND11_EXPORT PyObject* PyInit__core() {
    try {
        fusedrnn::configure();
    } catch (const std::exception& e) {
        PyErr_SetString(PyExc_RuntimeError, e.what());
        return nullptr;
    }
    return PyInit_core();
}
