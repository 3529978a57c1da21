// Launches of what is beside the recurrent layers. Arrays are contiguous; outputs are apart from inputs.
#pragma once

#include "kernels/op_arguments.h"
#include "runtime.h"

namespace fusedrnn::cuda {

void layer_norm_forward(Math math, const LayerNormArgs& args, Stream stream);
void layer_norm_backward(Math math, const LayerNormBackwardArgs& args, Stream stream);
void cross_entropy(Math math, const CrossEntropyRowsArgs& args, Stream stream);
void sgd_step(Math math, const SgdArgs& args, Stream stream);
// But for the bias, which follows from the options.
void adam_step(Math math, AdamArgs args, Stream stream);

}  // namespace fusedrnn::cuda
