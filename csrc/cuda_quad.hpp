// Messages of up to four symbols, in single precision and in few instructions (cuda_resident.hpp).
#pragma once

#include "cuda_launch.hpp"

namespace HF_NAMESPACE {

struct alignas(16) Quad {
    float v[4];
};

// 2^x for x <= 0 in the normal range, to two units in the last place.
HF_INLINE float exp2_nonpositive(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// 1 / x to about a unit in the last place, for normal x whose inverse is normal.
HF_INLINE float inverse_of(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1.0f / x;
#endif
}

// One instruction each; they pass over a NaN, which is noticed elsewhere.
HF_INLINE float largest(const Quad& x) { return fmaxf(fmaxf(x.v[0], x.v[1]), fmaxf(x.v[2], x.v[3])); }
HF_INLINE float total(const Quad& x) { return ((x.v[0] + x.v[1]) + x.v[2]) + x.v[3]; }

// floor(log2 x) of a normal x > 0. Of 0 it is -127: what is zero throughout counts as lost in any case.
HF_INLINE int32_t exponent_of(float x) { return (bits_of<Pack<float, 1>>(x) >> 23) - 127; }

// x / sum, rounded correctly but for a rare last place, with one reciprocal for all; certainty is exactly 1.
HF_INLINE Quad divide(Quad x, float sum, bool invalid) {
    if (!(sum > 0x1p-100f)) { // its reciprocal might not be a normal number
        for (int a = 0; a < 4; ++a) x.v[a] *= 0x1p100f;
        sum *= 0x1p100f;
    }
    const float inverse = invalid ? NAN : inverse_of(sum);
    for (int a = 0; a < 4; ++a) {
        const float guess = x.v[a] * inverse;
        x.v[a] = __builtin_fmaf(__builtin_fmaf(-guess, sum, x.v[a]), inverse, guess);
    }
    return x;
}

// What has happened to the range of a row (tree_kernels.hpp: Range), in few instructions: a minimum of
// bit patterns less one passes over zeros, and a minimum over a level tells its worst exponent.
struct Doubts {
    uint32_t smallest = 0xFFFFFFFFu;
    float level = 1; // smallest maximum of a message in the present level, as far as it is below 1
    int32_t spent = 0, total = 0;
    bool empty = false;

    HF_INLINE void watch(const Quad& x) {
        for (int a = 0; a < 4; ++a) {
            uint32_t bits;
            __builtin_memcpy(&bits, &x.v[a], sizeof(bits));
            smallest = smaller(smallest, bits - 1u);
        }
    }
    HF_INLINE void rescale(Quad& x) {
        const float top = largest(x);
        const int32_t biased = bits_of<Pack<float, 1>>(top) >> 23;
        const float factor = from_bits<Pack<float, 1>>((254 - biased) << 23);
        for (int a = 0; a < 4; ++a) x.v[a] *= factor;
        watch(x);
        level = fminf(level, top);
        total += biased - 127;
    }
    HF_INLINE void next_level() {
        spent -= exponent_of(level);
        empty |= level == 0;
        level = 1;
    }
    HF_INLINE bool danger(float tiny) const {
        uint32_t bits;
        __builtin_memcpy(&bits, &tiny, sizeof(bits));
        return tiny > 1 || smallest < bits - 1u;
    }
};

} // namespace HF_NAMESPACE
