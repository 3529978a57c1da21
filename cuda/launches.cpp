#include "launches.h"

#include <algorithm>

namespace fusedrnn::cuda {

namespace {

constexpr std::int64_t kGemmThreads = 256, kRowsThreads = 256;
// Blocks that fill the larger devices about twice. A constant, so that results do not depend on the device.
constexpr std::int64_t kManyBlocks = 264;
constexpr std::int64_t kLeastSliceChunks = 8;
constexpr std::int64_t kLeastSliceRows = 128;
constexpr std::int64_t kMostGridY = 65535;

std::int64_t tiles(std::int64_t n, std::int64_t tile) { return (n + tile - 1) / tile; }

// A thread takes an element, and further ones of many.
Shape elements_shape(std::int64_t n) {
    Shape shape;
    shape.grid_x = static_cast<int>(std::min(tiles(n, kRowsThreads), kMostGridY));
    shape.block = static_cast<int>(kRowsThreads);
    return shape;
}

}  // namespace

Launcher::Slices Launcher::slices(std::int64_t m, std::int64_t n, std::int64_t k) const {
    const std::int64_t blocks = tiles(m, entries_.gemm_tile) * tiles(n, entries_.gemm_tile);
    const std::int64_t chunks = std::max<std::int64_t>(1, tiles(k, entries_.chunk));
    const std::int64_t wanted =
        std::clamp<std::int64_t>(kManyBlocks / std::max<std::int64_t>(1, blocks), 1,
                                 std::max<std::int64_t>(1, chunks / kLeastSliceChunks));
    const std::int64_t size = tiles(chunks, wanted);
    return {size * entries_.chunk, static_cast<int>(tiles(chunks, size))};
}

// Fewer rows may be cut into more slices, but never into more blocks than are wanted.
std::int64_t Launcher::partial_bytes(std::int64_t m, std::int64_t n, std::int64_t k) const {
    const std::int64_t most = tiles(k, entries_.chunk) / kLeastSliceChunks, tile = entries_.gemm_tile;
    const std::int64_t bytes =
        most <= 1 ? 0 : std::min(most * m * n, kManyBlocks * tile * tile) * compute_item_;
    return cublas_ == nullptr ? bytes : std::max(bytes, cublas_->workspace_bytes());
}

void Launcher::multiply(const Product& p, void* partial) const {
    if (cublas_ == nullptr || !cublas_->takes(math_, p)) return multiply_here(p, partial);
    const bool biased = p.bias[0] != nullptr || p.bias[1] != nullptr;
    if (biased) sum_slices(p, nullptr, 0);
    if (launch_observer != nullptr) launch_observer(math_, "cublas", "");
    cublas_->multiply(math_, p, p.accumulate || biased, stream_, partial);
}

bool Launcher::multiplies_steps(const Dims& d, std::int64_t gates, const Schedule& schedule) const {
    const bool plain = d.T > 0 && d.B > 0 && schedule.active[d.T - 1] == d.B && schedule.resets == nullptr;
    return cublas_ != nullptr && plain && !d.projected && d.B * gates * d.H * item_ >= least_library_step;
}

void Launcher::multiply_here(const Product& p, void* partial) const {
    if (p.m == 0 || p.n == 0) return;
    const Slices cut = slices(p.m, p.n, p.k);
    const bool split = cut.count > 1;
    GemmArgs args{};
    args.a = p.a.data;
    args.b = p.b.data;
    args.c = p.c;
    args.m = p.m, args.n = p.n, args.k = p.k, args.slice = cut.size;
    args.lda = p.a.stride, args.ldb = p.b.stride, args.ldc = p.c_stride;
    std::copy_n(p.bias, 2, args.bias);
    args.partial = split ? partial : nullptr;
    args.accumulate = p.accumulate;
    args.vector_a = is_vector(p.a.data, 0, p.a.stride);
    args.vector_b = is_vector(p.b.data, 0, p.b.stride);
    const int layout = static_cast<int>(p.layout);
    Shape shape;
    shape.grid_x = static_cast<int>(tiles(p.m, entries_.gemm_tile));
    shape.grid_y = static_cast<int>(tiles(p.n, entries_.gemm_tile));
    shape.grid_z = cut.count;
    shape.block = static_cast<int>(kGemmThreads);
    start(entries_.gemm[layout], shape, args);
    if (split) sum_slices(p, partial, cut.count);
}

void Launcher::sum_slices(const Product& p, const void* partial, int slices) const {
    if (p.m == 0 || p.n == 0) return;
    const SumSlicesArgs args{partial, p.c,         {p.bias[0], p.bias[1]}, p.m, p.n, p.c_stride,
                             slices,  p.accumulate};
    Shape shape;
    shape.grid_x = static_cast<int>(p.m);
    shape.grid_y = static_cast<int>(tiles(p.n, kGemmThreads));
    shape.block = static_cast<int>(kGemmThreads);
    start(entries_.sum_slices[static_cast<int>(p.layout)], shape, args);
}

Launcher::Slices Launcher::column_slices(std::int64_t m, std::int64_t n) const {
    const std::int64_t wanted =
        std::clamp<std::int64_t>(kManyBlocks / std::max<std::int64_t>(1, tiles(n, column_tile())), 1,
                                 std::max<std::int64_t>(1, m / kLeastSliceRows));
    const std::int64_t size = std::max<std::int64_t>(1, tiles(m, wanted));
    return {size, static_cast<int>(std::max<std::int64_t>(1, tiles(m, size)))};
}

std::int64_t Launcher::column_bytes(std::int64_t m, std::int64_t n) const {
    return column_slices(m, n).count * n * compute_item_;
}

void Launcher::add_column_sums(Matrix a, std::int64_t m, std::int64_t n, void* const (&sums)[2],
                               void* partial) const {
    if (m == 0 || n == 0 || (sums[0] == nullptr && sums[1] == nullptr)) return;
    const Slices cut = column_slices(m, n);
    Shape shape;
    shape.grid_x = static_cast<int>(tiles(n, column_tile()));
    shape.grid_y = cut.count;
    shape.block = static_cast<int>(kRowsThreads);
    start(entries_.column_sums, shape,
          ColumnSumsArgs{a.data, partial, m, n, a.stride, cut.size, is_vector(a.data, n, a.stride)});
    for (void* sum : sums) {
        if (sum == nullptr) continue;
        const SumSlicesArgs args{partial, sum, {nullptr, nullptr}, 1, n, n, cut.count, true};
        Shape sum_shape;
        sum_shape.grid_y = static_cast<int>(tiles(n, kGemmThreads));
        sum_shape.block = static_cast<int>(kGemmThreads);
        start(entries_.sum_slices[static_cast<int>(Layout::kTN)], sum_shape, args);
    }
}

void Launcher::transpose(const void* from, std::int64_t m, std::int64_t n, void* to) const {
    Shape shape;
    shape.grid_x = static_cast<int>(tiles(m, 32));
    shape.grid_y = static_cast<int>(tiles(n, 32));
    shape.block = static_cast<int>(kRowsThreads);
    start(entries_.transpose, shape, TransposeArgs{from, to, m, n});
}

void Launcher::move_rows(const Entry<RowsArgs>& entry, const RowsArgs& args, std::int64_t steps) const {
    if (steps == 0 || args.schedule.B == 0 || args.n == 0) return;
    start(entry, rows_shape(steps, args.schedule.B), args);
}

void Launcher::project(const ForwardProblem& p, const void* hidden, std::int64_t t, const std::int64_t* order,
                       int rows) const {
    const Dims& d = p.dims;
    ProjectArgs args{};
    args.w = p.weights.w_hr;
    args.rows = hidden;
    args.out = offset_bytes(p.y.data, t * p.y.t_stride * item_);
    args.out_stride = p.y.b_stride;
    args.order = order;
    args.m = static_cast<int>(d.P), args.k = static_cast<int>(d.H);
    args.count = rows;
    step(entries_.project, args, is_vector(args.w, d.H, d.H) && is_vector(hidden, d.H, d.H), rows, d.P, d.H);
}

void Launcher::output_gradient(const OutputGradientArgs& args, std::int64_t P) const {
    const bool vector = is_vector(args.w_hh_t, args.k, args.k) && is_vector(args.dgh, args.k, args.k);
    step(entries_.output_gradient, args, vector, std::max(args.rows, args.later_rows), P, args.k);
}

void Launcher::round(const float* from, std::int64_t n, void* to) const {
    if (n > 0) start(entries_.round, elements_shape(n), RoundArgs{from, to, n});
}

void Launcher::dropout(const void* x, std::int64_t n, double p, std::uint64_t seed, std::uint64_t offset,
                       void* y) const {
    if (n == 0) return;
    const auto threshold = static_cast<std::uint64_t>(p * 4294967296.0 + 0.5);
    const double scale = 1.0 / (p < 1.0 ? 1.0 - p : 1.0);
    start(entries_.dropout, elements_shape(tiles(n, 4)),
          DropoutArgs{x, y, n, threshold, seed, offset, scale});
}

Shape Launcher::rows_shape(std::int64_t steps, std::int64_t batch) const {
    Shape shape;
    shape.grid_x = static_cast<int>(steps);
    shape.grid_y = static_cast<int>(std::min(tiles(batch, kRowsThreads / 32), kMostGridY));
    shape.block = static_cast<int>(kRowsThreads);
    return shape;
}

bool Launcher::is_vector(const void* data, std::int64_t k, std::int64_t stride,
                         std::int64_t other_stride) const {
    const auto address = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data));
    return (address | k * item_ | stride * item_ | other_stride * item_) % 16 == 0;
}

// Two chunks of K a warp at least: so many are on their way at the same time.
int Launcher::step_warps(std::int64_t k, int least, int most) const {
    const std::int64_t wanted = tiles(k, 2 * entries_.chunk);
    return static_cast<int>(std::clamp<std::int64_t>(wanted, least, most));
}

ScheduleCopy::ScheduleCopy(const Dims& dims, const Schedule& schedule, Arena& arena)
    : device{}, host_(schedule), uniform_(true), longest_(0), block_(nullptr) {
    device.T = dims.T;
    device.B = dims.B;
    if (dims.T == 0 || dims.B == 0) return;
    longest_ = schedule.length[0];
    uniform_ = schedule.active[dims.T - 1] == dims.B;
    if (uniform_) return;
    block_ = arena.take(2 * (dims.B + dims.T + 1) * std::int64_t{sizeof(std::int64_t)});
    if (block_ == nullptr) return;
    std::int64_t* p = static_cast<std::int64_t*>(block_);
    device.order = p;
    device.length = p += dims.B;
    device.active = p += dims.B;
    device.offset = p += dims.T + 1;
}

void ScheduleCopy::send(Stream stream) const {
    if (uniform_) return;
    const auto send_one = [&](const std::int64_t* to, const std::int64_t* from, std::int64_t n) {
        copy(const_cast<std::int64_t*>(to), from, static_cast<std::size_t>(n) * sizeof *from, stream);
    };
    send_one(device.order, host_.order, device.B);
    send_one(device.length, host_.length, device.B);
    send_one(device.active, host_.active, device.T + 1);
    send_one(device.offset, host_.offset, device.T + 1);
}

void check_problem(const CellTraits& cell, const Dims& dims) {
    if (dims.projected && cell.direct_hidden) {
        throw std::invalid_argument(std::string("proj_size: expected 0 for ") + cell.name);
    }
}

}  // namespace fusedrnn::cuda
