// Exponentials of what is at most 0, and logarithms.
#pragma once

#include "pack.hpp"

namespace HF_NAMESPACE {

// Below this, 2^lift * exp(x) is no normal number.
template <class T, class Int> HF_INLINE T exp_lowest(Int lift) {
    constexpr T ln2 = T(0.693147180559945309417);
    return Format<T>::exp_lowest - static_cast<T>(lift) * ln2;
}

// 2^lift * exp(-x) for 0 <= x <= -exp_lowest(lift) to about one unit in the last place.
template <class P> HF_INLINE typename P::V exp_minus(typename P::V x, typename P::Int lift = 0) {
    using T = typename P::Scalar;
    using F = Format<T>;
    using V = typename P::V;
    // An integer in the last bits of the mantissa, more by the bias, so that they are the exponent of a power of two:
    // of half of it, since what comes out as 0 is then no less than a normal number.
    const T magic = F::round_magic + static_cast<T>(F::bias - 1 + lift);
    const V rounded = multiply_add<P>(x, splat<P>(T(-1.44269504088896340736)), splat<P>(magic));
    const V k = rounded - magic;
    V r, twice; // what is left of -x, and 2 exp(r)
    if constexpr (kFused<P> && sizeof(T) == sizeof(float)) r = multiply_add<P>(k, splat<P>(-F::ln2), -x);
    else r = multiply_add<P>(k, splat<P>(-F::ln2_lo), multiply_add<P>(k, splat<P>(-F::ln2_hi), -x));
    if constexpr (sizeof(T) == sizeof(float)) { // of degree 6, nearest to exp in relative error (3e-9)
        twice = splat<P>(2 * 1.3814599e-3f);
        twice = multiply_add<P>(twice, r, splat<P>(2 * 8.3687166e-3f));
        twice = multiply_add<P>(twice, r, splat<P>(2 * 4.1668389e-2f));
        twice = multiply_add<P>(twice, r, splat<P>(2 * 1.6666521e-1f));
        twice = multiply_add<P>(twice, r, splat<P>(2 * 4.9999994e-1f));
        twice = multiply_add<P>(twice, r, splat<P>(2.0f));
        twice = multiply_add<P>(twice, r, splat<P>(2.0f));
    } else { // 1/n! from the last term of the series to the first
        T coefficient = T(2);
        for (int term = 2; term < F::exp_terms; ++term) coefficient /= T(term);
        twice = splat<P>(coefficient);
        for (int term = F::exp_terms - 1; term >= 1; --term) {
            coefficient *= T(term);
            twice = multiply_add<P>(twice, r, splat<P>(coefficient));
        }
    }
    using Word = typename LaneType<std::make_unsigned_t<typename P::Int>, P::lanes>::type; // may lose upper bits
    return twice * from_bits<P>((typename P::I)((Word)bits_of<P>(rounded) << F::mantissa_bits));
}

// 2^lift * exp(x) for any x <= 0; exactly 0 below exp_lowest(lift).
template <class P> HF_INLINE typename P::V exp_nonpositive(typename P::V x, typename P::Int lift = 0) {
    using T = typename P::Scalar;
    constexpr T ln2 = T(0.693147180559945309417);
    return exp_minus<P>(-larger(x, splat<P>(Format<T>::exp_zero - static_cast<T>(lift) * ln2)), lift);
}

// The natural logarithm of 2^exponent * x for x >= 0, in double precision, to an ulp or two; -inf for 0.
template <class P>
HF_INLINE typename LaneType<double, P::lanes>::type log_scaled(typename P::V x, typename P::I exponent) {
    using D = Pack<double, P::lanes>;
    using V = typename D::V;
    // A pack of wider numbers than a register holds is done half by half: compilers make bad code of its conversions.
    if constexpr (P::lanes * int(sizeof(double)) > kRegisterBytes && P::lanes > 1) {
        using Half = Pack<typename P::Scalar, P::lanes / 2>;
        typename Half::V parts[2];
        typename Half::I exponents[2];
        typename LaneType<double, P::lanes / 2>::type logs[2];
        __builtin_memcpy(parts, &x, sizeof(x));
        __builtin_memcpy(exponents, &exponent, sizeof(exponent));
        for (int i = 0; i < 2; ++i) logs[i] = log_scaled<Half>(parts[i], exponents[i]);
        V both;
        __builtin_memcpy(&both, logs, sizeof(both));
        return both;
    }
    V z, power;
    if constexpr (P::lanes == 1) {
        z = static_cast<double>(x);
        power = static_cast<double>(exponent);
    } else {
        z = __builtin_convertvector(x, V);
        power = __builtin_convertvector(exponent, V);
    }
    // z = 2^e (1 + f), with 1 + f between sqrt(1/2) and sqrt(2); the factor makes subnormal numbers normal.
    constexpr double up = 1125899906842624.0; // 2^50
    constexpr int64_t half_root = 0x3FE6A09E667F3BCD, one = 0x3FF0000000000000, mantissa = 0x000FFFFFFFFFFFFF;
    using Word = typename LaneType<uint64_t, P::lanes>::type; // of what is no number the sum may overflow
    const typename D::I shifted = (typename D::I)((Word)bits_of<D>(z * up) + uint64_t(one - half_root));
    const V f = from_bits<D>((shifted & mantissa) + half_root) - 1.0;
    V e;
    const typename D::I whole = (shifted >> 52) - (1023 + 50);
    if constexpr (P::lanes == 1) e = static_cast<double>(whole);
    else e = __builtin_convertvector(whole, V);
    // log(1 + f) = 2 artanh(s), s = f / (2 + f): a series in s^2 < 0.03, arranged so that f itself comes in exactly.
    const V s = f / (f + 2.0), w = s * s;
    const V w2 = w * w;
    V even{}, odd{}; // every second term, so that one need not wait for the next
    for (int n = 23; n > 3; n -= 4) {
        even = even * w2 + 2.0 / n;
        odd = odd * w2 + 2.0 / (n - 2);
    }
    const V series = (even * w2 + 2.0 / 3) + odd * w;
    const V log = f - s * (f - w * series);
    const V other = z == 0 ? V{} - __builtin_inf() : z; // what is no number stays none
    return z > 0 ? (power + e) * 0.693147180559945309417 + log : other;
}

} // namespace HF_NAMESPACE
