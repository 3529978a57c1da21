// The thin device layer: all of CUDA that kernels use. ptx.h implements it for nvcc, emulator/device.h for a host
// compiler, which runs the same kernels one thread of the grid at a time.
//
//   FUSEDRNN_KERNEL, FUSEDRNN_LAUNCH_BOUNDS(threads, blocks)   before `void` of a kernel, a template; its registers
//   FUSEDRNN_DEVICE, FUSEDRNN_HOST_DEVICE                      before a function of a kernel; of a kernel and the host
//   FUSEDRNN_UNROLL                                            before a loop that must be unrolled
//
// Where am I. Blocks have a multiple of 32 threads.
//   int thread_index(), block_threads(), lane(), warp();  Int3 block_index(), grid_size()
//
// Shared memory may be dereferenced directly. It holds nothing of value at first.
//   T* shared_memory<T>()                    the dynamic shared memory of the block, aligned to 128 bytes
//   void block_barrier(), warp_barrier()     all threads of the block, of the warp, in the same place of the program
//
// Operations of a warp: all 32 lanes call them, in the same place of the program.
//   T shuffle(T v, int lane), shuffle_xor(T v, int mask)                     T of 4 or 8 bytes
//   void ldmatrix_x2, _x4, _x2_trans, _x4_trans(unsigned (&r)[2 or 4], const void* row)
//                                            8x8 matrices of two bytes; lane l names row l % 8 of matrix l / 8
//   void mma_bf16, mma_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2])     c += a b, m16n8k16
//   void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2])              c += a b, m16n8k8
//                                            fragments as PTX lays them out, see below; c in float
//
// Global memory is reached through these alone; T is any plain type of 1, 2, 4, 8 or 16 bytes, aligned to its size.
//   T load_constant(const T*)                memory that no thread writes during the launch
//   T load(const T*), void store(T*, T)      plain: a value that another thread wrote may be missing, and one written
//                                            here be unseen, until both are ordered by a barrier (threads of one
//                                            block) or by a release and an acquire (any threads)
//   T load_relaxed(const T*), void store_relaxed(T*, T)     seen by everyone at some time, orders nothing else
//   Vector16 load16(const void*), load16_constant(const void*), load16_relaxed(const void*)
//   void store16(void*, Vector16)
//   unsigned load_acquire(const unsigned*);  void store_release(unsigned*, unsigned), add_release(unsigned*, unsigned)
//                                            scope: the GPU. A release also orders what a barrier before it gathered
//   void fence()                             release and acquire for the relaxed accesses around it, scope: the GPU
//   void cp_async16(void* shared, const void* global, int bytes = 16)        the first `bytes` are copied, then zeros
//   void cp_async_commit();  void cp_async_wait<n>()        all but the last n committed groups of this thread are done
//   void spin_pause()                        inside every loop that waits for another thread
//   [[noreturn]] void trap()                 the launch fails
//
// Conversions, rounded to nearest even.
//   float to_float(bf16 | fp16 | float);  T from_float<T>(float)             T: bf16, fp16, float
//   unsigned to_bf16x2(float low, float high), to_f16x2(float low, float high)
//   unsigned round_tf32(float)               ties away from zero; the bits of a float
//   float as_float(unsigned);  unsigned as_unsigned(float)
//
// Fragments, with g = lane / 4 and t = lane % 4; [row][column], {low half, high half} of a register:
//   m16n8k16  a[0] = A[g][2t, 2t+1]      a[1] = A[g+8][2t, 2t+1]  a[2] = A[g][2t+8, 2t+9]  a[3] = A[g+8][2t+8, 2t+9]
//             b[0] = B[2t, 2t+1][g]      b[1] = B[2t+8, 2t+9][g]
//   m16n8k8   a[0] = A[g][t]             a[1] = A[g+8][t]         a[2] = A[g][t+4]         a[3] = A[g+8][t+4]
//             b[0] = B[t][g]             b[1] = B[t+4][g]
//   both      c[0] = C[g][2t]            c[1] = C[g][2t+1]        c[2] = C[g+8][2t]        c[3] = C[g+8][2t+1]
//   ldmatrix  r[i] = M_i[g][2t, 2t+1];  with _trans r[i] = M_i[2t, 2t+1][g]
#pragma once

#include "types.h"

#ifdef __CUDACC__
#include "ptx.h"
#else
#include "../emulator/device.h"
#endif
