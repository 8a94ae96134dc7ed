// The passes where every symbol has a rule for every pair of children. Nothing is looked up in the rules, and sums that
// do not wait for one another stand side by side: of some parents upward, of some children downward. The order of
// operations within a sum is that of tree_messages.hpp.
//
// The floor is two operations a rule upward and four downward, or half of that where they may be fused: with two of
// them a cycle, 1 and 2 cycles a rule and node, or .5 and 1.
#pragma once

#include "tree_messages.hpp"

namespace HF_NAMESPACE {
namespace {

// Whether the rules of a level, of arity 2, are all there can be.
inline bool has_all_pairs(const hf_level& level) {
    const int qp = level.n_parents, q = level.n_symbols;
    if (level.n_rules != int64_t(qp) * q * q) return false;
    for (int a = 0; a <= qp; ++a)
        if (level.first[a] != a * q * q) return false;
    const int32_t* child = level.children;
    for (int a = 0; a < qp; ++a)
        for (int b = 0; b < q; ++b)
            for (int c = 0; c < q; ++c, child += 2)
                if (child[0] != b || child[1] != c) return false;
    return true;
}

// Q as in tree_messages.hpp. Sums side by side: `kSums` of a node, of so many nodes; they and what they are made of
// stay in registers.
constexpr int kSums = 4, kDenseNodes = kRegisterBytes == 64 ? 2 : 1;

// sum_c p(i, c) * message(c) for A rows of probabilities, `stride` apart, and U messages, `apart` from each other.
template <class P, int A, int U, bool Fused>
HF_INLINE void dense_products(const typename P::Scalar* prob, int64_t stride, int q, const typename P::V* message,
                              int64_t apart, typename P::V (&sum)[U][A]) {
    for (int i = 0; i < A; ++i)
        for (int u = 0; u < U; ++u) sum[u][i] = splat<P>(prob[i * stride]) * message[u * apart];
    for (int c = 1; c < q; ++c)
        for (int i = 0; i < A; ++i) {
            const typename P::V p = splat<P>(prob[i * stride + c]);
            for (int u = 0; u < U; ++u) sum[u][i] = plus_product<P, Fused>(sum[u][i], p, message[u * apart + c]);
        }
}

// nu(a) of A parents from `a` on, for U nodes.
template <class P, int Q, int A, int U, bool Fused>
HF_INLINE void upward_dense(const hf_level& level, int a, const typename P::V* child, typename P::V* nu) {
    using V = typename P::V;
    const int qp = Q > 0 ? Q : level.n_parents, q = Q > 0 ? Q : level.n_symbols;
    const typename P::Scalar* prob = Numbers<typename P::Scalar>::prob(level) + int64_t(a) * q * q;
    V sum[U][A] = {};
    for (int b = 0; b < q; ++b, prob += q) {
        V inner[U][A];
        dense_products<P, A, U, Fused>(prob, int64_t(q) * q, q, child + q, 2 * q, inner);
        for (int i = 0; i < A; ++i)
            for (int u = 0; u < U; ++u)
                sum[u][i] = plus_product<P, Fused>(sum[u][i], inner[u][i], child[2 * u * q + b]);
    }
    for (int u = 0; u < U; ++u)
        for (int i = 0; i < A; ++i) nu[u * qp + a + i] = sum[u][i];
}

// What parent a adds to mu_left(b) of A symbols from `b` on, for U nodes.
template <class P, int Q, int A, int U, bool Fused>
HF_INLINE void downward_dense_left(const hf_level& level, int a, int b, const typename P::V* mu,
                                   const typename P::V* nu, typename P::V* out) {
    const int qp = Q > 0 ? Q : level.n_parents, q = Q > 0 ? Q : level.n_symbols;
    const typename P::Scalar* prob = Numbers<typename P::Scalar>::prob(level) + (int64_t(a) * q + b) * q;
    typename P::V inner[U][A];
    dense_products<P, A, U, Fused>(prob, q, q, nu + q, 2 * q, inner);
    for (int i = 0; i < A; ++i)
        for (int u = 0; u < U; ++u) {
            typename P::V& sum = out[2 * u * q + b + i];
            sum = plus_product<P, Fused>(sum, mu[u * qp + a], inner[u][i]);
        }
}

// And to mu_right(c) of A symbols from `c` on.
template <class P, int Q, int A, int U, bool Fused>
HF_INLINE void downward_dense_right(const hf_level& level, int a, int c, const typename P::V* mu,
                                    const typename P::V* nu, typename P::V* out) {
    using V = typename P::V;
    const int qp = Q > 0 ? Q : level.n_parents, q = Q > 0 ? Q : level.n_symbols;
    const typename P::Scalar* prob = Numbers<typename P::Scalar>::prob(level) + int64_t(a) * q * q + c;
    V sum[U][A];
    for (int u = 0; u < U; ++u)
        for (int i = 0; i < A; ++i) sum[u][i] = out[(2 * u + 1) * q + c + i];
    for (int b = 0; b < q; ++b, prob += q) {
        V left[U];
        for (int u = 0; u < U; ++u) left[u] = mu[u * qp + a] * nu[2 * u * q + b];
        for (int i = 0; i < A; ++i) {
            const V p = splat<P>(prob[i]);
            for (int u = 0; u < U; ++u) sum[u][i] = plus_product<P, Fused>(sum[u][i], left[u], p);
        }
    }
    for (int u = 0; u < U; ++u)
        for (int i = 0; i < A; ++i) out[(2 * u + 1) * q + c + i] = sum[u][i];
}

// Calls with a first symbol and how many of them, until all q are done.
template <class Work> HF_INLINE void over_symbols(int q, const Work& work) {
    int a = 0;
    for (; a + kSums <= q; a += kSums) work(a, Fixed<kSums>());
    for (; a < q; ++a) work(a, Fixed<1>());
}
// And with a first node.
template <class Work> HF_INLINE void over_nodes(int64_t n, const Work& work) {
    int64_t i = 0;
    for (; i + kDenseNodes <= n; i += kDenseNodes) work(i, Fixed<kDenseNodes>());
    if constexpr (kDenseNodes > 1)
        for (; i < n; ++i) work(i, Fixed<1>());
}

// Of so few symbols that the messages of one node fill the pipes, upward, for the few nodes that a table leaves to do:
// what surrounds the sums counts as much as they do.
template <class P, int Q> HF_INLINE void upward_level_small(const hf_level& level, int64_t n,
                                                            const typename P::V* below, typename P::V* nu,
                                                            typename P::I& total, Range<P>& range,
                                                            typename P::Scalar& bound, Scaling<P> scaling) {
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
    total += rescale_level<P>(nu, n, Q, range, bound, scaling);
}

template <class P, int Q, bool Fused>
HF_NOINLINE void upward_level_dense(const hf_level& level, int64_t n, const typename P::V* below, typename P::V* nu,
                                    typename P::I& total, Range<P>& range, typename P::Scalar& bound,
                                    Scaling<P> scaling) {
    const int qp = Q > 0 ? Q : level.n_parents, q = Q > 0 ? Q : level.n_symbols;
    over_nodes(n, [&](int64_t i, auto nodes) {
        over_symbols(qp, [&](int a, auto sums) {
            upward_dense<P, Q, sums.size, nodes.size, Fused>(level, a, below + 2 * i * q, nu + i * qp);
        });
    });
    total += rescale_level<P>(nu, n, qp, range, bound, scaling);
}

template <class P, int Q, bool Fused>
HF_NOINLINE void downward_level_dense(const hf_level& level, int64_t n, const typename P::V* mu,
                                      const typename P::V* nu_below, typename P::V* mu_below, Range<P>& range,
                                      typename P::Scalar& bound, Scaling<P> scaling) {
    const int qp = Q > 0 ? Q : level.n_parents, q = Q > 0 ? Q : level.n_symbols;
    over_nodes(n, [&](int64_t i, auto nodes) {
        const typename P::V *of = mu + i * qp, *nu = nu_below + 2 * i * q;
        typename P::V* out = mu_below + 2 * i * q;
        for (int x = 0; x < 2 * nodes.size * q; ++x) out[x] = typename P::V{};
        for (int a = 0; a < qp; ++a) // whose probabilities stay in a cache for both children
            over_symbols(q, [&](int b, auto sums) {
                downward_dense_left<P, Q, sums.size, nodes.size, Fused>(level, a, b, of, nu, out);
                downward_dense_right<P, Q, sums.size, nodes.size, Fused>(level, a, b, of, nu, out);
            });
    });
    rescale_level<P>(mu_below, 2 * n, q, range, bound, scaling);
}

} // namespace
} // namespace HF_NAMESPACE
