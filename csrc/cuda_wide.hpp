// Numbers without a smallest or a largest: a double in [1, 2), or 0, and an exponent of its own.
//
// The last rung for evidence so contradictory that it leaves the range of double. The text of
// tree_kernels.hpp runs on them unchanged; only what scales messages has nothing left to do.
#pragma once

#include "cuda_launch.hpp"

namespace HF_NAMESPACE {

struct Wide {
    double value = 0;
    double exponent = 0; // a whole number; a double, because a field may be 1e300 nats below another
};

HF_INLINE Wide wide(double value, double exponent = 0) {
    using D = Pack<double, 1>;
    if (value == 0) return {};
    if (!(value - value == 0)) return {value, exponent}; // of impossible evidence: no number, and none it stays
    for (int pass = 0; pass < 2; ++pass) {               // twice for a subnormal number
        const int64_t e = ::HF_NAMESPACE::exponent<D>(value);
        value *= power_of_two<D>(-e);
        exponent += static_cast<double>(e);
    }
    return {value, exponent};
}
HF_INLINE Wide operator*(Wide a, Wide b) { return wide(a.value * b.value, a.exponent + b.exponent); }
HF_INLINE Wide operator*(double a, Wide b) { return wide(a) * b; }
HF_INLINE Wide operator*(Wide a, double b) { return a * wide(b); }
HF_INLINE Wide operator/(Wide a, Wide b) { return wide(a.value / b.value, a.exponent - b.exponent); }
HF_INLINE Wide operator+(Wide a, Wide b) {
    if (a.value == 0) return b;
    if (b.value == 0) return a;
    const Wide& large = a.exponent < b.exponent ? b : a;
    const Wide& small = a.exponent < b.exponent ? a : b;
    const double shift = small.exponent - large.exponent;
    if (shift < -200) return large;
    return wide(large.value + small.value * power_of_two<Pack<double, 1>>(static_cast<int64_t>(shift)), large.exponent);
}
HF_INLINE Wide operator+(Wide a, double b) { return a + wide(b); }

// Of numbers that are not negative.
HF_INLINE bool operator>(Wide a, Wide b) {
    if (a.value == 0 || b.value == 0) return a.value > b.value;
    return a.exponent == b.exponent ? a.value > b.value : a.exponent > b.exponent;
}
HF_INLINE bool operator<=(Wide a, Wide b) { return !(a > b); }

// exp(x) for x <= 0, however low.
HF_INLINE Wide wide_exp(double x) {
    if (!(x > -static_cast<double>(INFINITY))) return {};
    const double k = rint(x * 1.44269504088896340736);
    if (!(k > -1e15)) return {1, k}; // a last place of x is a factor of e or more
    return wide(exp((x - k * Format<double>::ln2_hi) - k * Format<double>::ln2_lo), k);
}

// The pack that makes the text compute with them.
struct WidePack {
    using Scalar = double;
    using Int = int64_t;
    using V = Wide;
    using I = int64_t;
    static constexpr int lanes = 1;
};

template <> struct WideNumber<WidePack> {
    Wide value;
    static HF_INLINE WideNumber of(Wide factor) { return {factor}; }
    HF_INLINE void multiply(Wide factor) { value = value * factor; }
};
// What the kernels ask of a number besides arithmetic, for the three types.
template <class V> HF_INLINE bool is_zero(V x) { return x == 0; }
HF_INLINE bool is_zero(Wide x) { return x.value == 0; }
template <class V> HF_INLINE double to_double(V x) { return static_cast<double>(x); }
HF_INLINE double to_double(Wide x) {
    const double e = x.exponent < -1100 ? -1100 : x.exponent > 1100 ? 1100 : x.exponent;
    return ldexp(x.value, static_cast<int>(e));
}
// ln(2^exponent * x)
HF_INLINE double log_of(float x, int64_t exponent) {
    return log_scaled<Pack<float, 1>>(x, static_cast<int32_t>(exponent));
}
HF_INLINE double log_of(double x, int64_t exponent) { return log_scaled<Pack<double, 1>>(x, exponent); }
HF_INLINE double log_of(Wide x, int64_t exponent) {
    return (static_cast<double>(exponent) + x.exponent) * 0.693147180559945309417 + log(x.value);
}
// A part of a sum, as normalise in cpu_backend.cpp has it: one inverse for all, and certainty exactly 1.
template <class V> HF_INLINE V inverse_sum(V sum) { return V(1) / sum; }
HF_INLINE Wide inverse_sum(Wide) { return {}; }
template <class V> HF_INLINE V share(V x, V sum, V inverse) {
    return x == sum ? (sum > 0 ? V(1) : inverse * 0) : x * inverse;
}
HF_INLINE Wide share(Wide x, Wide sum, Wide) { return x / sum; }
template <class P> HF_INLINE void times(WideNumber<P>& x, const WideNumber<P>& y) {
    x.multiply(y.value);
    x.exponent += y.exponent;
}
template <> HF_INLINE void times<WidePack>(WideNumber<WidePack>& x, const WideNumber<WidePack>& y) {
    x.multiply(y.value);
}
template <class P> HF_INLINE int64_t exponent_of(const WideNumber<P>& x) { return x.exponent; }
template <> HF_INLINE int64_t exponent_of<WidePack>(const WideNumber<WidePack>&) { return 0; }

// What one thread sees of a row's range in one level: the watch of tree_kernels.hpp, for one sample. Numbers without
// bounds need none of it.
template <class P> struct Watch {
    using V = typename P::V;
    static constexpr bool bounded = sizeof(V) <= sizeof(double);
    typename P::Scalar tiny;
    int64_t spent = 0; // bits of cancellation: the worst of the level's nodes
    bool danger, empty = false;

    HF_INLINE explicit Watch(typename P::Scalar limit) : tiny(limit), danger(limit > 1) {}

    HF_INLINE void entry(V x) {
        if constexpr (bounded) danger |= x > 0 && x < tiny;
    }
    // The sum or the largest entry of what is about to be normalised.
    HF_INLINE void normalising(V x) {
        if constexpr (bounded) spent = larger<int64_t>(spent, -static_cast<int64_t>(exponent<P>(x)));
        empty |= is_zero(x);
    }
    // The sum that beliefs have been divided by.
    HF_INLINE void normalised(V sum) {
        normalising(sum);
        if constexpr (bounded) danger |= sum > 0 && sum < Format<V>::lowest_normal;
    }
    // The sum over the rules of a node, or the symbols of two: a share of it is a product of one factor more.
    HF_INLINE void counted(V sum) {
        normalising(sum);
        if constexpr (bounded) danger |= sum > 0 && sum < Format<V>::lowest_normal * (1 << 24);
    }
    // Normalises a message to a maximum in [1, 2); returns the exponent taken out.
    HF_INLINE int64_t rescale(V* x, int q) {
        if constexpr (bounded) {
            V top = x[0];
            for (int a = 1; a < q; ++a) top = larger(top, x[a]);
            const auto e = exponent<P>(top);
            const V factor = power_of_two<P>(-e);
            for (int a = 0; a < q; ++a) {
                x[a] = x[a] * factor;
                entry(x[a]);
            }
            normalising(top);
            return e;
        } else {
            return 0;
        }
    }
    // Brings wide numbers to one common exponent, which is returned; x[a] * 2^result is the value.
    HF_INLINE int64_t align(const WideNumber<P>* wide, int q, V* x) {
        if constexpr (bounded) {
            constexpr int64_t lowest = -(int64_t(1) << 30), floor_exponent = -Format<V>::bias + 1;
            int64_t top = lowest;
            for (int a = 0; a < q; ++a)
                if (wide[a].value > 0) top = larger<int64_t>(top, wide[a].exponent);
            for (int a = 0; a < q; ++a) {
                const int64_t shift = wide[a].exponent - top; // of a zero: anything
                const bool there = wide[a].value > 0, lost = there && shift < floor_exponent;
                x[a] = there && !lost ? wide[a].value * power_of_two<P>(static_cast<typename P::Int>(shift)) : V{};
                entry(x[a]);
                danger |= lost;
            }
            return top <= lowest ? 0 : top;
        } else {
            for (int a = 0; a < q; ++a) x[a] = wide[a].value;
            return 0;
        }
    }
};

} // namespace HF_NAMESPACE
