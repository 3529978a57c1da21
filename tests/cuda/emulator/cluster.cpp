// Blocks of a cluster: their barrier, their reach into each other's shared memory, mbarriers.
//
// Bytes of a st_async count for an mbarrier when they land, at a random time. The memory that they go to
// holds, from the call until then, what it held, or poison, or already the new bytes; and who reads it
// through load_received or ldmatrix must know that the phase has ended.
#include "cluster.h"

#include <algorithm>
#include <cstring>

#include "grid.h"
#include "include/platform/device.h"
#include "runtime.h"

namespace fusedrnn::cuda::emulator {

namespace {

bool holds(const Block& block, const void* p, int size) {
    const auto* byte = static_cast<const unsigned char*>(p);
    return byte >= block.shared && byte + size <= block.shared + block.shared_bytes;
}

bool has_ended(const Block& block) { return block.ended == static_cast<int>(block.warps.size()) * 32; }

void check_device(const char* what, Site site) {
    if (grid->config().architecture < 90) {
        grid->fail(std::string(what) + ": expected compute capability 90 or later", site);
    }
}

// The block of this rank, whose shared memory has p.
Block& reach(const char* what, const void* p, int size, int rank, Site site) {
    const Cluster& cluster = *self->block->cluster;
    const auto fail = [&](const std::string& text) { grid->fail(std::string(what) + text, site); };
    if (rank < 0 || rank >= static_cast<int>(cluster.blocks.size())) {
        fail(": expected a rank 0 to " + std::to_string(cluster.blocks.size() - 1) + ", got " +
             std::to_string(rank));
    }
    Block& block = *cluster.blocks[static_cast<std::size_t>(rank)];
    if (reinterpret_cast<Address>(p) % static_cast<Address>(size) != 0) fail(" at a misaligned address");
    if (!holds(block, p, size)) fail(" outside of the shared memory of the block");
    if (&block == self->block) return block;
    if (cluster.barriers == 0) fail(" before a cluster_barrier has said that the block has begun");
    if (has_ended(block)) fail(" in the shared memory of a block that has ended");
    return block;
}

// An mbarrier of a block that this thread knows to be initialised.
Phases& find(const char* what, Block& block, const void* p, Site site) {
    const auto refuse_it = [&] {
        grid->fail(std::string(what) + ": not an mbarrier, or no barrier has followed mbarrier_init", site);
    };
    const auto found = block.mbarriers.find(reinterpret_cast<Address>(p));
    if (found == block.mbarriers.end()) refuse_it();
    Phases& mbarrier = found->second;
    const bool known = mbarrier.initialiser == self || block.cluster->barriers > mbarrier.cluster_barriers ||
                       (&block == self->block && block.barriers > mbarrier.block_barriers);
    if (!known) refuse_it();
    return mbarrier;
}

void land(RemoteStore& store) {
    if (!store.landed) std::copy_n(store.data, store.size, store.at);
    store.landed = true;
}

}  // namespace

int cluster_rank() { return self->block->rank; }
int cluster_size() { return static_cast<int>(self->block->cluster->blocks.size()); }

void cluster_barrier(Site site) {
    check_device("cluster_barrier", site);
    if (!is_left_out(Operation::cluster_barrier, site)) grid->cluster_barrier(site);
}

void* map_shared(void* p, int rank, Site site) {
    check_device("map_shared", site);
    const Cluster& cluster = *self->block->cluster;
    if (rank < 0 || rank >= static_cast<int>(cluster.blocks.size())) {
        grid->fail("map_shared: expected a rank 0 to " + std::to_string(cluster.blocks.size() - 1) +
                       ", got " + std::to_string(rank),
                   site);
    }
    if (!holds(*self->block, p, 1)) grid->fail("map_shared of what is not in shared memory", site);
    return cluster.blocks[static_cast<std::size_t>(rank)]->shared +
           (static_cast<unsigned char*>(p) - self->block->shared);
}

void load_remote(void* to, void* at, int rank, int size, Site site) {
    reach("load_remote", at, size, rank, site);
    grid->may_switch();
    reach("load_remote", at, size, rank, site);
    for (RemoteStore& store : self->remote_stores) land(store);
    std::memcpy(to, at, static_cast<std::size_t>(size));
}

void store_remote(void* at, int rank, const void* from, int size, Site site) {
    reach("store_remote", at, size, rank, site);
    RemoteStore store{static_cast<unsigned char*>(at), size, false, {}, site};
    std::memcpy(store.data, from, static_cast<std::size_t>(size));
    if (static_cast<int>(grid->random() % 100) < grid->config().early_percent) land(store);
    self->remote_stores.push_back(store);
    grid->may_switch();
}

void st_async(void* at, int rank, const void* from, int size, void* mbarrier, int mbarrier_rank, Site site) {
    Block& block = reach("st_async", at, size, rank, site);
    if (mbarrier_rank != rank) grid->fail("st_async with an mbarrier of another block", site);
    reach("st_async with an mbarrier", mbarrier, 8, rank, site);
    const Phases& phases = find("st_async", block, mbarrier, site);
    Flight flight{&block, static_cast<unsigned char*>(at), size, {}, 0, phases.phase, self, site};
    flight.mbarrier = reinterpret_cast<Address>(mbarrier);
    std::memcpy(flight.data, from, static_cast<std::size_t>(size));
    block.received.resize(static_cast<std::size_t>(block.shared_bytes + 3) / 4);
    for (int i = 0; i < size; i += 4) {
        Received& word = block.received[static_cast<std::size_t>(flight.at + i - block.shared) / 4];
        if (word.mbarrier == flight.mbarrier && word.phase == flight.phase) {
            grid->fail("st_async to bytes that another one brings in the same phase", site);
        }
        word = {flight.mbarrier, flight.phase};
    }
    const std::uint64_t meanwhile = grid->random() % 3;
    if (meanwhile == 0) std::copy_n(flight.data, size, flight.at);
    if (meanwhile == 1 && grid->config().poison) std::memset(flight.at, 0xFF, static_cast<std::size_t>(size));
    grid->send(flight);
    grid->may_switch();
}

void load_received(void* to, const void* p, int size, Site site) {
    if (reinterpret_cast<Address>(p) % static_cast<Address>(size) != 0) {
        grid->fail("misaligned load_received", site);
    }
    if (!holds(*self->block, p, size)) {
        grid->fail("load_received outside of the shared memory of the block", site);
    }
    grid->may_switch();
    check_received(p, size, site);
    std::memcpy(to, p, static_cast<std::size_t>(size));
}

void check_received(const void* p, int size, Site site) {
    const Block& block = *self->block;
    if (block.received.empty()) return;
    for (int i = 0; i < size; i += 4) {
        const auto* byte = static_cast<const unsigned char*>(p) + i;
        const Received& word = block.received[static_cast<std::size_t>(byte - block.shared) / 4];
        if (word.mbarrier == 0) continue;
        const auto seen = self->seen.find(word.mbarrier);
        if (seen == self->seen.end() || seen->second <= word.phase) {
            grid->fail("a read of what st_async brings, without having waited for phase " +
                           std::to_string(word.phase) + " of its mbarrier",
                       site);
        }
    }
}

void merge_seen(std::span<const std::unique_ptr<Thread>> threads) {
    PhaseCounts all;
    for (const auto& thread : threads) {
        for (const auto& [mbarrier, count] : thread->seen) all[mbarrier] = std::max(all[mbarrier], count);
    }
    if (all.empty()) return;
    for (const auto& thread : threads) thread->seen = all;
}

// ---- mbarriers -------------------------------------------------------------------------------------------

void mbarrier_init(void* p, int arrivals, Site site) {
    check_device("mbarrier_init", site);
    Block& block = *self->block;
    reach("mbarrier_init", p, 8, block.rank, site);
    if (arrivals < 1) grid->fail("mbarrier_init: expected at least one arrival", site);
    if (!block.mbarriers
             .try_emplace(reinterpret_cast<Address>(p),
                          Phases{arrivals, arrivals, 0, 0, self, block.barriers, block.cluster->barriers})
             .second) {
        grid->fail("mbarrier_init of an mbarrier", site);
    }
}

void mbarrier_arrive(void* p, int bytes, Site site) {
    check_device("mbarrier_arrive", site);
    grid->may_switch();
    if (bytes < 0) grid->fail("mbarrier_arrive: expected at least 0 bytes", site);
    grid->arrive(find("mbarrier_arrive", *self->block, p, site), bytes, site);
}

bool mbarrier_try_wait(void* p, unsigned parity, Site site) {
    check_device("mbarrier_try_wait", site);
    if (parity > 1) grid->fail("mbarrier_try_wait: expected a parity 0 or 1", site);
    find("mbarrier_try_wait", *self->block, p, site);
    if (is_left_out(Operation::mbarrier_try_wait, site)) return true;
    grid->may_switch();
    const unsigned phase = find("mbarrier_try_wait", *self->block, p, site).phase;
    if (phase % 2 == parity) return false;
    unsigned& waited = self->waited[reinterpret_cast<Address>(p)];
    if (waited == phase) {
        grid->fail("mbarrier_try_wait: waits twice for phase " +
                       (phase == 0 ? std::string("-1") : std::to_string(phase - 1)),
                   site);
    }
    waited = phase;
    self->seen[reinterpret_cast<Address>(p)] = phase;
    return true;
}

void Grid::arrive(Phases& mbarrier, int bytes, Site site) {
    if (mbarrier.pending == 0) fail("mbarrier_arrive: the phase has had all of its arrivals", site);
    mbarrier.bytes += bytes;
    if (--mbarrier.pending > 0) return;
    if (mbarrier.bytes < 0) fail("mbarrier_arrive: more bytes have come than the phase expects", site);
    if (mbarrier.bytes == 0) end_phase(mbarrier);
}

void Grid::end_phase(Phases& mbarrier) {
    ++mbarrier.phase;
    mbarrier.pending = mbarrier.arrivals;
    ++memory.time;
    wake_spinners();
}

bool Grid::land_any() {
    const std::size_t i = random() % flights_.size();
    const Flight flight = flights_[i];
    flights_[i] = flights_.back();
    flights_.pop_back();
    const auto refuse_it = [&](const char* what) {
        failed_ = true;
        error_ = std::string("st_async: ") + what + "; sent by block " + text(flight.from->place.block) +
                 ", thread " + std::to_string(flight.from->place.thread) + ", at line " +
                 std::to_string(flight.site.line);
        return false;
    };
    Phases& mbarrier = flight.to->mbarriers.at(flight.mbarrier);
    if (mbarrier.phase != flight.phase) {
        return refuse_it(
            "its phase has ended without these bytes: too few were expected, or they were sent too early");
    }
    std::copy_n(flight.data, flight.size, flight.at);
    mbarrier.bytes -= flight.size;
    if (mbarrier.pending > 0) return true;
    if (mbarrier.bytes < 0) return refuse_it("more bytes have come than the phase expects");
    if (mbarrier.bytes == 0) end_phase(mbarrier);
    return true;
}

// On its last thread's end nothing may be on its way to a block.
void Grid::check_end_of(const Block& block) const {
    for (const Flight& flight : flights_) {
        if (flight.to != &block) continue;
        refuse("block " + text(block.threads[0]->place.block) + " has ended while st_async brings it bytes");
    }
    for (const auto& [address, mbarrier] : block.mbarriers) {
        if (mbarrier.bytes == 0) continue;
        refuse("block " + text(block.threads[0]->place.block) + " has ended while an mbarrier expects " +
               std::to_string(mbarrier.bytes) + " bytes");
    }
}

std::string Grid::describe_mbarriers() const {
    std::string all;
    for (const Cluster& cluster : clusters_) {
        for (const Block* block : cluster.blocks) {
            if (has_ended(*block)) continue;
            for (const auto& [address, mbarrier] : block->mbarriers) {
                all += "mbarrier at " + std::to_string(address - reinterpret_cast<Address>(block->shared)) +
                       " of block " + text(block->threads[0]->place.block) + ": phase " +
                       std::to_string(mbarrier.phase) + " lacks " + std::to_string(mbarrier.pending) +
                       " arrival(s) and " + std::to_string(mbarrier.bytes) + " bytes; ";
            }
        }
    }
    return all;
}

// ---- the life of clusters, and their barrier ----------------------------------------------------------

// The next cluster, in these slots.
void Grid::start(std::size_t first_slot) {
    const auto size = static_cast<std::size_t>(shape_.cluster);
    Cluster& cluster = clusters_[first_slot / size];
    cluster = Cluster{};
    const int id = pending_.back();
    pending_.pop_back();
    for (std::size_t rank = 0; rank < size; ++rank) {
        Block& block = *blocks_[first_slot + rank];
        cluster.blocks.push_back(&block);
        block.cluster = &cluster;
        block.rank = static_cast<int>(rank);
        start(block, id * shape_.cluster + block.rank);
    }
    cluster.live = shape_.cluster;
}

void Grid::cluster_barrier(Site site) {
    Cluster& cluster = *self->block->cluster;
    if (cluster.ended > 0) fail("divergent barrier: other threads of the cluster have ended", site);
    if (cluster.arrived == 0) {
        cluster.site = site;
    } else if (site.line != cluster.site.line || std::strcmp(site.file, cluster.site.file) != 0) {
        fail("divergent barrier: others wait in cluster_barrier of line " + std::to_string(cluster.site.line),
             site);
    }
    if (++cluster.arrived < shape_.block * shape_.cluster) {
        wait(Wait::cluster_barrier, "cluster_barrier", site);
    } else {
        release_barrier(cluster);
    }
}

// The same for the whole cluster as a block_barrier for a block; the rest of the GPU sees it, too.
void Grid::release_barrier(Cluster& cluster) {
    cluster.arrived = 0;
    ++cluster.barriers;
    for (Block* block : cluster.blocks) {
        ++block->barriers;
        merge_seen(threads_of(*block));
        for (Warp& each : block->warps) each.stores.move_to(block->stores);
        for (const auto& thread : threads_of(*block)) {
            thread->stores.move_to(block->stores);
            for (RemoteStore& store : thread->remote_stores) land(store);
            thread->remote_stores.clear();
        }
        if (!block->stores.empty()) memory.write(block->stores, block->id);
        block->stores.clear();
    }
    for (Block* block : cluster.blocks) {
        for (const auto& thread : threads_of(*block)) {
            thread->fresh = memory.time;
            if (thread.get() != self) make_runnable(*thread);
        }
    }
    wake_spinners();
    let_others_run();
}

}  // namespace fusedrnn::cuda::emulator
