// What the drivers hand to every kernel that runs many steps in one launch. Plain data, for any compiler.
#pragma once

#include "kernels/table.h"

namespace fusedrnn::cuda {

struct SweepForwardArgs {
    const void *w_hh, *b_hh;  // b_hh: only where the gates are split; may be null
    StateSource source;
    DeviceSchedule schedule;
    std::int64_t first,
        count;       // the steps of this launch; the ones before them, in the direction of time, are done
    const void* gx;  // C [compact index, from step `first` on][G*H]
    Rows y;
    void* states;          // C [row][kStates - 1][H]
    bool states_by_index;  // rows of `states` are compact indices (a tape), else positions
    void* saved;           // C [compact index][H][kSaved], or null
};

// All steps.
struct SweepBackwardArgs {
    const void* w_hh;
    StateSource source;
    DeviceSchedule schedule;
    const void *states, *saved;  // by compact index
    ConstRows dy;                // data null: zero
    const void* dfinal[kMaxStates];
    void* dinitial[kMaxStates];
    void *dgx, *dgh;  // T [compact index][G*H]; the same where the gates are not split
};

}  // namespace fusedrnn::cuda
