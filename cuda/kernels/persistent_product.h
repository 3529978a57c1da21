// A product whose weights stay in registers: 16 rows of each of kTiles tiles times the rows that a group
// exchanges. The warps of a block share out K; each leaves its sums in shared memory, where they are added in
// the order of the warps. There are two places for sums, which take turns: a warp may have the next exchange
// before others have read the sums of this one, but not the one after, for which this block has to send first.
#pragma once

#include "kernels/persistent_exchange.h"
#include "kernels/weights.h"

namespace fusedrnn::cuda {

// kShare: chunks of K, at most, of a warp. kFew: pieces that are under way where the share leaves few registers.
template <Math kMath, int kTiles, int kShare, int kFew = 4>
class PersistentProduct {
  public:
    using T = typename MathTraits<kMath>::T;
    static_assert(kChunk<T> * sizeof(T) == kChunkBytes);

    // The sums of one unit and column, of all tiles, and how far apart columns are: lanes that write or read
    // at the same time are in different banks.
    struct alignas(kTiles == 1 ? 4 : 16) Sum {
        float value[kTiles == 1 ? 1 : 4];
    };
    static constexpr int kColumn = kTiles == 1 ? 20 : 17;

    FUSEDRNN_DEVICE explicit PersistentProduct(const PersistentShape& shape)
        : first_(warp() * shape.share),
          share_(shape.chunks - first_),
          columns_(shape.columns),
          line_(shape.columns * kChunk<T>) {
        if (share_ > shape.share) share_ = shape.share;
        const int sign = lane() % 16 * line_ + (columns_ - 1) * kChunk<T> + lane() / 16 * 2 * kPiece<T>;
        to_sign_ = first_ * line_ + sign - lane_offset();
    }

    template <class Weights>
    FUSEDRNN_DEVICE void load_weights(const Weights& weights) {
        T* const stage = shared_memory<T>() + warp() * kUnitsOfBlock * kChunk<T>;
        FUSEDRNN_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            FUSEDRNN_UNROLL
            for (int i = 0; i < kShare; ++i) {
                if (i >= share_) continue;
                load_chunk<kMath>(weights, stage, tile, (first_ + i) * kChunk<T>, weights_[tile][i]);
            }
        }
        block_barrier();  // the shared memory is that of the sums
    }

    // What a lane reads of the group's rows begins here: a piece of one of eight rows on the tensor cores,
    // otherwise of each of four.
    FUSEDRNN_DEVICE int lane_offset() const {
        return (kTensor ? lane() / 4 * kChunk<T> : 0) + first_ * line_ + lane() % 4 * kPiece<T>;
    }

    // Multiplies with the group's rows, of which `row` is where this lane begins, once they are there. The sums
    // are there, at one of two sides, after the next barrier.
    FUSEDRNN_DEVICE void run(const T* row, int side) const {
        const int g = lane() / 4, t = lane() % 4;
        // Of each block one piece of the last row at first: all warps asking for all of their pieces again and
        // again would be in the way of those that come.
        if (lane() % 16 < share_) {
            Piece<T> sign[1];
            sign[0].vector = load16_relaxed(row + to_sign_);
            receive(row + to_sign_, 0, 1, sign);
        }
        Sum* sums = sums_of(side, warp()) + (kTensor ? 2 * t : t) * kColumn + g;
        Piece<T> b[kAhead];
        FUSEDRNN_UNROLL
        for (int i = 0; i < kAhead; ++i) {
            if (kTensor ? i < share_ : share_ > 0)
                b[i].vector = load16_relaxed(row + i * (kTensor ? line_ : kChunk<T>));
        }
        FUSEDRNN_KEEP_LOOP
        for (int column = 0; column < columns_; column += kTileColumns) {
            const T* const next = column + kTileColumns < columns_ ? row + kTileColumns * kChunk<T> : nullptr;
            float c[kTiles][kResults];
            if constexpr (kTensor) {
                multiply_tile(row, next, b, c);
            } else {
                multiply_tile_here(row, next, b, c);
            }
            FUSEDRNN_UNROLL
            for (int i = 0; i < kResults; ++i) {
                Sum sum{};
                FUSEDRNN_UNROLL
                for (int tile = 0; tile < kTiles; ++tile) sum.value[tile] = c[tile][i];
                sums[kTensor ? i % 2 * kColumn + i / 2 * 8 : i * 8] = sum;
            }
            row = next;
            sums += kTileColumns * kColumn;
        }
    }

    // The product for one unit of the block and column, tile by tile.
    FUSEDRNN_DEVICE Sum sum(int side, int column, int unit) const {
        const Sum* const from = sums_of(side, 0) + column * kColumn + unit;
        const int warps = block_threads() / 32;
        if (warps == kPersistentWarps) return add<kPersistentWarps>(from);
        Sum total = *from;
        for (int w = 1; w < warps; ++w) add(total, from[w * columns_ * kColumn]);
        return total;
    }

  private:
    static constexpr bool kTensor = MathTraits<kMath>::kTensor;
    // What is multiplied at the same time, and the results that a lane gets of it.
    static constexpr int kTileColumns = kTensor ? 8 : 4, kResults = kTensor ? 4 : 2;
    // Pieces of rows that are on their way at the same time.
    static constexpr int kMostAhead = kTiles == 3 ? 3 : !kTensor || kTiles > 1 ? 4 : kShare > 16 ? kFew : 8;
    static constexpr int kAhead = !kTensor ? 4 : kShare < kMostAhead ? kShare : kMostAhead;
    // Sums that one tile is spread over, so that enough products are under way at the same time.
    static constexpr int kChains = kTiles == 1 ? 4 : 1;

    static FUSEDRNN_DEVICE void add(Sum& total, const Sum& part) {
        FUSEDRNN_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) total.value[tile] += part.value[tile];
    }
    // Of so many warps, whose loads are under way at the same time.
    template <int kWarps>
    FUSEDRNN_DEVICE Sum add(const Sum* from) const {
        Sum part[kWarps];
        FUSEDRNN_UNROLL
        for (int w = 0; w < kWarps; ++w) part[w] = from[w * columns_ * kColumn];
        FUSEDRNN_UNROLL
        for (int w = 1; w < kWarps; ++w) add(part[0], part[w]);
        return part[0];
    }

    FUSEDRNN_DEVICE Sum* sums_of(int side, int w) const {
        return shared_memory<Sum>() + (side * (block_threads() / 32) + w) * columns_ * kColumn;
    }

    // One tile of 8 columns. A piece makes place for the one kAhead chunks later, of the next columns after
    // the last.
    FUSEDRNN_DEVICE void multiply_tile(const T* row, const T* next, Piece<T> (&b)[kAhead],
                                       float (&c)[kTiles][kResults]) const {
        float chain[kTiles][kChains][4] = {};
        FUSEDRNN_UNROLL
        for (int i = 0; i < kShare; ++i) {
            if (i >= share_) continue;
            if (i % kAhead == 0) receive(row + i * line_, line_, share_ - i, b);
            const Factor<kMath> column = row_factor<kMath>(b[i % kAhead]);
            FUSEDRNN_UNROLL
            for (int tile = 0; tile < kTiles; ++tile) {
                multiply<kMath>(chain[tile][i % kChains], weights_[tile][i][0], weights_[tile][i][1], column);
            }
            if (i + kAhead < kShare && i + kAhead < share_) {
                b[i % kAhead].vector = load16_relaxed(row + (i + kAhead) * line_);
            } else if (next != nullptr) {
                b[i % kAhead].vector = load16_relaxed(next + i % kAhead * line_);
            }
        }
        FUSEDRNN_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            FUSEDRNN_UNROLL
            for (int i = 0; i < 4; ++i) {
                c[tile][i] = chain[tile][0][i];
                FUSEDRNN_UNROLL
                for (int k = 1; k < kChains; ++k) c[tile][i] += chain[tile][k][i];
            }
        }
    }

    // The same with multiply-adds: a lane takes two units of each tile and all columns, and of K what its
    // pieces hold. A piece makes place for that of the next chunk.
    FUSEDRNN_DEVICE void multiply_tile_here(const T* row, const T* next, Piece<T> (&b)[kAhead],
                                            float (&c)[kTiles][kResults]) const {
        float shares[kTiles][2][kTileColumns] = {};
        FUSEDRNN_UNROLL
        for (int i = 0; i < kShare; ++i) {
            if (i >= share_) continue;
            const T* const from = i + 1 < share_ ? row + (i + 1) * line_ : next;
            FUSEDRNN_UNROLL
            for (int n = 0; n < kTileColumns; ++n) {
                if (n == 0) receive(row + i * line_, kChunk<T>, kTileColumns, b);
                add_column(i, n, b[n], shares);
                if (from != nullptr) b[n].vector = load16_relaxed(from + n * kChunk<T>);
            }
        }
        FUSEDRNN_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            FUSEDRNN_UNROLL
            for (int half = 0; half < 2; ++half) c[tile][half] = gather_column(shares[tile][half]);
        }
    }

    FUSEDRNN_DEVICE void add_column(int i, int n, const Piece<T>& b,
                                    float (&shares)[kTiles][2][kTileColumns]) const {
        FUSEDRNN_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
            FUSEDRNN_UNROLL
            for (int half = 0; half < 2; ++half) {
                FUSEDRNN_UNROLL
                for (int e = 0; e < kPiece<T>; ++e) {
                    shares[tile][half][n] =
                        fused(weights_[tile][i][half].element[e], b.element[e], shares[tile][half][n]);
                }
            }
        }
    }

    // Adds up the shares of a quad's lanes; lane t of it keeps column t.
    static FUSEDRNN_DEVICE float gather_column(const float (&shares)[kTileColumns]) {
        const bool upper = (lane() & 2) != 0, odd = (lane() & 1) != 0;
        float two[2];
        FUSEDRNN_UNROLL
        for (int n = 0; n < 2; ++n) {
            const float low = shares[n], high = shares[n + 2];
            two[n] = (upper ? high : low) + shuffle_xor(upper ? low : high, 2);
        }
        return (odd ? two[1] : two[0]) + shuffle_xor(odd ? two[0] : two[1], 1);
    }

    int first_, share_, columns_;
    int line_;     // elements between chunks: all columns of a chunk follow each other
    int to_sign_;  // from lane_offset() to the piece that is asked for first
    HeldWeights<kMath> weights_[kTiles][kShare][2];
};

// Shared memory of a warp: for the weights on their way, and for the sums of a column.
template <class Product>
inline constexpr int kSumBytes = Product::kColumn * static_cast<int>(sizeof(typename Product::Sum));

}  // namespace fusedrnn::cuda
