// The passes of soft evidence for rules of three to eight children, in the packs that large calls are made of. Every
// rule is listed with where its messages lie; downward the rules come in order of their first child, the sum of which
// stays in a register. A rule of s children takes s operations upward and 3 s - 3 downward, of which s are sums.
#pragma once

#include "tree_pairs.hpp"

namespace HF_NAMESPACE {
namespace {

// The rules of a level in both orders. Entries of messages are told by where their packs begin, counted in values.
template <class P> struct RuleLists {
    using T = typename P::Scalar;
    int32_t* up = nullptr;    // of every rule, in the model's order, the entries of its children; null: no lists
    int32_t* down = nullptr;  // by first child: the parent's entry, and those of the other children
    int32_t* first = nullptr; // n_symbols + 1: where the rules of a first child begin
    T* prob = nullptr;        // in the order of `down`

    static constexpr int64_t kMostBytes = int64_t(16) << 20; // a thread holds its own: more would be much of memory

    // Room for the lists, in bytes; 0 if there are none.
    static HF_INLINE int64_t bytes(const hf_level& level, int arity) {
        if (P::lanes == 1 || sizeof(T) != sizeof(float) || arity < 3 || arity > 8) return 0;
        const int64_t rules = level.n_rules;
        const int64_t all =
            rules * (2 * arity * static_cast<int64_t>(sizeof(int32_t)) + static_cast<int64_t>(sizeof(T)));
        if (all > kMostBytes) return 0;
        return (all + (level.n_symbols + 1) * static_cast<int64_t>(sizeof(int32_t)) + 63) / 64 * 64;
    }

    // In memory of that many bytes.
    HF_INLINE void fill(const hf_level& level, int arity, void* memory) {
        const int q = level.n_symbols;
        prob = static_cast<T*>(memory);
        up = reinterpret_cast<int32_t*>(prob + level.n_rules);
        down = up + int64_t(level.n_rules) * arity;
        first = down + int64_t(level.n_rules) * arity;
        const auto child = [&](int rule, int r) { return level.children[int64_t(rule) * arity + r]; };
        for (int b = 0; b <= q; ++b) first[b] = 0;
        for (int rule = 0; rule < level.n_rules; ++rule) ++first[child(rule, 0)];
        for (int b = 0, sum = 0; b <= q; ++b) { // where the rules of each end; each one placed moves it down by one
            sum += b < q ? first[b] : 0;
            first[b] = sum;
        }
        for (int a = level.n_parents - 1; a >= 0; --a)
            for (int rule = level.first[a + 1] - 1; rule >= level.first[a]; --rule) {
                const int64_t at = --first[child(rule, 0)];
                prob[at] = Numbers<T>::prob(level)[rule];
                down[at * arity] = a * P::lanes;
                for (int r = 0; r < arity; ++r) {
                    const int32_t place = (r * q + child(rule, r)) * P::lanes;
                    up[int64_t(rule) * arity + r] = place;
                    if (r > 0) down[at * arity + r] = place;
                }
            }
    }
};

// Calls with the arity, if there are lists of it.
template <class P, class Call> HF_INLINE void with_arity(int arity, const Call& call) {
    if constexpr (P::lanes > 1 && sizeof(typename P::Scalar) == sizeof(float)) {
        if (arity == 3) return call(Fixed<3>());
        if (arity == 4) return call(Fixed<4>());
        if (arity == 5) return call(Fixed<5>());
        if (arity == 6) return call(Fixed<6>());
        if (arity == 7) return call(Fixed<7>());
        if (arity == 8) return call(Fixed<8>());
    }
}

// nu(a) = sum over the rules of a of p * prod_r nu_child_r(b_r), for U nodes side by side.
template <class P, int S, int U> HF_INLINE void upward_rules(const hf_level& level, const RuleLists<P>& rules,
                                                             const typename P::V* child, typename P::V* nu) {
    using V = typename P::V;
    const int qp = level.n_parents, children = S * level.n_symbols;
    const typename P::Scalar* prob = Numbers<typename P::Scalar>::prob(level);
    const int32_t* at = rules.up;
    for (int a = 0; a < qp; ++a) {
        V sum[U] = {};
        for (int left = level.first[a + 1] - level.first[a]; left > 0; --left, at += S) {
            const V p = splat<P>(*prob++);
            for (int u = 0; u < U; ++u) {
                const V* of = child + u * children;
                V product = p * entry<P>(of, at[0]);
                for (int r = 1; r < S - 1; ++r) product = product * entry<P>(of, at[r]);
                sum[u] = multiply_add<P>(product, entry<P>(of, at[S - 1]), sum[u]);
            }
        }
        for (int u = 0; u < U; ++u) nu[u * qp + a] = sum[u];
    }
}

// mu_child_r(b) = sum over rules with b at place r of mu(a) * p * prod_{r' != r} nu_child_r'(b_r'), for U nodes.
template <class P, int S, int U> HF_INLINE void downward_rules(const hf_level& level, const RuleLists<P>& rules,
                                                               const typename P::V* mu, const typename P::V* nu,
                                                               typename P::V* out) {
    using V = typename P::V;
    const int qp = level.n_parents, q = level.n_symbols, children = S * q;
    const typename P::Scalar* prob = rules.prob;
    const int32_t* at = rules.down;
    for (int u = 0; u < U; ++u)
        for (int x = q; x < children; ++x) out[u * children + x] = V{};
    for (int b = 0; b < q; ++b) {
        V sum[U] = {}, first[U];
        for (int u = 0; u < U; ++u) first[u] = nu[u * children + b];
        for (int n = rules.first[b + 1] - rules.first[b]; n > 0; --n, at += S) {
            const V p = splat<P>(*prob++);
            for (int u = 0; u < U; ++u) {
                V up[S], right[S]; // messages of the children, and their products from there on
                for (int r = 1; r < S; ++r) up[r] = entry<P>(nu + u * children, at[r]);
                up[0] = first[u];
                right[S - 1] = up[S - 1];
                for (int r = S - 2; r > 0; --r) right[r] = up[r] * right[r + 1];
                V left = p * entry<P>(mu + u * qp, at[0]); // the parent and the children before r - 1
                sum[u] = multiply_add<P>(left, right[1], sum[u]);
                for (int r = 1; r < S - 1; ++r) {
                    left = left * up[r - 1];
                    V& target = entry<P>(out + u * children, at[r]);
                    target = multiply_add<P>(left, right[r + 1], target);
                }
                V& last = entry<P>(out + u * children, at[S - 1]);
                last = multiply_add<P>(left, up[S - 2], last);
            }
        }
        for (int u = 0; u < U; ++u) out[u * children + b] = sum[u];
    }
}

template <class P, int S> HF_NOINLINE void upward_level_rules(const hf_level& level, const RuleLists<P>& rules,
                                                              int64_t n, const typename P::V* below, typename P::V* nu,
                                                              typename P::I& total, Range<P>& range,
                                                              typename P::Scalar& bound, Scaling<P> scaling) {
    const int qp = level.n_parents;
    const int64_t children = int64_t(S) * level.n_symbols;
    int64_t i = 0;
    for (; i + kNodesUp <= n; i += kNodesUp)
        upward_rules<P, S, kNodesUp>(level, rules, below + i * children, nu + i * qp);
    for (; i < n; ++i) upward_rules<P, S, 1>(level, rules, below + i * children, nu + i * qp);
    total += rescale_level<P>(nu, n, qp, range, bound, scaling, S);
}

template <class P, int S>
HF_NOINLINE void downward_level_rules(const hf_level& level, const RuleLists<P>& rules, int64_t n,
                                      const typename P::V* mu, const typename P::V* nu_below, typename P::V* mu_below,
                                      Range<P>& range, typename P::Scalar& bound, Scaling<P> scaling) {
    constexpr int together = S <= 4 ? kNodesDown : 1; // the messages of as many stay in registers
    const int qp = level.n_parents;
    const int64_t children = int64_t(S) * level.n_symbols;
    int64_t i = 0;
    for (; i + together <= n; i += together)
        downward_rules<P, S, together>(level, rules, mu + i * qp, nu_below + i * children, mu_below + i * children);
    for (; i < n; ++i)
        downward_rules<P, S, 1>(level, rules, mu + i * qp, nu_below + i * children, mu_below + i * children);
    rescale_level<P>(mu_below, n * S, level.n_symbols, range, bound, scaling, S);
}

} // namespace
} // namespace HF_NAMESPACE
