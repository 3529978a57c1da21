// What every part of the CUDA kernel check needs: arrays on the device, numbers as the device stores them,
// and the report. The arrays of numbers, the reference and its problems are those of tests/native.
#pragma once

#include <cstdio>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "cells.h"
#include "emulator/config.h"
#include "launches.h"
#include "reference.h"

namespace cuda_check {

using fusedrnn::cuda::device_cell;
using fusedrnn::cuda::device_cells;
using fusedrnn::cuda::DeviceCell;
using fusedrnn::cuda::Math;
using kernel_check::Array;
using kernel_check::Digest;
using kernel_check::Random;

inline bool projects(const fusedrnn::CellTraits& cell) {
    const int place = cell.place(fusedrnn::Role::kProjection);
    return place >= 0 && cell.parameters[place].need != fusedrnn::Need::kRefused;
}

// How numbers are stored.
enum class Kind { f32, f64, bf16, fp16 };
Kind storage_kind(Math math);
Kind compute_kind(Math math);
// The nearest number of a kind, ties to even.
double round_to(Kind kind, double x);

// Rows of numbers on the device, all bytes 0xFF until they are written, with more of these before, between
// and after the rows.
class DeviceArray {
  public:
    DeviceArray() = default;
    // `lead`: elements before the first row. With 0 and no gap, rows of a suitable width start at multiples
    // of 16 bytes.
    DeviceArray(Kind kind, std::int64_t rows, std::int64_t width, std::int64_t gap = 0,
                std::int64_t lead = 0);
    // A copy of an array, or nothing where that is not given.
    DeviceArray(Kind kind, const Array<double>& from, std::int64_t gap = 0, std::int64_t lead = 0);
    DeviceArray(DeviceArray&& other) noexcept { *this = std::move(other); }
    DeviceArray& operator=(DeviceArray&& other) noexcept;
    ~DeviceArray();

    void* data() const;  // null where there is no array
    std::int64_t stride() const { return stride_; }
    std::int64_t rows() const { return rows_; }
    Array<double> download() const;
    // Whether everything outside of the rows is as it was.
    bool intact() const;
    void add_to(Digest& digest) const;

  private:
    bool is_row(std::int64_t element) const;

    Kind kind_ = Kind::f32;
    std::int64_t rows_ = 0, width_ = 0, stride_ = 0, lead_ = 0, elements_ = 0;
    unsigned char* bytes_ = nullptr;
};

// Memory of the device without anything in it.
class DeviceBlock {
  public:
    explicit DeviceBlock(std::int64_t bytes);
    ~DeviceBlock();
    DeviceBlock(const DeviceBlock&) = delete;
    void* data() const { return data_; }

  private:
    void* data_;
};

// Relative errors that a mode may have in these short problems: of outputs and states, and of gradients.
struct Tolerance {
    double forward, gradient;
};
Tolerance tolerance(Math math);

// Of one process, which runs every `shards`-th case from `shard`, or of all of them together.
class Report {
  public:
    explicit Report(int every, int shard = 0, int shards = 1)
        : every_(every), shard_(shard), shards_(shards) {}

    // Whether to run the next case.
    bool next() { return seen_++ % every_ == 0 && next_always(); }
    // The same for a case that no choice of cases leaves out.
    bool next_always() { return turn_++ % shards_ == shard_; }
    void begin(Math math, const std::string& name);
    void fail(const std::string& what, double error);
    // ||got - want|| / max(||want||, sqrt(n * terms / 3)) is within the tolerance and nothing was written
    // around it. Each number is a sum of `terms` numbers drawn from [-1, 1], and rounding is relative to
    // these: where they happen to cancel, and few numbers are there to make up for it, the sum is not held
    // to its own size but to what such sums have on average.
    void compare(const char* what, const DeviceArray& got, const Array<double>& want, bool gradient,
                 std::int64_t terms = 1);
    // No kernel is left that has not run in any case.
    void expect_all_ran();
    // Adds a report that another process has saved.
    void save(std::FILE* file) const;
    void add(std::FILE* file);
    // Prints which kernels ran in which mode, the largest errors, and the failures.
    void finish() const;

    int cases() const { return cases_; }
    int failures() const { return failures_; }

  private:
    int every_, shard_, shards_, cases_ = 0, failures_ = 0;
    std::int64_t seen_ = 0, turn_ = 0;
    Math math_ = Math::ieee;
    std::string name_;
    double worst_[fusedrnn::cuda::kMathCount][2] = {};
};

// How a case of a cell is run: its options and numbers by a counter, by which row of the kernel table, on what
// device, and what the kernels leave out.
struct CellCase {
    Math math;
    const DeviceCell* cell;
    fusedrnn::Dims dims;
    std::int64_t counter;
    bool plain = false;  // rows as long as the sequence, at multiples of 16 bytes where sizes allow it
    const char* kernel = "step";
    const char* backward = nullptr;  // of another row; null: of the same
    fusedrnn::cuda::emulator::Config config = {};
};
// Forward and backward against the reference, twice for some counters, and inference against that.
void run_case(const CellCase& c, Report& report);
// Of the results of forward and backward with this seed.
std::uint64_t training_digest(const CellCase& c, std::uint64_t seed);
// That on a device, or what went wrong.
std::string run_training(CellCase c, const fusedrnn::cuda::emulator::Config& config);
// Blocks of steps that follow each other: the results are those of one block. `make` gives the case of a counter.
void check_blocks(const std::string& name, CellCase (*make)(const DeviceCell&, std::int64_t counter),
                  Report& report);

// One layer with everything in it, in a mode: a digest of its results, or what went wrong.
std::string run_layer(Math math, const fusedrnn::cuda::emulator::Config& config);

// Leaves out the barriers and waits one after another that files with `files` in their names call: what run
// returns, a digest of results or what went wrong, has to show it. Each of them is a case.
using LayerRun = std::function<std::string(const fusedrnn::cuda::emulator::Config&)>;
void check_omissions(Math math, const fusedrnn::cuda::emulator::Config& config, const char* files,
                     const LayerRun& run, Report& report);

void check_elements(Report& report);
void check_products(Report& report);
void check_cublas(Report& report);
void check_graphs(Report& report);
void check_cells(Report& report);
void check_persistent(Report& report);
void check_cluster(Report& report);
void check_order(Report& report);

}  // namespace cuda_check
