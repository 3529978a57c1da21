// Threads that wait for what never comes, launches that cannot be.
#include "check.h"

namespace emulator_check {

namespace {

FUSEDRNN_KERNEL void barrier_of_some(int what) {
    const int thread = thread_index();
    if (what == 0 && thread == 40) return;           // ended before the barrier
    if (what == 1 && thread >= 32) block_barrier();  // the others end later
    if (what == 2) {
        if (thread < 7) {
            block_barrier();
        } else {
            block_barrier();
        }
    }
    if (what == 0) block_barrier();
}

FUSEDRNN_KERNEL void shuffle_of_some(int what) {
    const int thread = thread_index();
    if (what == 0 && thread == 3) return;
    if (what == 1) {
        if (lane() < 16) {
            shuffle(1.0f, 0);
        } else {
            shuffle(2.0f, 0);
        }
    } else if (what == 2) {
        if (lane() < 16) {
            warp_barrier();
        } else {
            shuffle(2.0f, 0);
        }
    } else if (what == 3) {
        if (lane() < 16) {
            block_barrier();
        } else {
            warp_barrier();
        }
    } else {
        shuffle(1.0f, what == 4 ? 32 : 0);
    }
}

// Waits until all blocks have come here.
FUSEDRNN_KERNEL void meet(unsigned* count) {
    if (thread_index() == 0) {
        add_release(count, 1);
        while (load_acquire(count) < static_cast<unsigned>(grid_size().x)) spin_pause();
    }
    block_barrier();
}

FUSEDRNN_KERNEL void wait_for_plain_store(unsigned* flag) {
    if (block_index().x == 0) {
        if (thread_index() == 0) store(flag, 1u);
        return;
    }
    while (load_relaxed(flag) == 0) spin_pause();
}

FUSEDRNN_KERNEL void wait_for_nothing(unsigned* flag, bool pause) {
    while (load_relaxed(flag) == 0) {
        if (pause) spin_pause();
    }
}

FUSEDRNN_KERNEL void trap_once() {
    if (block_index().x == 1 && block_index().y == 2 && thread_index() == 33) trap();
}

FUSEDRNN_KERNEL void visit(unsigned* visits) {
    const Int3 b = block_index(), n = grid_size();
    add_release(visits + ((b.z * n.y + b.y) * n.x + b.x) * block_threads() + thread_index(), 1);
}

void check_deadlocks() {
    emulator::Config config;
    config.resident_blocks = 3;
    emulator::set_config(config);
    Array<unsigned> flag(1, 0), three(1, 0);
    launch(&meet, Shape{.grid_x = 3, .block = 64, .cooperative = true}, nullptr, three.data());
    expect(three[0] == 3, "as many blocks as are resident meet");
    const auto too_many = [&](bool cooperative) {
        Array<unsigned> count(1, 0);
        launch(&meet, Shape{.grid_x = 4, .block = 64, .cooperative = cooperative}, nullptr, count.data());
    };
    expect_error("one block more than are resident",
                 "deadlock: 189 thread(s) wait in block_barrier at waiting.cpp:", [&] { too_many(false); });
    expect_error("one block more than are resident",
                 "3 thread(s) wait in spin_pause at waiting.cpp:", [&] { too_many(false); });
    expect_error("one block more than are resident", "1 block(s) have not started", [&] { too_many(false); });
    expect_error("a cooperative launch", "cooperative launch: expected up to 3 blocks",
                 [&] { too_many(true); });
    expect_error("a flag nobody sets", "deadlock: 32 thread(s) wait in spin_pause",
                 [&] { launch(&wait_for_nothing, Shape{}, nullptr, flag.data(), true); });
    config.max_turns = 10000;
    emulator::set_config(config);
    expect_error("a spin without a pause", "gave up after 10000",
                 [&] { launch(&wait_for_nothing, Shape{}, nullptr, flag.data(), false); });
    config = {};
    config.early_percent = 0;
    emulator::set_config(config);
    expect_error("a flag stored without release", "deadlock",
                 [&] { launch(&wait_for_plain_store, Shape{.grid_x = 2}, nullptr, flag.data()); });
}

void check_shapes() {
    Array<unsigned> visits(1);
    const auto attempt = [&](const Shape& shape) { launch(&visit, shape, nullptr, visits.data()); };
    expect_error("no block", "grid", [&] { attempt({.grid_x = 0}); });
    expect_error("a grid too high", "grid", [&] { attempt({.grid_y = 65536}); });
    expect_error("half a warp", "block: expected a multiple of 32", [&] { attempt({.block = 48}); });
    expect_error("too many threads", "block: expected", [&] { attempt({.block = 1056}); });
    expect_error("too much shared memory", "shared_bytes: expected",
                 [&] { attempt({.shared_bytes = 163 * 1024 + 1}); });
    expect_error("an impossible device", "there is one device", [] { set_device(1); });
    bool refused = false;
    try {
        allocate(static_cast<std::size_t>(-1), nullptr);
    } catch (const std::bad_alloc&) {
        refused = true;
    }
    expect(refused, "too much memory is a bad_alloc");
}

}  // namespace

void check_waiting() {
    for (std::uint64_t s = 1; s <= 10; ++s) {
        seed(s);
        for (int what = 0; what < 3; ++what) {
            expect_error("barrier of some threads " + std::to_string(what), "divergent barrier",
                         [=] { launch(&barrier_of_some, Shape{.block = 64}, nullptr, what); });
        }
        const char* parts[5] = {"ended", "divergent warp", "divergent warp", "deadlock", "expected a lane"};
        for (int what = 0; what < 5; ++what) {
            expect_error("shuffle of some lanes " + std::to_string(what), parts[what],
                         [=] { launch(&shuffle_of_some, Shape{.block = 64}, nullptr, what); });
        }
        expect(error_of([] { launch(&shuffle_of_some, Shape{.block = 64}, nullptr, 5); }).empty(),
               "a whole warp");
        expect_error("trap", "trap; block (1, 2, 0), thread 33, at waiting.cpp:", [] {
            launch(&trap_once, Shape{.grid_x = 2, .grid_y = 3, .block = 64}, nullptr);
        });
        // After an error everything works again; blocks that find no room at first run later.
        Array<unsigned> visits(3 * 4 * 5 * 96, 0);
        launch(&visit, Shape{.grid_x = 3, .grid_y = 4, .grid_z = 5, .block = 96}, nullptr, visits.data());
        bool once = true;
        for (int i = 0; i < visits.size(); ++i) once &= visits[i] == 1;
        expect(once, "every thread of every block runs once");
    }
    check_deadlocks();
    seed(1);
    check_shapes();
}

}  // namespace emulator_check
