// Forward and backward of every cell in every mode against the reference, at sizes around the tiles; and
// layers without what orders their threads.
#include "kernel_check.h"

namespace cuda_check {

using fusedrnn::Dims;
using namespace fusedrnn::cuda;

void check_omissions(Math math, const emulator::Config& config, const char* files, const LayerRun& run,
                     Report& report) {
    constexpr std::uint64_t kSeeds = 8;
    const std::string right = run(config);
    int count = 0;
    for (const emulator::CallSite& site : std::vector(emulator::call_sites())) {
        if (site.file.find(files) == std::string::npos) continue;
        ++count;
        if (!report.next_always()) continue;
        report.begin(math, std::string("without ") + emulator::name(site.operation) + " at " +
                               site.file.substr(site.file.rfind('/') + 1) + ":" + std::to_string(site.line));
        bool noticed = false;
        for (std::uint64_t seed = 1; seed <= kSeeds && !noticed; ++seed) {
            emulator::Config without = config;
            without.seed = seed;
            without.omit = {{site.operation, site.file, site.line, -1}};
            noticed = run(without) != right;
        }
        if (!noticed) report.fail("nothing shows", 0);
    }
    if (!report.next_always()) return;
    const std::string name = std::string("barriers and waits of kernels, ") + files;
    report.begin(math, name);
    if (count == 0) report.fail("none was seen", 0);
    std::printf("%s %s: %d are needed\n", kMathNames[static_cast<int>(math)], name.c_str(), count);
}

void check_order(Report& report) {
    for (const Math math : {Math::ieee, Math::bf16}) {
        emulator::Config config;
        config.poison = false;  // a pointer that is read too early is null
        check_omissions(math, config, "", [math](const auto& c) { return run_layer(math, c); }, report);
    }
}

void check_cells(Report& report) {
    std::int64_t counter = 0;
    for (int m = 0; m < kMathCount; ++m) {
        for (const DeviceCell& c : device_cells()) {
            // `plain`: all rows as long as the sequence and at multiples of 16 bytes, where the sizes allow
            // it.
            const auto run = [&](const Dims& d, bool plain = false) {
                ++counter;
                if (report.next()) run_case({static_cast<Math>(m), &c, d, counter, plain}, report);
            };
            for (const std::int64_t H : {1, 7, 16, 17, 33}) {
                for (const std::int64_t B : {1, 3, 9}) {
                    for (const std::int64_t T : {1, 3, 5}) {
                        if (B == 3 && T == 3) continue;
                        // One of the sizes of the input in turn.
                        const std::int64_t I = (H + B + T) % 3 == 0 ? 1 : (H + B + T) % 3 == 1 ? 5 : 20;
                        run({T, B, I, H, H, 0, false});
                        if (projects(c)) run({T, B, 5, H, (H + 1) / 2, 0, true});
                    }
                }
            }
            // Nothing of something.
            run({0, 3, 5, 17, 17, 0, false});
            run({3, 0, 5, 17, 17, 0, false});
            run({3, 3, 0, 17, 17, 0, false});
            // Blocks of more columns, several chunks of K for each warp, rows of whole pieces.
            run({2, 19, 8, 48, 48, 0, false}, true);
            run({3, 20, 8, 16, 16, 0, false}, true);
            run({3, 40, 8, 16, 16, 0, false});
            if (projects(c)) run({2, 18, 8, 48, 32, 0, true}, true);
        }
    }
}

}  // namespace cuda_check
