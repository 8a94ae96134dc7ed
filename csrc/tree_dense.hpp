// One level upward where every symbol has a rule for every pair of children: nothing is looked up in the rules.
#pragma once

#include "tree_messages.hpp"

namespace HF_NAMESPACE {

// Whether the rules of a level are all there can be, among q symbols.
inline bool has_all_pairs(const hf_level& level, int q) {
    if (level.n_parents != q || level.n_symbols != q || level.n_rules != q * q * q) return false;
    for (int rule = 0; rule < level.n_rules; ++rule)
        if (level.children[2 * rule] != rule / q % q || level.children[2 * rule + 1] != rule % q) return false;
    for (int a = 0; a <= q; ++a)
        if (level.first[a] != a * q * q) return false;
    return true;
}

// As upward_level of such rules, with the same order of operations.
template <class P, int Q> HF_INLINE void upward_all_pairs(const hf_level& level, int64_t n, const typename P::V* below,
                                                          typename P::V* nu, typename P::I& total, Range<P>& range,
                                                          typename P::Scalar& bound) {
    using V = typename P::V;
    for (int64_t i = 0; i < n; ++i) {
        const V *left = below + i * 2 * Q, *right = left + Q;
        const typename P::Scalar* prob = Numbers<typename P::Scalar>::prob(level);
        for (int a = 0; a < Q; ++a) {
            V sum{};
            for (int b = 0; b < Q; ++b, prob += Q) {
                V inner = prob[0] * right[0];
                for (int c = 1; c < Q; ++c) inner = inner + prob[c] * right[c];
                sum = sum + inner * left[b];
            }
            nu[i * Q + a] = sum;
        }
    }
    total += rescale_level<P>(nu, n, Q, range, bound);
}

} // namespace HF_NAMESPACE
