// The steps of cells that are data, launched one by one: the recurrent product, then stage by stage what is done with whole
// rows and a program (csrc/cells/program_list.h).
#include <algorithm>

#include "cells.h"
#include "steps.h"

namespace fusedrnn::cuda {
namespace {

constexpr int kProgramThreads = 128, kProgramShared = 48 << 10;

// What forward and backward share; memory is taken in the order of the calls.
template <class Pass>
class ProgramSteps {
  public:
    ProgramSteps(const Pass& pass, const DeviceProgram& program, Arena& arena)
        : pass_(pass),
          d_(pass.problem.dims),
          programs_(*pass.problem.cell->programs),
          program_(program),
          entries_(program_entries(pass.problem.math)),
          item_(storage_bytes(pass.problem.math)),
          compute_(compute_bytes(pass.problem.math)),
          memory_(arena.take(program.bytes())),
          links_(arena.take(d_.B * programs_.cell.link_count * d_.H * compute_)) {}

  protected:
    void send_program() const {
        copy(memory_, program_.memory.data(), program_.memory.size(), pass_.launcher.stream());
    }

    // What every stage of step t has; a forward pass has one array of states without a tape.
    void set_step(ProgramArgs& args, std::int64_t t, const void* states, bool by_index) const {
        const auto& p = pass_.problem;
        args.gates = pass_.traits.gates, args.states = pass_.traits.states;
        args.saved_count = pass_.traits.saved, args.unit_count = pass_.traits.per_unit;
        args.link_count = programs_.cell.link_count;
        args.source = state_source(p);
        args.order = pass_.schedule.device.order;
        args.links = links_;
        args.draws = p.draws;
        for (int k = 0; k < programs_.cell.mask_count; ++k) {
            const Mask& mask = programs_.cell.mask_list[k];
            args.masks[k] = {rule_of(mask), mask.expected, mask.each_step};
        }
        int value = 0, unit = 0;
        for (int i = 0; i < pass_.traits.parameter_count; ++i) {
            const Parameter& each = pass_.traits.parameters[i];
            if (each.role != Role::kPerUnit) continue;
            for (int k = 0; k < each.rows.times; ++k)
                args.units[value++] = offset_bytes(p.weights.units[unit], k * d_.H * item_);
            ++unit;
        }
        if (t < 0) return;
        args.now = pass_.schedule.time_step(t);
        args.rows = static_cast<int>(pass_.schedule.active(t));
        const std::int64_t before = p.schedule.reverse ? t + 1 : t - 1;
        if (before < 0 || before >= d_.T) return;
        const std::int64_t row = by_index ? pass_.schedule.offset(before) : 0;
        args.states_before = offset_bytes(states, row * (pass_.traits.states - 1) * d_.H * compute_);
    }

    template <class Args>
    void run_stage(const Entry<Args>& entry, Args args, const DeviceStage& stage, std::int64_t rows) const {
        if (rows == 0 || d_.H == 0) return;
        args.code = static_cast<const Instruction*>(offset_bytes(memory_, stage.code));
        args.constants = static_cast<const double*>(offset_bytes(memory_, stage.constants));
        args.values = static_cast<const std::uint16_t*>(offset_bytes(memory_, stage.values));
        args.length = stage.length, args.constant_count = stage.constant_count;
        args.inputs = stage.inputs, args.placed = stage.placed;
        const int column = stage.slots * static_cast<int>(compute_);
        Shape shape;
        shape.block = kProgramThreads;
        while (shape.block > 32 && shape.block * column > kProgramShared) shape.block /= 2;
        shape.shared_bytes = shape.block * column;
        shape.grid_x = static_cast<int>((rows * d_.H + shape.block - 1) / shape.block);
        pass_.launcher.start(entry, shape, args);
    }

    void normalise_rows(const Entry<NormaliseArgs>& entry, const NormaliseArgs& args,
                        std::int64_t rows) const {
        if (rows == 0) return;
        Shape shape;
        shape.grid_x = static_cast<int>(rows);
        shape.block = kNormaliseThreads;
        pass_.launcher.start(entry, shape, args);
    }

    const void* link(int i) const { return offset_bytes(links_, i * d_.H * compute_); }
    std::int64_t link_row() const { return programs_.cell.link_count * d_.H; }

    const Pass& pass_;
    const Dims& d_;
    const DevicePrograms& programs_;
    const DeviceProgram& program_;
    const ProgramEntries& entries_;
    const std::int64_t item_, compute_;
    void *const memory_, *const links_;
};

class ProgramForward final : public ForwardSteps, ProgramSteps<ForwardPass> {
  public:
    // `replays`: only what the steps keep for backward is stored.
    ProgramForward(const ForwardPass& pass, bool keeps, bool replays, Arena& arena)
        : ProgramSteps(pass,
                       keeps ? pass.problem.cell->programs->forward : pass.problem.cell->programs->inference,
                       arena),
          replays_(replays),
          p_(pass.problem),
          gh_(arena.take(pass.traits.split_gates ? d_.B * pass.gates * compute_ : 0)),
          hidden_(arena.take(programs_.hidden_gates() > 0 ? d_.B * d_.P * item_ : 0)),
          operands_(arena.take(programs_.cell.products * d_.B * d_.H * item_)),
          output_(arena.take(d_.projected && p_.hidden == nullptr ? d_.B * d_.H * item_ : 0)) {}

    std::int64_t partial_bytes() const override {
        return pass_.launcher.partial_bytes(d_.B, pass_.gates, std::max(d_.P, d_.H));
    }

    void run(std::int64_t first, std::int64_t count) const override {
        send_program();
        for (std::int64_t i = 0; i < count; ++i)
            run_step(first, p_.schedule.reverse ? first + count - 1 - i : first + i);
    }

  private:
    // Gates from `first_gate` on: W_hh times rows of `width`, added to gx, or beside it where the gates are split.
    void multiply(const void* rows, std::int64_t width, int first_gate, int count, void* gx,
                  std::int64_t active) const {
        const bool split = pass_.traits.split_gates;
        const std::int64_t first = first_gate * d_.H;
        Product product{};
        product.layout = Layout::kNT;
        product.m = active, product.n = count * d_.H, product.k = width;
        product.a = {rows, width};
        product.b = {offset_bytes(p_.weights.w_hh, first * width * item_), width};
        product.c = offset_bytes(split ? gh_ : gx, first * compute_);
        product.c_stride = pass_.gates;
        if (split) product.bias[0] = offset_bytes(p_.weights.b_hh, first * item_);
        product.accumulate = !split;
        pass_.launcher.multiply(product, pass_.partial);
    }

    void run_step(std::int64_t block_first, std::int64_t t) const {
        const std::int64_t offset = pass_.schedule.offset(t), active = pass_.schedule.active(t);
        const std::int64_t beyond = pass_.traits.states - 1;
        void* const gx =
            offset_bytes(pass_.gx, (offset - pass_.schedule.offset(block_first)) * pass_.gates * compute_);
        if (const int gates = programs_.hidden_gates(); gates > 0) {
            const GatherHiddenArgs gather{pass_.schedule.device, t, state_source(p_), hidden_};
            pass_.launcher.start(pass_.launcher.entries().gather_hidden, pass_.launcher.rows_shape(1, d_.B),
                                 gather);
            multiply(hidden_, d_.P, 0, gates, gx, active);
        }
        const bool by_index = p_.states != nullptr;
        ProgramForwardArgs args{};
        set_step(args, t, pass_.states, by_index);
        args.gx = gx;
        args.sums = pass_.traits.split_gates ? gh_ : gx;
        args.operands = operands_;
        args.operand_size = d_.B * d_.H;
        args.saved = offset_bytes(p_.saved, offset * d_.H * pass_.traits.saved * compute_);
        if (!replays_) set_hidden(args, t, offset);
        if (!replays_)
            args.after = offset_bytes(pass_.states, (by_index ? offset : 0) * beyond * d_.H * compute_);
        void* const moments = offset_bytes(p_.moments, offset * programs_.cell.norms * compute_);
        for (const DeviceStage& stage : program_.stages) {
            for (int k = 0; k < stage.operation_count; ++k) {
                const RowOperation& o = stage.operations[k];
                if (o.kind == RowKind::kNormalise) {
                    normalise(o, args, gx, moments);
                } else {
                    multiply(offset_bytes(operands_, o.number * d_.B * d_.H * item_), d_.H, o.first_gate,
                             o.count, gx, active);
                }
            }
            if (stage.length > 0) run_stage(entries_.forward, args, stage, active);
        }
        if (d_.projected && !replays_) pass_.launcher.project(p_, args.hidden, t, args.order, args.rows);
    }

    // Where h goes: to y, or to what is projected.
    void set_hidden(ProgramForwardArgs& args, std::int64_t t, std::int64_t offset) const {
        args.hidden = offset_bytes(p_.y.data, t * p_.y.t_stride * item_);
        args.hidden_stride = p_.y.b_stride;
        if (!d_.projected) return;
        args.hidden = p_.hidden == nullptr ? output_ : offset_bytes(p_.hidden, offset * d_.H * item_);
        args.hidden_stride = d_.H;
        args.hidden_by_position = true;
    }

    void normalise(const RowOperation& o, const ProgramForwardArgs& step, void* gx, void* moments) const {
        NormaliseArgs args{};
        const int gate = o.value < programs_.cell.gates ? o.value : o.value - programs_.cell.gates;
        void* const gates = o.value < programs_.cell.gates || !pass_.traits.split_gates ? gx : gh_;
        args.values =
            o.link >= 0 ? const_cast<void*>(link(o.link)) : offset_bytes(gates, gate * d_.H * compute_);
        args.row = o.link >= 0 ? link_row() : pass_.gates;
        args.H = d_.H, args.count = o.count;
        args.saved = offset_bytes(step.saved, o.saved * compute_);
        args.saved_count = pass_.traits.saved;
        args.moments = offset_bytes(moments, o.number * compute_);
        args.norms = programs_.cell.norms;
        normalise_rows(entries_.normalise, args, step.rows);
    }

    const bool replays_;
    const ForwardProblem& p_;
    void *const gh_, *const hidden_, *const operands_, *const output_;
};

class ProgramBackward final : public BackwardSteps, ProgramSteps<BackwardPass> {
  public:
    ProgramBackward(const BackwardPass& pass, Arena& arena)
        : ProgramSteps(pass, pass.problem.cell->programs->backward, arena),
          p_(pass.problem),
          w_hh_t_(arena.take(programs_.cell.hidden_product ? pass.gates * d_.P * item_ : 0)),
          w_hr_t_(arena.take(d_.projected ? d_.P * d_.H * item_ : 0)),
          carry_(arena.take(d_.B * pass.traits.states * d_.H * compute_)),
          product_(arena.take(d_.B * d_.H * compute_)) {}

    std::int64_t partial_bytes() const override {
        return pass_.launcher.partial_bytes(d_.B, d_.H, std::max(pass_.gates, d_.P));
    }

    void run() const override {
        if (pass_.schedule.longest() == 0) return;
        send_program();
        if (programs_.cell.hidden_product)
            pass_.launcher.transpose(p_.weights.w_hh, pass_.gates, d_.P, w_hh_t_);
        if (d_.projected) pass_.launcher.transpose(p_.weights.w_hr, d_.P, d_.H, w_hr_t_);
        if (programs_.cell.staged) {  // whose programs add to these
            fill(pass_.unit_gradients, 0,
                 static_cast<std::size_t>(pass_.schedule.rows() * pass_.traits.per_unit * d_.H * item_),
                 pass_.launcher.stream());
        }
        pass_.sweep([this](std::int64_t t, std::int64_t later) { run_step(t, later); });
    }

  private:
    // c, C, = rows a of so many, times the rows of b.
    void multiply(Matrix a, Matrix b, std::int64_t k, const void* c, std::int64_t c_stride,
                  std::int64_t active) const {
        Product product{};
        product.layout = Layout::kNT;
        product.m = active, product.n = d_.H, product.k = k;
        product.a = a, product.b = b;
        product.c = const_cast<void*>(c);
        product.c_stride = c_stride;
        pass_.launcher.multiply(product, pass_.partial);
    }
    // Of the gradients of gates from `first_gate` on with their weights.
    void multiply_gates(const void* gates, int first_gate, int count, const void* c, std::int64_t c_stride,
                        std::int64_t active) const {
        const std::int64_t first = first_gate * d_.H * item_;
        const void* const weights = w_hh_t_;
        multiply({offset_bytes(gates, first), pass_.gates}, {offset_bytes(weights, first), pass_.gates},
                 count * d_.H, c, c_stride, active);
    }

    // Step t after step `later` of the sweep; -1: none. Without a t only the initial state's gradients are left.
    void run_step(std::int64_t t, std::int64_t later) const {
        ProgramBackwardArgs args{};
        set_step(args, t, p_.states, true);
        args.direct_hidden = pass_.traits.direct_hidden;
        if (later >= 0) {
            args.later = pass_.schedule.time_step(later);
            args.later_rows = static_cast<int>(pass_.schedule.active(later));
        }
        if (t >= 0 && p_.dy.data != nullptr) args.dy = offset_bytes(p_.dy.data, t * p_.dy.t_stride * item_);
        args.dy_stride = p_.dy.b_stride;
        std::copy_n(p_.dfinal, kMaxStates, args.dfinal);
        std::copy_n(p_.dinitial, kMaxStates, args.dinitial);
        args.carry = carry_;
        if (d_.projected) {
            const int k = programs_.cell.hidden_product ? static_cast<int>(pass_.gates) : 0;
            const void* const dout = pass_.output_gradient(args, w_hh_t_, k, t, later);
            args.projected = true;
            args.product = product_;
            if (t >= 0) multiply({dout, d_.P}, {w_hr_t_, d_.P}, d_.P, product_, d_.H, args.rows);
        } else if (later >= 0 && programs_.hidden_gates() > 0) {
            multiply_gates(pass_.gate_gradients(later), 0, programs_.hidden_gates(), product_, d_.H,
                           args.later_rows);
            args.product = product_;
        }
        if (args.later_rows > args.rows) {
            ProgramBackwardArgs initial = args;
            initial.stores_initial = true;
            run_stage(entries_.backward, initial, DeviceStage{}, args.later_rows);
        }
        if (t >= 0) run_stages(args, t);
    }

    void run_stages(ProgramBackwardArgs& args, std::int64_t t) const {
        const std::int64_t H = d_.H, offset = pass_.schedule.offset(t), rows = pass_.schedule.rows();
        args.saved = const_cast<void*>(offset_bytes(pass_.saved, offset * H * pass_.traits.saved * compute_));
        args.dgx = offset_bytes(pass_.dgx, offset * pass_.gates * item_);
        args.dgh = offset_bytes(pass_.dgh, offset * pass_.gates * item_);
        args.unit_gradients = offset_bytes(pass_.unit_gradients, offset * pass_.traits.per_unit * H * item_);
        args.operands = offset_bytes(pass_.operands, offset * H * item_);
        args.operand_size = rows * H;
        for (const DeviceStage& stage : program_.stages) {
            for (int k = 0; k < stage.operation_count; ++k) {
                const RowOperation& o = stage.operations[k];
                if (o.kind == RowKind::kNormalise) {
                    normalise(o, args, offset);
                } else {
                    multiply_gates(args.dgh, o.first_gate, o.count, link(o.link), link_row(), args.rows);
                }
            }
            if (stage.length > 0) run_stage(entries_.backward, args, stage, args.rows);
        }
    }

    void normalise(const RowOperation& o, const ProgramBackwardArgs& step, std::int64_t offset) const {
        NormaliseArgs args{};
        const bool of_x = o.value < programs_.cell.gates;
        const int gate = of_x ? o.value : o.value - programs_.cell.gates;
        args.values = o.link >= 0 ? const_cast<void*>(link(o.link))
                                  : offset_bytes(of_x ? step.dgx : step.dgh, gate * d_.H * item_);
        args.row = o.link >= 0 ? link_row() : pass_.gates;
        args.H = d_.H, args.count = o.count;
        args.saved = offset_bytes(step.saved, o.saved * compute_);
        args.saved_count = pass_.traits.saved;
        args.norms = programs_.cell.norms;
        args.moments =
            const_cast<void*>(offset_bytes(pass_.moments, (offset * args.norms + o.number) * compute_));
        normalise_rows(o.link >= 0 ? entries_.normalise_backward_links : entries_.normalise_backward_gates,
                       args, step.rows);
    }

    const BackwardProblem& p_;
    void *const w_hh_t_, *const w_hr_t_, *const carry_, *const product_;
};

}  // namespace

std::unique_ptr<ForwardSteps> program_forward_steps(const ForwardPass& pass, Arena& arena) {
    return std::make_unique<ProgramForward>(pass, pass.problem.saved != nullptr, false, arena);
}
std::unique_ptr<ForwardSteps> program_replay_steps(const ForwardPass& pass, Arena& arena) {
    return std::make_unique<ProgramForward>(pass, true, true, arena);
}
std::unique_ptr<BackwardSteps> program_backward_steps(const BackwardPass& pass, Arena& arena) {
    return std::make_unique<ProgramBackward>(pass, arena);
}

}  // namespace fusedrnn::cuda
