#include "kernels/ops.h"

namespace fusedrnn::cuda {

const OpEntries& op_entries_f64() {
    static const OpEntries entries = make_op_entries<double>();
    return entries;
}

}  // namespace fusedrnn::cuda
