// Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011), the counter-based generator of the whole package.
//
// One template serves a scalar and a vector of lanes; round keys are the same in all lanes.
#pragma once

#include "pack.hpp"

namespace HF_NAMESPACE {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u;
constexpr uint32_t kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxW1 = 0xBB67AE85u;

// What a word is for sits in the last counter word: streams of different purpose never meet.
enum Purpose : uint32_t {
    kPurposeTree = 0,      // word 0: the root symbol; word 1 + heap index: the rule of that node
    kPurposeStar = 1,      // word i: the symbol of node (k, i) of a filtered tree
    kPurposePosterior = 2, // the same two for trees drawn given evidence
    kPurposePosteriorStar = 3,
};

template <class U> struct Words {
    U w[4];
};

template <class U> using HalfLanes = typename LaneType<uint64_t, (sizeof(U) + 4) / sizeof(uint64_t)>::type;

// What a round does to one half of the lanes, every other one: a word fills the lower half of a 64-bit lane, and what
// stands above it does not matter. So the upper word of a product takes a shift and the lower none.
template <class D> HF_INLINE void philox_round(D& a, D& b, D& c, D& d, const D& k0, const D& k1) {
    const D product0 = multiply_lower(a, kPhiloxM0), product1 = multiply_lower(c, kPhiloxM1);
    a = product1 >> 32 ^ b ^ k0;
    c = product0 >> 32 ^ d ^ k1;
    b = product1;
    d = product0;
}

// The last round, after which the halves are one again.
template <class U, class D>
HF_INLINE Words<U> philox_last(const D* a, const D* b, const D* c, const D* d, const D& k0, const D& k1) {
    D product0[2], product1[2];
    for (int h = 0; h < 2; ++h) {
        product0[h] = multiply_lower(a[h], kPhiloxM0);
        product1[h] = multiply_lower(c[h], kPhiloxM1);
    }
    return {{interleave_upper<U>(product1[0], product1[1]) ^ interleave_lower<U>(b[0], b[1]) ^ (U)k0,
             interleave_lower<U>(product1[0], product1[1]),
             interleave_upper<U>(product0[0], product0[1]) ^ interleave_lower<U>(d[0], d[1]) ^ (U)k1,
             interleave_lower<U>(product0[0], product0[1])}};
}

template <class U> HF_INLINE Words<U> philox4x32(U c0, U c1, U c2, U c3, uint32_t k0, uint32_t k1) {
    if constexpr (sizeof(U) == sizeof(uint32_t)) {
        for (int round = 0; round < 10; ++round) {
            U hi0, lo0, hi1, lo1;
            multiply_wide(kPhiloxM0, c0, hi0, lo0);
            multiply_wide(kPhiloxM1, c2, hi1, lo1);
            c0 = hi1 ^ c1 ^ k0;
            c2 = hi0 ^ c3 ^ k1;
            c1 = lo1;
            c3 = lo0;
            k0 += kPhiloxW0;
            k1 += kPhiloxW1;
        }
        return {{c0, c1, c2, c3}};
    } else {
        using D = HalfLanes<U>;
        D a[2] = {(D)c0, (D)c0 >> 32}, b[2] = {(D)c1, (D)c1 >> 32}, c[2] = {(D)c2, (D)c2 >> 32},
          d[2] = {(D)c3, (D)c3 >> 32};
        for (int round = 0; round < 9; ++round) {
            const D key0 = (D)(U{} + k0), key1 = (D)(U{} + k1);
            for (int h = 0; h < 2; ++h) philox_round(a[h], b[h], c[h], d[h], key0, key1);
            k0 += kPhiloxW0;
            k1 += kPhiloxW1;
        }
        return philox_last<U>(a, b, c, d, (D)(U{} + k0), (D)(U{} + k1));
    }
}

// Many blocks of lanes whose second and fourth counter words are the same in all of them: of the first two rounds, what
// depends on the lane alone is done once (PhiloxLanes), what depends on the block alone in scalars (PhiloxBlock), and
// two sums are left. With AVX-512 a block of 16 lanes is then 8 rounds of 12 instructions and 4 to 8 more: some 103,
// two of them a cycle.

// The keys of all rounds, in every lane, so that none has to be spread over lanes again.
template <class U> struct PhiloxKeys {
    using D = HalfLanes<U>;
    D round0[10], round1[10];
    uint32_t key0, key1;

    HF_INLINE void set(uint32_t k0, uint32_t k1) {
        key0 = k0;
        key1 = k1;
        for (int i = 0; i < 10; ++i) {
            round0[i] = (D)(U{} + (k0 + static_cast<uint32_t>(i) * kPhiloxW0));
            round1[i] = (D)(U{} + (k1 + static_cast<uint32_t>(i) * kPhiloxW1));
        }
    }
};

// First and fourth counter words after two rounds, but for what a block adds.
template <class U> struct PhiloxLanes {
    using D = HalfLanes<U>;
    D a[2], b[2], c[2];

    HF_INLINE PhiloxLanes(const PhiloxKeys<U>& keys, U c0, uint32_t c3) {
        const D word[2] = {(D)c0, (D)c0 >> 32};
        for (int h = 0; h < 2; ++h) {
            c[h] = multiply_lower(word[h], kPhiloxM0);
            b[h] = multiply_lower<D>(c[h] >> 32 ^ (c3 ^ keys.key1), kPhiloxM1);
            a[h] = b[h] >> 32;
        }
    }
};

// What a block adds, from the second and third counter words.
template <class U> struct PhiloxBlock {
    using D = HalfLanes<U>;
    D a, c, d;

    PhiloxBlock() = default;
    HF_INLINE PhiloxBlock(const PhiloxKeys<U>& keys, uint32_t c1, uint32_t block) {
        uint32_t hi, lo, hi1, lo1;
        multiply_wide(kPhiloxM1, block, hi, lo);
        multiply_wide(kPhiloxM0, hi ^ c1 ^ keys.key0, hi1, lo1);
        a = (D)(U{} + (lo ^ (keys.key0 + kPhiloxW0)));
        c = (D)(U{} + (hi1 ^ (keys.key1 + kPhiloxW1)));
        d = (D)(U{} + lo1);
    }

    // Several blocks in step: what one waits for, another fills. Of the 8 rounds that are left, each is followed by
    // what `beside(0)` to `beside(7)` do.
    template <int B, class Beside> static HF_INLINE void of(const PhiloxBlock* blocks, const PhiloxLanes<U>& lanes,
                                                            const PhiloxKeys<U>& keys, Words<U>* out,
                                                            const Beside& beside) {
        D x[B][2], y[B][2], z[B][2], w[B][2];
        for (int b = 0; b < B; ++b)
            for (int h = 0; h < 2; ++h) {
                x[b][h] = lanes.a[h] ^ blocks[b].a;
                y[b][h] = lanes.b[h];
                z[b][h] = lanes.c[h] ^ blocks[b].c;
                w[b][h] = blocks[b].d;
            }
#if !defined(__CUDACC__)
#pragma GCC unroll 8
#endif
        for (int i = 2; i < 9; ++i) {
            for (int b = 0; b < B; ++b)
                for (int h = 0; h < 2; ++h)
                    philox_round(x[b][h], y[b][h], z[b][h], w[b][h], keys.round0[i], keys.round1[i]);
            beside(i - 2);
        }
        beside(7);
        for (int b = 0; b < B; ++b) out[b] = philox_last<U>(x[b], y[b], z[b], w[b], keys.round0[9], keys.round1[9]);
    }
};

} // namespace HF_NAMESPACE
