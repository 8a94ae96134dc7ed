// The root of a filtered tree.
#pragma once

#include "tree_messages.hpp"

namespace HF_NAMESPACE {

// A product of many factors per class, each class with its own exponent: over the arity^k nodes of a
// star one class may fall 10^5 powers of two behind and come back.
template <class P> struct WideNumber {
    typename P::V value; // in [1, 2), or 0
    typename P::I exponent;

    static HF_INLINE WideNumber of(typename P::V factor) {
        WideNumber x{splat<P>(1), typename P::I{}};
        x.multiply(factor);
        return x;
    }
    HF_INLINE void multiply(typename P::V factor) {
        value = value * factor;
        const typename P::I e = ::HF_NAMESPACE::exponent<P>(value);
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

    // Returns the exponent of prod_i max_a m_i(a), which no single class may reach. If Best, m_i(a) is the largest term
    // instead of the sum.
    template <bool Best = false> HF_INLINE typename P::I upward(const V* nu, WideNumber<P>* root, Range<P>& range) {
        WideNumber<P> best = WideNumber<P>::of(splat<P>(1));
        V lowest = splat<P>(-Format<typename P::Scalar>::lowest); // of the nodes' largest factors
        for (int64_t i = 0; i < n; ++i) {
            const typename P::Scalar* p = channels + i * q0 * qk;
            for (int a = 0; a < q0; ++a) {
                if (i % group == 0) root[a] = WideNumber<P>::of(splat<P>(1));
                V sum{};
                for (int c = 0; c < qk; ++c) {
                    const V x = p[a * qk + c] * nu[i * qk + c];
                    sum = Best ? larger(sum, x) : sum + x;
                }
                factor[i * q0 + a] = sum;
                before[i * q0 + a] = root[a];
                root[a].multiply(sum);
            }
            V top = factor[i * q0];
            for (int a = 1; a < q0; ++a) top = larger(top, factor[i * q0 + a]);
            lowest = smaller(lowest, top);
            best.multiply(top);
        }
        range.normalising(lowest);
        range.next_level(scaling.lift);
        return best.exponent;
    }

    // How many powers of two a window's classes, for all their nodes, stay behind what no single class may reach: the
    // largest of all windows.
    HF_INLINE typename P::I disagreement() const {
        using I = typename P::I;
        constexpr typename P::Int lowest = -(typename P::Int(1) << 30);
        const typename P::Scalar* prior = Numbers<typename P::Scalar>::prior(m);
        I most{};
        for (int64_t end = group; end <= n; end += group) {
            WideNumber<P> best = WideNumber<P>::of(splat<P>(1));
            for (int64_t i = end - group; i < end; ++i) {
                V top = factor[i * q0];
                for (int a = 1; a < q0; ++a) top = larger(top, factor[i * q0 + a]);
                best.multiply(top);
            }
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
        const typename P::Scalar* prior = Numbers<typename P::Scalar>::prior(m);
        WideNumber<P>* product = suffix + q0;
        typename P::Scalar bound = 0; // of the messages' entries: measured
        LevelScale<P> scale(range, bound, {false, scaling.lift}, 0);
        for (int64_t i = n - 1; i >= 0; --i) {
            const typename P::Scalar* p = channels + i * q0 * qk;
            for (int a = 0; a < q0; ++a) {
                if ((i + 1) % group == 0) suffix[a] = WideNumber<P>::of(splat<P>(prior[a]));
                product[a] = suffix[a];
                product[a].multiply(before[i * q0 + a].value);
                product[a].exponent += before[i * q0 + a].exponent;
                if (!causal) suffix[a].multiply(factor[i * q0 + a]);
            }
            align<P>(product, q0, weight, range);
            see(i, weight);
            V* out = mu + i * qk;
            for (int c = 0; c < qk; ++c) out[c] = V{};
            for (int a = 0; a < q0; ++a)
                for (int c = 0; c < qk; ++c) out[c] = out[c] + weight[a] * p[a * qk + c];
            scale.rescale(out, 1, qk);
        }
        scale.finish(n);
        range.next_level();
        return bound;
    }
};

} // namespace HF_NAMESPACE
