// What blocks of a cluster share: the barrier of all of them, and mbarriers with the bytes that fly to them.
#pragma once

#include <map>
#include <vector>

#include "config.h"
#include "memory.h"

namespace fusedrnn::cuda::emulator {

struct Block;
struct Thread;

struct Cluster {
    std::vector<Block*> blocks;  // by rank
    int arrived = 0, ended = 0;  // threads
    int barriers = 0;            // that all threads have come past
    int live = 0;                // blocks
    Site site{"", 0};            // of the barrier that threads wait in
};

// An mbarrier; its key is its address.
struct Phases {
    int arrivals;        // of each phase
    int pending;         // that the current one lacks
    std::int64_t bytes;  // that it lacks
    unsigned phase;      // the current one
    const Thread* initialiser;
    int block_barriers, cluster_barriers;  // that had been when it was initialised
};

// A st_async on its way.
struct Flight {
    Block* to;
    unsigned char* at;
    int size;
    unsigned char data[16];
    Address mbarrier;
    unsigned phase;
    const Thread* from;
    Site site;
};

// The st_async that brings four bytes of shared memory; mbarrier 0 for none.
struct Received {
    Address mbarrier = 0;
    unsigned phase = 0;
};

// A store_remote that no cluster_barrier of its thread has followed.
struct RemoteStore {
    unsigned char* at;
    int size;
    bool landed;
    unsigned char data[16];
    Site site;
};

// For each mbarrier, how many of its phases have ended.
using PhaseCounts = std::map<Address, unsigned>;

}  // namespace fusedrnn::cuda::emulator
