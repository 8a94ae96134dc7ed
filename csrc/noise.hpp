// Standard normal numbers from words of Philox; hfilter/noising/text.py is the twin.
//
// Only operations that IEEE 754 rounds correctly, in float, never fused: every instruction set and every device gives
// the same bits.
#pragma once

#include "philox.hpp"

namespace HF_NAMESPACE {

HF_INLINE float root(float x) {
#if defined(__CUDA_ARCH__)
    return __fsqrt_rn(x);
#else
    return __builtin_sqrtf(x);
#endif
}
template <class V> HF_INLINE V root(const V& x) {
#if defined(__AVX512F__) && !defined(__CUDACC__)
    if constexpr (sizeof(V) == 64) return (V)_mm512_sqrt_ps((__m512)x);
#endif
#if defined(__AVX2__) && !defined(__CUDACC__)
    if constexpr (sizeof(V) == 32) return (V)_mm256_sqrt_ps((__m256)x);
#endif
#if defined(__SSE2__) && !defined(__CUDACC__)
    if constexpr (sizeof(V) == 16) return (V)_mm_sqrt_ps((__m128)x);
#endif
    V y;
    for (size_t l = 0; l < sizeof(V) / sizeof(float); ++l) y[l] = __builtin_sqrtf(x[l]);
    return y;
}

// Two normal numbers from two words (Box and Muller 1958). The radius is sqrt(-2 ln u), u = (w + 1/2) / 2^32; the angle
// has the 30 low bits of v within an octant to either side, one bit that exchanges the coordinates and one that turns
// by pi.
template <int N, class U, class V> HF_INLINE void box_muller(const U& w, const U& v, V& first, V& second) {
    using P = Pack<float, N>;
    using I = typename P::I;
    const auto real = [](const U& x) { return convert_lanes<V, N>(convert_lanes<I, N>(x)); };
    const V f = real(w >> 16) * 65536.0f + (real(w & 0xFFFFu) + 0.5f); // rounded once: both parts are exact
    const I bits = bits_of<P>(f), e = (bits - 0x3F3504F3) >> 23;       // f = 2^e (1 + t), 1 + t from sqrt(1/2)
    const V t = from_bits<P>(bits - (e << 23)) - 1.0f;
    // -2 ln(1 + t) = t (-2 + t (1 + t P(t)))
    V p = t * -0.178357422f + 0.287004143f;
    p = p * t + -0.29753926f;
    p = p * t + 0.33131269f;
    p = p * t + -0.39930797f;
    p = p * t + 0.50003493f;
    p = p * t + -0.66667718f;
    p = p * t + 1.0f;
    const V square = convert_lanes<V, N>(32 - e) * 1.38629436f + (p * t - 2.0f) * t;
    const V x = real(v << 2) * 3.6572953e-10f; // pi / 4 / 2^31
    const V z = x * x;
    const V s = x + x * z * ((z * -0.000195172979f + 0.008332178f) * z + -0.166666552f);
    const V c = (1.0f - z * 0.5f) + z * z * ((z * 2.44384514e-05f + -0.00138873677f) * z + 0.0416666456f);
    const V r = from_bits<P>(bits_of<P>(root(square)) ^ convert_lanes<I, N>(v & 0x80000000u));
    const auto swap = convert_lanes<I, N>(v << 1) < 0;
    first = r * (swap ? s : c);
    second = r * (swap ? c : s);
}

} // namespace HF_NAMESPACE
