// The kernels that run by clusters: against the reference, what fits, and with what orders their exchange
// left out.
#include "cluster.h"
#include "kernel_check.h"

namespace cuda_check {

using namespace fusedrnn::cuda;
using fusedrnn::Dims;

namespace {

CellCase cluster_case(Math math, const DeviceCell& cell, const Dims& d, std::int64_t counter,
                      int processors) {
    CellCase c{math, &cell, d, counter, false, "cluster"};
    c.config.resident_blocks = processors;
    c.config.architecture = 90;
    return c;
}

void check_results(Report& report) {
    std::int64_t counter = 300000;
    for (const Math math : {Math::tf32, Math::bf16, Math::fp16}) {
        for (const DeviceCell& cell : device_cells()) {
            const auto run = [&](std::int64_t T, std::int64_t B, std::int64_t H, int processors) {
                ++counter;
                if (!report.next()) return;
                run_case(cluster_case(math, cell, {T, B, 5, H, H, 0, false}, counter, processors), report);
            };
            for (const std::int64_t H : {1, 15, 16, 17, 40, 64}) {
                for (const std::int64_t T : {1, 2, 5}) {
                    run(T, 1, H, 16);
                    run(T, 9, H, 16);              // two clusters
                    run(T, 9, H, H > 48 ? 4 : 3);  // 16 columns, backward 32
                }
            }
            run(0, 3, 17, 16);
            run(3, 0, 17, 16);
            run(3, 20, 33, 4);  // 32 columns
            run(3, 40, 33, 3);  // clusters one after another
            run(4, 3, 80, 8);
            run(3, 2, 136, 8);                          // two tiles of a block, a cluster of 5
            if (math != Math::tf32) run(2, 2, 257, 8);  // three
        }
    }
    // Every kernel.
    for (const Math math : {Math::tf32, Math::bf16, Math::fp16}) {
        for (const DeviceCell& cell : device_cells()) {
            const auto run = [&](std::int64_t B, std::int64_t H) {
                ++counter;
                if (!report.next()) return;
                run_case(cluster_case(math, cell, {3, B, 5, H, H, 0, false}, counter, 8), report);
            };
            run(10, 130);
            run(20, 130);
            if (math != Math::tf32) run(5, 257);
        }
    }
}

// A forward by one kernel can be followed by a backward by the other.
void check_mixtures(Report& report) {
    for (const DeviceCell& cell : device_cells()) {
        for (std::int64_t counter = 1; counter <= 4; ++counter) {
            if (!report.next_always()) continue;
            CellCase c = cluster_case(Math::bf16, cell, {4, 9, 5, 17, 17, 0, false}, counter, 16);
            c.kernel = counter % 2 == 0 ? "persistent" : "cluster";
            c.backward = counter % 2 == 0 ? "cluster" : "step";
            run_case(c, report);
        }
    }
}

void check_plans(Report& report) {
    report.begin(Math::bf16, "what fits of the cluster kernels");
    bool backward = false;
    const auto request = [&](std::int64_t H, std::int64_t B, Math math, int architecture,
                             const DeviceCell* cell) {
        return Request{cell, math, {10, B, 5, H, H, 0, false}, architecture, 132, backward};
    };
    const auto is = [&](std::int64_t H, std::int64_t B, Math math, int architecture,
                        const std::string& want) {
        const std::string got =
            reason_against_cluster(request(H, B, math, architecture, &device_cell("lstm")));
        if (got != want) report.fail("expected '" + want + "', got '" + got + "'", 0);
    };
    for (const bool way : {true, false}) {
        backward = way;
        is(384, 1, Math::bf16, 90, "");
        is(256, 1000000, Math::tf32, 90, "");
    }
    is(385, 1, Math::fp16, 90, "H: expected at most 384, got 385");
    is(257, 1, Math::tf32, 90, "H: expected at most 256, got 257");
    is(0, 1, Math::bf16, 90, "H: expected at least 1, got 0");
    is(16, 1, Math::bf16, 89, "device: expected compute capability 90, got 89");
    is(16, 1, Math::bf16, 100, "device: expected compute capability 90, got 100");
    is(16, 1, Math::ieee, 90, "math: not implemented for ieee");
    is(384, 524281, Math::bf16, 90, "B: expected at most 524280, got 524281");
    const auto shape = [&](std::int64_t H, std::int64_t B, int blocks, int tiles, int form, int groups) {
        const ClusterPlan p = plan_cluster(request(H, B, Math::bf16, 90, &device_cell("gru")));
        if (p.blocks == blocks && p.tiles == tiles && p.form == form && p.groups == groups) return;
        report.fail("H " + std::to_string(H) + ", B " + std::to_string(B) + ": " + std::to_string(p.blocks) +
                        " blocks, " + std::to_string(p.tiles) + " tiles, form " + std::to_string(p.form) +
                        ", " + std::to_string(p.groups) + " groups",
                    0);
    };
    shape(1, 1, 2, 1, 0, 1);
    shape(128, 128, 8, 1, 0, 16);
    shape(129, 129, 5, 2, 0, 17);
    shape(256, 129, 8, 2, 1, 9);
    shape(256, 257, 8, 2, 2, 9);
    shape(256, 5000, 8, 2, 2, 157);
    shape(384, 5000, 8, 3, 0, 625);
    backward = true;  // which has no 16 columns
    shape(256, 128, 8, 2, 0, 16);
    shape(256, 129, 8, 2, 2, 5);
    shape(384, 5000, 8, 3, 0, 625);
}

// Whoever is ahead of whom: a thread one step ahead of another one of its block must leave what that reads.
void check_schedules(Report& report) {
    for (const bool forward : {true, false}) {
        for (const std::int64_t H : {40, 80}) {
            if (!report.next_always()) continue;
            CellCase c = cluster_case(Math::bf16, device_cell("lstm"), {5, 9, 5, H, H, 0, false}, 31, 16);
            c.kernel = forward ? "cluster" : "step";
            c.backward = forward ? "step" : "cluster";
            report.begin(c.math, std::string("clusters in any order, ") + (forward ? "forward" : "backward") +
                                     ", H " + std::to_string(H));
            const std::uint64_t want = training_digest(c, 1);
            for (std::uint64_t seed = 2; seed <= 8; ++seed) {
                if (training_digest(c, seed) != want) report.fail("seed " + std::to_string(seed), 0);
            }
        }
    }
}

// Each direction by itself: what one of them does not notice the other must not hide.
void check_exchange(Report& report) {
    for (const bool forward : {true, false}) {
        CellCase c = cluster_case(Math::bf16, device_cell("lstm"), {5, 2, 5, 40, 40, 0, false}, 31, 5);
        c.kernel = forward ? "cluster" : "step";
        c.backward = forward ? "step" : "cluster";
        const auto run = [&](const emulator::Config& config) { return run_training(c, config); };
        check_omissions(c.math, c.config, "kernels/cluster_", run, report);
        if (!forward) check_omissions(c.math, c.config, "kernels/weights", run, report);
    }
}

}  // namespace

void check_cluster(Report& report) {
    if (report.next_always()) check_plans(report);
    check_results(report);
    check_mixtures(report);
    check_blocks(
        "clusters, blocks of steps",
        [](const DeviceCell& cell, std::int64_t counter) {
            return cluster_case(Math::fp16, cell, {5, 3, 5, 17, 17, 0, false}, counter, 16);
        },
        report);
    check_schedules(report);
    check_exchange(report);
}

}  // namespace cuda_check
