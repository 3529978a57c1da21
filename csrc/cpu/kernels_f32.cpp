// The float32 kernels. Compiled once per instruction set.
#include "cpu/table.h"

namespace fusedrnn::FUSEDRNN_ISA {

const KernelTable<float>& table_f32() {
    static constexpr KernelTable<float> table = make_table<float>();
    return table;
}

}  // namespace fusedrnn::FUSEDRNN_ISA
