// The product inside a step: 16 units of each of G gates times up to 8 N rows of the batch. The weights are
// the left factor, so that a unit's gates end up in one place; the warps of a block share out K, and their
// sums are added in the order of the warps.
#pragma once

#include "kernels/math.h"

namespace fusedrnn::cuda {

inline constexpr int kUnits = 16;         // of a block
inline constexpr int kStepThreads = 256;  // of a block, at most

// Threads of a block, at least, and how many cells each of them then has.
template <int N>
inline constexpr int kLeastStepThreads = N == 1 ? 128 : kStepThreads;
template <int N>
inline constexpr int kThreadCells = kUnits * 8 * N / kLeastStepThreads<N>;

// What a block looks up once about each of its 8 N positions.
template <class T, class C>
struct RowEntry {
    const T* factor = nullptr;  // the row that is multiplied; null is zero
    const T* hidden = nullptr;  // the hidden state before the step; null is zero
    const C* states = nullptr;  // state 1 before it; null is zero
    std::int64_t row = 0;       // of the batch
    bool carried = false;       // whether gradients of its states come from the later step
};

// kVector: all rows start and end at multiples of 16 bytes.
template <Math kMath, int G, int N, bool kVector>
class StepProduct {
  public:
    using T = typename MathTraits<kMath>::T;
    using C = typename MathTraits<kMath>::C;
    static_assert(MathTraits<kMath>::kTensor || N == 1);
    static constexpr int kColumns = 8 * N;
    static constexpr int kCells = kUnits * kColumns;

    static constexpr int shared_bytes(int warps) {
        return kTableBytes + warps * G * kColumns * kStride * static_cast<int>(sizeof(C));
    }
    static FUSEDRNN_DEVICE RowEntry<T, C>* table() { return shared_memory<RowEntry<T, C>>(); }

    // Multiplies with rows w + (gate * units + unit) * k of the weights. The table is ready, and may be read
    // afterwards.
    static FUSEDRNN_DEVICE void run(const T* w, int unit, int units, int k) {
        C c[G][N][4] = {};
        const int chunks = (k + kChunk<T> - 1) / kChunk<T>, warps = block_threads() / 32;
        const int share = (chunks + warps - 1) / warps;
        const int first = warp() * share, last = min(first + share, chunks);
        add_chunks(c, w, unit, units, k, first, last);
        C* const to = sums() + (warp() * G * kColumns + lane() % 4 * 2) * kStride + lane() / 4;
        FUSEDRNN_UNROLL
        for (int g = 0; g < G; ++g) {
            FUSEDRNN_UNROLL
            for (int n = 0; n < N; ++n) {
                FUSEDRNN_UNROLL
                for (int i = 0; i < 4; ++i) {
                    to[(g * kColumns + n * 8 + i % 2) * kStride + i / 2 * 8] = c[g][n][i];
                }
            }
        }
        block_barrier();
    }

    // The product for one unit of the block, gate and column.
    static FUSEDRNN_DEVICE C sum(int gate, int column, int unit) {
        const C* const from = sums() + (gate * kColumns + column) * kStride + unit;
        C total = from[0];
        const int warps = block_threads() / 32;
        for (int w = 1; w < warps; ++w) total += from[w * G * kColumns * kStride];
        return total;
    }

  private:
    // A column of sums, padded so that the lanes of a warp write to different banks.
    static constexpr int kStride = sizeof(C) == 4 ? 20 : 18;
    static constexpr int kTableBytes = kColumns * static_cast<int>(sizeof(RowEntry<T, C>));

    static FUSEDRNN_DEVICE int min(int a, int b) { return a < b ? a : b; }
    static FUSEDRNN_DEVICE C* sums() {
        return reinterpret_cast<C*>(shared_memory<unsigned char>() + kTableBytes);
    }

    static FUSEDRNN_DEVICE void add_chunks(C (&c)[G][N][4], const T* w, int unit, int units, int k, int first,
                                           int last) {
        const int g = lane() / 4;
        // Past the last unit a row is as good as any: its results are not looked at.
        const T* const low = w + static_cast<std::int64_t>(min(unit + g, units - 1)) * k;
        const T* const high = w + static_cast<std::int64_t>(min(unit + g + 8, units - 1)) * k;
        const std::int64_t gate = static_cast<std::int64_t>(units) * k;
        if constexpr (MathTraits<kMath>::kTensor) {
            const T* rows[N];
            FUSEDRNN_UNROLL
            for (int n = 0; n < N; ++n) rows[n] = table()[n * 8 + g].factor;
            for (int i = first; i < last; ++i) add_chunk(c, low, high, gate, rows, i, k);
        } else {
            C partial[G][2][8] = {};
            for (int i = first; i < last; ++i) add_chunk(partial, low, high, gate, i, k);
            FUSEDRNN_UNROLL
            for (int i = 0; i < G; ++i) gather_columns(partial[i], c[i][0]);
        }
    }

    // Tensor cores.
    static FUSEDRNN_DEVICE void add_chunk(C (&c)[G][N][4], const T* low, const T* high, std::int64_t gate,
                                          const T* const (&rows)[N], int chunk, int k) {
        const int at = chunk * kChunk<T> + lane() % 4 * kPiece<T>;
        Piece<T> a[G][2], b[N];
        FUSEDRNN_UNROLL
        for (int g = 0; g < G; ++g) {
            a[g][0] = load_piece<kVector>(low + g * gate, at, k);
            a[g][1] = load_piece<kVector>(high + g * gate, at, k);
        }
        FUSEDRNN_UNROLL
        for (int n = 0; n < N; ++n) b[n] = load_piece<kVector>(rows[n], at, k);
        Factor<kMath> column[N];
        FUSEDRNN_UNROLL
        for (int n = 0; n < N; ++n) column[n] = make_factor<kMath>(b[n]);
        FUSEDRNN_UNROLL
        for (int g = 0; g < G; ++g) {
            const auto first = make_factor<kMath>(a[g][0]), second = make_factor<kMath>(a[g][1]);
            FUSEDRNN_UNROLL
            for (int n = 0; n < N; ++n) multiply<kMath>(c[g][n], first, second, column[n]);
        }
    }

    // Multiply-adds: a lane takes two rows of each gate and all columns, and of K what its pieces hold.
    static FUSEDRNN_DEVICE void add_chunk(C (&c)[G][2][8], const T* low, const T* high, std::int64_t gate,
                                          int chunk, int k) {
        const int at = chunk * kChunk<T> + lane() % 4 * kPiece<T>;
        Piece<T> a[G][2];
        FUSEDRNN_UNROLL
        for (int g = 0; g < G; ++g) {
            a[g][0] = load_piece<kVector>(low + g * gate, at, k);
            a[g][1] = load_piece<kVector>(high + g * gate, at, k);
        }
        FUSEDRNN_UNROLL
        for (int n = 0; n < 8; ++n) {
            const Piece<T> b = load_piece<kVector>(table()[n].factor, at, k);
            FUSEDRNN_UNROLL
            for (int i = 0; i < kPiece<T>; ++i) {
                FUSEDRNN_UNROLL
                for (int g = 0; g < G; ++g) {
                    c[g][0][n] = fused(a[g][0].element[i], b.element[i], c[g][0][n]);
                    c[g][1][n] = fused(a[g][1].element[i], b.element[i], c[g][1][n]);
                }
            }
        }
    }

    // Adds up the shares of a quad's lanes; lane t of it keeps columns 2t and 2t + 1, as an mma would leave
    // them.
    static FUSEDRNN_DEVICE void gather_columns(const C (&shares)[2][8], C (&c)[4]) {
        const bool upper = (lane() & 2) != 0, odd = (lane() & 1) != 0;
        FUSEDRNN_UNROLL
        for (int half = 0; half < 2; ++half) {
            C four[4];
            FUSEDRNN_UNROLL
            for (int n = 0; n < 4; ++n) {
                const C low = shares[half][n], high = shares[half][n + 4];
                four[n] = (upper ? high : low) + shuffle_xor(upper ? low : high, 2);
            }
            FUSEDRNN_UNROLL
            for (int n = 0; n < 2; ++n) {
                c[half * 2 + n] = (odd ? four[n + 2] : four[n]) + shuffle_xor(odd ? four[n] : four[n + 2], 1);
            }
        }
    }
};

}  // namespace fusedrnn::cuda
