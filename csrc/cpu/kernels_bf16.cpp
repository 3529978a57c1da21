// The float32 kernels whose products take bfloat16. Compiled once for each instruction set that multiplies it.
#include "cpu/table.h"

namespace fusedrnn::FUSEDRNN_ISA {

const KernelTable<float>& table_bf16() {
    static constexpr KernelTable<float> table = make_table<float>();
    return table;
}

}  // namespace fusedrnn::FUSEDRNN_ISA
