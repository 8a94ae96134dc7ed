// Whole trees given the evidence: from the root down every node picks a rule, at random in proportion to what the
// rules carry upward, or the one that carries most.
#pragma once

#include "tree_star.hpp"

namespace HF_NAMESPACE {

// What a rule carries upward to its parent: p * prod_r nu_child_r(b_r).
template <class P, int S>
HF_INLINE typename P::V carried(const hf_level& level, int arity, int rule, const typename P::V* child) {
    const int s = S > 0 ? S : arity;
    const int32_t* b = level.children + static_cast<size_t>(rule) * s;
    typename P::V x = Numbers<typename P::Scalar>::prob(level)[rule] * child[b[0]];
    for (int r = 1; r < s; ++r) x = x * child[r * level.n_symbols + b[r]];
    return x;
}

// Max-product: nu(a) = the largest of the terms whose sum upward_level takes.
template <class P, int S> HF_INLINE void best_level(const hf_level& level, int arity, int64_t n,
                                                    const typename P::V* below, typename P::V* nu, typename P::I& total,
                                                    Range<P>& range, typename P::Scalar& bound) {
    const int64_t children = int64_t(S > 0 ? S : arity) * level.n_symbols;
    for (int64_t i = 0; i < n; ++i)
        for (int a = 0; a < level.n_parents; ++a) {
            typename P::V top{};
            for (int rule = level.first[a]; rule < level.first[a + 1]; ++rule)
                top = larger(top, carried<P, S>(level, arity, rule, below + i * children));
            nu[i * level.n_parents + a] = top;
        }
    total += rescale_level<P>(nu, n, level.n_parents, range, bound);
}

// A word as a number between 0 and 1, never one of the two, exact in the value type.
template <class P> HF_INLINE typename P::V uniform(typename LaneType<uint32_t, P::lanes>::type word) {
    using T = typename P::Scalar;
    constexpr int spare = sizeof(T) == sizeof(float) ? 9 : 0;
    const auto whole = convert_lanes<typename P::V, P::lanes>(convert_lanes<typename P::I, P::lanes>(word >> spare));
    return (whole + T(0.5)) * (T(1) / static_cast<T>(int64_t(1) << (32 - spare)));
}

// Which of the entries first … last - 1 is picked, where `weight(j)` is what entry j weighs. Drawing, the first whose
// cumulated weight exceeds u times the sum; otherwise the first of the largest.
template <class P, class Weight>
HF_INLINE typename P::I pick(bool draw, int first, int last, typename P::V u, const Weight& weight) {
    using V = typename P::V;
    using I = typename P::I;
    I at = splat_int<P>(first);
    if (draw) {
        V sum{}, cumulated{};
        for (int j = first; j < last; ++j) sum = sum + weight(j);
        const V threshold = u * sum;
        for (int j = first; j < last; ++j) {
            cumulated = cumulated + weight(j);
            at -= as_mask<P>(cumulated <= threshold);
        }
    } else {
        V top = weight(first);
        for (int j = first + 1; j < last; ++j) {
            const V x = weight(j);
            at = as_mask<P>(x > top) != 0 ? splat_int<P>(j) : at;
            top = larger(top, x);
        }
    }
    return smaller<I>(at, splat_int<P>(last - 1)); // where all is zero nothing was passed
}

// Rules of one node whose symbol is x.
template <class P, int S> HF_INLINE typename P::I
pick_rule(bool draw, const hf_level& level, int arity, typename P::I x, const typename P::V* child, typename P::V u) {
    typename P::I rule{};
    for (int a = 0; a < level.n_parents; ++a) {
        const typename P::I mine = pick<P>(draw, level.first[a], level.first[a + 1], u,
                                           [&](int j) { return carried<P, S>(level, arity, j, child); });
        rule = as_mask<P>(x == a) != 0 ? mine : rule;
    }
    return rule;
}

// One tree for every lane, from upward messages: nu(d) are those of level d, `root` the root's weights. `words` and
// `star_words` are the streams drawn from; `store(d, symbols)` sees every existing level.
template <class P, int S, class Nu, class Store>
HF_INLINE void choose_tree(const hf_model& m, bool draw, const typename P::V* root, const Nu& nu,
                           WordStream<P::lanes>& words, WordStream<P::lanes>& star_words,
                           typename LaneType<uint32_t, P::lanes>::type* symbols, const Store& store) {
    using I = typename P::I;
    using U = typename LaneType<uint32_t, P::lanes>::type;
    constexpr int N = P::lanes;
    const int s = S > 0 ? S : m.arity, k = m.filter_level, q0 = m.alphabets[0];
    const auto random = [&](WordStream<N>& stream, int64_t word) {
        return draw ? uniform<P>(stream[word]) : typename P::V{};
    };
    const I top = pick<P>(draw, 0, q0, random(words, 0), [&](int a) { return root[a]; });
    symbols[0] = convert_lanes<U, N>(top);
    store(0, symbols);
    if (k > 0) {
        const int qk = m.alphabets[k];
        const int64_t n = n_nodes(m, k);
        for (int64_t i = 0; i < n; ++i) {
            const typename P::Scalar* channel = Numbers<typename P::Scalar>::star(m) + i * q0 * qk;
            const typename P::V u = random(star_words, i);
            I x{};
            for (int a = 0; a < q0; ++a) {
                const I mine = pick<P>(draw, 0, qk, u, [&](int c) { return channel[a * qk + c] * nu(k)[i * qk + c]; });
                x = as_mask<P>(top == a) != 0 ? mine : x;
            }
            symbols[i] = convert_lanes<U, N>(x);
        }
        store(k, symbols);
    }
    for (int d = k; d < m.depth; ++d) {
        const hf_level& level = m.levels[d];
        const int64_t n = n_nodes(m, d), first_word = 1 + (n - 1) / (s - 1);
        for (int64_t i = n - 1; i >= 0; --i) { // children overwrite what no node before needs
            const I rule = pick_rule<P, S>(draw, level, s, convert_lanes<I, N>(load_lanes<U>(symbols + i)),
                                           nu(d + 1) + i * s * level.n_symbols, random(words, first_word + i));
            for (int l = 0; l < N; ++l) {
                const int32_t* b = level.children + static_cast<int64_t>(lane_int<P>(rule, l)) * s;
                for (int r = 0; r < s; ++r) element(symbols[i * s + r], l) = static_cast<uint32_t>(b[r]);
            }
        }
        store(d + 1, symbols);
    }
}

} // namespace HF_NAMESPACE
