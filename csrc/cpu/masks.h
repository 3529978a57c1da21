// The masks of programs (Mask in cells/program_list.h), drawn when the cells are computed, again in backward, and kept by
// no tape.
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
    // For groups of so many vectors; the masks of whole sequences are kept during a call for so many rows, of so many
    // panels, if any. Whole blocks are drawn, which begin before a short vector and end after it.
    Masks(const CellPrograms& programs, std::int64_t vectors, std::int64_t rows, std::int64_t panels,
          Arena& arena)
        : width_((panels * L + 3) / 4 * 4) {
        const std::int64_t size = vectors * (L < 4 ? L + 8 : L);
        for (int k = 0; k < programs.mask_count; ++k) {
            kept_[k] = rows > 0 && !programs.mask_list[k].each_step;
            at_[k] = arena.template take<T>((kept_[k] ? rows * width_ : size) + 4 * kPhiloxBlocks);
        }
    }

    // Before a member's first step: the masks that it keeps, of its rows and all units.
    void begin(const CellPrograms& programs, const Draws& draws, const Dims& d, const Schedule& schedule,
               const Part& part) const {
        for (int k = 0; k < programs.mask_count; ++k) {
            if (!kept_[k] || !draws.drawn) continue;
            draw(programs.mask_list[k], draws, k, part.rows(d.B), width_ / 4, at_[k],
                 [&](std::int64_t i) { return schedule.order[part.position(i)] * blocks(d); });
        }
    }

    // Places the masks that are read, for a member's n rows from the r-th on and some panels; row(i) is t * B + b of the i-th.
    template <class Row>
    void place(ProgramTiles<T>& tiles, const CellPrograms& programs, std::uint32_t read, const Draws& draws,
               const Dims& d, std::int64_t r, std::int64_t n, Range panels, Row&& row) const {
        for (int k = 0; k < programs.mask_count; ++k) {
            if ((read >> k & 1) == 0) continue;
            const Mask& mask = programs.mask_list[k];
            const std::int64_t unit = panels.begin * L;
            if (!draws.drawn) {
                Vec<T>::set(static_cast<T>(mask.expected)).store(at_[k]);
                tiles.place(programs.masks + k, {at_[k], 0, 0});
            } else if (kept_[k]) {
                tiles.place(programs.masks + k, {at_[k] + r * width_ + unit, width_, L});
            } else {
                const std::int64_t begin = unit / 4, end = (panels.end * L + 3) / 4;
                draw(mask, draws, k, n, end - begin, at_[k], [&](std::int64_t i) {
                    return (mask.each_step ? row(i) : row(i) % d.B) * blocks(d) + begin;
                });
                tiles.place(programs.masks + k, {at_[k] + unit % 4, (end - begin) * 4, L});
            }
        }
    }

  private:
    // Of a row.
    static std::int64_t blocks(const Dims& d) { return (d.H + 3) / 4; }

    // `count` blocks for each of n rows, from first(row) on, one row after another.
    template <class First>
    static void draw(const Mask& mask, const Draws& draws, int k, std::int64_t n, std::int64_t count, T* to,
                     First&& first) {
        const PhiloxBlocks random(draws.seed, draws.offset + static_cast<std::uint64_t>(k));
        const MaskRule rule = rule_of(mask);
        const T drawn = static_cast<T>(rule.drawn), other = static_cast<T>(rule.other);
        const std::uint32_t last = rule.last;
        std::uint64_t block[kPhiloxBlocks]{};
        std::uint32_t words[4 * kPhiloxBlocks];
        int pending = 0;
        const auto flush = [&] {
            random.draw(block, words);
            for (int j = 0; j < 4 * kPhiloxBlocks; ++j) to[j] = words[j] <= last ? drawn : other;
            to += 4 * pending;
            pending = 0;
        };
        for (std::int64_t i = 0; i < n; ++i) {
            const auto begin = static_cast<std::uint64_t>(first(i));
            for (std::int64_t j = 0; j < count;) {
                const int more = static_cast<int>(smaller(count - j, kPhiloxBlocks - pending));
                for (int b = 0; b < more; ++b) block[pending + b] = begin + static_cast<std::uint64_t>(j + b);
                j += more;
                pending += more;
                if (pending == kPhiloxBlocks) flush();
            }
        }
        if (pending > 0) flush();
    }

    std::int64_t width_ = 0;  // of a row of a mask that is kept
    T* at_[kMaxMasks] = {};
    bool kept_[kMaxMasks] = {};
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
