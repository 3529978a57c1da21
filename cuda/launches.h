// What the drivers launch: products, sums and steps with the shapes of their grids; and the workspace they
// share out.
//
// Every launch goes through Launcher, whose twin without a workspace only measures: a driver written once
// says how much it needs and, given that, runs.
#pragma once

#include "cublas.h"
#include "kernels/table.h"
#include "runtime.h"

namespace fusedrnn::cuda {

// Pieces of the workspace, aligned to 256 bytes; null pointers while it is only measured.
class Arena {
  public:
    explicit Arena(void* base) : base_(static_cast<unsigned char*>(base)) {}
    void* take(std::int64_t bytes) {
        const std::int64_t at = used_;
        used_ += (bytes + 255) / 256 * 256;
        return base_ == nullptr ? nullptr : base_ + at;
    }
    std::int64_t used() const { return used_; }

  private:
    unsigned char* base_;
    std::int64_t used_ = 0;
};

// Multiply-adds of a step, times the bytes of a factor, from which on cuBLAS makes its product: where it was
// faster on an H200. A variable for tests.
inline std::int64_t least_library_step = 1'200'000'000;

// Called before every launch with the kernel's name and the form of a step's kernel, "" of others. For tests,
// which ask what has run; null otherwise.
using LaunchObserver = void (*)(Math math, const char* kernel, const char* form);
inline LaunchObserver launch_observer = nullptr;

// A matrix with rows `stride` elements apart.
struct Matrix {
    const void* data;
    std::int64_t stride;
};

struct Product {
    Layout layout;
    std::int64_t m, n, k;
    Matrix a, b;
    void* c;
    std::int64_t c_stride;
    const void* bias[2];
    bool accumulate;
};

class Launcher {
  public:
    Launcher(Math math, Stream stream)
        : entries_(kernel_entries(math)),
          math_(math),
          item_(storage_bytes(math)),
          compute_item_(compute_bytes(math)),
          stream_(stream),
          cublas_(math == Math::tf32x3 ? nullptr : Cublas::of_current_device()) {}

    const MathEntries& entries() const { return entries_; }
    Stream stream() const { return stream_; }

    // The shape's shared memory is the entry's.
    template <class Args>
    void start(const Entry<Args>& entry, Shape shape, const Args& args, const char* form = "") const {
        shape.shared_bytes += entry.shared_bytes;
        if (launch_observer != nullptr) launch_observer(math_, entry.name, form);
        launch(entry.kernel, shape, stream_, args);
    }

    // Bytes that a product with at most m rows works in, and sums of columns do.
    std::int64_t partial_bytes(std::int64_t m, std::int64_t n, std::int64_t k) const;
    std::int64_t column_bytes(std::int64_t m, std::int64_t n) const;
    // By cuBLAS, where there is one for it, or by our own kernel.
    void multiply(const Product& product, void* partial) const;
    // Whether the product of a step is worth a launch of its own, by cuBLAS: then it reads the weights once for
    // many rows, where blocks of a step's kernel read them again for every 32.
    bool multiplies_steps(const Dims& dims, std::int64_t gates, const Schedule& schedule) const;
    // Adds the sums of the columns of a (m, n), T, to those of `sums` that are not null.
    void add_column_sums(Matrix a, std::int64_t m, std::int64_t n, void* const (&sums)[2],
                         void* partial) const;
    void transpose(const void* from, std::int64_t m, std::int64_t n, void* to) const;
    void move_rows(const Entry<RowsArgs>& entry, const RowsArgs& args, std::int64_t steps) const;
    // y of step t from the cells' h, (position, H) of so many rows.
    void project(const ForwardProblem& problem, const void* hidden, std::int64_t t, const std::int64_t* order,
                 int rows) const;
    void output_gradient(const OutputGradientArgs& args, std::int64_t P) const;
    // Between arrays of n elements without gaps: to T, and dropout of T as csrc/layers/dropout.h does it.
    void round(const float* from, std::int64_t n, void* to) const;
    void dropout(const void* x, std::int64_t n, double p, std::uint64_t seed, std::uint64_t offset,
                 void* y) const;
    // The grid of kernels for which a warp takes a row of a step.
    Shape rows_shape(std::int64_t steps, std::int64_t batch) const;

    // Whether rows of k elements, the first at `data` and others at multiples of the strides, all start and
    // end at multiples of 16 bytes.
    bool is_vector(const void* data, std::int64_t k, std::int64_t stride,
                   std::int64_t other_stride = 0) const;

    // A step's kernel for so many positions and units, whose products have k terms.
    template <class Args>
    void step(const StepEntry<Args> (&forms)[kStepForms], const Args& args, bool vector,
              std::int64_t positions, std::int64_t units, std::int64_t k) const {
        if (positions == 0 || units == 0) return;
        StepForm form = vector ? StepForm::vector : StepForm::any;
        int columns = 8;
        // A block reads its units' weights once for all of its columns.
        if (vector && positions > 2 * columns && forms[static_cast<int>(StepForm::wide)].kernel != nullptr) {
            form = StepForm::wide;
            columns *= kWideTiles;
        }
        const int i = static_cast<int>(form);
        const int warps = step_warps(k, forms[i].least_warps, forms[i].most_warps);
        Shape shape;
        shape.grid_x = static_cast<int>((positions + columns - 1) / columns);
        shape.grid_y = static_cast<int>((units + 15) / 16);
        shape.block = 32 * warps;
        shape.shared_bytes = warps * forms[i].warp_bytes;
        start(forms[i], shape, args, kStepFormNames[i]);
    }

  private:
    struct Slices {
        std::int64_t size;
        int count;
    };
    void multiply_here(const Product& product, void* partial) const;
    // The sum of so many slices, or only the bias of none.
    void sum_slices(const Product& product, const void* partial, int slices) const;
    // Columns of a block that adds columns up: a piece of 16 bytes for each lane.
    std::int64_t column_tile() const { return 8 * entries_.chunk; }
    Slices slices(std::int64_t m, std::int64_t n, std::int64_t k) const;
    Slices column_slices(std::int64_t m, std::int64_t n) const;
    int step_warps(std::int64_t k, int least, int most) const;

    const MathEntries& entries_;
    Math math_;
    std::int64_t item_, compute_item_;
    Stream stream_;
    Cublas* cublas_;
};

// The schedule on the device and what of it matters to the host.
class ScheduleCopy {
  public:
    ScheduleCopy(const Dims& dims, const Schedule& schedule, Arena& arena);
    // Copies what `device` points to.
    void send(Stream stream) const;

    // Whether all rows are T long, so that they stay where they are and need no copy.
    bool uniform() const { return uniform_; }
    // Steps that any row has.
    std::int64_t longest() const { return longest_; }
    std::int64_t active(std::int64_t t) const { return t >= device.T ? 0 : host_.active[t]; }
    std::int64_t offset(std::int64_t t) const { return t * device.B == 0 ? 0 : host_.offset[t]; }
    std::int64_t rows() const { return offset(device.T); }
    TimeStep time_step(std::int64_t t) const { return {t, active(t + 1)}; }

    DeviceSchedule device;

  private:
    Schedule host_;
    bool uniform_;
    std::int64_t longest_;
    void* block_;
};

// The stride of the rows of all steps one after another, or 0 where they are no such matrix.
inline std::int64_t matrix_stride(const ScheduleCopy& schedule, std::int64_t t_stride,
                                  std::int64_t b_stride) {
    if (!schedule.uniform()) return 0;
    if (schedule.device.B == 1) return t_stride;
    return schedule.device.T == 1 || t_stride == schedule.device.B * b_stride ? b_stride : 0;
}

inline const void* offset_bytes(const void* p, std::int64_t bytes) {
    return p == nullptr ? nullptr : static_cast<const char*>(p) + bytes;
}
inline void* offset_bytes(void* p, std::int64_t bytes) {
    return p == nullptr ? nullptr : static_cast<char*>(p) + bytes;
}

// Throws std::invalid_argument for what the kernels do not do.
void check_problem(const CellTraits& cell, const Dims& dims);

}  // namespace fusedrnn::cuda
