// In place of csrc/cpu/features.cpp where the AVX-512 kernels are compiled to AVX2.
#include "cpu/features.h"

namespace fusedrnn {

bool cpu_has_avx2() { return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0; }
bool cpu_has_avx512() { return cpu_has_avx2(); }
bool cpu_has_avx512vnni() { return cpu_has_avx2(); }
bool cpu_has_avx512bf16() { return cpu_has_avx2(); }
bool cpu_has_amx() { return cpu_has_avx2(); }
bool cpu_has_neon() { return false; }

}  // namespace fusedrnn
