// The masks of programs (Mask in cells/program_list.h): drawn for a group of rows and panels when its cells are computed,
// again in backward, and never stored.
//
// The mask k of a call is drawn by the stream offset + k under its seed: unit u of a row takes word u % 4 of block u / 4 of the
// row, which has as many blocks as H units take. Rows are those of the batch, or, where each step has a mask of its
// own, those of (T, B). So a mask depends neither on threads nor on the vectors.
#pragma once

#include "cpu/program_tiles.h"
#include "philox_blocks.h"

namespace fusedrnn::FUSEDRNN_ISA {

template <class T>
class Masks {
  public:
    static constexpr std::int64_t L = Vec<T>::kLanes;

    Masks() = default;
    // For groups of so many vectors. Whole blocks are drawn, which begin before a short vector and end after it.
    Masks(const CellPrograms& programs, std::int64_t vectors, Arena& arena)
        : size_(vectors * (L < 4 ? L + 8 : L) + 4 * kPhiloxBlocks),
          at_(arena.template take<T>(programs.mask_count * size_)) {}

    // Draws the masks that are read, for n rows and some panels; row i is row(i) = t * B + b.
    template <class Row>
    void place(ProgramTiles<T>& tiles, const CellPrograms& programs, std::uint32_t read, const Draws& draws,
               const Dims& d, std::int64_t n, Range panels, Row&& row) const {
        for (int k = 0; k < programs.mask_count; ++k) {
            if ((read >> k & 1) == 0) continue;
            const Mask& mask = programs.mask_list[k];
            T* const to = at_ + k * size_;
            if (!draws.drawn) {
                Vec<T>::set(static_cast<T>(mask.expected)).store(to);
                tiles.place(programs.masks + k, {to, 0, 0});
                continue;
            }
            const std::int64_t unit = panels.begin * L, begin = unit / 4, end = (panels.end * L + 3) / 4;
            const std::int64_t blocks = (d.H + 3) / 4;
            draw(mask, draws.seed, draws.offset + static_cast<std::uint64_t>(k), n, end - begin, to,
                 [&](std::int64_t i) { return (mask.each_step ? row(i) : row(i) % d.B) * blocks + begin; });
            tiles.place(programs.masks + k, {to + unit % 4, (end - begin) * 4, L});
        }
    }

  private:
    // `count` blocks for each of n rows, from first(row) on, one row after another.
    template <class First>
    static void draw(const Mask& mask, std::uint64_t seed, std::uint64_t stream, std::int64_t n,
                     std::int64_t count, T* to, First&& first) {
        const std::uint64_t threshold = static_cast<std::uint64_t>(mask.p * 4294967296.0 + 0.5);
        const T drawn = static_cast<T>(threshold > 0 ? mask.drawn : mask.other);
        const T other = static_cast<T>(mask.other);
        const auto last = static_cast<std::uint32_t>(threshold > 0 ? threshold - 1 : 0);
        std::uint64_t block[kPhiloxBlocks]{};
        std::uint32_t words[4 * kPhiloxBlocks];
        int pending = 0;
        const auto flush = [&] {
            philox_blocks(block, stream, seed, words);
            for (int j = 0; j < 4 * kPhiloxBlocks; ++j) to[j] = words[j] <= last ? drawn : other;
            to += 4 * pending;
            pending = 0;
        };
        for (std::int64_t i = 0; i < n; ++i) {
            const auto begin = static_cast<std::uint64_t>(first(i));
            for (std::int64_t k = 0; k < count; ++k) {
                block[pending++] = begin + static_cast<std::uint64_t>(k);
                if (pending == kPhiloxBlocks) flush();
            }
        }
        if (pending > 0) flush();
    }

    std::int64_t size_ = 0;
    T* at_ = nullptr;
};

// Nothing, for compiled cells.
template <class Cell, class T>
struct MasksOf {
    using Type = NoTiles;
};
template <class T>
struct MasksOf<ProgramCell, T> {
    using Type = Masks<T>;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
