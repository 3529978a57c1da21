#include "inputs.h"

#include <algorithm>

namespace fusedrnn::cuda {

namespace {

constexpr std::int64_t kIndexBytes = sizeof(std::int64_t);

void send_indices(void* to, const std::int64_t* from, std::int64_t n, Stream stream) {
    copy(to, from, static_cast<std::size_t>(n * kIndexBytes), stream);
}

}  // namespace

std::int64_t input_block_steps(const Dims& dims, std::int64_t gates, Math math) {
    const std::int64_t step_bytes = std::max<std::int64_t>(1, dims.B * gates * compute_bytes(math));
    return std::clamp<std::int64_t>(input_block_bytes / step_bytes, 1, std::max<std::int64_t>(1, dims.T));
}

Inputs::Inputs(const InputProblem& problem, std::int64_t steps, bool projects, const Launcher& launcher,
               const ScheduleCopy& schedule, Arena& arena)
    : p_(problem),
      launcher_(launcher),
      schedule_(schedule),
      traits_(*problem.cell),
      item_(storage_bytes(problem.math)),
      gates_(traits_.gates * problem.dims.H),
      stride_(problem.dims.V > 0 ? 0 : matrix_stride(schedule, problem.x.t_stride, problem.x.b_stride)),
      // A larger table would be more rows to multiply than are saved.
      by_table_(problem.dims.V > 0 && 2 * problem.dims.V <= schedule.rows()),
      rows_(arena.take(by_table_ || stride_ != 0
                           ? 0
                           : std::min(steps * problem.dims.B, schedule.rows()) * problem.dims.I * item_)),
      index_(arena.take(problem.dims.V > 0 ? problem.dims.T * problem.dims.B * kIndexBytes : 0)),
      table_gates_(by_table_ && projects ? arena.take(problem.dims.V * gates_ * compute_bytes(problem.math))
                                         : nullptr) {}

std::int64_t Inputs::partial_bytes(std::int64_t steps) const {
    return launcher_.partial_bytes(by_table_ ? p_.dims.V : steps * p_.dims.B, gates_, p_.dims.I);
}

void Inputs::prepare(void* partial) const {
    if (p_.dims.V > 0) {
        send_indices(index_, p_.lookups.index, p_.dims.T * p_.dims.B, launcher_.stream());
    }
    if (table_gates_ != nullptr) multiply(all(), p_.dims.V, table_gates_, partial);
}

void Inputs::look_up(const Entry<LookupArgs>& entry, Matrix from, std::int64_t n, std::int64_t first,
                     std::int64_t count, void* to) const {
    if (count == 0 || p_.dims.B == 0) return;
    const LookupArgs args{
        schedule_.device, first, static_cast<const std::int64_t*>(index_), from.data, from.stride, to, n};
    launcher_.start(entry, launcher_.rows_shape(count, p_.dims.B), args);
}

Matrix Inputs::rows(std::int64_t first, std::int64_t count) const {
    const std::int64_t I = p_.dims.I;
    if (stride_ != 0) return {offset_bytes(p_.x.data, first * p_.x.t_stride * item_), stride_};
    const MathEntries& entries = launcher_.entries();
    if (p_.dims.V > 0) {
        look_up(entries.look_up_inputs, {p_.x.data, p_.x.b_stride}, I, first, count, rows_);
        return {rows_, I};
    }
    RowsArgs args{};
    args.schedule = schedule_.device;
    args.first = first;
    args.from = p_.x;
    args.compact = rows_;
    args.n = I;
    launcher_.move_rows(entries.gather_rows, args, count);
    return {rows_, I};
}

Matrix Inputs::all() const {
    return by_table_ ? Matrix{p_.x.data, p_.x.b_stride} : rows(0, schedule_.longest());
}

void Inputs::project(std::int64_t first, std::int64_t count, void* gx, void* partial) const {
    if (by_table_) {
        look_up(launcher_.entries().look_up_gates, {table_gates_, gates_}, gates_, first, count, gx);
    } else {
        multiply(rows(first, count), schedule_.offset(first + count) - schedule_.offset(first), gx, partial);
    }
}

void Inputs::multiply(Matrix x, std::int64_t rows, void* gx, void* partial) const {
    Product product{};
    product.layout = Layout::kNT;
    product.m = rows;
    product.n = gates_;
    product.k = p_.dims.I;
    product.a = x;
    product.b = {p_.weights.w_ih, p_.dims.I};
    product.c = gx;
    product.c_stride = gates_;
    product.bias[0] = p_.weights.b_ih;
    if (!traits_.split_gates) product.bias[1] = p_.weights.b_hh;
    launcher_.multiply(product, partial);
}

InputSums::InputSums(const BackwardProblem& problem, const Launcher& launcher, const ScheduleCopy& schedule,
                     Arena& arena)
    : p_(problem),
      launcher_(launcher),
      first_count_(problem.dims.V > 0 ? problem.dims.V + 1 : 0),
      inputs_count_(problem.dims.V > 0 ? schedule.rows() : 0),
      first_(arena.take(first_count_ * kIndexBytes)),
      inputs_(arena.take(inputs_count_ * kIndexBytes)) {}

void InputSums::send() const {
    send_indices(first_, p_.lookups.first, first_count_, launcher_.stream());
    send_indices(inputs_, p_.lookups.inputs, inputs_count_, launcher_.stream());
}

void InputSums::run(const void* from, std::int64_t n, void* to, std::int64_t to_stride,
                    bool accumulate) const {
    if (p_.dims.V == 0 || n == 0) return;
    const SumLookupsArgs args{static_cast<const std::int64_t*>(first_),
                              static_cast<const std::int64_t*>(inputs_),
                              from,
                              to,
                              to_stride,
                              n,
                              accumulate};
    Shape shape;
    shape.grid_x = static_cast<int>(p_.dims.V);
    shape.grid_y = static_cast<int>((n + 31) / 32);
    shape.block = 256;
    launcher_.start(launcher_.entries().sum_lookups, shape, args);
}

}  // namespace fusedrnn::cuda
