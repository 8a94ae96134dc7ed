// Message passing: one level upward, one level downward, and the watch over the range of the value type.
#pragma once

#include "exp_log.hpp"
#include "tree_sampling.hpp"

namespace HF_NAMESPACE {

// Typed views of the model and the call, chosen by the value type.
template <class T> struct Numbers;
template <> struct Numbers<float> {
    static HF_INLINE const float* prob(const hf_level& l) { return l.prob32; }
    static HF_INLINE const float* prior(const hf_model& m) { return m.prior32; }
    static HF_INLINE const float* star(const hf_model& m) { return m.star32; }
    static HF_INLINE float tiny(const hf_model& m) { return m.tiny32; }
    static HF_INLINE int32_t slack(const hf_model& m) { return m.slack32; }
};
template <> struct Numbers<double> {
    static HF_INLINE const double* prob(const hf_level& l) { return l.prob64; }
    static HF_INLINE const double* prior(const hf_model& m) { return m.prior64; }
    static HF_INLINE const double* star(const hf_model& m) { return m.star64; }
    static HF_INLINE double tiny(const hf_model& m) { return m.tiny64; }
    static HF_INLINE int64_t slack(const hf_model& m) { return m.slack64; }
};

// What has happened to the range of a row so far.
template <class P> struct Range {
    using I = typename P::I;
    static constexpr typename P::Int bias = Format<typename P::Scalar>::bias;
    typename P::V tiny;
    typename P::V smallest;                // of all non-zero entries of messages so far
    typename P::V least_top = splat<P>(1); // of all maxima and sums: 0 if some message is zero throughout
    I lost{};                              // mask: something else rounded to zero
    I spent{};                             // bits of cancellation, summed over levels
    I worst = splat_int<P>(2 * bias);      // lowest (biased) exponent of the present level

    HF_INLINE explicit Range(typename P::Scalar limit)
        : tiny(splat<P>(limit)), smallest(limit > 1 ? typename P::V{} : splat<P>(2)) {}

    // If the limit is above 1, some rule is below the range of the type: in danger from the start.
    HF_INLINE I danger() const { return lost | as_mask<P>(smallest < tiny); }
    HF_INLINE I empty() const { return as_mask<P>(least_top == 0); }
    HF_INLINE void watch(typename P::V x) { smallest = smaller(smallest, x > 0 ? x : smallest); }
    // Watches what is known to be >= bound (or 0) without looking at it, if that is enough; false if it is not.
    HF_INLINE bool harmless(typename P::Scalar bound) const {
        return bound >= lane<P>(tiny, 0) && lane<P>(tiny, 0) <= 1;
    }
    // The largest entry, or the sum, of what is about to be normalised; or the least of several.
    HF_INLINE void normalising(typename P::V top) {
        worst = smaller(worst, biased_exponent<P>(top));
        least_top = smaller(least_top, top);
    }
    // The sum that beliefs have been divided by.
    HF_INLINE void normalised(typename P::V sum) {
        normalising(sum);
        constexpr typename P::Scalar lowest_normal = Format<typename P::Scalar>::lowest_normal;
        lost |= as_mask<P>(sum < splat<P>(lowest_normal)) & as_mask<P>(sum > 0);
    }
    // The sum over the rules of a node. One rule's share is a product of one factor more than the watch has bounds
    // for, so it needs room below.
    HF_INLINE void counted(typename P::V sum) {
        normalising(sum);
        constexpr typename P::Scalar low = Format<typename P::Scalar>::lowest_normal * (1 << 24);
        lost |= as_mask<P>(sum < splat<P>(low)) & as_mask<P>(sum > 0);
    }
    // What is about to be divided by.
    HF_INLINE void must_be_normal(typename P::V sum) {
        const I gone = as_mask<P>(sum < splat<P>(Format<typename P::Scalar>::lowest_normal)) & as_mask<P>(sum > 0);
        lost |= gone;
        least_top = gone != 0 ? typename P::V{} : least_top;
    }
    // `lifted`: the power of two that a sum of the level would have without cancellation.
    HF_INLINE void next_level(typename P::Int lifted = 0) {
        spent += larger<I>(bias + lifted - worst, I{});
        worst = splat_int<P>(2 * bias);
    }
};

// How messages are kept in the range of the type. If `lazy`, they stay as they are where nothing threatens them, and
// if `lift` is above 0, their maxima come to lie in [2^lift, 2^(lift + 1)) instead of [1, 2): the products of strong
// evidence's smallest entries, which would be below the range, then have most of what is above it to themselves.
template <class P> struct Scaling {
    bool lazy = false;
    typename P::Int lift = 0;
};

// Normalises the messages of a level, as they come, and watches over them unless `bound` says that no non-zero entry
// can be in danger. If `lazy`, it then leaves them as they are, and the next level to the same question.
template <class P> class LevelScale {
  public:
    // `factors`: messages, themselves scaled so, that every entry is a product of.
    HF_INLINE LevelScale(Range<P>& range, typename P::Scalar& bound, Scaling<P> scaling = {}, int factors = 2)
        : range_(range), bound_(bound), harmless_(range.harmless(bound)), lazy_(scaling.lazy && harmless_),
          lift_(scaling.lift), given_(factors * scaling.lift) {}

    // n messages of q entries, one after the other.
    HF_INLINE void rescale(typename P::V* x, int64_t n, int q) {
        if (lazy_) return;
        if (harmless_)
            for (int64_t i = 0; i < n; ++i) rescale_one<false>(x + i * q, q);
        else
            for (int64_t i = 0; i < n; ++i) rescale_one<true>(x + i * q, q);
    }
    // The sum of the exponents taken out of n messages in all (of a zero message: anything); `bound` becomes that of
    // the level.
    HF_INLINE typename P::I finish(int64_t n) {
        if (lazy_) return typename P::I{};
        range_.least_top = smaller(range_.least_top, lowest_top_);
        range_.spent +=
            larger<typename P::I>(Range<P>::bias + given_ - biased_exponent<P>(lowest_top_), typename P::I{});
        if (!harmless_) {
            range_.smallest = smaller(range_.smallest, least_);
            bound_ = lowest_lane<P>(smaller(least_ * power_of_two<P>(splat_int<P>(-lift_)), splat<P>(2)));
        }
        return total_ - static_cast<typename P::Int>(n) * (Range<P>::bias + lift_);
    }

  private:
    template <bool Watch> HF_INLINE void rescale_one(typename P::V* x, int q) {
        typename P::V top = x[0];
        for (int a = 1; a < q; ++a) top = larger(top, x[a]);
        lowest_top_ = smaller(lowest_top_, top);
        typename P::I e = biased_exponent<P>(top);
        if (lift_ > 0) e = larger<typename P::I>(e, splat_int<P>(lift_)); // no factor is too large
        total_ += e;
        const typename P::V factor = power_of_two<P>(Format<typename P::Scalar>::bias + lift_ - e);
        typename P::V mine = splat<P>(kAbove); // a chain of its own: the next message need not wait for it
        for (int a = 0; a < q; ++a) {
            if constexpr (Watch) mine = smaller(mine, x[a] > 0 ? x[a] : splat<P>(kAbove));
            x[a] = x[a] * factor;
        }
        // Of lifted messages a product may be in range and its share of the maximum not: 0 is the least then.
        if constexpr (Watch) least_ = smaller(least_, mine * factor);
    }

    Range<P>& range_;
    typename P::Scalar& bound_;
    bool harmless_, lazy_;
    typename P::Int lift_, given_;
    typename P::I total_{};
    static constexpr typename P::Scalar kAbove = -Format<typename P::Scalar>::lowest; // all entries
    typename P::V least_ = splat<P>(kAbove), lowest_top_ = splat<P>(kAbove);
};

// All messages of a level at once.
template <class P> HF_INLINE typename P::I rescale_level(typename P::V* x, int64_t n, int q, Range<P>& range,
                                                         typename P::Scalar& bound, Scaling<P> scaling = {},
                                                         int factors = 2) {
    LevelScale<P> scale(range, bound, scaling, factors);
    scale.rescale(x, n, q);
    return scale.finish(n);
}

// A bound under the non-zero entries of a message made by the rules of one level from messages with the bounds given,
// the other one s times: each entry has a term p * one * other^s, and normalising divides by at most 2^(s + 2) * q.
// `least` is the smallest p / (4 q).
template <class T> HF_INLINE T next_bound(T least, T one, T other, int s) {
    T bound = least * one;
    for (int r = 0; r < s; ++r) bound = bound * (other / 2);
    return bound;
}

// S and Q are the arity and the size of all alphabets where they are known in advance, or 0.

// A number that the compiler knows: of an alphabet's symbols (0: of any size), of children, of nodes side by side.
template <int Size> struct Fixed {
    static constexpr int size = Size;
};

// An entry of a message, told by where its pack begins, counted in values.
template <class P> HF_INLINE const typename P::V& entry(const typename P::V* message, int32_t at) {
    return *reinterpret_cast<const typename P::V*>(reinterpret_cast<const typename P::Scalar*>(message) + at);
}
template <class P> HF_INLINE typename P::V& entry(typename P::V* message, int32_t at) {
    return *reinterpret_cast<typename P::V*>(reinterpret_cast<typename P::Scalar*>(message) + at);
}

// Levels are walked a few neighbouring nodes at a time: what a rule says is read once for all of them. Upward the
// sums stay in registers; downward they do not, and two nodes already fill the pipes.
constexpr int kNodesUp = 4, kNodesDown = 2;

// sum + a * b. What is computed from tokens is the same to the last bit everywhere; from soft evidence it may be Fused.
template <class P, bool Fused>
HF_INLINE typename P::V plus_product(typename P::V sum, typename P::V a, typename P::V b) {
    if constexpr (Fused) return multiply_add<P>(a, b, sum);
    else return sum + a * b;
}

// nu(a) = sum over the rules of a of p * prod_r nu_child_r(b_r), for U nodes side by side.
template <class P, int S, int Q, int U, bool Fused = false>
HF_INLINE void upward_nodes(const hf_level& level, int arity, const typename P::V* child, typename P::V* nu) {
    using V = typename P::V;
    const int s = S > 0 ? S : arity;
    const typename P::Scalar* prob = Numbers<typename P::Scalar>::prob(level);
    const int qp = Q > 0 ? Q : level.n_parents, qc = Q > 0 ? Q : level.n_symbols;
    for (int a = 0; a < qp; ++a) {
        V sum[U] = {};
        for (int rule = level.first[a]; rule < level.first[a + 1];) {
            const int32_t* b = level.children + static_cast<size_t>(rule) * s;
            if constexpr (S == 2) { // of rules that share their first child its message comes in once
                V inner[U] = {};
                const int first = b[0];
                do {
                    const V p = splat<P>(prob[rule]);
                    const V* right = child + qc + level.children[2 * rule + 1];
                    for (int u = 0; u < U; ++u) inner[u] = plus_product<P, Fused>(inner[u], p, right[2 * u * qc]);
                } while (++rule < level.first[a + 1] && level.children[2 * rule] == first);
                for (int u = 0; u < U; ++u)
                    sum[u] = plus_product<P, Fused>(sum[u], inner[u], child[2 * u * qc + first]);
            } else {
                for (int u = 0; u < U; ++u) {
                    const V* below = child + u * s * qc;
                    V term = prob[rule] * below[b[0]];
                    for (int r = 1; r < s; ++r) term = term * below[r * qc + b[r]];
                    sum[u] = sum[u] + term;
                }
                ++rule;
            }
        }
        for (int u = 0; u < U; ++u) nu[u * qp + a] = sum[u];
    }
}

template <class P, int S, int Q, bool Fused = false>
HF_INLINE void upward_level(const hf_level& level, int arity, int64_t n, const typename P::V* below, typename P::V* nu,
                            typename P::I& total, Range<P>& range, typename P::Scalar& bound, Scaling<P> scaling = {}) {
    const int qp = Q > 0 ? Q : level.n_parents;
    const int64_t children = int64_t(S > 0 ? S : arity) * (Q > 0 ? Q : level.n_symbols);
    int64_t i = 0;
    for (; i + kNodesUp <= n; i += kNodesUp)
        upward_nodes<P, S, Q, kNodesUp, Fused>(level, arity, below + i * children, nu + i * qp);
    for (; i < n; ++i) upward_nodes<P, S, Q, 1, Fused>(level, arity, below + i * children, nu + i * qp);
    total += rescale_level<P>(nu, n, qp, range, bound, scaling, S > 0 ? S : arity);
}

// mu_child_r(b) = sum over rules with b at place r of mu(a) * p * prod_{r' != r} nu_child_r'(b_r'); if Causal, only
// siblings to the left have a say, r' < r.
template <class P, int S, int Q, int U, bool Causal = false, bool Fused = false>
HF_INLINE void downward_nodes(const hf_level& level, int arity, const typename P::V* mu, const typename P::V* nu_below,
                              typename P::V* mu_below) {
    using V = typename P::V;
    const int s = S > 0 ? S : arity;
    const typename P::Scalar* prob = Numbers<typename P::Scalar>::prob(level);
    const int qp = Q > 0 ? Q : level.n_parents, qc = Q > 0 ? Q : level.n_symbols;
    V right[HF_MAX_ARITY + 1]; // products of the siblings to the right
    for (int x = 0; x < U * s * qc; ++x) mu_below[x] = V{};
    for (int a = 0; a < qp; ++a) {
        for (int rule = level.first[a]; rule < level.first[a + 1];) {
            const int32_t* b = level.children + static_cast<size_t>(rule) * s;
            if constexpr (S == 2) { // as upward, rules that share their first child together
                V inner[U] = {}, left[U];
                const int first = b[0];
                for (int u = 0; u < U; ++u) left[u] = mu[u * qp + a] * nu_below[2 * u * qc + first];
                do {
                    const V p = splat<P>(prob[rule]);
                    const int second = qc + level.children[2 * rule + 1];
                    for (int u = 0; u < U; ++u) {
                        V& target = mu_below[2 * u * qc + second];
                        target = plus_product<P, Fused>(target, left[u], p);
                        if constexpr (Causal) inner[u] = inner[u] + p;
                        else inner[u] = plus_product<P, Fused>(inner[u], p, nu_below[2 * u * qc + second]);
                    }
                } while (++rule < level.first[a + 1] && level.children[2 * rule] == first);
                for (int u = 0; u < U; ++u) {
                    V& target = mu_below[2 * u * qc + first];
                    target = plus_product<P, Fused>(target, mu[u * qp + a], inner[u]);
                }
            } else {
                for (int u = 0; u < U; ++u) {
                    const V* up = nu_below + u * s * qc;
                    V* out = mu_below + u * s * qc;
                    V left = mu[u * qp + a] * prob[rule];
                    right[s] = splat<P>(1);
                    for (int r = s - 1; r > 0; --r) right[r] = Causal ? right[s] : up[r * qc + b[r]] * right[r + 1];
                    for (int r = 0; r < s; ++r) {
                        V& target = out[r * qc + b[r]];
                        target = target + left * right[r + 1];
                        left = left * up[r * qc + b[r]];
                    }
                }
                ++rule;
            }
        }
    }
}

template <class P, int S, int Q, bool Causal = false, bool Fused = false>
HF_INLINE void downward_level(const hf_level& level, int arity, int64_t n, const typename P::V* mu,
                              const typename P::V* nu_below, typename P::V* mu_below, Range<P>& range,
                              typename P::Scalar& bound, Scaling<P> scaling = {}) {
    const int s = S > 0 ? S : arity;
    const int qp = Q > 0 ? Q : level.n_parents, qc = Q > 0 ? Q : level.n_symbols;
    const int64_t children = int64_t(s) * qc;
    int64_t i = 0;
    for (; i + kNodesDown <= n; i += kNodesDown)
        downward_nodes<P, S, Q, kNodesDown, Causal, Fused>(level, arity, mu + i * qp, nu_below + i * children,
                                                           mu_below + i * children);
    for (; i < n; ++i)
        downward_nodes<P, S, Q, 1, Causal, Fused>(level, arity, mu + i * qp, nu_below + i * children,
                                                  mu_below + i * children);
    rescale_level<P>(mu_below, n * s, qc, range, bound, scaling, s);
}

// Adds to `counts` the posterior probability of every rule at each of the n nodes of a level, from their downward
// messages and their children's upward ones; `term` is room for q_d packs.
template <class P, int S> HF_INLINE void count_level(const hf_level& level, int arity, int64_t n,
                                                     const typename P::V* mu, const typename P::V* nu_below,
                                                     typename P::V* term, typename P::V* counts, Range<P>& range) {
    using V = typename P::V;
    const int s = S > 0 ? S : arity;
    const typename P::Scalar* prob = Numbers<typename P::Scalar>::prob(level);
    const int qp = level.n_parents, qc = level.n_symbols;
    for (int64_t i = 0; i < n; ++i) {
        const V* child = nu_below + i * s * qc;
        upward_nodes<P, S, 0, 1>(level, arity, child, term);
        V sum{};
        for (int a = 0; a < qp; ++a) sum = sum + mu[i * qp + a] * term[a];
        range.counted(sum);
        const V inverse = splat<P>(1) / sum;
        for (int a = 0; a < qp; ++a)
            for (int rule = level.first[a]; rule < level.first[a + 1]; ++rule) {
                const int32_t* b = level.children + static_cast<size_t>(rule) * s;
                V x = mu[i * qp + a] * prob[rule];
                for (int r = 0; r < s; ++r) x = x * child[r * qc + b[r]];
                counts[rule] = counts[rule] + x * inverse;
            }
    }
    range.next_level();
}

// Divides by the sum (NaN where there is nothing to normalise) and returns it. One division serves all entries;
// certainty is exactly 1 all the same. A sum below the normal range has no inverse: `range` has to know of it.
template <class P> HF_INLINE typename P::V divide(const typename P::V* x, int q, typename P::V sum,
                                                  typename P::V inverse, typename P::V* out) {
    const typename P::V certain = sum > 0 ? splat<P>(1) : inverse * 0;
    for (int a = 0; a < q; ++a) out[a] = x[a] == sum ? certain : x[a] * inverse;
    return sum;
}
template <class P> HF_INLINE typename P::V sum_of(const typename P::V* x, int q) {
    typename P::V sum = x[0];
    for (int a = 1; a < q; ++a) sum = sum + x[a];
    return sum;
}
template <class P> HF_INLINE typename P::V normalise(const typename P::V* x, int q, typename P::V* out) {
    const typename P::V sum = sum_of<P>(x, q);
    return divide<P>(x, q, sum, splat<P>(1) / sum, out);
}

} // namespace HF_NAMESPACE
