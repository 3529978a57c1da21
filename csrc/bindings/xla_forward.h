// The call of compiled programs that inference of one layer and direction makes, on XLA's memory, without objects of Python:
// these took as long as a small network itself.
#pragma once

#include <string_view>

#include "bindings/xla_frame.h"

namespace fusedrnn {

// Runs what `call` says (see src/fusedrnn/interop/jax/host.py), if that is forward without a tape, lengths, resets and axes of
// vmap; says whether. Called with the GIL.
bool run_plain_forward(std::string_view call, const xla::Buffers& arguments, const xla::Buffers& results);

}  // namespace fusedrnn
