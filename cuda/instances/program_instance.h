// The kernels of cells that are data of one pair of types, compiled and listed.
#pragma once

#include "kernels/normalise.h"
#include "kernels/program.h"

// program_entries_<name>(), which programs.cpp lists: of elements T that are computed as C.
#define FUSEDRNN_PROGRAM_INSTANCE(name, T, C)                                      \
    namespace fusedrnn::cuda {                                                     \
    const ProgramEntries& program_entries_##name() {                               \
        constexpr int sums = kNormaliseThreads / 32 * static_cast<int>(sizeof(C)); \
        static const ProgramEntries entries = {                                    \
            {"program_forward", &program_forward<T, C>, 0},                        \
            {"program_backward", &program_backward<T, C>, 0},                      \
            {"normalise", &normalise<C>, sums},                                    \
            {"normalise_backward gates", &normalise_backward<T, C>, sums},         \
            {"normalise_backward links", &normalise_backward<C, C>, sums}};        \
        return entries;                                                            \
    }                                                                              \
    }
