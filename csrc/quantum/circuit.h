// A circuit of up to 8 qubits, simulated by its state vector for as many rows as a vector has lanes, and its adjoint
// (Jones and Gacon 2020, arXiv:2009.02823): backward undoes one gate after another, on the state and on its gradient, so that
// memory does not grow with the number of gates.
//
// The circuit is that of Chen, Yoo and Fang 2020, arXiv:2009.01783, Fig. 6: from |0...0>, on each qubit a Hadamard gate,
// RY(arctan v) and RZ(arctan v^2); then layers, each of CNOT gates from every qubit to the next and to the one after that, in
// rings, and one unitary on each qubit; measured is Z of every qubit.
//
// A CNOT gate only renames amplitudes, by a map that is linear over bits. So no amplitude moves: amplitude i of the state
// stands at place[i], and place[i ^ j] = place[i] ^ place[j].
#pragma once

#include "cpu/layout.h"
#include "quantum/quantum_table.h"

namespace fusedrnn::FUSEDRNN_ISA {

inline constexpr int kMostAmplitudes = 1 << kMostQubits;

// The places of amplitudes at the unitaries of each layer, [D + 1][2^Q]: row 0 is that of the encoding, where i stands at i.
inline void place_amplitudes(int qubits, std::int64_t layers, std::uint8_t* place) {
    const int size = 1 << qubits;
    int bit[kMostQubits];
    for (int q = 0; q < qubits; ++q) bit[q] = 1 << q;
    for (std::int64_t layer = 0; layer <= layers; ++layer, place += size) {
        for (int step = 1; layer > 0 && step <= 2 && step < qubits; ++step) {
            // The new amplitude i is the old one of i with the target flipped where the control is set.
            for (int q = 0; q < qubits; ++q) bit[q] ^= bit[(q + step) % qubits];
        }
        place[0] = 0;
        for (int q = 0; q < qubits; ++q) {
            for (int i = 0; i < 1 << q; ++i)
                place[(1 << q) + i] = static_cast<std::uint8_t>(place[i] ^ bit[q]);
        }
    }
}

// The cosine and the sine of arctan u, and of its half.
template <class V>
struct Arctan {
    V cos, sin, half_cos, half_sin;

    explicit FUSEDRNN_INLINE Arctan(V u) {
        const V one = V::set(1), root = sqrt(fma(u, u, one));
        cos = one / root;
        sin = u / root;
        half_cos = sqrt(fma(cos, V::set(0.5), V::set(0.5)));
        half_sin = sin / (half_cos + half_cos);
    }
};

// A value to be encoded, where its fourth power does not overflow: beyond, the angles are pi/2 to the last bit.
template <class V>
FUSEDRNN_INLINE V within_range(V v) {
    using T = typename V::Scalar;
    const V most = V::set(sizeof(T) == sizeof(float) ? T(0x1p30) : T(0x1p250));
    return max(V::set(0) - most, min(most, v));
}

template <class V>
struct Complex {
    V re, im;
};

template <class V>
FUSEDRNN_INLINE Complex<V> multiply(Complex<V> a, Complex<V> b) {
    return {fma(a.re, b.re, V::set(0) - a.im * b.im), fma(a.re, b.im, a.im * b.re)};
}
// a conj(b) + c.
template <class V>
FUSEDRNN_INLINE Complex<V> add_conjugate(Complex<V> a, Complex<V> b, Complex<V> c) {
    return {fma(a.re, b.re, fma(a.im, b.im, c.re)), fma(a.im, b.re, fma(V::set(0) - a.re, b.im, c.im))};
}

// Amplitudes of a state of each lane, [2^Q][re, im][L].
template <class T>
class Amplitudes {
  public:
    using V = Vec<T>;
    static constexpr std::int64_t L = V::kLanes;

    explicit Amplitudes(T* at) : at_(at) {}
    FUSEDRNN_INLINE Complex<V> get(int place) const {
        return {V::load(at_ + 2 * L * place), V::load(at_ + 2 * L * place + L)};
    }
    FUSEDRNN_INLINE void set(int place, Complex<V> x) const {
        x.re.store(at_ + 2 * L * place);
        x.im.store(at_ + 2 * L * place + L);
    }

  private:
    T* at_;
};

// A unitary (2, 2) of one qubit.
template <class T>
struct Unitary {
    using V = Vec<T>;
    Complex<V> a, b, c, d;

    explicit FUSEDRNN_INLINE Unitary(const T* u)
        : a{V::set(u[0]), V::set(u[1])},
          b{V::set(u[2]), V::set(u[3])},
          c{V::set(u[4]), V::set(u[5])},
          d{V::set(u[6]), V::set(u[7])} {}
    FUSEDRNN_INLINE Unitary adjoint() const {
        const auto conjugate = [](Complex<V> x) { return Complex<V>{x.re, V::set(0) - x.im}; };
        Unitary u = *this;
        u.a = conjugate(a), u.b = conjugate(c), u.c = conjugate(b), u.d = conjugate(d);
        return u;
    }
    FUSEDRNN_INLINE void apply(Complex<V>& x, Complex<V>& y) const {
        const Complex<V> x0 = x, y0 = y;
        x = row(a, x0, b, y0);
        y = row(c, x0, d, y0);
    }

  private:
    static FUSEDRNN_INLINE Complex<V> row(Complex<V> p, Complex<V> x, Complex<V> q, Complex<V> y) {
        const V minus = V::set(0) - p.im, minus_q = V::set(0) - q.im;
        return {fma(minus_q, y.im, fma(q.re, y.re, fma(minus, x.im, p.re * x.re))),
                fma(q.im, y.re, fma(q.re, y.im, fma(p.im, x.re, p.re * x.im)))};
    }
};

// <l_a| times |s_b> over all pairs of amplitudes of one qubit, [2][2].
template <class T>
struct PairProducts {
    using V = Vec<T>;
    Complex<V> of[2][2]{{zero(), zero()}, {zero(), zero()}};

    FUSEDRNN_INLINE void add(Complex<V> l0, Complex<V> l1, Complex<V> s0, Complex<V> s1) {
        of[0][0] = add_conjugate(s0, l0, of[0][0]);
        of[0][1] = add_conjugate(s1, l0, of[0][1]);
        of[1][0] = add_conjugate(s0, l1, of[1][0]);
        of[1][1] = add_conjugate(s1, l1, of[1][1]);
    }

  private:
    static FUSEDRNN_INLINE Complex<V> zero() { return {V::set(0), V::set(0)}; }
};

// body(i, j) with the places of both amplitudes of every pair that differs in qubit q, that of 0 first.
template <class Body>
FUSEDRNN_INLINE void each_pair(int qubits, int q, const std::uint8_t* place, Body&& body) {
    const int bit = 1 << q, other = place[bit];
    for (int high = 0; high < 1 << qubits; high += 2 * bit) {
        for (int i = high; i < high + bit; ++i) body(place[i], place[i] ^ other);
    }
}

// One circuit of Q qubits and D layers at a time. Values of lanes are [Q][L], unitaries (D, Q, 8).
template <class T>
class Circuit {
  public:
    using V = Vec<T>;
    static constexpr std::int64_t L = V::kLanes;

    Circuit(const QuantumSizes& s, Arena& arena)
        : qubits_(static_cast<int>(s.Q)),
          layers_(s.D),
          place_(arena.take<std::uint8_t>((s.D + 1) << s.Q)),
          state_(arena.take<T>((2 * L) << s.Q)),
          gradient_(arena.take<T>((2 * L) << s.Q)),
          sums_(arena.take<T>(L << s.Q)) {}

    void prepare() { place_amplitudes(qubits_, layers_, place_); }

    // The expectations of Z after the circuit that encodes `v`.
    void run(const T* v, const T* unitaries, T* z) const {
        evolve(v, unitaries);
        measure(z);
    }

    // From the gradients dz of the expectations those of v, and adds those of the unitaries' real and imaginary parts to
    // [D][Q][8][L] values. Runs the circuit again.
    void backward(const T* v, const T* unitaries, const T* dz, T* dv, T* dunitaries) const {
        evolve(v, unitaries);
        differentiate_measure(dz);
        for (std::int64_t layer = layers_ - 1; layer >= 0; --layer) {
            for (int q = qubits_ - 1; q >= 0; --q) {
                const std::int64_t at = (layer * qubits_ + q) * kUnitaryParts;
                const Unitary<T> inverse = Unitary<T>(unitaries + at).adjoint();
                PairProducts<T> products;
                each_pair(qubits_, q, places(layer + 1), [&](int i, int j) {
                    Complex<V> x = state_.get(i), y = state_.get(j), l = gradient_.get(i),
                               m = gradient_.get(j);
                    inverse.apply(x, y);
                    products.add(l, m, x, y);
                    inverse.apply(l, m);
                    state_.set(i, x), state_.set(j, y);
                    gradient_.set(i, l), gradient_.set(j, m);
                });
                T* to = dunitaries + at * L;
                for (int k = 0; k < 4; ++k, to += 2 * L) {
                    const Complex<V> p = products.of[k / 2][k % 2];
                    fma(p.re, V::set(2), V::load(to)).store(to);
                    fma(p.im, V::set(-2), V::load(to + L)).store(to + L);
                }
            }
        }
        for (int q = 0; q < qubits_; ++q) differentiate_encoding(q, v, dv);
    }

  private:
    const std::uint8_t* places(std::int64_t layer) const { return place_ + (layer << qubits_); }

    // The state before it is measured.
    void evolve(const T* v, const T* unitaries) const {
        encode(v);
        for (std::int64_t layer = 0; layer < layers_; ++layer) {
            for (int q = 0; q < qubits_; ++q, unitaries += kUnitaryParts) {
                const Unitary<T> u(unitaries);
                each_pair(qubits_, q, places(layer + 1), [&](int i, int j) {
                    Complex<V> x = state_.get(i), y = state_.get(j);
                    u.apply(x, y);
                    state_.set(i, x);
                    state_.set(j, y);
                });
            }
        }
    }

    // The product of the qubits' states, one qubit after another.
    void encode(const T* v) const {
        state_.set(0, {V::set(1), V::set(0)});
        const V root = V::set(T(0.70710678118654752440));
        for (int q = 0; q < qubits_; ++q) {
            const V value = within_range(V::load(v + q * L));
            const Arctan<V> y(value), z(value * value);
            const V zero = (y.half_cos - y.half_sin) * root, one = (y.half_cos + y.half_sin) * root;
            const Complex<V> x0{zero * z.half_cos, V::set(0) - zero * z.half_sin},
                x1{one * z.half_cos, one * z.half_sin};
            for (int i = 0; i < 1 << q; ++i) {
                const Complex<V> x = state_.get(i);
                state_.set(i, multiply(x, x0));
                state_.set(i + (1 << q), multiply(x, x1));
            }
        }
    }

    // Halves the sums over amplitudes once for each qubit: the differences of both halves are its expectation.
    void measure(T* z) const {
        const std::uint8_t* const place = places(layers_);
        for (int i = 0; i < 1 << qubits_; ++i) {
            const Complex<V> x = state_.get(place[i]);
            fma(x.re, x.re, x.im * x.im).store(sums_ + i * L);
        }
        for (int q = qubits_ - 1; q >= 0; --q) {
            V difference = V::set(0);
            for (int i = 0; i < 1 << q; ++i) {
                const V a = V::load(sums_ + i * L), b = V::load(sums_ + (i + (1 << q)) * L);
                difference = difference + (a - b);
                (a + b).store(sums_ + i * L);
            }
            difference.store(z + q * L);
        }
    }

    // The gradient is the state times the sum of +dz or -dz of each qubit.
    void differentiate_measure(const T* dz) const {
        V::set(0).store(sums_);
        for (int q = 0; q < qubits_; ++q) {
            const V d = V::load(dz + q * L);
            for (int i = 0; i < 1 << q; ++i) {
                const V sum = V::load(sums_ + i * L);
                (sum - d).store(sums_ + (i + (1 << q)) * L);
                (sum + d).store(sums_ + i * L);
            }
        }
        const std::uint8_t* const place = places(layers_);
        for (int i = 0; i < 1 << qubits_; ++i) {
            const V factor = V::load(sums_ + i * L);
            const Complex<V> x = state_.get(place[i]);
            gradient_.set(place[i], {x.re * factor, x.im * factor});
        }
    }

    // Both rotations are exp(-i angle/2 G): the gradient of an angle is Im<l|G|s>, G being Z, and for the rotation before it
    // RZ Y RZ^-1 = cos Y - sin X.
    void differentiate_encoding(int q, const T* v, T* dv) const {
        PairProducts<T> p;
        each_pair(qubits_, q, places(0), [&](int i, int j) {
            p.add(gradient_.get(i), gradient_.get(j), state_.get(i), state_.get(j));
        });
        const V value = within_range(V::load(v + q * L)), square = value * value, one = V::set(1);
        const Arctan<V> z(square);
        const V dz = p.of[0][0].im - p.of[1][1].im;
        const V dy = z.cos * (p.of[1][0].re - p.of[0][1].re) - z.sin * (p.of[0][1].im + p.of[1][0].im);
        const V turned = dz * (value + value) / fma(square, square, one);
        (dy / fma(value, value, one) + turned).store(dv + q * L);
    }

    int qubits_;
    std::int64_t layers_;
    std::uint8_t* place_;
    Amplitudes<T> state_, gradient_;
    T* sums_;
};

}  // namespace fusedrnn::FUSEDRNN_ISA
