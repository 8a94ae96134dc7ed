// The root of a filtered tree.
#pragma once

#include "tree_messages.hpp"

namespace HF_NAMESPACE {

// A product of many factors per class, each class with its own exponent: over the arity^k nodes of a
// star one class may fall 10^5 powers of two behind and come back.
template <class P> struct WideNumber {
    typename P::V value;    // in [1, 2), or 0
    typename P::I exponent; // of 0: anything

    static HF_INLINE WideNumber of(typename P::V factor) {
        WideNumber x{splat<P>(1), typename P::I{}};
        x.multiply(factor);
        return x;
    }
    HF_INLINE void multiply(typename P::V factor) {
        value = value * factor;
        const typename P::I e = biased_exponent<P>(value) - Format<typename P::Scalar>::bias;
        value = value * power_of_two<P>(-e);
        exponent += e;
    }
};

// Brings wide numbers to one common exponent, which is returned; x[a] * 2^result is the value.
template <class P> HF_INLINE typename P::I align(const WideNumber<P>* wide, int q, typename P::V* x, Range<P>& range) {
    using I = typename P::I;
    constexpr typename P::Int lowest = -(typename P::Int(1) << 30);
    constexpr typename P::Int floor_exponent = -Format<typename P::Scalar>::bias + 1;
    I top = splat_int<P>(lowest);
    for (int a = 0; a < q; ++a) top = larger<I>(top, wide[a].value > 0 ? wide[a].exponent : splat_int<P>(lowest));
    for (int a = 0; a < q; ++a) {
        // The exponent of a zero may be anything: it must not become a factor.
        const I there = as_mask<P>(wide[a].value > 0);
        const I shift = there & (wide[a].exponent - top);
        const I lost = there & as_mask<P>(shift < floor_exponent);
        const typename P::V aligned = wide[a].value * power_of_two<P>(larger<I>(shift, splat_int<P>(floor_exponent)));
        x[a] = lost != 0 ? typename P::V{} : aligned;
        range.watch(x[a]);
        range.lost |= lost;
    }
    return top <= lowest ? I{} : top;
}

// The root of a filtered tree: its s^k children are independent given it.
template <class P> struct Star {
    using V = typename P::V;
    const hf_model& m;
    const typename P::Scalar* channels;
    int64_t n;
    int q0, qk;
    V* factor;             // m_i(a) = sum_c P_i[a, c] nu_i(c)
    WideNumber<P>* before; // prod_{j < i} m_j(a)
    WideNumber<P>* suffix; // prod_{j > i} m_j(a), then scratch
    int64_t group;         // nodes that know of each other: all, or those of one window
    Scaling<P> scaling;    // of the messages below, and of those passed to them

    HF_INLINE Star(const hf_model& model, V* scratch, int window, Scaling<P> how = {})
        : m(model), channels(Numbers<typename P::Scalar>::star(model)), n(n_nodes(model, model.filter_level)),
          q0(model.alphabets[0]), qk(model.alphabets[model.filter_level]), factor(scratch),
          before(reinterpret_cast<WideNumber<P>*>(scratch + n * q0)), suffix(before + n * q0),
          group(window < model.filter_level ? n_nodes(model, model.filter_level - window) : 1), scaling(how) {}

    // If Best, m_i(a) is the largest term instead of the sum.
    template <bool Best = false> HF_INLINE void upward(const V* nu, WideNumber<P>* root, Range<P>& range) {
        with_size([&](auto q) { upward_nodes<Best, q.size>(nu, root, range); });
    }

    // The exponent of prod_i max_a m_i(a), which no single class may reach.
    HF_INLINE typename P::I reach() const { return largest(0, n).exponent; }

    // How many powers of two a window's classes, for all their nodes, stay behind what no single class may reach: the
    // largest of all windows.
    HF_INLINE typename P::I disagreement() const {
        using I = typename P::I;
        constexpr typename P::Int lowest = -(typename P::Int(1) << 30);
        const typename P::Scalar* prior = Numbers<typename P::Scalar>::prior(m);
        I most{};
        for (int64_t end = group; end <= n; end += group) {
            const WideNumber<P> best = largest(end - group, end);
            I reached = splat_int<P>(lowest);
            for (int a = 0; a < q0; ++a) {
                WideNumber<P> x = before[(end - 1) * q0 + a];
                x.multiply(factor[(end - 1) * q0 + a]);
                x.multiply(splat<P>(prior[a]));
                reached = larger<I>(reached, x.value > 0 ? x.exponent : splat_int<P>(lowest));
            }
            most = larger<I>(most, best.exponent - reached);
        }
        return most;
    }

    // mu_i(c) = sum_a pi(a) prod_{j != i} m_j(a) P_i[a, c], with j < i alone if `causal`. `see(i, weight)` is shown the
    // weight of every class, all that is known of it but what node i says.
    template <class See>
    HF_INLINE typename P::Scalar downward(V* mu, V* weight, Range<P>& range, bool causal, const See& see) {
        typename P::Scalar bound = 0; // of the messages' entries: measured
        with_size([&](auto q) { downward_nodes<q.size>(mu, weight, range, causal, see, bound); });
        return bound;
    }

  private:
    // Q: the classes, and the symbols of the filter level, if the compiler is to know how many; else 0.
    template <class Call> HF_INLINE void with_size(const Call& call) const {
        if (q0 == 4 && qk == 4) call(Fixed<4>());
        else call(Fixed<0>());
    }

    HF_INLINE WideNumber<P> largest(int64_t begin, int64_t end) const {
        WideNumber<P> best = WideNumber<P>::of(splat<P>(1));
        for (int64_t i = begin; i < end; ++i) {
            V top = factor[i * q0];
            for (int a = 1; a < q0; ++a) top = larger(top, factor[i * q0 + a]);
            best.multiply(top);
        }
        return best;
    }

    template <bool Best, int Q> HF_INLINE void upward_nodes(const V* nu, WideNumber<P>* root, Range<P>& range) {
        const int classes = Q > 0 ? Q : q0, symbols = Q > 0 ? Q : qk;
        const typename P::Scalar* p = channels;
        V lowest = splat<P>(-Format<typename P::Scalar>::lowest); // of the nodes' largest factors
        WideNumber<P> held[Q > 0 ? Q : 1], *const product = Q > 0 ? held : root;
        int64_t left = 0; // nodes of the group to come
        for (int64_t i = 0; i < n; ++i, nu += symbols) {
            if (left == 0) {
                for (int a = 0; a < classes; ++a) product[a] = WideNumber<P>::of(splat<P>(1));
                left = group;
            }
            --left;
            V top{};
            for (int a = 0; a < classes; ++a, p += symbols) {
                V sum{};
                for (int c = 0; c < symbols; ++c) {
                    const V x = p[c] * nu[c];
                    sum = Best ? larger(sum, x) : sum + x;
                }
                factor[i * classes + a] = sum;
                before[i * classes + a] = product[a];
                product[a].multiply(sum);
                top = a == 0 ? sum : larger(top, sum);
            }
            lowest = smaller(lowest, top);
        }
        if (Q > 0)
            for (int a = 0; a < Q; ++a) root[a] = held[a];
        range.normalising(lowest);
        range.next_level(scaling.lift);
    }

    template <int Q, class See> HF_NOINLINE void downward_nodes(V* mu, V* weight, Range<P>& range, bool causal,
                                                                const See& see, typename P::Scalar& bound) {
        const int classes = Q > 0 ? Q : q0, symbols = Q > 0 ? Q : qk;
        const typename P::Scalar* prior = Numbers<typename P::Scalar>::prior(m);
        WideNumber<P>* product = suffix + classes;
        LevelScale<P> scale(range, bound, {false, scaling.lift}, 0);
        int64_t left = 0;
        for (int64_t i = n - 1; i >= 0; --i) {
            if (left == 0) {
                for (int a = 0; a < classes; ++a) suffix[a] = WideNumber<P>::of(splat<P>(prior[a]));
                left = group;
            }
            --left;
            for (int a = 0; a < classes; ++a) {
                product[a] = suffix[a];
                product[a].multiply(before[i * classes + a].value);
                product[a].exponent += before[i * classes + a].exponent;
                if (!causal) suffix[a].multiply(factor[i * classes + a]);
            }
            align<P>(product, classes, weight, range);
            see(i, weight);
            const typename P::Scalar* p = channels + i * classes * symbols;
            V* out = mu + i * symbols;
            for (int c = 0; c < symbols; ++c) {
                V sum{};
                for (int a = 0; a < classes; ++a) sum = sum + weight[a] * p[a * symbols + c];
                out[c] = sum;
            }
            scale.rescale(out, 1, symbols);
        }
        scale.finish(n);
        range.next_level();
    }
};

} // namespace HF_NAMESPACE
