// The vector type of the instruction set that this translation unit is compiled for.
//
// Every kernel source is compiled once per instruction set, with FUSEDRNN_ISA set to the name of a header in this
// folder. All code below it lives in the namespace fusedrnn::FUSEDRNN_ISA: a template instantiated in an AVX file
// must never share a symbol with the baseline build, or the linker may pick the AVX one for a CPU without it.
#pragma once

#ifndef FUSEDRNN_ISA
#error \
    "FUSEDRNN_ISA must name a header of csrc/simd (scalar, avx2, avx512 and what goes beyond it, neon, cuda)"
#endif

#define FUSEDRNN_STRING_(x) #x
#define FUSEDRNN_STRING(x) FUSEDRNN_STRING_(x)
#ifdef __CUDACC__
#define FUSEDRNN_INLINE __host__ __device__ inline __attribute__((always_inline))
#else
#define FUSEDRNN_INLINE inline __attribute__((always_inline))
#endif

// Each header defines, for T = float and double, `Vec<T>` with
//   Scalar, Mask, kLanes       the element type, the result of a comparison, the number of lanes
//   load, store                unaligned, all lanes
//   load_n, store_n            the first n lanes (0 <= n <= kLanes); the other lanes read as 0 and memory past n is
//                              not touched
//   set                        broadcast
//   + - * / and fma(a,b,c)     a*b+c, rounded once where the ISA has it (the scalar build rounds twice)
//   min, max(a, b)             b where either is NaN
//   abs, copysign, round       round to nearest even
//   sqrt                       rounded once
//   pow2n(n)                   2^n for integral n in [-127, 127]; -127 gives 0
//   exponent(a)                the n of 2^n <= a < 2^(n+1) for a normal a > 0; one more than the largest for inf, some
//                              integer near the range for what is no such number
//   less(a, b), select(m,a,b)  lane-wise a < b; m ? a : b
//   sum(a)                     all lanes, pairwise: lane l with lane l + kLanes/2, and so on
//   keep_in_register(a)        stops the compiler from folding a load into each of its uses
// and kRegisters, the number of vector registers. Each header but cuda.h also defines
//   Narrow<T>                  a type of half the lanes, where it is multiplied and added in half the time: load, set, fma
//                              and keep_in_register as above; store sets the lanes that it lacks to 0. Vec<T> elsewhere
// and, for weights of fewer bits, with L = Vec<float>::kLanes,
//   VecI                       L int32, or four int8 in each of them
//   VecI::set, VecI::load      broadcast of an int32; unaligned, all lanes
//   a ^ b                      bitwise
//   dot4(a, b, c)              c + the four products of a lane's bytes, a of 0..127, b of -128..127; exact
//   to_float(a)                Vec<float>, rounded to nearest even
//   store_int8(a, p)           the L lanes of a Vec<float>, integral and in -127..127
//   load_bf16(p, even, odd)    2 L bfloat16 at p, their even and their odd elements as two Vec<float>
//
// Where it takes less time than moving single elements, a header defines, for Vec<float>,
//   transpose(rows)            of kLanes vectors: element l of row r becomes element r of row l
//
// Headers that end in products of bfloat16 define FUSEDRNN_BF16; what others multiply is what they hold. There a word, which
// stands where a float would, is a pair of bfloat16, the first in its lower half, and
//   Operand<V>                 what a product multiplies to a V: V itself, or as many words; load, set and keep_in_register
//   fma(a, b, c)               of Operands: c + a b, or c and the two products of each word's halves
//   neighbours(a, b)           2 L values, rounded to nearest even, as words: those of a, then those of b
//   interleaved(a, b)          word l: lane l of a and of b, rounded
//   leave_rest(a, b)           makes of both what rounding leaves of them, NaN of what is not finite
// and, where a product takes each of its factors as the sum of a rounded value and its rounded rest, FUSEDRNN_BF16_PARTS as 2.
#include FUSEDRNN_STRING(FUSEDRNN_ISA.h)

namespace fusedrnn::FUSEDRNN_ISA {

template <class V>
concept Transposes = requires(V (&rows)[V::kLanes]) { transpose(rows); };

#ifdef FUSEDRNN_BF16
inline constexpr bool kBf16 = true;
#else
inline constexpr bool kBf16 = false;
template <class V>
using Operand = V;
#endif

// How many of what a product multiplies make up one of its factors.
#ifdef FUSEDRNN_BF16_PARTS
inline constexpr int kParts = FUSEDRNN_BF16_PARTS;
#else
inline constexpr int kParts = 1;
#endif

// a / b for 1 <= b <= 2 and |a| <= 2, where a division that looks for the ends of the range takes much longer.
template <class V>
FUSEDRNN_INLINE V divide_moderate(V a, V b) {
#if defined(__CUDA_ARCH__) || defined(FUSEDRNN_BF16)
    return divide_unchecked(a, b);
#else
    return a / b;
#endif
}

}  // namespace fusedrnn::FUSEDRNN_ISA
