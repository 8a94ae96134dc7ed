// What drawing has in common: indices of rows, the words of their streams, the search in cut points.
#pragma once

#include "hfilter.h"
#include "pack.hpp"
#include "philox.hpp"

namespace HF_NAMESPACE {

HF_INLINE int64_t n_nodes(const hf_model& m, int level) {
    if (m.arity == 2) return int64_t(1) << level;
    int64_t n = 1;
    for (int d = 0; d < level; ++d) n *= m.arity;
    return n;
}

template <int N> struct Indices {
    using U = typename LaneType<uint32_t, N>::type;
    U lo, hi;
};

template <class U> HF_INLINE uint32_t& element(U& v, int l) { return reinterpret_cast<uint32_t*>(&v)[l]; }

// The words of one purpose, four to a block, fetched in any order.
template <int N> struct WordStream {
    using U = typename LaneType<uint32_t, N>::type;
    Indices<N> index;
    uint32_t purpose, key0, key1;
    int64_t held = -1;
    Words<U> words = {};

    HF_INLINE U operator[](int64_t t) {
        if ((t >> 2) != held) {
            held = t >> 2;
            words = philox4x32<U>(index.lo, index.hi, U{} + static_cast<uint32_t>(held), U{} + purpose, key0, key1);
        }
        return words.w[t & 3];
    }
};

} // namespace HF_NAMESPACE
