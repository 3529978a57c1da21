// What the processor and the operating system let a program use.
#pragma once

namespace fusedrnn {

bool cpu_has_avx2();  // AVX2 and FMA
bool cpu_has_avx512();
bool cpu_has_avx512vnni();
bool cpu_has_avx512bf16();
// Asks the operating system for the tiles' state, for all threads of the process.
bool cpu_has_amx();  // AVX-512 F, DQ, BW, VL
bool cpu_has_neon();

}  // namespace fusedrnn
