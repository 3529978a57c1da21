// Blocks of a cluster: what they see of each other's shared memory, mbarriers, and what is refused.
#include <cstring>
#include <utility>

#include "check.h"

namespace emulator_check {

namespace {

constexpr int kCluster = 4, kThreads = 64, kRounds = 5;

unsigned value(int round, int block, int thread) {
    return static_cast<unsigned>(round * 100000 + block * 1000 + thread);
}

template <class T>
T spread(unsigned v) {
    T all;
    unsigned words[sizeof(T) / 4];
    for (unsigned& word : words) word = v++;
    std::memcpy(&all, words, sizeof all);
    return all;
}

// ---- kernels that are right; each returns what it saw in out[block][round][thread]
// -------------------------

// Every thread sends to all blocks of its cluster. A block is sent round r + 2 only by those who have all of
// round r + 1, of which its own share comes after it has read round r.
template <class T>
FUSEDRNN_KERNEL void send_to_all(unsigned* out) {
    auto* const mbarriers = shared_memory<Mbarrier>();
    auto* const slots = reinterpret_cast<T*>(mbarriers + 2);  // [2][block][thread]
    const int rank = cluster_rank(), size = cluster_size(), thread = thread_index(), block = block_index().x;
    const int bytes = size * block_threads() * static_cast<int>(sizeof(T));
    if (thread == 0) {
        for (int i = 0; i < 2; ++i) {
            mbarrier_init(mbarriers + i, 1);
            mbarrier_arrive(mbarriers + i, bytes);
        }
    }
    cluster_barrier();
    for (int round = 0; round < kRounds; ++round) {
        Mbarrier* const mbarrier = mbarriers + round % 2;
        T* const slot = slots + round % 2 * size * block_threads();
        for (int to = 0; to < size; ++to) {
            st_async(map_shared(slot + rank * block_threads() + thread, to),
                     spread<T>(value(round, block, thread)), map_shared(mbarrier, to));
        }
        while (!mbarrier_try_wait(mbarrier, static_cast<unsigned>(round / 2 % 2))) spin_pause();
        if (thread == 0 && round + 2 < kRounds) mbarrier_arrive(mbarrier, bytes);
        const T* const from = slot + (rank + 1) % size * block_threads() + (thread ^ 5);
        const T v = load_received(from);
        unsigned words[sizeof(T) / 4];
        std::memcpy(words, &v, sizeof words);
        store(out + (block * kRounds + round) * kThreads + thread, words[sizeof(T) / 4 - 1]);
    }
}

// Through shared memory, and global memory, in turn with barriers. `pull`: who reads is the other one.
template <bool pull>
FUSEDRNN_KERNEL void meet_in_turn(unsigned* out, unsigned* slots) {
    auto* const shared = shared_memory<unsigned>();
    const int rank = cluster_rank(), size = cluster_size(), thread = thread_index(), block = block_index().x;
    const int after = (rank + 1) % size;
    if constexpr (!pull) cluster_barrier();
    for (int round = 0; round < kRounds; ++round) {
        if constexpr (pull) {
            shared[thread] = value(round, block, thread);
        } else {
            store_remote(map_shared(shared + thread, (rank + size - 1) % size), value(round, block, thread));
        }
        store(slots + block * kThreads + thread, value(round, block, thread));
        cluster_barrier();
        const unsigned v = pull ? load_remote(map_shared(shared + (thread ^ 5), after)) : shared[thread ^ 5];
        const unsigned same = load(slots + (block - rank + after) * kThreads + (thread ^ 5));
        store(out + (block * kRounds + round) * kThreads + thread, v == same ? v : ~0u);
        cluster_barrier();
    }
}

// ---- running them
// ------------------------------------------------------------------------------------------

emulator::Config cluster_config(std::uint64_t seed = 1, int resident = 16) {
    emulator::Config config;
    config.seed = seed;
    config.architecture = 90;
    config.resident_blocks = resident;
    return config;
}

Shape cluster_shape(int blocks, int bytes = 64 * 1024) {
    return {.grid_x = blocks, .block = kThreads, .shared_bytes = bytes, .cluster = kCluster};
}

bool is_next_block(Array<unsigned>& out, int offset) {
    bool good = true;
    for (int i = 0; i < out.size(); ++i) {
        const int block = i / kThreads / kRounds, round = i / kThreads % kRounds, thread = i % kThreads;
        const int next = block / kCluster * kCluster + (block + 1) % kCluster;
        good &= out[i] == value(round, next, thread ^ 5) + static_cast<unsigned>(offset);
    }
    return good;
}

template <class T>
bool run_send() {
    Array<unsigned> out(2 * kCluster * kRounds * kThreads);
    launch(&send_to_all<T>, cluster_shape(2 * kCluster), nullptr, out.data());
    return is_next_block(out, static_cast<int>(sizeof(T)) / 4 - 1);
}

template <bool pull>
bool run_turns() {
    Array<unsigned> out(2 * kCluster * kRounds * kThreads), slots(2 * kCluster * kThreads);
    launch(&meet_in_turn<pull>, cluster_shape(2 * kCluster), nullptr, out.data(), slots.data());
    return is_next_block(out, 0);
}

// ---- kernels that are wrong
// --------------------------------------------------------------------------------

enum Wrong : int {
    kNothing,
    kNoClusterBarrier,
    kTooFewBytes,
    kTooManyBytes,
    kWaitsTwice,
    kEndsEarly,
    kOtherMbarrier,
    kNoMbarrier,
    kNoBarrierAfterInit,
    kNoWait,
    kSameBytes,
    kNoRank,
    kEndsBeforeBarrier,
    kMisaligned,
    kNothingComes,
    kTwoArrivals,
    kInitTwice,
    kOutside,
    kNotShared,
};

// Lane by lane 16 bytes go to the next block.
FUSEDRNN_KERNEL void pass_on(Wrong wrong, unsigned* out) {
    auto* const mbarrier = shared_memory<Mbarrier>();
    auto* const slots = reinterpret_cast<Vector16*>(mbarrier + 2);
    const int thread = thread_index(), next = (cluster_rank() + 1) % cluster_size();
    int bytes = 16 * block_threads();
    if (wrong == kTooFewBytes) bytes -= 16;
    if (wrong == kTooManyBytes) bytes += 16;
    if (thread == 0 && wrong != kNoMbarrier) {
        mbarrier_init(mbarrier, 1);
        if (wrong == kInitTwice) mbarrier_init(mbarrier, 1);
        mbarrier_arrive(mbarrier, bytes);
        if (wrong == kTwoArrivals) mbarrier_arrive(mbarrier, 16);
    }
    if (wrong == kNoBarrierAfterInit && warp() == 0) {
        warp_barrier();
        mbarrier_try_wait(mbarrier, 0);
    }
    if (wrong != kNoClusterBarrier) cluster_barrier();
    if (wrong == kEndsEarly && cluster_rank() == 1) return;
    if (wrong == kNothingComes) return;
    const auto to = map_shared(slots + thread, wrong == kNoRank ? next + kCluster : next);
    if (wrong == kMisaligned) {
        st_async(map_shared(reinterpret_cast<double*>(reinterpret_cast<float*>(slots) + 1), next), 1.0,
                 map_shared(mbarrier, next));
    }
    if (wrong == kOutside) load_remote(map_shared(slots + 4096, next));
    if (wrong == kNotShared) map_shared(out, next);
    if (wrong == kSameBytes) st_async(to, Vector16{}, map_shared(mbarrier, next));
    st_async(to, Vector16{}, map_shared(mbarrier, wrong == kOtherMbarrier ? cluster_rank() : next));
    while (wrong != kNoWait && !mbarrier_try_wait(mbarrier, 0)) spin_pause();
    if (wrong == kWaitsTwice) mbarrier_try_wait(mbarrier, 0);
    store(out + block_index().x * kThreads + thread, load_received(slots + thread).word[3]);
    if (wrong == kEndsBeforeBarrier && thread == 7) return;
    cluster_barrier();
}

void check_refusals() {
    const auto attempt = [](Wrong wrong) {
        Array<unsigned> out(kCluster * kThreads);
        launch(&pass_on, cluster_shape(kCluster), nullptr, wrong, out.data());
    };
    const std::pair<Wrong, const char*> cases[] = {
        {kNoClusterBarrier, "before a cluster_barrier"},
        {kTooManyBytes, "lacks 0 arrival(s) and 16 bytes"},
        {kWaitsTwice, "waits twice for phase 0"},
        {kEndsEarly, "ended"},
        {kOtherMbarrier, "an mbarrier of another block"},
        {kNoMbarrier, "not an mbarrier"},
        {kNoBarrierAfterInit, "no barrier has followed mbarrier_init"},
        {kNoWait, "without having waited for phase 0"},
        {kSameBytes, "another one brings in the same phase"},
        {kNoRank, "expected a rank 0 to 3"},
        {kEndsBeforeBarrier, "divergent barrier"},
        {kMisaligned, "misaligned"},
        {kNothingComes, "has ended while an mbarrier expects 1024 bytes"},
        {kTwoArrivals, "had all of its arrivals"},
        {kInitTwice, "mbarrier_init of an mbarrier"},
        {kOutside, "not in shared memory"},
        {kNotShared, "not in shared memory"},
    };
    bool early = false, more = false;
    for (std::uint64_t s = 1; s <= kSeeds; ++s) {
        emulator::set_config(cluster_config(s));
        expect(error_of([&] { attempt(kNothing); }).empty(), "a cluster that does nothing wrong");
        for (const auto& [wrong, part] : cases) {
            const Wrong which = wrong;
            expect_error("wrong cluster " + std::to_string(wrong), part, [&] { attempt(which); });
        }
        const std::string few = error_of([&] { attempt(kTooFewBytes); });
        expect(!few.empty(), "an mbarrier that expects too few bytes");
        early |= few.find("too few were expected") != std::string::npos;
        more |= few.find("more bytes have come") != std::string::npos;
    }
    expect(early || more, "bytes that nobody expects are reported as such");
}

// ---- which clusters run at the same time
// -------------------------------------------------------------------

FUSEDRNN_KERNEL void visit(unsigned* visits) {
    cluster_barrier();
    add_release(
        visits + (block_index().y * grid_size().x + block_index().x) * block_threads() + thread_index(),
        static_cast<unsigned>(1 + cluster_rank() + 10 * cluster_size()));
}

FUSEDRNN_KERNEL void meet_all(unsigned* count) {
    if (thread_index() == 0) {
        add_release(count, 1);
        while (load_acquire(count) < static_cast<unsigned>(grid_size().x)) spin_pause();
    }
}

FUSEDRNN_KERNEL void store_and_end(bool barrier) {
    cluster_barrier();
    store_remote(map_shared(shared_memory<unsigned>() + thread_index(), cluster_rank()), 1u);
    if (barrier) cluster_barrier();
}

// Whichever block is the last, the next one has ended.
FUSEDRNN_KERNEL void reach_for_ended() {
    cluster_barrier();
    const auto next = map_shared(shared_memory<unsigned>(), (cluster_rank() + 1) % cluster_size());
    for (int i = 0; i < 1000; ++i) load_remote(next);
}

// What stands where st_async brings 7, before its phase is waited for.
FUSEDRNN_KERNEL void look_early(unsigned* out) {
    auto* const mbarrier = shared_memory<Mbarrier>();
    auto* const slot = shared_memory<unsigned>() + 4 + thread_index();
    if (thread_index() == 0) {
        mbarrier_init(mbarrier, 1);
        mbarrier_arrive(mbarrier, 4 * block_threads());
    }
    *slot = 3;
    cluster_barrier();
    st_async(map_shared(slot, cluster_rank()), 7u, map_shared(mbarrier, cluster_rank()));
    store(out + thread_index(), *slot);
    while (!mbarrier_try_wait(mbarrier, 0)) spin_pause();
}

void check_early() {
    bool old = false, poison = false, early = false;
    for (std::uint64_t s = 1; s <= 10; ++s) {
        emulator::set_config(cluster_config(s));
        Array<unsigned> out(kThreads);
        launch(&look_early, Shape{.block = kThreads, .shared_bytes = 1024}, nullptr, out.data());
        for (int i = 0; i < kThreads; ++i) {
            expect(out[i] == 3 || out[i] == 7 || out[i] == ~0u, "bytes on their way");
            old |= out[i] == 3;
            poison |= out[i] == ~0u;
            early |= out[i] == 7;
        }
    }
    expect(old && poison && early, "bytes on their way are the old ones, poison or the new ones");
}

void check_residency() {
    for (std::uint64_t s = 1; s <= 10; ++s) {
        emulator::set_config(cluster_config(s, 6));
        Array<unsigned> visits(12 * 2 * kThreads, 0), count(1, 0);
        Shape shape = cluster_shape(12);
        shape.grid_y = 2;
        launch(&visit, shape, nullptr, visits.data());
        bool good = true;
        for (int i = 0; i < visits.size(); ++i) {
            good &= visits[i] == static_cast<unsigned>(41 + i / kThreads % kCluster);
        }
        expect(good, "clusters that find no room at first run later");
        expect_error("two clusters where there is room for one", "4 block(s) have not started",
                     [&] { launch(&meet_all, cluster_shape(8), nullptr, count.data()); });
        expect_error("two clusters where there is room for one", "cooperative launch: expected up to 4", [&] {
            Shape both = cluster_shape(8);
            both.cooperative = true;
            launch(&meet_all, both, nullptr, count.data());
        });
        expect(error_of([&] { launch(&store_and_end, cluster_shape(4), nullptr, true); }).empty(),
               "a store_remote before a barrier");
        expect_error("a store_remote without a barrier", "store_remote that no cluster_barrier follows",
                     [&] { launch(&store_and_end, cluster_shape(4), nullptr, false); });
        expect_error("a load_remote from a block that has ended", "of a block that has ended",
                     [&] { launch(&reach_for_ended, cluster_shape(4), nullptr); });
    }
    Array<unsigned> visits(12 * kThreads, 0);
    const auto attempt = [&](const Shape& shape) { launch(&visit, shape, nullptr, visits.data()); };
    expect(resident_blocks(&visit, cluster_shape(4)) == 4, "resident blocks are those of whole clusters");
    expect_error("a cluster that does not divide the grid", "cluster: expected",
                 [&] { attempt(cluster_shape(6)); });
    emulator::set_config(cluster_config(1, 3));
    expect_error("a cluster larger than the device", "cluster: expected up to 3 blocks",
                 [&] { attempt(cluster_shape(4)); });
    emulator::set_config({});
    expect_error("a cluster on an old device", "cluster: expected compute capability 90",
                 [&] { attempt(cluster_shape(4)); });
    expect_error("cluster_barrier on an old device", "compute capability 90",
                 [&] { attempt({.block = kThreads}); });
}

}  // namespace

void check_clusters() {
    check_all_needed("4 bytes to all", [] { return run_send<unsigned>(); }, cluster_config());
    check_all_needed("8 bytes to all", [] { return run_send<double>(); }, cluster_config());
    check_all_needed("16 bytes to all", [] { return run_send<Vector16>(); }, cluster_config());
    check_all_needed("store_remote", [] { return run_turns<false>(); }, cluster_config());
    check_all_needed("load_remote", [] { return run_turns<true>(); }, cluster_config());
    check_early();
    check_refusals();
    check_residency();
}

}  // namespace emulator_check
