// Derivatives of posteriors along a direction: every symbol at every node, and every rule, gains evidence at a given
// rate (of its logarithm), and the posteriors move.
//
// The posterior is a chain from the root down: P(rule | symbol, evidence) is what the rule carries upward, over the sum
// of what all rules of the symbol carry. So its derivative needs one pass up, of the expected rate `rho` of everything
// at and below a node given its symbol, and one pass down, of beliefs and their derivatives.
#pragma once

#include "tree_choose.hpp"

namespace HF_NAMESPACE {
namespace { // templates that are not inlined stay in their object

// Of one node's rules: what each carries, and its rate, the rule's own and those of the children.
template <class P, int S> struct NodeRules {
    using V = typename P::V;
    const hf_level& level;
    int arity;
    const V *nu, *rho; // of the children
    const V* rates;    // of the rules, or null

    HF_INLINE V carries(int rule) const { return carried<P, S>(level, arity, rule, nu); }
    HF_INLINE V rate(int rule) const {
        const int s = S > 0 ? S : arity;
        const int32_t* b = level.children + static_cast<size_t>(rule) * s;
        V x = rates ? rates[rule] : V{};
        for (int r = 0; r < s; ++r) x = x + rho[r * level.n_symbols + b[r]];
        return x;
    }
    // The sum of what the rules of symbol a carry, its inverse (0 of 0), and their mean rate.
    HF_INLINE void sum(int a, V& total, V& inverse, V& mean) const {
        total = mean = V{};
        for (int rule = level.first[a]; rule < level.first[a + 1]; ++rule) {
            const V x = carries(rule);
            total = total + x;
            mean = mean + x * rate(rule);
        }
        inverse = total > 0 ? splat<P>(1) / total : V{};
        mean = mean * inverse;
    }
};

// Adds to rho(a) the mean rate of the rules of a and what is below.
template <class P, int S> HF_NOINLINE void rates_up(const NodeRules<P, S>& rules, typename P::V* rho, Range<P>& range) {
    for (int a = 0; a < rules.level.n_parents; ++a) {
        typename P::V total, inverse, mean;
        rules.sum(a, total, inverse, mean);
        range.must_be_normal(total);
        rho[a] = rho[a] + mean;
    }
}

// From beliefs and their derivatives at a node to those of its children, and of the rules (`counts`, or null).
template <class P, int S> HF_NOINLINE void beliefs_down(const NodeRules<P, S>& rules, const typename P::V* belief,
                                                        const typename P::V* moved, typename P::V* belief_below,
                                                        typename P::V* moved_below, typename P::V* counts) {
    using V = typename P::V;
    const hf_level& level = rules.level;
    const int s = S > 0 ? S : rules.arity, qc = level.n_symbols;
    for (int x = 0; x < s * qc; ++x) belief_below[x] = moved_below[x] = V{};
    for (int a = 0; a < level.n_parents; ++a) {
        V total, inverse, mean;
        rules.sum(a, total, inverse, mean);
        for (int rule = level.first[a]; rule < level.first[a + 1]; ++rule) {
            const int32_t* b = level.children + static_cast<size_t>(rule) * s;
            const V share = rules.carries(rule) * inverse;
            const V used = belief[a] * share;
            const V change = moved[a] * share + used * (rules.rate(rule) - mean);
            for (int r = 0; r < s; ++r) {
                belief_below[r * qc + b[r]] = belief_below[r * qc + b[r]] + used;
                moved_below[r * qc + b[r]] = moved_below[r * qc + b[r]] + change;
            }
            if (counts) counts[rule] = counts[rule] + change;
        }
    }
}

// A node of the star: P(symbol c | root a, evidence) in place of the rules.
template <class P> struct StarRules {
    using V = typename P::V;
    const typename P::Scalar* channel; // (q_0, q_k)
    int q0, qk;
    const V *nu, *rho;
    const V* rates; // of the channel's entries, or null

    HF_INLINE V carries(int a, int c) const { return channel[a * qk + c] * nu[c]; }
    HF_INLINE V rate(int a, int c) const { return rates ? rates[a * qk + c] + rho[c] : rho[c]; }
    HF_INLINE void sum(int a, V& total, V& inverse, V& mean) const {
        total = mean = V{};
        for (int c = 0; c < qk; ++c) {
            total = total + carries(a, c);
            mean = mean + carries(a, c) * rate(a, c);
        }
        inverse = total > 0 ? splat<P>(1) / total : V{};
        mean = mean * inverse;
    }
    HF_NOINLINE void up(V* rho_root, Range<P>& range) const {
        for (int a = 0; a < q0; ++a) {
            V total, inverse, mean;
            sum(a, total, inverse, mean);
            range.must_be_normal(total);
            rho_root[a] = rho_root[a] + mean;
        }
    }
    // `pairs` (q_0, q_k): derivatives of the joint posterior, or null.
    HF_NOINLINE void down(const V* belief, const V* moved, V* belief_below, V* moved_below, V* pairs) const {
        for (int c = 0; c < qk; ++c) belief_below[c] = moved_below[c] = V{};
        for (int a = 0; a < q0; ++a) {
            V total, inverse, mean;
            sum(a, total, inverse, mean);
            for (int c = 0; c < qk; ++c) {
                const V share = carries(a, c) * inverse, used = belief[a] * share;
                const V change = moved[a] * share + used * (rate(a, c) - mean);
                belief_below[c] = belief_below[c] + used;
                moved_below[c] = moved_below[c] + change;
                if (pairs) pairs[a * qk + c] = change;
            }
        }
    }
};

} // namespace
} // namespace HF_NAMESPACE
