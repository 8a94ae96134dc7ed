// Sampling: a tree of the stream for every lane, level by level.
#pragma once

#include "hfilter.h"
#include "pack.hpp"
#include "philox.hpp"

namespace HF_NAMESPACE {

HF_INLINE int64_t n_nodes(const hf_model& m, int level) {
    int64_t n = 1;
    for (int d = 0; d < level; ++d) n *= m.arity;
    return n;
}

template <int N> struct Indices {
    using U = typename LaneType<uint32_t, N>::type;
    U lo, hi;
};

template <class U> HF_INLINE uint32_t& element(U& v, int l) { return reinterpret_cast<uint32_t*>(&v)[l]; }

template <int N> HF_INLINE Indices<N> row_indices(uint64_t first) {
    Indices<N> r{};
    for (int l = 0; l < N; ++l) {
        element(r.lo, l) = static_cast<uint32_t>(first + static_cast<uint64_t>(l));
        element(r.hi, l) = static_cast<uint32_t>((first + static_cast<uint64_t>(l)) >> 32);
    }
    return r;
}

// The words of one purpose, four to a block, blocks two at a time, fetched in any order.
template <int N> struct WordStream {
    using U = typename LaneType<uint32_t, N>::type;
    Indices<N> index;
    uint32_t purpose, key0, key1;
    int64_t pair = -1;
    Words<U> words[2] = {};

    HF_INLINE U operator[](int64_t t) {
        if ((t >> 3) != pair) {
            pair = t >> 3;
            philox4x32_pair<U>(index.lo, index.hi, U{} + static_cast<uint32_t>(2 * pair), U{} + purpose, key0, key1,
                               words);
        }
        return words[(t >> 2) & 1].w[t & 3];
    }
};

// A word as the search sees it: the largest counts as its neighbour, so a padded cut point is never passed.
template <class U> HF_INLINE U clipped(U word) { return smaller<U>(word, U{} + 0xFFFFFFFEu); }

// Where in the table of cut points, rows of 1 << bits, the word falls in its row: the row's start plus how many
// cut points are <= the word, by binary search. `cut(i)` looks up entry i of the table in every lane.
template <class U, class Cut> HF_INLINE U search(int bits, U row, U word, const Cut& cut) {
    const U w = clipped(word);
    U position = row << bits;
    for (int b = bits - 1; b >= 0; --b) {
        const uint32_t step = 1u << b;
        position += cut(position + (step - 1u)) <= w ? U{} + step : U{};
    }
    return position;
}

// Entry i of a table in memory, for every lane.
template <int N, class U> HF_INLINE U gather(const uint32_t* table, U i) {
    U x{};
    for (int l = 0; l < N; ++l) element(x, l) = table[element(i, l)];
    return x;
}

// The search in a table of `entries` in all: in registers if it fits.
template <int N, class U> HF_INLINE U search_table(const uint32_t* cuts, int64_t entries, int bits, U row, U word) {
    if constexpr (RegisterTable<N>::capacity > 0)
        if (entries <= RegisterTable<N>::capacity) {
            RegisterTable<N> table;
            table.load(cuts, static_cast<int>(entries));
            return search<U>(bits, row, word, [&](U i) { return table.at(i, entries > 2 * N); });
        }
    return search<U>(bits, row, word, [&](U i) { return gather<N, U>(cuts, i); });
}

// What the nodes of one level draw from: if it is small, tables in registers, with the children of a rule packed
// into one word.
template <int N> struct RegisterLevel {
    RegisterTable<N> cuts, picks;
    int child_bits; // 0: too large
    bool wide;

    HF_INLINE void load(const hf_level& level, int arity) {
        constexpr int capacity = RegisterTable<N>::capacity;
        const int64_t entries = int64_t(level.n_parents) << level.cut_bits;
        child_bits = 0;
        if constexpr (capacity > 0) {
            if (entries > capacity || arity > 4 || int64_t(level.n_symbols) > int64_t(1) << (32 / arity)) return;
            uint32_t packed[capacity] = {};
            child_bits = 32 / arity;
            wide = entries > 2 * N;
            for (int i = 0; i < entries; ++i)
                for (int r = 0; r < arity; ++r) packed[i] |= level.picks[i * arity + r] << (r * child_bits);
            cuts.load(level.cuts, static_cast<int>(entries));
            picks.load(packed, static_cast<int>(entries));
        }
    }
};

// The n nodes of a level draw their rules and become n * s: from the last node to the first, in place.
template <int N, class U, class Stream> HF_INLINE void
expand_level(const hf_level& level, const RegisterLevel<N>& table, int s, int64_t n, Stream& words, U* symbols) {
    const int64_t first_word = 1 + (n - 1) / (s - 1); // of the level's first node, in heap order
    const int bits = level.cut_bits, child_bits = table.child_bits;
    if (child_bits > 0) {
        const uint32_t child_mask = static_cast<uint32_t>((uint64_t(1) << child_bits) - 1);
        for (int64_t i = n - 1; i >= 0; --i) {
            const U rule =
                search<U>(bits, symbols[i], words[first_word + i], [&](U x) { return table.cuts.at(x, table.wide); });
            const U pick = table.picks.at(rule, table.wide);
            for (int r = 0; r < s; ++r) symbols[i * s + r] = pick >> (r * child_bits) & child_mask;
        }
        return;
    }
    for (int64_t i = n - 1; i >= 0; --i) {
        const U rule =
            search<U>(bits, symbols[i], words[first_word + i], [&](U x) { return gather<N, U>(level.cuts, x); });
        for (int r = 0; r < s; ++r)
            symbols[i * s + r] = gather<N, U>(level.picks, rule * static_cast<uint32_t>(s) + static_cast<uint32_t>(r));
    }
}

// Trees of rows first … first + N - 1 of the stream into `symbols` (n_leaves packs), level by level
// in place: the children of node i overwrite entries that no node before i needs. `store(d, symbols)`
// sees every existing level. `tables[d]` is loaded from m.levels[d] for every level below the filter level.
template <int N, class Store>
HF_INLINE void sample_tree(const hf_model& m, const RegisterLevel<N>* tables, uint64_t seed, uint64_t first,
                           const int32_t* roots, typename LaneType<uint32_t, N>::type* symbols, const Store& store) {
    using U = typename LaneType<uint32_t, N>::type;
    const uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    WordStream<N> tree{row_indices<N>(first), kPurposeTree, key0, key1};
    U root{};
    if (roots) {
        const uint32_t last = static_cast<uint32_t>(m.alphabets[0] - 1);
        for (int l = 0; l < N; ++l) {
            const uint32_t r = static_cast<uint32_t>(roots[l]);
            element(root, l) = r < last ? r : last;
        }
    } else {
        root = search_table<N, U>(m.prior_cuts, 1 << m.prior_bits, m.prior_bits, U{}, tree[0]);
    }
    symbols[0] = root;
    store(0, symbols);
    const int k = m.filter_level;
    if (k > 0) {
        WordStream<N> star{row_indices<N>(first), kPurposeStar, key0, key1};
        const int64_t n = n_nodes(m, k);
        const int64_t entries = static_cast<int64_t>(m.alphabets[0]) << m.star_bits;
        const U row = root << m.star_bits;
        for (int64_t i = 0; i < n; ++i)
            symbols[i] = search_table<N, U>(m.star_cuts + i * entries, entries, m.star_bits, root, star[i]) - row;
        store(k, symbols);
    }
    for (int d = k; d < m.depth; ++d) {
        expand_level<N, U>(m.levels[d], tables[d], m.arity, n_nodes(m, d), tree, symbols);
        store(d + 1, symbols);
    }
}

} // namespace HF_NAMESPACE
