// The thin device layer: all of CUDA that kernels use. platform/device.h, which the include path chooses,
// implements it: cuda/gpu for nvcc, tests/cuda/emulator for a host compiler.
//
//   FUSEDRNN_KERNEL              before `void` of a kernel
//   FUSEDRNN_LAUNCH_BOUNDS(threads, blocks)
//                                after it: the largest block, and how many share a multiprocessor
//   FUSEDRNN_DEVICE              before a function of a kernel
//   FUSEDRNN_HOST_DEVICE         before a function of kernels and of the host
//   FUSEDRNN_UNROLL              before a loop that must be unrolled
//   FUSEDRNN_UNROLL_FEW          before one of which a few loads are to be under way at once
//   FUSEDRNN_KEEP_LOOP           before one that is rarely taken and would cost registers
//
// Where am I. Blocks have a multiple of 32 threads.
//   int thread_index(), block_threads(), lane(), warp();  Int3 block_index(), grid_size()
//
// Shared memory may be dereferenced directly. It holds nothing of value at first.
//   T* shared_memory<T>()        the dynamic shared memory of the block, aligned to 128 bytes
//   void block_barrier()         all threads of the block come here before any goes on
//   void warp_barrier()          the same of a warp
//
// Operations of a warp: all 32 lanes call them, in the same place of the program. They order no memory.
//   T shuffle(T v, int lane)     v of that lane; T of 4 or 8 bytes
//   T shuffle_xor(T v, int mask)
//   void ldmatrix_x2, ldmatrix_x2_trans(unsigned (&r)[2], const void* row)
//   void ldmatrix_x4, ldmatrix_x4_trans(unsigned (&r)[4], const void* row)
//                                8x8 matrices of two bytes; lane l names row l % 8 of matrix l / 8, 16 bytes
//   void mma_bf16, mma_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2])
//                                c += a b, m16n8k16, c in float
//   void mma_tf32(the same)      m16n8k8; the last 13 bits of the floats in a and b are not looked at
//
// Global memory is reached through these alone; T is any plain type of 1, 2, 4, 8 or 16 bytes, aligned to its
// size.
//   T load_constant(const T*)    memory that no thread writes during the launch
//   T load(const T*), void store(T*, T)
//                                plain: what another thread wrote may be missing and what this one writes be
//                                unseen until both are ordered, by a barrier for threads of one block, by a
//                                release and an acquire for any threads
//   T load_relaxed(const T*), void store_relaxed(T*, T)
//                                seen by everyone in a while, and whole; orders nothing else
//   Vector16 load16(const void*), load16_constant(const void*), load16_relaxed(const void*)
//   void store16(void*, Vector16)
//   unsigned load_acquire(const unsigned*)
//   void store_release(unsigned*, unsigned), add_release(unsigned*, unsigned)
//                                scope: the GPU. A release also orders what a barrier before it gathered, an
//                                acquire also what comes after a barrier that follows it
//   void fence()                 release and acquire for the relaxed accesses around it; scope: the GPU
//   void cp_async16(void* shared, const void* global, int bytes = 16)
//                                the first `bytes` are copied, then zeros; a plain load
//   void cp_async_commit()       ends a group of copies of this thread
//   void cp_async_wait<n>()      all but the last n groups of this thread are done
//   void spin_pause()            in every loop that waits for another thread. Such a loop looks at memory
//                                with load_relaxed or load_acquire
//   [[noreturn]] void trap()     the launch fails
//   T* opaque(T*)                the same, which the compiler then keeps in a register, where it would compute
//                                it again from where it came from at each use
//
// Clusters: blocks that run at the same time and reach each other's shared memory. Compute capability 9.0 and
// later: kernels call these functions only where kHasClusters, of the device that is compiled for, says so.
//   int cluster_rank(), cluster_size()
//   void cluster_barrier()       all threads of the cluster come here before any goes on; orders memory
//                                among them. The first one says that all blocks have begun, and nobody may
//                                end while others still reach for its shared memory
//   Remote<T> map_shared(T* p, int rank)
//                                the place of p, in shared memory, in that block of the cluster
//   T load_remote(Remote<T>), void store_remote(Remote<T>, T)
//                                plain; ordered by a cluster_barrier
//   Mbarrier                     8 bytes in shared memory that count phases, from 0. A phase ends once all
//                                of its arrivals have come and as many bytes as they expect
//   void mbarrier_init(Mbarrier*, int arrivals)
//                                by one thread; other threads of the block may use it after a block_barrier,
//                                other blocks after a cluster_barrier
//   void mbarrier_arrive(Mbarrier*, int bytes = 0)
//                                one arrival at the block's own mbarrier, which also expects so many bytes
//   bool mbarrier_try_wait(Mbarrier*, unsigned parity)
//                                whether the phase with this parity, the current one or the one before, has
//                                ended; then what was sent to it is there for this thread. In a loop with
//                                spin_pause
//   void st_async(Remote<T> to, T, Remote<Mbarrier>)
//                                T of 4, 8 or 16 bytes. They come some time, into the same block as the
//                                mbarrier, whose current phase then counts them
//   T load_received(const T*)    of 4, 8 or 16 bytes of the block's own shared memory, where st_async has
//                                brought them
//
// Conversions, rounded to nearest even.
//   float to_float(x)            x: bf16, fp16, float
//   T from_float<T>(float)       T: bf16, fp16, float
//   unsigned to_bf16x2(float low, float high), to_f16x2(float low, float high)
//   unsigned round_tf32(float)   ties away from zero; the bits of a float
//   float exp2_approximate(float), reciprocal_approximate(float)
//                                within 2 ULP; denormal results may be 0
//   float as_float(unsigned);  unsigned as_unsigned(float)
//
// Fragments, with g = lane / 4 and t = lane % 4; [row][column], {low, high} half of a register:
//   m16n8k16  a[0] = A[g][2t, 2t+1]    a[1] = A[g+8][2t, 2t+1]
//             a[2] = A[g][2t+8, 2t+9]  a[3] = A[g+8][2t+8, 2t+9]
//             b[0] = B[2t, 2t+1][g]    b[1] = B[2t+8, 2t+9][g]
//   m16n8k8   a[0] = A[g][t]           a[1] = A[g+8][t]      a[2] = A[g][t+4]    a[3] = A[g+8][t+4]
//             b[0] = B[t][g]           b[1] = B[t+4][g]
//   both      c[0] = C[g][2t]          c[1] = C[g][2t+1]     c[2] = C[g+8][2t]   c[3] = C[g+8][2t+1]
//   ldmatrix  r[i] = M_i[g][2t, 2t+1]; with _trans r[i] = M_i[2t, 2t+1][g]
#pragma once

#include "platform/device.h"
