// Checks that the emulator is as strict as it says: kernels that order their memory properly always pass, and
// each barrier, release, acquire, fence or wait that is left out of them is noticed for some seed.
#include <exception>

#include "check.h"

int main() {
    using namespace emulator_check;
    try {
        check_ordering();
        check_access();
        check_waiting();
        check_warp();
        check_clusters();
        check_numbers();
    } catch (const std::exception& error) {
        std::printf("FAILED with an exception nobody expected: %s\n", error.what());
        return 2;
    }
    std::printf("%d checks, %d failures\n", checks, failures);
    return failures == 0 ? 0 : 1;
}
