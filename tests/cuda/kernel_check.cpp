// Runs the CUDA kernels on the emulator, without Python or a GPU, and compares them with a slow reference.
//
//   cuda_kernel_check [N [PROCESSES]]
//
// N runs every N-th case only. The processes, as many as there are cores, share the cases. The exit status is 0
// only if all results are near to the reference.
#include "kernel_check.h"

#include <cstdlib>
#include <exception>

#include "shards.h"

namespace {

using cuda_check::Report;

void run(Report& report) {
    cuda_check::check_elements(report);
    cuda_check::check_products(report);
    cuda_check::check_cublas(report);
    cuda_check::check_graphs(report);
    cuda_check::check_cells(report);
    cuda_check::check_persistent(report);
    cuda_check::check_cluster(report);
    cuda_check::check_order(report);
}

}  // namespace

int main(int argc, char** argv) {
    const int every = argc >= 2 ? std::atoi(argv[1]) : 1;
    const int shards = argc == 3 ? std::atoi(argv[2]) : cuda_check::core_count();
    if (argc > 3 || every < 1 || shards < 1) {
        std::fprintf(stderr, "usage: cuda_kernel_check [N [PROCESSES]]\n");
        return 2;
    }
    const auto work = [=](int shard, std::FILE* result) {
        try {
            Report report(every, shard, shards);
            run(report);
            std::printf("process %d of %d: %d cases, %d failures\n", shard + 1, shards, report.cases(),
                        report.failures());
            report.save(result);
        } catch (const std::exception& error) {
            std::printf("FAILED with an exception nobody expected: %s\n", error.what());
            std::exit(2);
        }
    };
    Report report(every);
    const int broken = cuda_check::run_shards(shards, work, [&](std::FILE* file) { report.add(file); });
    if (every == 1) report.expect_all_ran();
    report.finish();
    if (broken > 0) std::printf("FAILED: %d of %d processes\n", broken, shards);
    return report.failures() == 0 && broken == 0 ? 0 : 1;
}
