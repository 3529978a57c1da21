// The instruction sets that the kernels exist for, in the order of preference.
#pragma once

#include <vector>

namespace fusedrnn {

struct IsaStatus {
    const char* name;
    bool built;      // this build has its kernels
    bool supported;  // this CPU has its instructions
};

std::vector<IsaStatus> isa_status();

}  // namespace fusedrnn
