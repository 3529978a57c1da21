// What threads see of each other's memory, and which accesses are refused.
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>

#include "check.h"

namespace emulator_check {

namespace {

constexpr int kBlocks = 4, kThreads = 64, kRounds = 4;

unsigned value(int round, int block, int thread) {
    return static_cast<unsigned>(round * 10000 + block * 1000 + thread);
}

// ---- kernels that are right; each returns what it saw in out[block][round][thread] -----------------------

struct Ring {
    unsigned *slots, *flag, *out;  // slots: [2][block][thread]
};

enum class How { add_release, store_release, fences };

// Every block gives its values to the next one. Two slots: who writes one of them again knows that it was
// read.
template <How how>
FUSEDRNN_KERNEL void pass_messages(Ring ring) {
    const int block = block_index().x, blocks = grid_size().x, thread = thread_index();
    const int from = (block + blocks - 1) % blocks;
    for (int round = 0; round < kRounds; ++round) {
        unsigned* slot = ring.slots + round % 2 * blocks * kThreads;
        store(slot + block * kThreads + thread, value(round, block, thread));
        const auto target = static_cast<unsigned>(round + 1);
        if constexpr (how == How::fences) fence();
        block_barrier();
        if (thread == 0) {
            if constexpr (how == How::add_release) {
                add_release(ring.flag, 1);
                while (load_acquire(ring.flag) < target * static_cast<unsigned>(blocks)) spin_pause();
            } else if constexpr (how == How::store_release) {
                store_release(ring.flag + block, target);
                for (int other = 0; other < blocks; ++other) {
                    while (load_acquire(ring.flag + other) < target) spin_pause();
                }
            } else {
                store_relaxed(ring.flag + block, target);
                for (int other = 0; other < blocks; ++other) {
                    while (load_relaxed(ring.flag + other) < target) spin_pause();
                }
                fence();
            }
        }
        block_barrier();
        store(ring.out + (block * kRounds + round) * kThreads + thread,
              load(slot + from * kThreads + thread));
    }
}

// Threads of a block, lanes of a warp and a thread alone, through global memory.
FUSEDRNN_KERNEL void pass_in_block(Ring ring) {
    const int block = block_index().x, thread = thread_index();
    unsigned* slot = ring.slots + block * kThreads;
    for (int round = 0; round < kRounds; ++round) {
        store(slot + thread, value(round, block, thread));
        block_barrier();
        store(ring.out + (block * kRounds + round) * kThreads + thread, load(slot + kThreads - 1 - thread));
        block_barrier();
    }
}

FUSEDRNN_KERNEL void pass_in_warp(Ring ring) {
    const int block = block_index().x, thread = thread_index();
    unsigned* slot = ring.slots + block * kThreads;
    for (int round = 0; round < kRounds; ++round) {
        store(slot + thread, value(round, block, thread));
        warp_barrier();
        store(ring.out + (block * kRounds + round) * kThreads + thread, load(slot + (thread ^ 5)));
        warp_barrier();
    }
}

// Tiles come one ahead of their use; two buffers in shared memory.
FUSEDRNN_KERNEL void copy_tiles(Ring ring) {
    const int block = block_index().x, thread = thread_index();
    auto* tiles = shared_memory<unsigned>();
    const auto fetch = [&](int round) {
        if (thread < kThreads / 4) {
            cp_async16(tiles + round % 2 * kThreads + 4 * thread, ring.slots + round * kThreads + 4 * thread);
        }
        cp_async_commit();
    };
    fetch(0);
    for (int round = 0; round < kRounds; ++round) {
        if (round + 1 < kRounds) {
            fetch(round + 1);
            cp_async_wait<1>();
        } else {
            cp_async_wait<0>();
        }
        block_barrier();
        const unsigned v = tiles[round % 2 * kThreads + (thread + 7) % kThreads];
        store(ring.out + (block * kRounds + round) * kThreads + thread, v);
        block_barrier();
    }
}

// ---- running them ----------------------------------------------------------------------------------------

using Seen = std::function<unsigned(int round, int block, int thread)>;

bool run_ring(void (*kernel)(Ring), int blocks, const Seen& want) {
    Array<unsigned> slots(2 * kBlocks * kThreads), flag(kBlocks, 0), out(kBlocks * kRounds * kThreads);
    for (int i = 0; i < slots.size(); ++i) slots[i] = static_cast<unsigned>(i) * 3;
    launch(kernel, Shape{.grid_x = blocks, .block = kThreads, .shared_bytes = 2 * kThreads * 4}, nullptr,
           Ring{slots.data(), flag.data(), out.data()});
    bool good = true;
    for (int i = 0; i < blocks * kRounds * kThreads; ++i) {
        const int block = i / kThreads / kRounds, round = i / kThreads % kRounds, thread = i % kThreads;
        good &= out[i] == want(round, block, thread);
    }
    return good;
}

}  // namespace

bool is_noticed(const emulator::Omission& omission, const std::function<bool()>& run,
                emulator::Config config) {
    config.omit.push_back(omission);
    for (int s = 1; s <= kSeeds; ++s) {
        config.seed = static_cast<std::uint64_t>(s);
        emulator::set_config(config);
        try {
            if (!run()) return true;
        } catch (const Error&) {
            return true;
        }
    }
    return false;
}

void check_all_needed(const std::string& name, const std::function<bool()>& run, emulator::Config config) {
    std::vector<emulator::CallSite> sites;
    for (int s = 1; s <= kSeeds; ++s) {
        config.seed = static_cast<std::uint64_t>(s);
        emulator::set_config(config);
        expect(run(), name + ", seed " + std::to_string(s));
        sites = emulator::call_sites();
    }
    expect(!sites.empty(), name + ": call sites");
    for (const emulator::CallSite& site : sites) {
        expect(is_noticed({site.operation, site.file, site.line}, run, config),
               name + " without " + emulator::name(site.operation) + " of line " + std::to_string(site.line));
    }
}

void check_ordering() {
    const Seen previous = [](int round, int block, int thread) {
        return value(round, (block + kBlocks - 1) % kBlocks, thread);
    };
    check_all_needed("message by add_release",
                     [&] { return run_ring(&pass_messages<How::add_release>, kBlocks, previous); });
    const auto by_add = [&] { return run_ring(&pass_messages<How::add_release>, kBlocks, previous); };
    const auto without = [](int nth, const char* file) {
        return emulator::Omission{emulator::Operation::add_release, file, 0, nth};
    };
    expect(is_noticed(without(kRounds - 1, "memory.cpp"), by_add), "message without the last release");
    expect(!is_noticed(without(kRounds, "memory.cpp"), by_add),
           "message without a release that is not there");
    expect(!is_noticed(without(-1, "other.cpp"), by_add), "message without the releases of another file");
    check_all_needed("message by store_release",
                     [&] { return run_ring(&pass_messages<How::store_release>, kBlocks, previous); });
    check_all_needed("message by fences",
                     [&] { return run_ring(&pass_messages<How::fences>, kBlocks, previous); });
    check_all_needed("message in a block", [&] {
        return run_ring(&pass_in_block, 2, [](int round, int block, int thread) {
            return value(round, block, kThreads - 1 - thread);
        });
    });
    check_all_needed("message in a warp", [&] {
        return run_ring(&pass_in_warp, 2,
                        [](int round, int block, int thread) { return value(round, block, thread ^ 5); });
    });
    check_all_needed("tiles by cp_async16", [&] {
        return run_ring(&copy_tiles, 2, [](int round, int, int thread) {
            return static_cast<unsigned>(round * kThreads + (thread + 7) % kThreads) * 3;
        });
    });
}

// ---- single accesses -------------------------------------------------------------------------------------

namespace {

// What a thread wrote itself it reads back, whatever it and others ordered meanwhile.
FUSEDRNN_KERNEL void read_own(unsigned* x, unsigned* flag, unsigned* bad) {
    const int i = block_index().x * block_threads() + thread_index();
    for (unsigned n = 0; n < 20; ++n) {
        store(x + i, n);
        if (n % 3 == 0) add_release(flag, 1);
        if (n % 4 == 1) store_relaxed(x + i, n + 100);
        if (n % 5 == 2) block_barrier();
        const unsigned want = n % 4 == 1 ? n + 100 : n;
        if (load(x + i) != want || load_relaxed(x + i) != want) add_release(bad, 1);
    }
}

FUSEDRNN_KERNEL void race(unsigned* x) {
    store_relaxed(x, static_cast<unsigned>(block_index().x * block_threads() + thread_index()));
}

FUSEDRNN_KERNEL void access(const unsigned* p, unsigned* q, int what) {
    if (thread_index() != 5) return;
    if (what == 0) load(p);
    if (what == 1) load_constant(p);
    if (what == 2) store(q, 1u);
    if (what == 3) load16(p);
    if (what == 4) store_release(q, 1);
    if (what == 5) cp_async16(shared_memory<char>() + 8, p);
    if (what == 6) cp_async16(shared_memory<char>() + 1024, p);
    if (what == 7) cp_async16(shared_memory<char>(), p);
}

FUSEDRNN_KERNEL void write_constant(unsigned* p, bool store_first) {
    if (store_first) store(p, 1u);
    block_barrier();
    if (thread_index() == 3) load_constant(p);
    block_barrier();
    if (!store_first) store(p, 1u);
}

FUSEDRNN_KERNEL void write_shared(int at) { shared_memory<volatile char>()[at] = 1; }

FUSEDRNN_KERNEL void read_shared(float* out) {
    store(out + thread_index(), shared_memory<float>()[thread_index()]);
}

FUSEDRNN_KERNEL void copy_tail(const float* p, float* out, int bytes) {
    if (thread_index() == 0) {
        cp_async16(shared_memory<float>(), p, bytes);
        cp_async_commit();
        cp_async_wait<0>();
        for (int i = 0; i < 4; ++i) store(out + i, shared_memory<float>()[i]);
    }
}

// The seed alone decides who comes last, and every block and every thread may; also of blocks that run one by
// one.
void check_order() {
    for (int resident : {1, 4}) {
        unsigned blocks = 0, threads = 0;
        bool repeatable = true;
        for (int s = 1; s <= 300; ++s) {
            emulator::Config config;
            config.seed = static_cast<std::uint64_t>(s);
            config.resident_blocks = resident;
            unsigned last[2];
            for (unsigned& each : last) {
                Array<unsigned> x(1);
                emulator::set_config(config);
                launch(&race, Shape{.grid_x = 4}, nullptr, x.data());
                each = x[0];
            }
            repeatable &= last[0] == last[1];
            blocks |= 1u << (last[0] / 32);
            threads |= 1u << (last[0] % 32);
        }
        expect(repeatable, "the same seed is the same order");
        expect(blocks == 15, "every order of blocks comes with some seed");
        expect(threads == ~0u, "every order of threads comes with some seed");
    }
}

// AddressSanitizer ends the process where it sees it first.
bool is_reported(int byte) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        (void)!std::freopen("/dev/null", "w", stderr);
        const std::string error =
            error_of([=] { launch(&write_shared, Shape{.grid_x = 2, .shared_bytes = 100}, nullptr, byte); });
        _exit(error.empty() ? 0 : error.find("shared memory") != std::string::npos ? 1 : 0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status != 0;
}

void check_bounds() {
    Array<unsigned> a(8), b(8);
    const auto attempt = [&](int what, const unsigned* p, unsigned* q) {
        launch(&access, Shape{.shared_bytes = 1024}, nullptr, p, q, what);
    };
    const char* outside = "outside of all memory";
    expect_error("load past the end", outside, [&] { attempt(0, a.data() + 8, b.data()); });
    expect_error("load before the begin", outside, [&] { attempt(0, a.data() - 1, b.data()); });
    expect_error("load_constant past the end", outside, [&] { attempt(1, a.data() + 8, b.data()); });
    expect_error("store past the end", outside, [&] { attempt(2, a.data(), b.data() + 8); });
    expect_error("load16 past the end", outside, [&] { attempt(3, a.data() + 8, b.data()); });
    expect_error("store_release past the end", outside, [&] { attempt(4, a.data(), b.data() + 8); });
    expect_error("cp_async16 past the end", outside, [&] { attempt(7, a.data() + 8, b.data()); });
    expect_error("misaligned load16", "misaligned", [&] { attempt(3, a.data() + 1, b.data()); });
    expect_error("cp_async16 from a misaligned place", "misaligned",
                 [&] { attempt(7, a.data() + 1, b.data()); });
    expect_error("cp_async16 to a misaligned place", "misaligned", [&] { attempt(5, a.data(), b.data()); });
    expect_error("cp_async16 past shared memory", "outside of the shared memory",
                 [&] { attempt(6, a.data(), b.data()); });
    expect_error("place of an error",
                 "block (0, 0, 0), thread 5, at memory.cpp:", [&] { attempt(0, a.data() + 8, b.data()); });
    for (int what : {0, 1, 2, 3, 4, 7}) attempt(what, a.data(), b.data());

    auto* freed = static_cast<unsigned*>(allocate(64, nullptr));
    fusedrnn::cuda::free(freed, nullptr);
    expect_error("load of freed memory", outside, [&] { attempt(0, freed, b.data()); });
    expect_error("double free", "already free", [&] { fusedrnn::cuda::free(freed, nullptr); });
    std::vector<unsigned> host(8);
    expect_error("load of the host's memory", outside, [&] { attempt(0, host.data(), b.data()); });
    emulator::register_memory(host.data(), 32);
    attempt(0, host.data(), b.data());
    emulator::unregister_memory(host.data());

    expect(!is_reported(0) && !is_reported(99), "a write to shared memory");
    expect(is_reported(100) && is_reported(227) && is_reported(-1), "a write past shared memory");
}

}  // namespace

void check_access() {
    for (int s = 1; s <= kSeeds; ++s) {
        seed(static_cast<std::uint64_t>(s));
        Array<unsigned> x(4 * 64), flag(1, 0), bad(1, 0);
        launch(&read_own, Shape{.grid_x = 4, .block = 64}, nullptr, x.data(), flag.data(), bad.data());
        expect(bad[0] == 0 && flag[0] == 4 * 64 * 7, "own stores, seed " + std::to_string(s));
    }

    check_order();
    seed(1);
    check_bounds();
    Array<unsigned> x(4, 0);
    for (bool store_first : {false, true}) {
        expect_error("writing what load_constant reads", "load_constant",
                     [&] { launch(&write_constant, Shape{}, nullptr, x.data(), store_first); });
    }
    Array<float> out(32, 0), fresh(4), tail(4, 0);
    launch(&read_shared, Shape{.shared_bytes = 128}, nullptr, out.data());
    expect(std::isnan(out[0]) && std::isnan(out[31]) && std::isnan(fresh[3]),
           "memory nobody has written is NaN");
    tail[0] = tail[1] = tail[2] = tail[3] = 1;
    for (std::uint64_t s = 1; s <= 10; ++s) {
        seed(s);
        launch(&copy_tail, Shape{.shared_bytes = 16}, nullptr, tail.data(), out.data(), 12);
        expect(out[0] == 1 && out[2] == 1 && out[3] == 0, "cp_async16 of 12 bytes");
    }
    launch(&copy_tail, Shape{.shared_bytes = 16}, nullptr, static_cast<const float*>(nullptr), out.data(), 0);
    expect(out[0] == 0 && out[3] == 0, "cp_async16 of no bytes");
}

}  // namespace emulator_check
