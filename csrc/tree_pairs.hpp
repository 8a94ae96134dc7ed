// The passes for grammars of arity 2 in which a pair of children has at most one parent, seen from the pairs: with the
// rules laid out as a square of pairs, sums over children stay in registers. Products and sums are fused where the
// instruction set can, so this is for soft evidence alone: what is computed from tokens is the same to the last bit
// everywhere (tree_messages.hpp).
#pragma once

#include "tree_messages.hpp"

namespace HF_NAMESPACE {
namespace {

// Calls with that of a level, if parents and children have it and there is a text for it. Of soft evidence the common
// sizes have one each, in the packs that large calls are made of.
template <class P, bool Soft, class Call> HF_INLINE void with_alphabet(const hf_level& level, const Call& call) {
    constexpr bool more = Soft && P::lanes > 1 && sizeof(typename P::Scalar) == sizeof(float);
    const int q = level.n_parents == level.n_symbols ? level.n_symbols : 0;
    if (q == 4) return call(Fixed<4>());
    if constexpr (more) {
        if (q == 6) return call(Fixed<6>());
        if (q == 8) return call(Fixed<8>());
    }
    call(Fixed<0>());
}

// The rules of a level as a square: of the pair (b, c), its parent and its rule's probability, 0 where there is none.
// Entries of messages are told by where their packs begin, counted in values.
template <class P> struct PairSquare {
    using T = typename P::Scalar;
    int32_t* parent = nullptr; // null: walk the rules instead
    int32_t* pair = nullptr;   // of every rule, the left child's entry and the right one's
    T* prob = nullptr;

    static constexpr int kLargest = 64; // square of an alphabet that a first-level cache holds

    // Room for one, in bytes; 0 if most of it would be empty.
    static HF_INLINE int64_t bytes(const hf_level& level, int arity) {
        const int64_t pairs = int64_t(level.n_symbols) * level.n_symbols;
        if (arity != 2 || level.n_symbols > kLargest || 2 * int64_t(level.n_rules) < pairs) return 0;
        return (pairs * static_cast<int64_t>(3 * sizeof(int32_t) + sizeof(T)) + 63) / 64 * 64;
    }

    // In memory of that many bytes; none if some pair has two parents.
    HF_INLINE void fill(const hf_level& level, void* memory) {
        const int q = level.n_symbols;
        prob = static_cast<T*>(memory);
        parent = reinterpret_cast<int32_t*>(prob + q * q);
        pair = parent + q * q;
        for (int i = 0; i < q * q; ++i) {
            prob[i] = T(0);
            parent[i] = 0;
        }
        for (int a = 0; a < level.n_parents; ++a)
            for (int rule = level.first[a]; rule < level.first[a + 1]; ++rule) {
                const int b = level.children[2 * rule], c = level.children[2 * rule + 1];
                if (prob[b * q + c] != T(0)) {
                    parent = nullptr;
                    return;
                }
                parent[b * q + c] = a * P::lanes;
                prob[b * q + c] = Numbers<T>::prob(level)[rule];
                pair[2 * rule] = b * P::lanes;
                pair[2 * rule + 1] = (q + c) * P::lanes;
            }
    }
};

// nu(a) = sum over the rules of a of p * nu_left(b) * nu_right(c), for U nodes side by side.
template <class P, int Q, int U> HF_INLINE void upward_pairs(const hf_level& level, const PairSquare<P>& square,
                                                             const typename P::V* child, typename P::V* nu) {
    using V = typename P::V;
    const typename P::Scalar* prob = Numbers<typename P::Scalar>::prob(level);
    const int qp = Q > 0 ? Q : level.n_parents, qc = Q > 0 ? Q : level.n_symbols;
    const int32_t* pair = square.pair;
    const auto add = [&](V* sum) {
        const V p = splat<P>(*prob++);
        for (int u = 0; u < U; ++u) {
            const V* of = child + 2 * u * qc;
            sum[u] = multiply_add<P>(entry<P>(of, pair[0]) * entry<P>(of, pair[1]), p, sum[u]);
        }
        pair += 2;
    };
    bool even = Q > 0; // as many rules a parent as symbols: the compiler knows all of them
    for (int a = 0; a <= Q; ++a) even = even && level.first[a] == a * Q;
    for (int a = 0; a < qp; ++a) {
        V sum[U] = {};
        if (even)
            for (int r = 0; r < Q; ++r) add(sum);
        else
            for (int r = level.first[a + 1] - level.first[a]; r > 0; --r) add(sum);
        for (int u = 0; u < U; ++u) nu[u * qp + a] = sum[u];
    }
}

// mu_left(b) = sum_c w(b, c) nu_right(c) and mu_right(c) = sum_b w(b, c) nu_left(b), with w(b, c) = p * mu(parent), of
// U nodes and C columns of the square from c on; `more`: add to what the columns before have brought mu_left.
template <class P, int C, int U> HF_INLINE void downward_columns(const PairSquare<P>& square, int qp, int q, int c,
                                                                 bool more, const typename P::V* mu,
                                                                 const typename P::V* nu, typename P::V* out) {
    using V = typename P::V;
    V right[U][C], sum[U][C];
    for (int u = 0; u < U; ++u)
        for (int j = 0; j < C; ++j) {
            right[u][j] = nu[(2 * u + 1) * q + c + j];
            sum[u][j] = V{};
        }
    const int32_t* parent = square.parent + c;
    const typename P::Scalar* prob = square.prob + c;
    for (int b = 0; b < q; ++b, parent += q, prob += q) {
        V left[U], total[U];
        for (int u = 0; u < U; ++u) {
            left[u] = nu[2 * u * q + b];
            total[u] = more ? out[2 * u * q + b] : V{};
        }
        for (int j = 0; j < C; ++j)
            for (int u = 0; u < U; ++u) {
                const V w = prob[j] * entry<P>(mu + u * qp, parent[j]);
                total[u] = multiply_add<P>(w, right[u][j], total[u]);
                sum[u][j] = multiply_add<P>(w, left[u], sum[u][j]);
            }
        for (int u = 0; u < U; ++u) out[2 * u * q + b] = total[u];
    }
    for (int u = 0; u < U; ++u)
        for (int j = 0; j < C; ++j) out[(2 * u + 1) * q + c + j] = sum[u][j];
}

template <class P, int Q, int U> HF_INLINE void downward_pairs(const PairSquare<P>& square, int parents, int alphabet,
                                                               const typename P::V* mu, const typename P::V* nu,
                                                               typename P::V* out) {
    const int qp = Q > 0 ? Q : parents, q = Q > 0 ? Q : alphabet;
    int c = 0;
    for (; c + 8 <= q; c += 8) downward_columns<P, 8, U>(square, qp, q, c, c > 0, mu, nu, out);
    switch (q - c) {
    case 1: return downward_columns<P, 1, U>(square, qp, q, c, c > 0, mu, nu, out);
    case 2: return downward_columns<P, 2, U>(square, qp, q, c, c > 0, mu, nu, out);
    case 3: return downward_columns<P, 3, U>(square, qp, q, c, c > 0, mu, nu, out);
    case 4: return downward_columns<P, 4, U>(square, qp, q, c, c > 0, mu, nu, out);
    case 5: return downward_columns<P, 5, U>(square, qp, q, c, c > 0, mu, nu, out);
    case 6: return downward_columns<P, 6, U>(square, qp, q, c, c > 0, mu, nu, out);
    case 7: return downward_columns<P, 7, U>(square, qp, q, c, c > 0, mu, nu, out);
    default: return;
    }
}
// Nodes that downward sums of which fit the registers side by side.
template <int Q> constexpr int kPairsDown = Q > 0 && Q <= 4 ? 2 : 1;

template <class P, int Q> HF_NOINLINE void upward_level_pairs(const hf_level& level, const PairSquare<P>& square,
                                                              int64_t n, const typename P::V* below, typename P::V* nu,
                                                              typename P::I& total, Range<P>& range,
                                                              typename P::Scalar& bound, Scaling<P> scaling) {
    const int qp = Q > 0 ? Q : level.n_parents;
    const int64_t children = 2 * int64_t(Q > 0 ? Q : level.n_symbols);
    LevelScale<P> scale(range, bound, scaling);
    const auto up = [&](int64_t i, auto nodes) {
        upward_pairs<P, Q, nodes.size>(level, square, below + i * children, nu + i * qp);
        scale.rescale(nu + i * qp, nodes.size, qp);
    };
    int64_t i = 0;
    for (; i + kNodesUp <= n; i += kNodesUp) up(i, Fixed<kNodesUp>());
    if (i + 2 <= n) up(i, Fixed<2>()), i += 2;
    if (i < n) up(i, Fixed<1>());
    total += scale.finish(n);
}

template <class P, int Q>
HF_NOINLINE void downward_level_pairs(const hf_level& level, const PairSquare<P>& square, int64_t n,
                                      const typename P::V* mu, const typename P::V* nu_below, typename P::V* mu_below,
                                      Range<P>& range, typename P::Scalar& bound, Scaling<P> scaling) {
    const int qp = Q > 0 ? Q : level.n_parents, qc = Q > 0 ? Q : level.n_symbols;
    LevelScale<P> scale(range, bound, scaling);
    const auto down = [&](int64_t i, auto nodes) {
        downward_pairs<P, Q, nodes.size>(square, qp, qc, mu + i * qp, nu_below + 2 * i * qc, mu_below + 2 * i * qc);
        scale.rescale(mu_below + 2 * i * qc, 2 * nodes.size, qc);
    };
    int64_t i = 0;
    for (; i + kPairsDown<Q> <= n; i += kPairsDown<Q>) down(i, Fixed<kPairsDown<Q>>());
    if (i < n) down(i, Fixed<1>());
    scale.finish(2 * n);
}

} // namespace
} // namespace HF_NAMESPACE
