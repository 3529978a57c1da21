// How weights that stay in registers get there.
#pragma once

#include <type_traits>

#include "kernels/math.h"

namespace fusedrnn::cuda {

// What a lane holds of 8 rows and a chunk of K, as the product takes it.
template <Math kMath>
using HeldWeights =
    std::conditional_t<MathTraits<kMath>::kTensor, Factor<kMath>, Piece<typename MathTraits<kMath>::T>>;

// Shared memory of a warp for 16 rows of a chunk.
inline constexpr int kStageBytes = 16 * 64;

// 16 rows of a tile, from k on. By all lanes of a warp, through the shared memory at `stage`, since
// neighbours in memory are not those of a piece: Weights::kAlongRows says whether they are rows.
// Weights::at(tile, row, k) is an element or zero.
template <Math kMath, class Weights, class T>
FUSEDRNN_DEVICE void load_chunk(const Weights& weights, T* stage, int tile, int k,
                                HeldWeights<kMath> (&to)[2]) {
    static_assert(kStageBytes == 16 * kChunk<T> * sizeof(T));
    FUSEDRNN_UNROLL_FEW
    for (int e = lane(); e < 16 * kChunk<T>; e += 32) {
        const int row = Weights::kAlongRows ? e % 16 : e / kChunk<T>;
        const int i = Weights::kAlongRows ? e / 16 : e % kChunk<T>;
        stage[row * kChunk<T> + i] = weights.at(tile, row, k + i);
    }
    warp_barrier();
    FUSEDRNN_UNROLL
    for (int half = 0; half < 2; ++half) {
        const T* const from = stage + (half * 8 + lane() / 4) * kChunk<T> + lane() % 4 * kPiece<T>;
        Piece<T> piece;
        piece.vector = *reinterpret_cast<const Vector16*>(from);
        if constexpr (MathTraits<kMath>::kTensor) {
            to[half] = make_factor<kMath>(piece);
        } else {
            to[half] = piece;
        }
    }
    warp_barrier();
}

}  // namespace fusedrnn::cuda
