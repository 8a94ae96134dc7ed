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

// Blocks c2 and c2 + 1 in step: one's products are waited for while the other's are begun.
template <class U> HF_INLINE void philox4x32_pair(U c0, U c1, U c2, U c3, uint32_t k0, uint32_t k1, Words<U>* out) {
    U a[2] = {c0, c0}, b[2] = {c1, c1}, c[2] = {c2, c2 + 1u}, d[2] = {c3, c3};
    for (int round = 0; round < 10; ++round) {
        for (int i = 0; i < 2; ++i) {
            U hi0, lo0, hi1, lo1;
            multiply_wide(kPhiloxM0, a[i], hi0, lo0);
            multiply_wide(kPhiloxM1, c[i], hi1, lo1);
            a[i] = hi1 ^ b[i] ^ k0;
            c[i] = hi0 ^ d[i] ^ k1;
            b[i] = lo1;
            d[i] = lo0;
        }
        k0 += kPhiloxW0;
        k1 += kPhiloxW1;
    }
    for (int i = 0; i < 2; ++i) out[i] = {{a[i], b[i], c[i], d[i]}};
}

template <class U> HF_INLINE Words<U> philox4x32(U c0, U c1, U c2, U c3, uint32_t k0, uint32_t k1) {
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
}

} // namespace HF_NAMESPACE
