#include "kernels/ops.h"

namespace fusedrnn::cuda {

const OpEntries& op_entries_ieee() {
    static const OpEntries entries = make_op_entries<float>();
    return entries;
}

}  // namespace fusedrnn::cuda
