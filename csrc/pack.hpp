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
    static constexpr float ln2 = 0.693147180559945309f;
    static constexpr float ln2_hi = 0.693359375f;
    static constexpr float ln2_lo = -2.12194440e-4f;
    static constexpr float lowest = -3.40282347e+38f; // that is finite
    static constexpr float lowest_normal = 1.17549435e-38f;
    static constexpr float exp_lowest = -86.9899673f; // -125.5 ln 2
    static constexpr float exp_zero = -87.2f;         // below, by less than ln 2
    static constexpr int32_t room_above = 96;         // powers of two that products may reach, see Scaling
};
template <> struct Format<double> {
    using Int = int64_t;
    static constexpr int mantissa_bits = 52;
    static constexpr int64_t bias = 1023;
    static constexpr int64_t exponent_mask = 0x7FF;
    static constexpr double round_magic = 6755399441055744.0; // 1.5 * 2^52
    static constexpr double ln2_hi = 6.93147180369123816490e-01;
    static constexpr double ln2_lo = 1.90821492927058770002e-10;
    static constexpr double lowest = -1.7976931348623157e308;
    static constexpr double lowest_normal = 2.2250738585072014e-308;
    static constexpr double exp_lowest = -708.0498449419841; // -1021.5 ln 2
    static constexpr double exp_zero = -708.3;
    static constexpr int64_t room_above = 768;
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

template <class P> HF_INLINE bool any_lane(const typename P::I& mask) {
    if constexpr (P::lanes == 1) return mask != 0;
#if defined(__AVX512F__) && !defined(__CUDACC__)
    else if constexpr (sizeof(mask) == 64) return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#endif
    else return lowest_lane<P>(mask != 0 ? splat<P>(-1) : typename P::V{}) < 0;
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

// The larger of x >= 0 and y >= 0, or NaN as soon as one of them is.
template <class P> HF_INLINE typename P::V larger_or_nan(typename P::V x, typename P::V y) {
    using Word = typename LaneType<std::make_unsigned_t<typename P::Int>, P::lanes>::type;
    const Word a = (Word)bits_of<P>(x), b = (Word)bits_of<P>(y); // in the order of the numbers, and NaN above them
    return from_bits<P>((typename P::I)(a > b ? a : b));
}

// Whether two packs are equal in some lane, or may be.
template <class P> HF_INLINE bool meets([[maybe_unused]] typename P::V a, [[maybe_unused]] typename P::V b) {
#if defined(__AVX512F__) && !defined(__CUDACC__)
    if constexpr (std::is_same_v<P, Pack<float, 16>>) return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ) != 0;
#endif
#if defined(__AVX__) && !defined(__CUDACC__)
    if constexpr (std::is_same_v<P, Pack<float, 8>>)
        return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_EQ_OQ)) != 0;
#endif
#if defined(__SSE2__) && !defined(__CUDACC__)
    if constexpr (std::is_same_v<P, Pack<float, 4>>) return _mm_movemask_ps(_mm_cmpeq_ps((__m128)a, (__m128)b)) != 0;
#endif
    if constexpr (P::lanes == 1) return a == b;
    return true;
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

// Whether a * b + c is rounded once: where the instruction set can.
#if defined(__CUDACC__)
template <class P> constexpr bool kFused = true;
#elif defined(__FMA__)
template <class P> constexpr bool kFused = P::lanes == 1 || sizeof(typename P::V) >= 32;
#else
template <class P> constexpr bool kFused = false;
#endif

// a * b + c, for what is not exact anyway.
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

} // namespace HF_NAMESPACE
