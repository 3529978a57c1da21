// The table of the kernels of quantum networks of one instruction set.
#include "quantum/quantum_lstm.h"

namespace fusedrnn::FUSEDRNN_ISA {

extern const QuantumKernels<float> kQuantumF32;
extern const QuantumKernels<double> kQuantumF64;
const QuantumKernels<float> kQuantumF32 = {quantum_workspace<float>, quantum_forward<float>,
                                           quantum_backward<float>};
const QuantumKernels<double> kQuantumF64 = {quantum_workspace<double>, quantum_forward<double>,
                                            quantum_backward<double>};

}  // namespace fusedrnn::FUSEDRNN_ISA
