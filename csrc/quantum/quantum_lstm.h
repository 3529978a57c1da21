// An LSTM whose gates are simulated quantum circuits (Chen, Yoo and Fang 2020, arXiv:2009.01783). With circuit() of circuit.h,
// for each gate of i f g o
//   v = W_ih x + b_ih + W_hh h   z = circuit(v)   a = W_out z + b_out
//   c' = sigmoid(a_f) c + sigmoid(a_i) tanh(a_g)   h' = sigmoid(a_o) tanh(c')
// Each member takes groups of rows, the lanes of a vector, through all steps.
#pragma once

#include "activations.h"
#include "layers/parallel.h"
#include "quantum/circuit.h"

namespace fusedrnn::FUSEDRNN_ISA {

// init + sum over k of weight[k * stride] x[k], for lanes.
template <class T>
FUSEDRNN_INLINE Vec<T> lane_sum(std::int64_t n, const T* weight, std::int64_t stride, const T* x,
                                Vec<T> init) {
    using V = Vec<T>;
    for (std::int64_t k = 0; k < n; ++k)
        init = fma(V::set(weight[k * stride]), V::load(x + k * V::kLanes), init);
    return init;
}

// What one member works with: values of the lanes of one group.
template <class T>
struct QuantumMember {
    static constexpr std::int64_t L = Vec<T>::kLanes;
    Circuit<T> circuit;
    T *h, *c, *v, *z, *a, *dunitaries, *active;

    QuantumMember(const QuantumSizes& s, Arena& arena)
        : circuit(s, arena),
          h(arena.take<T>(s.H * L)),
          c(arena.take<T>(s.H * L)),
          v(arena.take<T>(kQuantumGates * s.Q * L)),
          z(arena.take<T>(kQuantumGates * s.Q * L)),
          a(arena.take<T>(kQuantumGates * s.H * L)),
          dunitaries(arena.take<T>(kQuantumGates * s.D * s.Q * kUnitaryParts * L)),
          active(arena.take<T>(L)) {}
};

template <class T>
std::int64_t quantum_workspace(const QuantumSizes& s, int members) {
    Arena arena(nullptr);
    for (int i = 0; i < members; ++i) QuantumMember<T>(s, arena);
    return arena.used();
}

// One group of rows: the lanes [b, b + n) of the batch.
template <class T>
class QuantumGroup {
  public:
    using V = Vec<T>;
    static constexpr std::int64_t L = V::kLanes;

    QuantumGroup(const QuantumNetwork<T>& network, const QuantumMember<T>& member, std::int64_t b)
        : p_(network), s_(network.sizes), m_(member), b_(b), n_(smaller(L, network.sizes.B - b)) {
        for (std::int64_t i = 0; i < n_; ++i) steps_ = larger(steps_, p_.lengths[b_ + i]);
    }

    void forward(const QuantumForwardArgs<T>& f, Team& team, int number) {
        load(f.h, 0, s_.H, m_.h);
        load(f.c, 0, s_.H, m_.c);
        for (std::int64_t t = 0; t < s_.T; ++t) {
            set_active(t);
            if (t >= steps_) {
                finish_step(f, t);
                continue;
            }
            if (team.cancelled(number, work())) return;
            const std::int64_t Q = kQuantumGates * s_.Q;
            for (std::int64_t j = 0; j < Q; ++j) {
                const V v = lane_sum<T>(s_.H, p_.weight_hh + j * s_.H, 1, m_.h, get(f.gx, t, Q, j));
                // What stands past a sequence's end may be no number: nothing of it may reach a sum.
                where_active(v, V::set(0)).store(m_.v + j * L);
            }
            for (int g = 0; g < kQuantumGates; ++g) {
                const std::int64_t at = g * s_.Q * L;
                m_.circuit.run(m_.v + at, unitaries(g), m_.z + at);
                for (std::int64_t k = g * s_.H; k < (g + 1) * s_.H; ++k) {
                    lane_sum<T>(s_.Q, p_.weight_out + k * s_.Q, 1, m_.z + at, V::set(f.bias_out[k]))
                        .store(m_.a + k * L);
                }
            }
            for (std::int64_t k = 0; k < s_.H; ++k) {
                T* const a = m_.a + k * L;
                const std::int64_t next = s_.H * L;
                const V i = sigmoid(V::load(a)), forget = sigmoid(V::load(a + next));
                const V g = tanh(V::load(a + 2 * next)), o = sigmoid(V::load(a + 3 * next));
                const V before = V::load(m_.c + k * L), c = fma(forget, before, i * g);
                where_active(c, before).store(m_.c + k * L);
                where_active(o * tanh(c), V::load(m_.h + k * L)).store(m_.h + k * L);
                i.store(a), forget.store(a + next), g.store(a + 2 * next), o.store(a + 3 * next);
            }
            finish_step(f, t);
        }
        save(m_.h, f.h_final, 0, s_.H);
        save(m_.c, f.c_final, 0, s_.H);
    }

    void backward(const QuantumBackwardArgs<T>& f, Team& team, int number) {
        const std::int64_t Q = kQuantumGates * s_.Q, parts = kQuantumGates * s_.D * s_.Q * kUnitaryParts;
        // h, c and a hold the gradients of these, z those of the expectations.
        load(f.dh_final, 0, s_.H, m_.h);
        load(f.dc_final, 0, s_.H, m_.c);
        fill_zero(m_.dunitaries, parts * L);
        for (std::int64_t t = s_.T - 1; t >= 0; --t) {
            set_active(t);
            if (t >= steps_) {
                fill_zero(m_.v, Q * L);
                fill_zero(m_.a, kQuantumGates * s_.H * L);
            } else {
                if (team.cancelled(number, 3 * work())) return;
                differentiate_step(f, t);
            }
            save(m_.v, f.dgx, t, Q);
            save(m_.a, f.dgates, t, kQuantumGates * s_.H);
        }
        save(m_.h, f.dh, 0, s_.H);
        save(m_.c, f.dc, 0, s_.H);
        save(m_.dunitaries, f.dunitaries, 0, parts);
    }

  private:
    std::int64_t work() const {
        return kQuantumGates * L * (((s_.D * s_.Q + 1) << (s_.Q + 3)) + 2 * s_.H * s_.Q);
    }
    const T* unitaries(int gate) const { return p_.unitaries + gate * s_.D * s_.Q * kUnitaryParts; }

    // Value j of `width` at step t of an array with the batch last; lanes without a row are 0.
    V get(const T* from, std::int64_t t, std::int64_t width, std::int64_t j) const {
        return load_part<T>(from + (t * width + j) * s_.B + b_, n_);
    }
    void load(const T* from, std::int64_t t, std::int64_t width, T* to) const {
        for (std::int64_t j = 0; j < width; ++j) get(from, t, width, j).store(to + j * L);
    }
    void save(const T* from, T* to, std::int64_t t, std::int64_t width) const {
        for (std::int64_t j = 0; j < width; ++j) {
            store_part(V::load(from + j * L), to + (t * width + j) * s_.B + b_, n_);
        }
    }

    void set_active(std::int64_t t) {
        for (std::int64_t i = 0; i < L; ++i) m_.active[i] = i < n_ && t < p_.lengths[b_ + i] ? T(1) : T(0);
    }
    V where_active(V yes, V no) const { return select(less(V::set(0), V::load(m_.active)), yes, no); }

    // Writes a step's output, 0 past the end, and its tape.
    void finish_step(const QuantumForwardArgs<T>& f, std::int64_t t) const {
        for (std::int64_t k = 0; k < s_.H; ++k) {
            const V y = where_active(V::load(m_.h + k * L), V::set(0));
            store_part(y, f.y + (t * s_.H + k) * s_.B + b_, n_);
        }
        if (f.tape.cells == nullptr) return;
        save(m_.c, f.tape.cells, t, s_.H);
        if (t >= steps_) {
            fill_zero(m_.v, kQuantumGates * s_.Q * L);
            fill_zero(m_.z, kQuantumGates * s_.Q * L);
            fill_zero(m_.a, kQuantumGates * s_.H * L);
        }
        save(m_.v, f.tape.angles, t, kQuantumGates * s_.Q);
        save(m_.z, f.tape.measured, t, kQuantumGates * s_.Q);
        save(m_.a, f.tape.gates, t, kQuantumGates * s_.H);
    }

    void differentiate_step(const QuantumBackwardArgs<T>& f, std::int64_t t) const {
        const V one = V::set(1), zero = V::set(0);
        for (std::int64_t k = 0; k < s_.H; ++k) {
            const auto gate = [&](int g) { return get(f.tape.gates, t, kQuantumGates * s_.H, g * s_.H + k); };
            const V i = gate(0), forget = gate(1), g = gate(2), o = gate(3);
            const V before = t > 0 ? get(f.tape.cells, t - 1, s_.H, k) : get(f.c, 0, s_.H, k);
            const V tanh_c = tanh(get(f.tape.cells, t, s_.H, k));
            const V dh = V::load(m_.h + k * L) + get(f.dy, t, s_.H, k), carried = V::load(m_.c + k * L);
            const V dc = fma(dh * o, one - tanh_c * tanh_c, carried);
            const V da[] = {dc * g * (i * (one - i)), dc * before * (forget * (one - forget)),
                            dc * i * (one - g * g), dh * tanh_c * (o * (one - o))};
            for (int j = 0; j < kQuantumGates; ++j) {
                where_active(da[j], zero).store(m_.a + (j * s_.H + k) * L);
            }
            where_active(dc * forget, carried).store(m_.c + k * L);
        }
        load(f.tape.angles, t, kQuantumGates * s_.Q, m_.v);
        for (int g = 0; g < kQuantumGates; ++g) {
            const std::int64_t at = g * s_.Q * L;
            for (std::int64_t q = 0; q < s_.Q; ++q) {
                lane_sum<T>(s_.H, p_.weight_out + g * s_.H * s_.Q + q, s_.Q, m_.a + g * s_.H * L, zero)
                    .store(m_.z + at + q * L);
            }
            m_.circuit.backward(m_.v + at, unitaries(g), m_.z + at, m_.v + at,
                                m_.dunitaries + g * s_.D * s_.Q * kUnitaryParts * L);
        }
        for (std::int64_t k = 0; k < s_.H; ++k) {
            const V dh = lane_sum<T>(kQuantumGates * s_.Q, p_.weight_hh + k, s_.H, m_.v, zero);
            where_active(dh, V::load(m_.h + k * L)).store(m_.h + k * L);
        }
    }

    const QuantumNetwork<T>& p_;
    const QuantumSizes& s_;
    QuantumMember<T> m_;
    std::int64_t b_, n_, steps_ = 0;
};

template <class T, class Body>
void each_quantum_group(const QuantumNetwork<T>& network, Team& team, void* workspace, const Body& body) {
    const QuantumSizes& s = network.sizes;
    parallel_ranges(team, s.B, Vec<T>::kLanes, [&](int member, std::int64_t begin, std::int64_t end) {
        Arena arena(workspace);
        for (int i = 0; i < member; ++i) QuantumMember<T>(s, arena);
        QuantumMember<T> own(s, arena);
        own.circuit.prepare();
        for (std::int64_t b = begin; b < end && !team.cancelled(member, 1); b += Vec<T>::kLanes) {
            body(QuantumGroup<T>(network, own, b), member);
        }
    });
}

template <class T>
void quantum_forward(const QuantumForwardArgs<T>& args, Team& team, void* workspace) {
    each_quantum_group<T>(args.network, team, workspace,
                          [&](QuantumGroup<T> group, int member) { group.forward(args, team, member); });
}

template <class T>
void quantum_backward(const QuantumBackwardArgs<T>& args, Team& team, void* workspace) {
    each_quantum_group<T>(args.network, team, workspace,
                          [&](QuantumGroup<T> group, int member) { group.backward(args, team, member); });
}

}  // namespace fusedrnn::FUSEDRNN_ISA
