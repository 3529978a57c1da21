// The float64 kernels. Compiled once per instruction set.
#include "cpu/table.h"

namespace fusedrnn::FUSEDRNN_ISA {

const KernelTable<double>& table_f64() {
    static constexpr KernelTable<double> table = make_table<double>();
    return table;
}

}  // namespace fusedrnn::FUSEDRNN_ISA
