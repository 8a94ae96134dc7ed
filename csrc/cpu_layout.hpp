// What one pack of rows needs in memory, and how much of a tree is in it at a time.
#pragma once

#include "subtree_table.hpp"

namespace HF_NAMESPACE {
namespace {

// A tree whose messages take more than a cache holds is passed in parts, the subtrees of the nodes of level `cut`:
// their levels have room for one part alone, upward messages inside are made again on the way down, and only the levels
// from `cut` on up are kept. This is what may be kept of a tree in one piece, and what a part should take.
// (The tests have a core that passes all trees in the smallest of parts.)
#ifndef HF_SMALLEST_PARTS
constexpr int64_t kWholeBytes = int64_t(4) << 20, kPartBytes = int64_t(512) << 10;
#else
constexpr int64_t kWholeBytes = 0, kPartBytes = 0;
#endif

// Scratch of one pack, in values: messages of every existing level, two downward levels, and the star.
template <class P> struct Layout {
    int cut = 0; // level whose subtrees are the parts; 0: there is one part, the tree
    int64_t parts = 1;
    int64_t nu[64];     // offset of each level
    int64_t mu[2];      // of the levels that are kept
    int64_t mu_part[2]; // of those of a part
    int64_t star;       // per node and class: m_i(a) and the product of those before it (value, exponent)
    int64_t counts;     // of the rules, and a level's alphabet of scratch
    int64_t pairs;      // of the root and the star's nodes
    int64_t root;       // its message, then its belief
    int64_t worst;      // of a tree in parts: cancellation of each level, upward, downward and of beliefs
    int64_t size;

    // `whole`: messages of all levels will be asked for.
    HF_INLINE Layout(const hf_model& m, const hf_infer_args& args, bool whole) {
        if (!whole && !args.counts && !args.causal && args.window == 0) divide(m, args);
        int64_t at = 0, alphabet = m.alphabets[0];
        for (int d = m.filter_level; d <= m.depth; ++d) {
            nu[d] = at;
            at += n_nodes(m, d <= cut ? d : d - cut) * m.alphabets[d];
            if (m.alphabets[d] > alphabet) alphabet = m.alphabets[d];
        }
        const int64_t kept = widest(m, m.filter_level, parts > 1 ? cut : m.depth, 0);
        mu[0] = at;
        mu[1] = at + kept;
        at += 2 * kept;
        const int64_t part = parts > 1 ? widest(m, cut + 1, m.depth, cut) : 0;
        mu_part[0] = at;
        mu_part[1] = at + part;
        star = at + 2 * part;
        const int64_t q0 = m.alphabets[0];
        at = star + 2 * q0; // the root's message and its belief
        if (m.filter_level > 0) at += (3 * n_nodes(m, m.filter_level) + 3 * 2) * q0;
        root = at - 2 * q0;
        counts = at;
        if (args.counts) at += m.n_counts + alphabet;
        pairs = at;
        if (args.star_pairs) at += n_nodes(m, m.filter_level) * q0 * m.alphabets[m.filter_level];
        worst = at;
        if (parts > 1) at += 3 * (m.depth + 1);
        size = at;
    }

  private:
    static int64_t widest(const hf_model& m, int first, int last, int cut) {
        int64_t most = m.alphabets[0];
        for (int d = first; d <= last; ++d) most = larger(most, n_nodes(m, d - cut) * m.alphabets[d]);
        return most;
    }
    // Bytes of a subtree of level c, the downward messages of two levels included.
    static int64_t part_bytes(const hf_model& m, int c) {
        int64_t values = 2 * widest(m, c, m.depth, c);
        for (int d = c; d <= m.depth; ++d) values += n_nodes(m, d - c) * m.alphabets[d];
        return values * static_cast<int64_t>(sizeof(typename P::V));
    }
    // As high a cut as parts of that size allow, and below it a table still looks whole subtrees up; none where parts
    // would be no smaller than half of the tree.
    void divide(const hf_model& m, const hf_infer_args& args) {
        const int64_t whole = n_nodes(m, m.filter_level) * part_bytes(m, m.filter_level);
        if (whole <= kWholeBytes) return;
        int c = m.depth - (args.tokens ? larger(TableShape(m).height, 1) : 1);
        while (c - 1 > m.filter_level && part_bytes(m, c - 1) <= kPartBytes) --c;
        if (c <= m.filter_level || 2 * part_bytes(m, c) > whole) return;
        cut = c;
        parts = n_nodes(m, c);
    }
};

} // namespace
} // namespace HF_NAMESPACE
