#pragma once

#include <mutex>

namespace fusedrnn {

// The mutex that guards `object`, one of a fixed number. A fork takes all of them before it and gives them back after it,
// in the parent and in the child: no child finds one taken, or what it guards half written. Hold it briefly, take no
// other meanwhile, and never wait for the GIL.
std::mutex& fork_safe_mutex(const void* object);

}  // namespace fusedrnn
