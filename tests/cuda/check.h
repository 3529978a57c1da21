// What the checks of the emulator share: memory of the device, errors, seeds.
#pragma once

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "device/device.h"
#include "runtime.h"

namespace emulator_check {

using namespace fusedrnn::cuda;

inline int checks = 0, failures = 0;

inline void expect(bool good, const std::string& what) {
    ++checks;
    if (good) return;
    ++failures;
    std::printf("FAILED %s\n", what.c_str());
}

// An array in the device's memory, poisoned or filled with one byte.
template <class T>
class Array {
  public:
    explicit Array(int n, int byte = -1)
        : n_(n), data_(static_cast<T*>(allocate(sizeof(T) * bytes(n), nullptr))) {
        if (byte >= 0) fill(data_, byte, sizeof(T) * bytes(n), nullptr);
    }
    explicit Array(const std::vector<T>& values) : Array(static_cast<int>(values.size())) {
        copy(data_, values.data(), sizeof(T) * values.size(), nullptr);
    }
    ~Array() { fusedrnn::cuda::free(data_, nullptr); }
    Array(const Array&) = delete;
    Array& operator=(const Array&) = delete;
    T* data() { return data_; }
    T& operator[](int i) { return data_[i]; }
    int size() const { return n_; }

  private:
    static std::size_t bytes(int n) { return static_cast<std::size_t>(n); }
    int n_;
    T* data_;
};

inline void seed(std::uint64_t value) {
    emulator::Config config;
    config.seed = value;
    emulator::set_config(config);
}

// The text of the Error that run() throws; empty where it throws none.
inline std::string error_of(const std::function<void()>& run) {
    try {
        run();
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

inline void expect_error(const std::string& what, const std::string& part, const std::function<void()>& run) {
    const std::string got = error_of(run);
    expect(got.find(part) != std::string::npos,
           what + ": expected an error with '" + part + "', got '" + got + "'");
}

inline constexpr int kSeeds = 30;

// Whether run() is false, or fails, for some seed without the operation.
bool is_noticed(const emulator::Omission& omission, const std::function<bool()>& run,
                emulator::Config config = {});
// Right for every seed; wrong for some seed without any one of the calls that order it.
void check_all_needed(const std::string& name, const std::function<bool()>& run,
                      emulator::Config config = {});

void check_ordering();  // memory.cpp
void check_access();
void check_waiting();   // waiting.cpp
void check_warp();      // warp.cpp
void check_clusters();  // cluster.cpp
void check_numbers();   // numbers.cpp

}  // namespace emulator_check
