// The kernels that run all steps in one launch: against the reference, within and beyond what fits on the
// device, and with what orders their exchange left out.
#include "kernel_check.h"
#include "persistent.h"

namespace cuda_check {

using namespace fusedrnn::cuda;
using fusedrnn::Dims;

namespace {

CellCase persistent_case(int math, const DeviceCell& cell, const Dims& d, std::int64_t counter,
                         int processors) {
    CellCase c{static_cast<Math>(math), &cell, d, counter, false, "persistent"};
    c.config.resident_blocks = processors;
    return c;
}

void check_results(Report& report) {
    std::int64_t counter = 100000;
    for (int m = 0; m < kMathCount; ++m) {
        if (persistent_entries(static_cast<Math>(m)) == nullptr) continue;
        for (const DeviceCell& c : device_cells()) {
            const auto run = [&](std::int64_t T, std::int64_t B, std::int64_t H, int processors) {
                ++counter;
                if (!report.next()) return;
                run_case(persistent_case(m, c, {T, B, 5, H, H, 0, false}, counter, processors), report);
            };
            for (const std::int64_t H : {1, 7, 16, 17, 33}) {
                for (const std::int64_t T : {1, 4}) {
                    run(T, 1, H, 16);
                    run(T, 9, H, 16);  // two groups
                    run(T, 9, H, 3);   // two tiles of columns, or two groups
                }
            }
            run(0, 3, 17, 16);
            run(3, 0, 17, 16);
            run(3, 20, 33, 4);   // more cells than threads
            run(2, 19, 33, 16);  // three groups
            run(3, 2, 80, 5);    // several chunks of K for each warp
            run(2, 3, 144, 9);
        }
    }
    if (!report.next_always()) return;
    run_case(persistent_case(static_cast<int>(Math::bf16), device_cell("rnn_tanh"),
                             {2, 2, 5, 272, 272, 0, false}, 5, 17),
             report);
}

// A forward by one kernel can be followed by a backward by the other.
void check_mixtures(Report& report) {
    for (const DeviceCell& cell : device_cells()) {
        for (std::int64_t counter = 1; counter <= 4; ++counter) {
            if (!report.next_always()) continue;
            CellCase c =
                persistent_case(static_cast<int>(Math::bf16), cell, {4, 9, 5, 17, 17, 0, false}, counter, 16);
            const char* const forward = counter % 2 == 0 ? "step" : "persistent";
            c.backward = counter % 2 == 0 ? "persistent" : "step";
            c.kernel = forward;
            run_case(c, report);
        }
    }
}

// ---- what fits -----------------------------------------------------------------------------------------

std::string reason(int processors, std::int64_t H, std::int64_t B, Math math = Math::bf16,
                   const DeviceCell* cell = &device_cell("lstm")) {
    return reason_against_persistent({cell, math, {10, B, 5, H, H, 0, false}, 90, processors, true});
}

void expect(Report& report, bool good, const std::string& what) {
    if (!good) report.fail(what, 0);
}

void check_budget(Report& report) {
    report.begin(Math::bf16, "what fits of the persistent kernels");
    const auto is = [&](const std::string& got, const std::string& want) {
        expect(report, got == want, "expected '" + want + "', got '" + got + "'");
    };
    is(reason(132, 1024, 64), "");
    is(reason(132, 1024, 65),
       "B: expected at most 64 (groups of 64 blocks on 132 multiprocessors: 2), got 65");
    is(reason(108, 1024, 32), "");
    is(reason(108, 1024, 33),
       "B: expected at most 32 (groups of 64 blocks on 108 multiprocessors: 1), got 33");
    is(reason(132, 1025, 1), "H: expected at most 1024, whose weights fit into registers, got 1025");
    is(reason(132, 513, 1, Math::tf32), "H: expected at most 512, whose weights fit into registers, got 513");
    is(reason(40, 656, 1), "H: expected at most 640, 16 for each of the 40 multiprocessors, got 656");
    is(reason(132, 256, 256), "");
    is(reason(132, 1280, 32, Math::fp16, &device_cell("gru")), "");
    is(reason(132, 1536, 16, Math::fp16, &device_cell("gru")), "");
    is(reason(132, 1536, 17, Math::fp16, &device_cell("gru")),
       "B: expected at most 16, beside whose cells the weights of H 1536 fit into registers, got 17");
    is(reason(132, 2048, 32, Math::fp16, &device_cell("rnn_tanh")), "");
    is(reason(132, 256, 1, Math::tf32x3), "");
    for (int processors = 1; processors < 200; processors += 7) {
        for (std::int64_t H = 1; H < 1100; H += 77) {
            for (std::int64_t B = 1; B < 140; B += 13) {
                for (const bool backward : {false, true}) {
                    const Request request{&device_cell("gru"), Math::bf16, {10, B, 5, H, H, 0, false}, 90,
                                          processors,          backward};
                    if (!reason_against_persistent(request).empty()) continue;
                    const PersistentShape s = plan_persistent(request).shape;
                    const bool covered = 16 * s.tiles >= H && s.columns * s.groups >= B &&
                                         s.columns % 8 == 0 && s.share * s.warps >= s.chunks;
                    const bool fits = s.tiles * s.groups <= processors && s.warps <= kPersistentWarps;
                    if (covered && fits) continue;
                    report.fail("H " + std::to_string(H) + ", B " + std::to_string(B) + " on " +
                                    std::to_string(processors),
                                0);
                }
            }
        }
    }
}

// A launch that is one block too large for the device is refused; where nobody refuses it, it never ends.
void check_too_large(Report& report) {
    report.begin(Math::bf16, "a persistent launch of more blocks than are resident");
    const DeviceCell& cell = device_cell("rnn_tanh");
    const Dims d{2, 1, 5, 48, 48, 0, false};
    const PersistentPlan plan = plan_persistent({&cell, Math::bf16, d, 80, 3, false});
    const auto& entry = cell.persistent[static_cast<int>(Math::bf16)]->forward[plan.form];
    const DeviceArray w_hh(Kind::bf16, 48, 48), gx(Kind::f32, 2, 48), y(Kind::bf16, 2, 48);
    const DeviceBlock exchange(4096);
    for (const int processors : {3, 2}) {
        for (const bool cooperative : {true, false}) {
            emulator::Config config;
            config.resident_blocks = processors;
            emulator::set_config(config);
            fill(exchange.data(), 0xff, 4096, nullptr);
            PersistentForwardArgs args{};
            args.shape = plan.shape;
            args.exchange = exchange.data();
            args.w_hh = w_hh.data();
            args.source.H = args.source.P = 48, args.source.B = 1;
            args.schedule.T = 2, args.schedule.B = 1;
            args.count = 2;
            args.gx = gx.data();
            args.y = {y.data(), 48, 48};
            Shape shape;
            shape.grid_x = plan.shape.tiles;
            shape.block = 32 * plan.shape.warps;
            shape.shared_bytes = persistent_shared_bytes(entry, plan.shape);
            shape.cooperative = cooperative;
            std::string error;
            try {
                launch(entry.kernel, shape, nullptr, args);
            } catch (const Error& e) {
                error = e.what();
            }
            const char* const want = processors == 3 ? "" : cooperative ? "cooperative launch" : "deadlock";
            expect(report, *want == '\0' ? error.empty() : error.find(want) != std::string::npos,
                   std::string("expected '") + want + "', got '" + error + "'");
        }
    }
}

// ---- what orders the exchange --------------------------------------------------------------------------

void check_exchange(Report& report) {
    // Several blocks, several warps, several chunks of K.
    const int math = static_cast<int>(Math::bf16);
    const CellCase c = persistent_case(math, device_cell("lstm"), {5, 2, 5, 80, 80, 0, false}, 31, 5);
    const auto run = [&](const emulator::Config& config) { return run_training(c, config); };
    check_omissions(c.math, c.config, "kernels/persistent_", run, report);
    check_omissions(c.math, c.config, "kernels/weights", run, report);
}

}  // namespace

void check_persistent(Report& report) {
    if (report.next_always()) check_budget(report);
    if (report.next_always()) check_too_large(report);
    check_results(report);
    check_mixtures(report);
    check_blocks(
        "blocks of steps",
        [](const DeviceCell& cell, std::int64_t counter) {
            return persistent_case(static_cast<int>(Math::fp16), cell, {5, 3, 5, 17, 17, 0, false}, counter,
                                   16);
        },
        report);
    check_exchange(report);
}

}  // namespace cuda_check
