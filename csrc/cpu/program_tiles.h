// The cells of a group of rows and panels by a program (cells/program.h), tile by tile.
//
// The driver says where every value of the program is: gates, states, what the tape keeps. A tile is so many rows of one
// panel, or, where there are more panels than rows, so many panels of one row: an instruction is worth its cost from about
// eight vectors on.
#pragma once

#include "cells/program.h"
#include "cpu/kernels.h"
#include "cpu/steps.h"

namespace fusedrnn::FUSEDRNN_ISA {

// The vectors of a value: that of row r and panel u, both of the group, at `at` + r * row + u * panel.
template <class T>
struct Place {
    T* at;
    std::int64_t row, panel;
};

// What the slots of a tile take in the L1 cache, and its vectors at least.
inline constexpr std::int64_t kTileBytes = 32 * 1024, kLeastTile = 4;
// Rows that go through all stages of a step together, where only normalisation lies between them.
inline constexpr std::int64_t kStageRows = 4;

template <class T>
class ProgramTiles {
  public:
    static constexpr std::int64_t L = Vec<T>::kLanes;
    using V = Vec<T>;

    ProgramTiles() = default;
    // Memory for these programs; gathered: of so many values the vectors of a group, so many, may be gathered.
    ProgramTiles(const StagedProgram& a, const StagedProgram& b, int values, std::int64_t gathered,
                 std::int64_t group, Arena& arena)
        : group_(group) {
        std::int64_t slots = 0, constants = 0, temporaries = 0;
        for (const StagedProgram* staged : {&a, &b}) {
            for (int i = 0; i < staged->count; ++i) {
                const Program& p = staged->stages[i].program;
                slots = larger(slots, p.slots());
                constants = larger(constants, p.constant_count);
                temporaries = larger(temporaries, p.temporaries * tile_of(p));
            }
        }
        slots_ = arena.template take<Slot<T>>(slots);
        places_ = arena.template take<Place<T>>(values);
        constants_ = arena.template take<T>(constants * L);
        temporaries_ = arena.template take<T>(temporaries * L);
        gathered_ = arena.template take<T>(gathered * group * L);
    }

    // Before the first group.
    void use(const StagedProgram& staged) {
        staged_ = &staged;
        use(staged.stages[0].program);
    }
    std::uint32_t reads_before() const { return staged_->reads_before; }
    std::uint32_t reads_masks() const { return staged_->reads_masks; }
    void use(const Program& program) {
        program_ = &program;
        tile_ = tile_of(program);
        Slot<T>* slot = slots_;
        for (int i = 0; i < program.constant_count; ++i, ++slot) {
            *slot = {constants_ + i * L, 0};
            V::set(static_cast<T>(program.constants[i])).store(slot->at);
        }
        slot += program.placed;
        for (int i = 0; i < program.temporaries; ++i, ++slot) *slot = {temporaries_ + i * tile_ * L, L};
    }
    // Places `count` values from number `first` on, the next `step` elements after the one before.
    void place(int first, int count, T* at, std::int64_t step, std::int64_t row, std::int64_t panel) {
        for (int i = 0; i < count; ++i) places_[first + i] = {at + i * step, row, panel};
    }
    void place(int value, const Place<T>& p) { places_[value] = p; }
    const Place<T>* places(int first) const { return places_ + first; }

    // Where gathered value i of a group of so many rows is.
    Place<T> gathered(std::int64_t i, std::int64_t rows) const {
        return {gathered_ + i * group_ * L, L, rows * L};
    }

    // Places a value that is row by row where `rows` point, every `each`-th of them, with `width` elements: there, if these are
    // equally far apart and whole vectors; else, gathered, as gathered value i.
    void place_rows(int value, const T* const* rows, std::int64_t each, std::int64_t n, Range panels,
                    std::int64_t width, std::int64_t i) {
        std::int64_t distance;
        const std::int64_t count = panels.end - panels.begin;
        if (panels.end * L <= width && equally_far(rows, each, n, distance)) {
            places_[value] = {const_cast<T*>(rows[0]) + panels.begin * L, distance, L};
            return;
        }
        const Place<T> to = gathered(i, n);
        for (std::int64_t r = 0; r < n; ++r) {
            for (std::int64_t u = 0; u < count; ++u) {
                const std::int64_t unit = (panels.begin + u) * L;
                load_part(rows[r * each] + unit, width - unit).store(to.at + r * to.row + u * to.panel);
            }
        }
        places_[value] = to;
    }

    // The same for a value that is written; store_rows() afterwards brings what was gathered to its rows.
    void place_output_rows(int value, T* const* rows, std::int64_t n, Range panels, std::int64_t width,
                           std::int64_t i) {
        std::int64_t distance;
        if (panels.end * L <= width && equally_far(rows, 1, n, distance)) {
            places_[value] = {rows[0] + panels.begin * L, distance, L};
        } else {
            places_[value] = gathered(i, n);
        }
    }
    void store_rows(int value, T* const* rows, std::int64_t n, Range panels, std::int64_t width,
                    std::int64_t i) const {
        const Place<T> from = gathered(i, n);
        if (places_[value].at != from.at) return;
        for (std::int64_t r = 0; r < n; ++r) {
            for (std::int64_t u = 0; u < panels.end - panels.begin; ++u) {
                const std::int64_t unit = (panels.begin + u) * L;
                store_part(V::load(from.at + r * from.row + u * from.panel), rows[r] + unit, width - unit);
            }
        }
    }

    // All stages of the step, for all rows and panels of the group; operate(operation, rows) is what lies between two of them.
    template <class F>
    void run_stages(std::int64_t rows, std::int64_t panels, F&& operate) {
        if (staged_->plain()) return run({0, rows}, panels);
        const std::int64_t at_once = rows_of_stages(rows);
        for (std::int64_t r = 0; r < rows; r += at_once) {
            const Range some{r, smaller(r + at_once, rows)};
            for (int i = 0; i < staged_->count; ++i) {
                const ProgramStage& stage = staged_->stages[i];
                for (int k = 0; k < stage.operation_count; ++k) operate(stage.operations[k], some);
                if (stage.program.length == 0) continue;
                use(stage.program);
                run(some, panels);
            }
        }
    }

    // The program, for some rows and all panels of the group.
    void run(Range rows, std::int64_t panels) const {
        const bool by_panels = panels > rows.end - rows.begin;
        const Range runs = by_panels ? rows : Range{0, panels}, tiled = by_panels ? Range{0, panels} : rows;
        // Tiles of one size: a last one of few vectors costs as much as a whole one.
        const std::int64_t length = tiled.end - tiled.begin, tiles = (length + tile_ - 1) / tile_;
        const std::int64_t tile = tiles == 0 ? 1 : (length + tiles - 1) / tiles;
        for (std::int64_t i = runs.begin; i < runs.end; ++i) {
            for (std::int64_t k = tiled.begin; k < tiled.end; k += tile) {
                const std::int64_t row = by_panels ? i : k, panel = by_panels ? k : i;
                Slot<T>* slot = slots_ + program_->constant_count;
                for (int v = 0; v < program_->placed; ++v, ++slot) {
                    const Place<T>& p = places_[program_->values[v]];
                    *slot = {p.at + row * p.row + panel * p.panel, by_panels ? p.panel : p.row};
                }
                run_program<T>(program_->code, program_->length, smaller(tile, tiled.end - k), slots_);
            }
        }
    }

  private:
    // Rows that go through all stages together: few, whose values stay in the L1 cache; all where a product is among them.
    std::int64_t rows_of_stages(std::int64_t rows) const {
        for (int i = 0; i < staged_->count; ++i) {
            const ProgramStage& stage = staged_->stages[i];
            for (int k = 0; k < stage.operation_count; ++k) {
                if (stage.operations[k].kind == RowKind::kProduct) return rows;
            }
        }
        return kStageRows;
    }
    static std::int64_t tile_of(const Program& p) {
        const std::int64_t vector = L * static_cast<std::int64_t>(sizeof(T));
        return larger(kLeastTile, smaller(kRowGroup, kTileBytes / (larger(1, p.slots()) * vector)));
    }
    template <class P>
    static bool equally_far(P const* rows, std::int64_t each, std::int64_t n, std::int64_t& distance) {
        const auto between = [&](std::int64_t i) {
            return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(rows[i * each]) -
                                             reinterpret_cast<std::uintptr_t>(rows[(i - 1) * each]));
        };
        const std::int64_t first = n > 1 ? between(1) : 0;
        distance = first / static_cast<std::int64_t>(sizeof(T));
        for (std::int64_t i = 2; i < n; ++i) {
            if (between(i) != first) return false;
        }
        return true;
    }

    const StagedProgram* staged_ = nullptr;
    const Program* program_ = nullptr;
    Slot<T>* slots_ = nullptr;
    Place<T>* places_ = nullptr;
    T *constants_ = nullptr, *temporaries_ = nullptr, *gathered_ = nullptr;
    std::int64_t tile_ = 0, group_ = 0;
};

// Nothing, for compiled cells.
struct NoTiles {};
template <class Cell, class T>
struct TilesOf {
    using Type = NoTiles;
};
template <class T>
struct TilesOf<ProgramCell, T> {
    using Type = ProgramTiles<T>;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
