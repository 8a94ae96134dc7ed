// Roots of fully seen rows under an unambiguous binary grammar: a pair of symbols has one parent at most, which is
// looked up. Probabilities have no say: the table serves where none can leave the range of the type.
#pragma once

#include "cpu_infer.hpp"
#include "parse_table.hpp"

#include <type_traits>

namespace HF_NAMESPACE {
namespace {

// Whether a call asks for the root or for leave-one-out predictions at most, from tokens, by all other leaves.
inline bool asks_no_more_of_tokens(const hf_model& m, const hf_infer_args& args) {
    bool more = args.log_evidence || args.counts || args.star_pairs || args.causal || args.window > 0;
    for (int d = 1; d <= m.depth; ++d) more = more || (args.beliefs && args.beliefs[d]);
    return args.tokens && !more;
}
inline bool asks_root_alone(const hf_model& m, const hf_infer_args& args) {
    return args.root && !args.leave_one_out && asks_no_more_of_tokens(m, args);
}

// Whether no leaf of these rows is hidden, or is no symbol at all.
inline bool all_seen(const hf_model& m, const hf_infer_args& args, const Rows& rows) {
    const int64_t leaves = n_nodes(m, m.depth), first = rows.first * leaves, last = first + rows.count * leaves;
    const auto highest = [&](const auto* x) {
        auto most = x[first];
        for (int64_t i = first; i < last; ++i) most = larger(most, x[i]);
        return most;
    };
    if (args.mask && highest(args.mask) != 0) return false;
    const int q = m.alphabets[m.depth];
    return args.token_bytes == 1 ? highest(static_cast<const uint8_t*>(args.tokens)) < q
                                 : highest(static_cast<const uint16_t*>(args.tokens)) < q;
}

// Calls parse(rows) with the packs of fully seen rows, and has the others inferred.
template <class P, class Work> void over_seen_rows(const hf_model& m, const hf_infer_args& args, int64_t begin,
                                                   int64_t end, void* scratch, const Work& parse) {
    int64_t done = begin;
    for (int64_t row = begin; row < end; row += P::lanes) {
        const Rows rows{args.n, row, end - row < P::lanes ? static_cast<int>(end - row) : P::lanes};
        if (!all_seen(m, args, rows)) continue;
        if (done < row) infer_rows<P>(m, args, done, row, scratch);
        done = row + rows.count;
        parse(rows);
        for (int l = 0; l < rows.count; ++l) args.status[row + l] = HF_ROW_EXACT;
    }
    if (done < end) infer_rows<P>(m, args, done, end, scratch);
}

// How many entries a table of pairs may have to be looked up by permutation of registers.
template <int N> constexpr int64_t kHeldPairs = N == 16 ? 64 : N == 8 ? 16 : 0;

// A table of pairs, n entries with room to a multiple of 16, at the pairs given: by permutation where it is small.
template <int N, bool Small> struct PairTable {
    using U = typename LaneType<uint32_t, N>::type;
    static constexpr int parts = N == 16 ? 4 : 2;
    const void* entries;
    U held[parts];
    bool wide;

    HF_INLINE PairTable(const void* table, int64_t n) : entries(table), wide(n > 2 * N) {
        if constexpr (Small) __builtin_memcpy(held, table, static_cast<size_t>((n + N - 1) / N) * sizeof(U));
    }
    HF_INLINE U at(const U& pair) const {
        if constexpr (Small) return wide ? table_entry<N, parts>(held, pair) : table_entry<N, 2>(held, pair);
#if defined(__AVX512F__) && !defined(__CUDACC__)
        if constexpr (N == 16) return (U)_mm512_i32gather_epi32((__m512i)pair, entries, 4);
#endif
        U out{};
        for (int l = 0; l < N; ++l) out[l] = static_cast<const uint32_t*>(entries)[pair[l]];
        return out;
    }
};

// One pack of rows.
template <class P> struct RootParse {
    static constexpr int N = P::lanes;
    using V = typename P::V;
    using U = typename LaneType<uint32_t, N>::type;
    // Of the subtrees that are parsed at once: their symbols stay in the nearest cache.
    static constexpr int kHeight = 9;
    const hf_model& m;
    const hf_infer_args& args;
    const ParseTable& table;
    int cut; // level of these subtrees
    V* belief;
    U *top, *part;

    static int cut_of(const hf_model& m) { return m.depth > kHeight ? m.depth - kHeight : 0; }
    // Scratch: the root's belief, symbols of the subtrees, and of the leaves of one; 0 if the model is not parsed.
    static int64_t packs(const hf_model& m) {
        const int cut = cut_of(m);
        return ParseShape(m).width == 0 ? 0 : m.alphabets[0] + (int64_t(1) << cut) + (int64_t(1) << (m.depth - cut));
    }
    RootParse(const hf_model& model, const hf_infer_args& call, const ParseTable& t, void* scratch)
        : m(model), args(call), table(t), cut(cut_of(m)), belief(static_cast<V*>(scratch)),
          top(reinterpret_cast<U*>(belief + m.alphabets[0])), part(top + (int64_t(1) << cut)) {}

    HF_INLINE void operator()(const Rows& rows) const {
        const int64_t leaves = int64_t(1) << (m.depth - cut);
        for (int64_t i = 0; i < int64_t(1) << cut; ++i) {
            load_symbols<N>(m, args, rows, {i * leaves, leaves}, part);
            for (int d = m.depth - 1; d >= cut; --d) level_up(d, int64_t(1) << (d - cut), part);
            top[i] = part[0];
        }
        for (int d = cut - 1; d >= 0; --d) level_up(d, int64_t(1) << d, top);
        const int q = m.alphabets[0];
        const V root = convert_lanes<V, N>(convert_lanes<typename P::I, N>(top[0]));
        for (int a = 0; a < q; ++a) belief[a] = root == static_cast<float>(a) ? splat<P>(1) : V{};
        normalise<P>(belief, q, belief); // NaN where nothing can be
        store_rows<P>(belief, rows, q, static_cast<float*>(args.root));
    }

  private:
    // Parents of n pairs of level d, in place.
    HF_INLINE void level_up(int d, int64_t n, U* symbols) const {
        if constexpr (kHeldPairs<N> > 0)
            if (ParseShape::pairs(m, d) <= kHeldPairs<N>) return level_up<true>(d, n, symbols);
        level_up<false>(d, n, symbols);
    }
    template <bool Small> HF_INLINE void level_up(int d, int64_t n, U* symbols) const {
        const ParseLevel& level = table.level[d];
        const uint32_t base = static_cast<uint32_t>(level.base);
        const PairTable<N, Small> parents(level.parents, ParseShape::pairs(m, d));
        for (int64_t i = 0; i < n; ++i) symbols[i] = parents.at(symbols[2 * i] * base + symbols[2 * i + 1]);
    }
};

template <class P> HF_NOINLINE void parse_roots(const hf_model& m, const hf_infer_args& args, const ParseTable& table,
                                                int64_t begin, int64_t end, void* scratch) {
    const RootParse<P> parse(m, args, table, KeptPlan<P>::room(scratch));
    over_seen_rows<P>(m, args, begin, end, scratch, parse);
}

} // namespace
} // namespace HF_NAMESPACE
