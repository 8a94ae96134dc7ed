// The words that trees of rows are drawn with, many at a time.
#pragma once

#include "tree_sampling.hpp"

namespace HF_NAMESPACE {
namespace {

// Packs of rows that are drawn together: a small tree alone leaves the processor waiting for one choice after the
// other.
constexpr int kMaxPacks = 4;

// The words of one purpose for rows first, first + 1, ..., as many packs of them as are drawn together, a range of
// blocks at a time.
template <int N> struct Draws {
    using U = typename LaneType<uint32_t, N>::type;
    static constexpr int64_t capacity = 128; // words, over all packs
    U words[capacity];
    int64_t begin, end; // those held
    uint64_t first;
    uint32_t purpose;
    int packs;

    HF_INLINE void start(uint64_t row, int n_packs) {
        begin = end = 0;
        first = row;
        packs = n_packs;
    }

    // Words from ... to - 1, of every pack in turn; at most `capacity` with what makes blocks whole.
    HF_INLINE const U* operator()(const PhiloxKeys<U>& keys, int64_t from, int64_t to) {
        if (from < begin || to > end) fill(keys, from, to);
        return words + (from - begin) * packs;
    }

    void fill(const PhiloxKeys<U>& keys, int64_t from, int64_t to) {
        const int64_t block = from / 4, blocks = (to + 3) / 4 - block;
        begin = 4 * block;
        end = begin + 4 * blocks;
        const uint32_t low = static_cast<uint32_t>(first), high = static_cast<uint32_t>(first >> 32);
        const uint32_t rows = static_cast<uint32_t>(packs * N);
        const auto put = [&](int64_t i, int p, const Words<U>& made) {
            for (int j = 0; j < 4; ++j) words[(4 * i + j) * packs + p] = made.w[j];
        };
        U lane{};
        for (int l = 0; l < N; ++l) element(lane, l) = static_cast<uint32_t>(l);
        if constexpr (N > 1)
            if (low <= 0xFFFFFFFFu - (rows - 1)) { // all in one: no index carries
                for (int p = 0; p < packs; ++p) {
                    const PhiloxLanes<U> lanes(keys, lane + (low + static_cast<uint32_t>(p * N)), purpose);
                    const auto at = [&](int64_t i) {
                        return PhiloxBlock<U>(keys, high, static_cast<uint32_t>(block + i));
                    };
                    int64_t i = 0;
                    for (; i + 2 <= blocks; i += 2) {
                        const PhiloxBlock<U> two[2] = {at(i), at(i + 1)};
                        Words<U> made[2];
                        PhiloxBlock<U>::template of<2>(two, lanes, keys, made, [](int) {});
                        put(i, p, made[0]);
                        put(i + 1, p, made[1]);
                    }
                    if (i < blocks) {
                        const PhiloxBlock<U> last = at(i);
                        Words<U> made;
                        PhiloxBlock<U>::template of<1>(&last, lanes, keys, &made, [](int) {});
                        put(i, p, made);
                    }
                }
                return;
            }
        for (int p = 0; p < packs; ++p) {
            Indices<N> index{};
            for (int l = 0; l < N; ++l) {
                const uint64_t row = first + static_cast<uint64_t>(p * N + l);
                element(index.lo, l) = static_cast<uint32_t>(row);
                element(index.hi, l) = static_cast<uint32_t>(row >> 32);
            }
            for (int64_t i = 0; i < blocks; ++i)
                put(i, p,
                    philox4x32<U>(index.lo, index.hi, U{} + static_cast<uint32_t>(block + i), U{} + purpose, keys.key0,
                                  keys.key1));
        }
    }
};

} // namespace
} // namespace HF_NAMESPACE
