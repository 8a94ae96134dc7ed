// A pack of samples: one value per lane, 1, 4, 8 or 16 lanes, and the few operations the text needs.
//
// With one lane a pack is a plain scalar (what a CUDA thread holds); with more it is a compiler
// vector. Arithmetic, comparison and `mask ? a : b` are spelled the same for both. No operation
// crosses lanes.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <type_traits>
#if defined(__SSE2__) && !defined(__CUDACC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized" // gcc 12, of its own header
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h> // for the few operations that compilers do not find by themselves
#pragma GCC diagnostic pop
#endif

#ifndef HF_NAMESPACE
#error "HF_NAMESPACE names the instruction set this text is compiled for"
#endif

#if defined(__CUDACC__)
#define HF_INLINE __host__ __device__ __forceinline__
#else
#define HF_INLINE inline __attribute__((always_inline))
#endif
#define HF_NOINLINE __attribute__((noinline)) // templates whose callers are large already

namespace HF_NAMESPACE {

// Limits of a floating-point format, as the text needs them.
template <class T> struct Format;
template <> struct Format<float> {
    using Int = int32_t;
    static constexpr int mantissa_bits = 23;
    static constexpr int32_t bias = 127;
    static constexpr int32_t exponent_mask = 0xFF;
    static constexpr float round_magic = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    static constexpr float ln2_hi = 0.693359375f;
    static constexpr float ln2_lo = -2.12194440e-4f;
    static constexpr float lowest_normal = 1.17549435e-38f;
    static constexpr float exp_lowest = -86.9899673f; // -125.5 ln 2
    static constexpr float exp_zero = -87.2f;         // below, by less than ln 2
};
template <> struct Format<double> {
    using Int = int64_t;
    static constexpr int mantissa_bits = 52;
    static constexpr int64_t bias = 1023;
    static constexpr int64_t exponent_mask = 0x7FF;
    static constexpr double round_magic = 6755399441055744.0; // 1.5 * 2^52
    static constexpr double ln2_hi = 6.93147180369123816490e-01;
    static constexpr double ln2_lo = 1.90821492927058770002e-10;
    static constexpr double lowest_normal = 2.2250738585072014e-308;
    static constexpr double exp_lowest = -708.0498449419841; // -1021.5 ln 2
    static constexpr double exp_zero = -708.3;
    static constexpr int exp_terms = 14;
};

template <class Element, int N> struct LaneType {
    typedef Element type __attribute__((vector_size(N * sizeof(Element))));
};
template <class Element> struct LaneType<Element, 1> {
    typedef Element type;
};

// The integer of a lane, by its bytes.
template <size_t Bytes> struct LaneIndex {
    using type = int32_t;
};
template <> struct LaneIndex<8> {
    using type = int64_t;
};

// The types of a pack of N lanes of T: V values, I integers and masks of the same width.
template <class T, int N> struct Pack {
    using Scalar = T;
    using Int = typename Format<T>::Int;
    using V = typename LaneType<T, N>::type;
    using I = typename LaneType<Int, N>::type;
    static constexpr int lanes = N;
};

template <class P> HF_INLINE typename P::V splat(typename P::Scalar x) {
    if constexpr (P::lanes > 1) return x - typename P::V{}; // of -0 too: compilers see that this is x and no more
    else return typename P::V{} + x;
}
template <class P> HF_INLINE typename P::I splat_int(typename P::Int x) { return typename P::I{} + x; }

// Lane access, for loads, stores and the logarithm at the very end.
template <class P> HF_INLINE typename P::Scalar lane(const typename P::V& v, int l) {
    if constexpr (P::lanes == 1) return v;
    else return v[l];
}
template <class P> HF_INLINE typename P::Int lane_int(const typename P::I& v, int l) {
    if constexpr (P::lanes == 1) return v;
    else return v[l];
}
template <class P> HF_INLINE void set_lane(typename P::V& v, int l, typename P::Scalar x) {
    if constexpr (P::lanes == 1) v = x;
    else v[l] = x;
}

template <class P> HF_INLINE typename P::Scalar lowest_lane(const typename P::V& v) {
    if constexpr (P::lanes == 1) return v;
    else {
        using Half = Pack<typename P::Scalar, P::lanes / 2>;
        typename Half::V parts[2];
        __builtin_memcpy(parts, &v, sizeof(v));
        return lowest_lane<Half>(parts[0] < parts[1] ? parts[0] : parts[1]);
    }
}

template <class P> HF_INLINE typename P::I bits_of(typename P::V v) {
    typename P::I i;
    __builtin_memcpy(&i, &v, sizeof(i));
    return i;
}
template <class P> HF_INLINE typename P::V from_bits(typename P::I i) {
    typename P::V v;
    __builtin_memcpy(&v, &i, sizeof(v));
    return v;
}

// What the instructions for maxima do, if one is NaN too; the compiler does not find them in every guise.
template <class V> HF_INLINE V larger(V a, V b) {
#if defined(__AVX512F__) && !defined(__CUDACC__)
    if constexpr (std::is_same_v<V, LaneType<float, 16>::type>) return (V)_mm512_max_ps((__m512)a, (__m512)b);
    else
#endif
        return a > b ? a : b;
}
template <class V> HF_INLINE V smaller(V a, V b) {
#if defined(__AVX512F__) && !defined(__CUDACC__)
    if constexpr (std::is_same_v<V, LaneType<float, 16>::type>) return (V)_mm512_min_ps((__m512)a, (__m512)b);
    else
#endif
        return a < b ? a : b;
}

// A mask of the pack's integer type (all ones or zero), whatever a comparison yields.
template <class P, class M> HF_INLINE typename P::I as_mask(M m) {
    if constexpr (P::lanes == 1) return m ? typename P::Int(-1) : typename P::Int(0);
    else return m;
}

// The exponent field of x >= 0: floor(log2 x) plus the bias for normal x, 0 below.
template <class P> HF_INLINE typename P::I biased_exponent(typename P::V x) {
    return bits_of<P>(x) >> Format<typename P::Scalar>::mantissa_bits;
}

// floor(log2 x) for normal x > 0, the lowest exponent for subnormal x, and 0 for x = 0, so that a
// zero message is left alone.
template <class P> HF_INLINE typename P::I exponent(typename P::V x) {
    const typename P::I e = biased_exponent<P>(x) - Format<typename P::Scalar>::bias;
    return x == 0 ? typename P::I{} : e;
}

// 2^e, exactly, for exponents of normal numbers.
template <class P> HF_INLINE typename P::V power_of_two(typename P::I e) {
    using F = Format<typename P::Scalar>;
    return from_bits<P>((e + F::bias) << F::mantissa_bits);
}

// a * b + c, rounded once where the instruction set can: for exp, the one function that is not exact anyway.
template <class P> HF_INLINE typename P::V multiply_add(typename P::V a, typename P::V b, typename P::V c) {
#if defined(__CUDACC__)
    return fma(a, b, c);
#else
#if defined(__AVX512F__)
    if constexpr (sizeof(typename P::V) == 64 && sizeof(typename P::Scalar) == 4)
        return (typename P::V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
    else if constexpr (sizeof(typename P::V) == 64)
        return (typename P::V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
    else
#endif
#if defined(__FMA__)
        if constexpr (sizeof(typename P::V) == 32 && sizeof(typename P::Scalar) == 4)
        return (typename P::V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
    else if constexpr (sizeof(typename P::V) == 32)
        return (typename P::V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
    else if constexpr (P::lanes == 1 && sizeof(typename P::Scalar) == 4) return __builtin_fmaf(a, b, c);
    else if constexpr (P::lanes == 1) return __builtin_fma(a, b, c);
    else
#endif
        return a * b + c;
#endif
}

// exp(x) for x <= 0 to about one unit in the last place; exactly 0 below exp_lowest.
template <class P> HF_INLINE typename P::V exp_nonpositive(typename P::V x) {
    using T = typename P::Scalar;
    using F = Format<T>;
    using V = typename P::V;
    const V y = larger(x, splat<P>(F::exp_zero));
    // An integer in the last bits of the mantissa, more by the bias, so that they are the exponent of a power of two:
    // of half of it, since what comes out as 0 is then no less than a normal number.
    constexpr T magic = F::round_magic + static_cast<T>(F::bias - 1);
    const V rounded = multiply_add<P>(y, splat<P>(T(1.44269504088896340736)), splat<P>(magic));
    const V k = rounded - magic;
    const V r = multiply_add<P>(k, splat<P>(-F::ln2_lo), multiply_add<P>(k, splat<P>(-F::ln2_hi), y));
    V twice;                                    // 2 exp(r)
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

// 32 x 32 -> 64 bit products, high and low halves.
HF_INLINE void multiply_wide(uint32_t m, uint32_t x, uint32_t& hi, uint32_t& lo) {
    const uint64_t p = static_cast<uint64_t>(m) * x;
    hi = static_cast<uint32_t>(p >> 32);
    lo = static_cast<uint32_t>(p);
}
// Of lanes: x86 multiplies the lower words of 64-bit lanes, whatever stands in their upper halves.
template <class D> HF_INLINE D multiply_lower(const D& x, uint32_t m) {
    constexpr int n = sizeof(D) / sizeof(uint64_t);
#if defined(__AVX512F__) && !defined(__CUDACC__)
    if constexpr (n == 8) return (D)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi32(static_cast<int>(m)));
#endif
#if defined(__AVX2__) && !defined(__CUDACC__)
    if constexpr (n == 4) return (D)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi32(static_cast<int>(m)));
#endif
#if defined(__SSE2__) && !defined(__CUDACC__)
    if constexpr (n == 2) return (D)_mm_mul_epu32((__m128i)x, _mm_set1_epi32(static_cast<int>(m)));
#endif
    return (x & 0xFFFFFFFFu) * static_cast<uint64_t>(m);
}

// 32-bit lanes from the lower, or the upper, words of those of `even` and `odd` in turn.
template <class U, class D> HF_INLINE U interleave_lower(const D& even, const D& odd) {
    [[maybe_unused]] constexpr int n = sizeof(U) / sizeof(uint32_t);
#if defined(__AVX512F__) && !defined(__CUDACC__)
    if constexpr (n == 16) return (U)_mm512_mask_shuffle_epi32((__m512i)even, 0xAAAA, (__m512i)odd, _MM_PERM_CDAB);
#endif
#if defined(__AVX2__) && !defined(__CUDACC__)
    if constexpr (n == 8) return (U)_mm256_blend_epi32((__m256i)even, _mm256_slli_epi64((__m256i)odd, 32), 0xAA);
#endif
    return (U)((even & 0xFFFFFFFFu) | odd << 32);
}
template <class U, class D> HF_INLINE U interleave_upper(const D& even, const D& odd) {
    [[maybe_unused]] constexpr int n = sizeof(U) / sizeof(uint32_t);
#if defined(__AVX512F__) && !defined(__CUDACC__)
    if constexpr (n == 16) return (U)_mm512_mask_shuffle_epi32((__m512i)odd, 0x5555, (__m512i)even, _MM_PERM_CDAB);
#endif
#if defined(__AVX2__) && !defined(__CUDACC__)
    if constexpr (n == 8) return (U)_mm256_blend_epi32(_mm256_srli_epi64((__m256i)even, 32), (__m256i)odd, 0xAA);
#endif
    return (U)(even >> 32 | (odd & ~uint64_t(0xFFFFFFFFu)));
}

// Bytes of a register of this instruction set.
#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

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
    const typename D::I shifted = bits_of<D>(z * up) + (one - half_root);
    const V f = from_bits<D>((shifted & mantissa) + half_root) - 1.0;
    V e;
    const typename D::I whole = (shifted >> 52) - (1023 + 50);
    if constexpr (P::lanes == 1) e = static_cast<double>(whole);
    else e = __builtin_convertvector(whole, V);
    // log(1 + f) = 2 artanh(s), s = f / (2 + f): a series in s^2 < 0.03, arranged so that f itself comes in exactly.
    const V s = f / (f + 2.0), w = s * s;
    V series{};
    for (int n = 23; n >= 3; n -= 2) series = series * w + 2.0 / n;
    const V log = f - s * (f - w * series);
    const V other = z == 0 ? V{} - __builtin_inf() : z; // what is no number stays none
    return z > 0 ? (power + e) * 0.693147180559945309417 + log : other;
}

// Value by value to another type of as many lanes; and a pack from memory of any alignment.
template <class To, int N, class From> HF_INLINE To convert_lanes(From from) {
    if constexpr (N == 1) return static_cast<To>(from);
    else return __builtin_convertvector(from, To);
}
template <class V> HF_INLINE V load_lanes(const void* from) {
    V v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
}

// A pack from its quarters (or halves, or whole) of 16 bytes, wherever they lie.
template <class V, int Quarters> HF_INLINE V from_quarters(const char* const* quarters) {
#if defined(__AVX512F__) && !defined(__CUDACC__)
    if constexpr (Quarters == 4) {
        const auto quarter = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(quarters[i])); };
        const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(0)), quarter(1), 1);
        const __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(quarter(2)), quarter(3), 1);
        return (V)_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
#endif
    V v;
    for (int i = 0; i < Quarters; ++i) __builtin_memcpy(reinterpret_cast<char*>(&v) + 16 * i, quarters[i], 16);
    return v;
}

// Writes one pack past the caches, to memory that nobody reads soon; `out` must be aligned to the pack.
template <class V> HF_INLINE void stream_store(void* out, const V& x) {
#if defined(__AVX512F__) && !defined(__CUDACC__)
    if constexpr (sizeof(V) == 64) {
        _mm512_stream_si512(static_cast<__m512i*>(out), (__m512i)x);
        return;
    }
#endif
    __builtin_memcpy(out, &x, sizeof(x));
}
HF_INLINE void stream_fence() {
#if defined(__AVX512F__) && !defined(__CUDACC__)
    _mm_sfence();
#endif
}

// Entry i of a table of up to N * Parts words held in registers, for every lane, without touching memory. Of i only
// as many bits count as such an index has.
template <int N, int Parts> HF_INLINE typename LaneType<uint32_t, N>::type
table_entry(const typename LaneType<uint32_t, N>::type* table, typename LaneType<uint32_t, N>::type i) {
    if constexpr (Parts == 1) return __builtin_shuffle(table[0], i);
    else if constexpr (Parts == 2) return __builtin_shuffle(table[0], table[1], i);
    else {
        const auto low = table_entry<N, Parts / 2>(table, i), high = table_entry<N, Parts / 2>(table + Parts / 2, i);
        return (i & (N * Parts / 2)) != 0 ? high : low;
    }
}

// Transposes B packs in place, within every block of Block of their N lanes: with B lanes to a block, x[i] of a block's
// lane j and x[j] of its lane i change places; with more, the B words of a lane come to stand together, lane after
// lane.
template <int N, int B, int Block = B, class V> HF_INLINE void transpose(V* x) {
    using I = typename LaneType<typename LaneIndex<sizeof(V) / N>::type, N>::type;
    I low{}, high{};
    for (int l = 0; l < N; ++l) {
        low[l] = l / Block * Block + l % Block / 2 + (l & 1 ? N : 0);
        high[l] = low[l] + Block / 2;
    }
    // A riffle of the packs half of B apart, log2 B times over, is a transposition.
    V other[B];
    V *from = x, *to = other;
    for (int width = B; width > 1; width /= 2) {
        for (int i = 0; i < B / 2; ++i) {
            to[2 * i] = __builtin_shuffle(from[i], from[i + B / 2], low);
            to[2 * i + 1] = __builtin_shuffle(from[i], from[i + B / 2], high);
        }
        V* const swap = from;
        from = to;
        to = swap;
    }
    if (from != x)
        for (int i = 0; i < B; ++i) x[i] = from[i];
}

} // namespace HF_NAMESPACE
