// The passes for grammars of arity 2 in which a pair of children has at most one parent, seen from the pairs: with the
// rules laid out as a square of pairs, sums over children stay in registers. Products and sums are fused where the
// instruction set can, so this is for soft evidence alone: what is computed from tokens is the same to the last bit
// everywhere (tree_messages.hpp).
#pragma once

#include "tree_messages.hpp"

namespace HF_NAMESPACE {
namespace {

// An alphabet that the compiler knows the size of; 0: of any size.
template <int Size> struct Alphabet {
    static constexpr int size = Size;
};
// Calls with that of a level, if parents and children have it and there is a text for it. Of soft evidence the common
// sizes have one each, in the packs that large calls are made of.
template <class P, bool Soft, class Call> HF_INLINE void with_alphabet(const hf_level& level, const Call& call) {
    constexpr bool more = Soft && P::lanes > 1 && sizeof(typename P::Scalar) == sizeof(float);
    const int q = level.n_parents == level.n_symbols ? level.n_symbols : 0;
    if (q == 4) return call(Alphabet<4>());
    if constexpr (more) {
        if (q == 6) return call(Alphabet<6>());
        if (q == 8) return call(Alphabet<8>());
    }
    call(Alphabet<0>());
}

// The rules of a level as a square: of the pair (b, c), its parent and its rule's probability, 0 where there is none.
template <class T> struct PairSquare {
    int32_t* parent = nullptr; // null: walk the rules instead
    T* prob = nullptr;

    static constexpr int kLargest = 64; // square of an alphabet that a first-level cache holds

    // Room for one, in bytes; 0 if most of it would be empty.
    static HF_INLINE int64_t bytes(const hf_level& level, int arity) {
        const int64_t pairs = int64_t(level.n_symbols) * level.n_symbols;
        if (arity != 2 || level.n_symbols > kLargest || 2 * int64_t(level.n_rules) < pairs) return 0;
        return (pairs * static_cast<int64_t>(sizeof(int32_t) + sizeof(T)) + 63) / 64 * 64;
    }

    // In memory of that many bytes; none if some pair has two parents.
    HF_INLINE void fill(const hf_level& level, void* memory) {
        const int q = level.n_symbols;
        prob = static_cast<T*>(memory);
        parent = reinterpret_cast<int32_t*>(prob + q * q);
        for (int i = 0; i < q * q; ++i) {
            prob[i] = T(0);
            parent[i] = 0;
        }
        for (int a = 0; a < level.n_parents; ++a)
            for (int rule = level.first[a]; rule < level.first[a + 1]; ++rule) {
                const int i = level.children[2 * rule] * q + level.children[2 * rule + 1];
                if (prob[i] != T(0)) {
                    parent = nullptr;
                    return;
                }
                parent[i] = a;
                prob[i] = Numbers<T>::prob(level)[rule];
            }
    }
};

// nu(a) = sum over the rules of a of p * nu_left(b) * nu_right(c), for U nodes side by side.
template <class P, int Q, int U>
HF_INLINE void upward_pairs(const hf_level& level, const typename P::V* child, typename P::V* nu) {
    using V = typename P::V;
    const typename P::Scalar* prob = Numbers<typename P::Scalar>::prob(level);
    const int qp = Q > 0 ? Q : level.n_parents, qc = Q > 0 ? Q : level.n_symbols;
    const int32_t* pair = level.children;
    if constexpr (Q > 0) { // as many rules a parent as symbols: the compiler knows all of them
        bool even = true;
        for (int a = 0; a <= Q; ++a) even = even && level.first[a] == a * Q;
        if (even) {
            for (int a = 0; a < Q; ++a) {
                V sum[U] = {};
                for (int r = 0; r < Q; ++r) {
                    const V p = splat<P>(prob[a * Q + r]);
                    const V *left = child + pair[2 * (a * Q + r)], *right = child + Q + pair[2 * (a * Q + r) + 1];
                    for (int u = 0; u < U; ++u) sum[u] = multiply_add<P>(left[2 * u * Q] * right[2 * u * Q], p, sum[u]);
                }
                for (int u = 0; u < U; ++u) nu[u * Q + a] = sum[u];
            }
            return;
        }
    }
    int rule = 0;
    for (int a = 0; a < qp; ++a) {
        V sum[U] = {};
        for (const int end = level.first[a + 1]; rule < end; ++rule, pair += 2) {
            const V p = splat<P>(prob[rule]);
            const V *left = child + pair[0], *right = child + qc + pair[1];
            for (int u = 0; u < U; ++u) sum[u] = multiply_add<P>(left[2 * u * qc] * right[2 * u * qc], p, sum[u]);
        }
        for (int u = 0; u < U; ++u) nu[u * qp + a] = sum[u];
    }
}

// mu_left(b) = sum_c w(b, c) nu_right(c) and mu_right(c) = sum_b w(b, c) nu_left(b), with w(b, c) = p * mu(parent), of
// one node and C columns of the square from c on; `more`: add to what the columns before have brought mu_left.
template <class P, int C> HF_INLINE void downward_columns(const PairSquare<typename P::Scalar>& square, int q, int c,
                                                          bool more, const typename P::V* mu, const typename P::V* nu,
                                                          typename P::V* out) {
    using V = typename P::V;
    V right[C], sum[C];
    for (int j = 0; j < C; ++j) {
        right[j] = nu[q + c + j];
        sum[j] = V{};
    }
    const int32_t* parent = square.parent + c;
    const typename P::Scalar* prob = square.prob + c;
    for (int b = 0; b < q; ++b, parent += q, prob += q) {
        const V left = nu[b];
        V total = more ? out[b] : V{};
        for (int j = 0; j < C; ++j) {
            const V w = prob[j] * mu[parent[j]];
            total = multiply_add<P>(w, right[j], total);
            sum[j] = multiply_add<P>(w, left, sum[j]);
        }
        out[b] = total;
    }
    for (int j = 0; j < C; ++j) out[q + c + j] = sum[j];
}

template <class P, int Q> HF_INLINE void downward_pairs(const PairSquare<typename P::Scalar>& square, int alphabet,
                                                        const typename P::V* mu, const typename P::V* nu,
                                                        typename P::V* out) {
    const int q = Q > 0 ? Q : alphabet;
    int c = 0;
    for (; c + 8 <= q; c += 8) downward_columns<P, 8>(square, q, c, c > 0, mu, nu, out);
    switch (q - c) {
    case 1: return downward_columns<P, 1>(square, q, c, c > 0, mu, nu, out);
    case 2: return downward_columns<P, 2>(square, q, c, c > 0, mu, nu, out);
    case 3: return downward_columns<P, 3>(square, q, c, c > 0, mu, nu, out);
    case 4: return downward_columns<P, 4>(square, q, c, c > 0, mu, nu, out);
    case 5: return downward_columns<P, 5>(square, q, c, c > 0, mu, nu, out);
    case 6: return downward_columns<P, 6>(square, q, c, c > 0, mu, nu, out);
    case 7: return downward_columns<P, 7>(square, q, c, c > 0, mu, nu, out);
    default: return;
    }
}

template <class P, int Q>
HF_NOINLINE void upward_level_pairs(const hf_level& level, int64_t n, const typename P::V* below, typename P::V* nu,
                                    typename P::I& total, Range<P>& range, typename P::Scalar& bound) {
    const int qp = Q > 0 ? Q : level.n_parents;
    const int64_t children = 2 * int64_t(Q > 0 ? Q : level.n_symbols);
    LevelScale<P> scale(range, bound);
    int64_t i = 0;
    for (; i + kNodesUp <= n; i += kNodesUp) {
        upward_pairs<P, Q, kNodesUp>(level, below + i * children, nu + i * qp);
        scale.rescale(nu + i * qp, kNodesUp, qp);
    }
    for (; i < n; ++i) {
        upward_pairs<P, Q, 1>(level, below + i * children, nu + i * qp);
        scale.rescale(nu + i * qp, 1, qp);
    }
    total += scale.finish(n);
}

template <class P, int Q>
HF_NOINLINE void downward_level_pairs(const hf_level& level, const PairSquare<typename P::Scalar>& square, int64_t n,
                                      const typename P::V* mu, const typename P::V* nu_below, typename P::V* mu_below,
                                      Range<P>& range, typename P::Scalar& bound) {
    const int qp = Q > 0 ? Q : level.n_parents, qc = Q > 0 ? Q : level.n_symbols;
    LevelScale<P> scale(range, bound);
    for (int64_t i = 0; i < n; ++i) {
        downward_pairs<P, Q>(square, qc, mu + i * qp, nu_below + 2 * i * qc, mu_below + 2 * i * qc);
        scale.rescale(mu_below + 2 * i * qc, 2, qc);
    }
    scale.finish(2 * n);
}

} // namespace
} // namespace HF_NAMESPACE
