// The parts of the compiled module; module.cpp is the table of contents.
#pragma once

#include <pybind11/pybind11.h>

namespace fusedrnn {

// Reads the environment: FUSEDRNN_ISA, FUSEDRNN_NUM_THREADS. Throws std::runtime_error where it asks for what is not
// there.
void configure();

void bind_config(pybind11::module_& m);      // threads, what this build and machine have
void bind_recurrent(pybind11::module_& m);   // forward, backward and their tape
void bind_plain_call(pybind11::module_& m);  // forward of one layer without a tape, for small calls
void bind_tensors(pybind11::module_& m);     // the same on tensors of PyTorch, and backward
void bind_stream(pybind11::module_& m);      // one step at a time
void bind_quantized(pybind11::module_& m);   // inference with weights of fewer bits
void bind_quantized_stream(pybind11::module_& m);
void bind_layers(pybind11::module_& m);  // activations, linear, embedding, layer norm, cross-entropy, dropout
void bind_programs(pybind11::module_& m);        // pointwise operations as data
void bind_define_program(pybind11::module_& m);  // cells that are data
void bind_ctc(pybind11::module_& m);
void bind_crf(pybind11::module_& m);
void bind_decoder(pybind11::module_& m);
void bind_beam(pybind11::module_& m);
void bind_ctc_prefix(pybind11::module_& m);
void bind_transducer(pybind11::module_& m);
void bind_quantum(pybind11::module_& m);  // networks whose gates are simulated circuits
void bind_xla(pybind11::module_& m);      // a handler for custom calls of XLA's programs
void bind_optim(pybind11::module_& m);    // SGD, Adam, norm, scale_, clamp_
void bind_limits(pybind11::module_& m);   // what the machine can do at most

}  // namespace fusedrnn
