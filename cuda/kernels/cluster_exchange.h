// How the blocks of a cluster wait for what they send into each other's shared memory.
//
// Exchange e, from 0, fills one of two buffers of each block, and an mbarrier counts its bytes. The buffer is
// filled again by exchange e + 2: only by blocks that have all of exchange e + 1, to which each block sends
// its part when all of its threads are done with exchange e.
#pragma once

#include "kernels/cluster_arguments.h"
#include "kernels/math.h"

namespace fusedrnn::cuda {

// Polls of an mbarrier before the launch is given up as lost: each takes up to a millisecond where nothing
// comes.
inline constexpr int kMostClusterPolls = 1 << 20;

class ClusterExchange {
  public:
    static constexpr int kBytes = 64;  // at the start of shared memory: two mbarriers

    // By all threads, once, followed by a cluster_barrier: so many exchanges will bring so many bytes each.
    FUSEDRNN_DEVICE void prepare(int exchanges, int bytes) {
        exchanges_ = exchanges, bytes_ = bytes;
        if (thread_index() != 0) return;
        for (int i = 0; i < 2; ++i) {
            mbarrier_init(mbarrier(i), 1);
            if (i < exchanges) mbarrier_arrive(mbarrier(i), bytes);
        }
    }

    FUSEDRNN_DEVICE void wait(int exchange) const {
        const auto parity = static_cast<unsigned>(exchange / 2 % 2);
        for (int polls = 0; !mbarrier_try_wait(mbarrier(exchange), parity); ++polls) {
            if (polls == kMostClusterPolls) trap();
            spin_pause();
        }
        if (thread_index() == 0 && exchange + 2 < exchanges_) mbarrier_arrive(mbarrier(exchange), bytes_);
    }

    // To a place in the exchange's buffer, of the block of this rank.
    static FUSEDRNN_DEVICE void send(void* to, Vector16 piece, int exchange, int rank) {
        st_async(map_shared(static_cast<Vector16*>(to), rank), piece, map_shared(mbarrier(exchange), rank));
    }

  private:
    static FUSEDRNN_DEVICE Mbarrier* mbarrier(int exchange) {
        return shared_memory<Mbarrier>() + exchange % 2;
    }

    int exchanges_, bytes_;
};

}  // namespace fusedrnn::cuda
