// Products of matrices: C = A B + bias or C += A B, in the three layouts that a layer needs (see Layout),
// with every tail masked. Each element is one sum over K, or over a slice of K, in the order of K: results do
// not depend on when a block runs.
//
// A block stages tiles of A and B in shared memory, three chunks of K ahead, in one of two forms:
//   K last in memory    [row][4 pieces], the pieces of a row swapped so that eight lanes read from all banks
//   rows last           [k][row], pieces of a line swapped likewise
// Either way a lane gets "piece t of row g" from it, as math.h describes, and goes on as if there were one
// form.
#pragma once

#include "kernels/arguments.h"
#include "kernels/math.h"

namespace fusedrnn::cuda {

inline constexpr int kGemmThreads = 256;
inline constexpr int kGemmStages = 3;

// Rows of a tile, of A and of B.
template <Math kMath>
inline constexpr int kGemmTile = kMath == Math::f64 ? 64 : 128;

template <Math kMath>
inline constexpr int gemm_shared_bytes() {
    return kGemmStages * 2 * kGemmTile<kMath> * 64;
}

// One of the two factors. kLast: whether K is the last axis.
template <class T, bool kLast, int R>
class StagedFactor {
  public:
    static constexpr int kElements = R * kChunk<T>;  // of a stage

    // Brings elements [k, k_end) of the rows [row, rows) on their way to the stage; the rest of it becomes
    // zero.
    static FUSEDRNN_DEVICE void fill(T* stage, const T* from, std::int64_t stride, std::int64_t row,
                                     std::int64_t rows, std::int64_t k, std::int64_t k_end, bool vector) {
        constexpr int kPieces = kElements / kPiece<T>, kPerLine = kLast ? 4 : R / kPiece<T>;
        FUSEDRNN_UNROLL
        for (int i = 0; i < kPieces / kGemmThreads; ++i) {
            const int index = thread_index() + i * kGemmThreads, line = index / kPerLine,
                      part = index % kPerLine;
            const std::int64_t outer = (kLast ? row : k) + line, outer_end = kLast ? rows : k_end;
            const std::int64_t inner = (kLast ? k : row) + part * kPiece<T>, inner_end = kLast ? k_end : rows;
            std::int64_t count = outer < outer_end ? inner_end - inner : 0;
            count = count < 0 ? 0 : count < kPiece<T> ? count : kPiece<T>;
            T* const to = stage + line * kPerLine * kPiece<T> + swap(line, part) * kPiece<T>;
            const T* const source = from + outer * stride + inner;
            if (vector && count > 0) {
                cp_async16(to, source, static_cast<int>(count * sizeof(T)));
            } else {
                FUSEDRNN_KEEP_LOOP
                for (int j = 0; j < kPiece<T>; ++j) to[j] = j < count ? load_constant(source + j) : T{};
            }
        }
    }

    // Piece t of row `row` + g. All lanes of a warp call it with the same row, a multiple of 8.
    static FUSEDRNN_DEVICE Piece<T> read(const T* stage, int row) {
        const int g = lane() / 4, t = lane() % 4;
        Piece<T> piece;
        if constexpr (kLast) {
            return read_piece(stage, row + g, t);
        } else if constexpr (sizeof(T) == 2) {
            // Matrix l / 8 holds word l / 8 of all pieces, its line l % 8 two at a time for each quad's lane.
            const int k = lane() % 8 / 2 * 8 + lane() / 8 * 2 + lane() % 2;
            unsigned words[4];
            ldmatrix_x4_trans(words, stage + k * R + swap(k, row / 8) * 8);
            piece.vector = {{words[0], words[1], words[2], words[3]}};
            return piece;
        } else {
            return read_piece(stage, row + g, t);
        }
    }

    // Piece `part` of any row.
    static FUSEDRNN_DEVICE Piece<T> read_piece(const T* stage, int row, int part) {
        Piece<T> piece;
        if constexpr (kLast) {
            piece.vector =
                *reinterpret_cast<const Vector16*>(stage + row * kChunk<T> + swap(row, part) * kPiece<T>);
        } else {
            FUSEDRNN_UNROLL
            for (int i = 0; i < kPiece<T>; ++i) {
                const int k = part * kPiece<T> + i;
                piece.element[i] = stage[k * R + swap(k, row / kPiece<T>) * kPiece<T> + row % kPiece<T>];
            }
        }
        return piece;
    }

  private:
    // Where piece `part` of a line stands. Lanes that read at once differ in two rows' lowest bits and t, and
    // without the swap would share banks.
    static FUSEDRNN_DEVICE int swap(int line, int part) {
        if constexpr (kLast) return part ^ (line / 2 & 3);
        if constexpr (sizeof(T) == 2) return part ^ (line / 8 * 2 + line % 2);
        return part ^ (line / 4 % 4 * 2);
    }
};

// C or T, whichever the layout stores: gradients of inputs are inputs of the layer before.
template <Math kMath, Layout kLayout>
struct GemmResult {
    using Type = typename MathTraits<kMath>::C;
};
template <Math kMath>
struct GemmResult<kMath, Layout::kNN> {
    using Type = typename MathTraits<kMath>::T;
};

// The end of the sum for one element of C.
template <class T, class C, class Out>
FUSEDRNN_DEVICE void store_result(Out* c, C value, const void* const (&bias)[2], std::int64_t column,
                                  bool accumulate) {
    FUSEDRNN_UNROLL
    for (int i = 0; i < 2; ++i) {
        if (bias[i] != nullptr) value += widen(load_constant(static_cast<const T*>(bias[i]) + column));
    }
    if (accumulate) value += widen(load(c));
    store(c, narrow<Out>(value));
}

template <Math kMath, Layout kLayout>
class Gemm {
  public:
    using T = typename MathTraits<kMath>::T;
    using C = typename MathTraits<kMath>::C;
    using Out = typename GemmResult<kMath, kLayout>::Type;
    static constexpr int R = kGemmTile<kMath>;

    static FUSEDRNN_DEVICE void run(const GemmArgs& args) {
        const std::int64_t k = block_index().z * args.slice;
        const std::int64_t k_end = k + args.slice < args.k ? k + args.slice : args.k;
        const int chunks = static_cast<int>((k_end - k + kChunk<T> - 1) / kChunk<T>);
        Sums sums = {};
        for (int i = 0; i < kGemmStages - 1; ++i) fill(args, i, chunks, k, k_end);
        for (int i = 0; i < chunks; ++i) {
            cp_async_wait<kGemmStages - 2>();
            block_barrier();
            fill(args, i + kGemmStages - 1, chunks, k, k_end);
            const T* const a = stage(i);
            if (is_used(args)) add_chunk(a, a + FactorA::kElements, sums);
        }
        store_sums(args, sums);
    }

  private:
    using FactorA = StagedFactor<T, kLayout != Layout::kTN, R>;
    using FactorB = StagedFactor<T, kLayout == Layout::kNT, R>;
    // Tensor cores: 4 x 2 warps of 32 x 64 elements. Multiply-adds: 16 x 16 threads of kSide x kSide
    // elements, R / kSide apart.
    static constexpr bool kTensor = MathTraits<kMath>::kTensor;
    static constexpr int kSide = R / 16;
    struct TensorSums {
        float c[2][8][4];
    };
    struct PlainSums {
        C c[kSide][kSide];
    };
    using Sums = std::conditional_t<kTensor, TensorSums, PlainSums>;

    static FUSEDRNN_DEVICE T* stage(int chunk) {
        return shared_memory<T>() + chunk % kGemmStages * (FactorA::kElements + FactorB::kElements);
    }
    static FUSEDRNN_DEVICE int warp_row() { return warp() % 4 * 32; }
    static FUSEDRNN_DEVICE int warp_column() { return warp() / 4 * 64; }

    // Whether any of this warp's elements is one of the result.
    static FUSEDRNN_DEVICE bool is_used(const GemmArgs& args) {
        return !kTensor || (std::int64_t{block_index().x} * R + warp_row() < args.m &&
                            std::int64_t{block_index().y} * R + warp_column() < args.n);
    }

    static FUSEDRNN_DEVICE void fill(const GemmArgs& args, int chunk, int chunks, std::int64_t k,
                                     std::int64_t k_end) {
        if (chunk < chunks) {
            T* const a = stage(chunk);
            const std::int64_t at = k + static_cast<std::int64_t>(chunk) * kChunk<T>;
            FactorA::fill(a, static_cast<const T*>(args.a), args.lda, std::int64_t{block_index().x} * R,
                          args.m, at, k_end, args.vector_a);
            FactorB::fill(a + FactorA::kElements, static_cast<const T*>(args.b), args.ldb,
                          std::int64_t{block_index().y} * R, args.n, at, k_end, args.vector_b);
        }
        cp_async_commit();
    }

    static FUSEDRNN_DEVICE void add_chunk(const T* a, const T* b, TensorSums& sums) {
        Factor<kMath> rows[2][2];
        FUSEDRNN_UNROLL
        for (int i = 0; i < 4; ++i) {
            rows[i / 2][i % 2] = make_factor<kMath>(FactorA::read(a, warp_row() + i * 8));
        }
        FUSEDRNN_UNROLL
        for (int n = 0; n < 8; ++n) {
            const auto column = make_factor<kMath>(FactorB::read(b, warp_column() + n * 8));
            FUSEDRNN_UNROLL
            for (int m = 0; m < 2; ++m) multiply<kMath>(sums.c[m][n], rows[m][0], rows[m][1], column);
        }
    }

    static FUSEDRNN_DEVICE void add_chunk(const T* a, const T* b, PlainSums& sums) {
        const int row = thread_index() / 16, column = thread_index() % 16;
        for (int part = 0; part < 4; ++part) {
            Piece<T> rows[kSide];
            FUSEDRNN_UNROLL
            for (int i = 0; i < kSide; ++i) rows[i] = FactorA::read_piece(a, row + i * 16, part);
            FUSEDRNN_UNROLL
            for (int j = 0; j < kSide; ++j) {
                const Piece<T> other = FactorB::read_piece(b, column + j * 16, part);
                FUSEDRNN_UNROLL
                for (int e = 0; e < kPiece<T>; ++e) {
                    FUSEDRNN_UNROLL
                    for (int i = 0; i < kSide; ++i) {
                        sums.c[i][j] = fused(rows[i].element[e], other.element[e], sums.c[i][j]);
                    }
                }
            }
        }
    }

    static FUSEDRNN_DEVICE void store_sums(const GemmArgs& args, const TensorSums& sums) {
        const int row = warp_row() + lane() / 4, column = warp_column() + lane() % 4 * 2;
        FUSEDRNN_UNROLL
        for (int m = 0; m < 2; ++m) {
            FUSEDRNN_UNROLL
            for (int n = 0; n < 8; ++n) {
                FUSEDRNN_UNROLL
                for (int i = 0; i < 4; ++i) {
                    store_one(args, row + m * 16 + i / 2 * 8, column + n * 8 + i % 2, sums.c[m][n][i]);
                }
            }
        }
    }
    static FUSEDRNN_DEVICE void store_sums(const GemmArgs& args, const PlainSums& sums) {
        FUSEDRNN_UNROLL
        for (int i = 0; i < kSide; ++i) {
            FUSEDRNN_UNROLL
            for (int j = 0; j < kSide; ++j) {
                store_one(args, thread_index() / 16 + i * 16, thread_index() % 16 + j * 16, sums.c[i][j]);
            }
        }
    }
    static FUSEDRNN_DEVICE void store_one(const GemmArgs& args, int row, int column, C value) {
        const std::int64_t m = std::int64_t{block_index().x} * R + row,
                           n = std::int64_t{block_index().y} * R + column;
        if (m >= args.m || n >= args.n) return;
        if (args.partial != nullptr) {
            store(static_cast<C*>(args.partial) + (block_index().z * args.m + m) * args.n + n, value);
        } else {
            store_result<T, C>(static_cast<Out*>(args.c) + m * args.ldc + n, value, args.bias, n,
                               args.accumulate);
        }
    }
};

template <Math kMath, Layout kLayout>
FUSEDRNN_KERNEL FUSEDRNN_LAUNCH_BOUNDS(kGemmThreads, 1) void gemm(GemmArgs args) {
    Gemm<kMath, kLayout>::run(args);
}

// Blocks (rows, columns / kGemmThreads): a thread adds up one element. Of no slices only the bias is left.
template <Math kMath, Layout kLayout>
FUSEDRNN_KERNEL void sum_slices(SumSlicesArgs args) {
    using G = Gemm<kMath, kLayout>;
    using C = typename G::C;
    const std::int64_t m = block_index().x,
                       n = std::int64_t{block_index().y} * block_threads() + thread_index();
    if (n >= args.n) return;
    const C* from = static_cast<const C*>(args.partial) + m * args.n + n;
    C total = args.slices > 0 ? load_constant(from) : C(0);
    for (int i = 1; i < args.slices; ++i) total += load_constant(from + i * args.m * args.n);
    store_result<typename G::T, C>(static_cast<typename G::Out*>(args.c) + m * args.ldc + n, total, args.bias,
                                   n, args.accumulate);
}

}  // namespace fusedrnn::cuda
