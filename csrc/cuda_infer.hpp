// Beliefs on any tree: what cuda_passes.hpp brought up to the root comes down again. Out is what results are stored as.
#pragma once

#include "cuda_passes.hpp"

namespace HF_NAMESPACE {

template <class P, class Out, int S> struct Infer : Passes<P, S> {
    using Base = Passes<P, S>;
    using V = typename P::V;
    using T = typename P::Scalar;
    using Args = PassArgs;

    static HF_INLINE void phase(int64_t p, const Args& args, const Launch& l) {
        const int64_t round = p / args.plan.phases;
        Infer thread(args, l, round);
        if (thread.row >= 0) thread.step(p - round * args.plan.phases);
    }

  private:
    using Base::at, Base::call, Base::m, Base::member, Base::members, Base::new_watch, Base::note, Base::plan,
        Base::row, Base::state, Base::wide_at;

    HF_INLINE Infer(const Args& args, const Launch& l, int64_t round) : Base(args, l, round) {}

    HF_INLINE void step(int64_t s) const {
        if (Base::rising(s)) return;
        if (s-- == 0) return call.window ? begin_window() : root();
        if (plan.star && plan.deepest > 0 && s-- == 0) return star_downward();
        if (call.counts) {
            if (s < 2 * (m.depth - plan.top)) {
                const int level = static_cast<int>(s / 2), d = plan.top + level;
                if (s % 2 == 0) return count_nodes(d, level & 1);
                count_rules(d, level & 1);
                if (d < plan.deepest) downward(d, level & 1);
                return;
            }
        } else if (plan.top + s < plan.deepest) return downward(plan.top + static_cast<int>(s), s & 1);
        finish();
    }

    // ------------------------------------------------------------------------------------ root

    HF_INLINE void root() const {
        if (member != 0) return;
        const int q0 = m.alphabets[0];
        Watch<P> watch = new_watch();
        V* x = at(plan.root);
        Base::weigh_root(x, watch);
        V evidence = x[0];
        for (int a = 1; a < q0; ++a) evidence = evidence + x[a];
        watch.normalised(evidence);
        note(watch, m.depth);
        Out* out = static_cast<Out*>(call.root);
        const V inverse = inverse_sum(evidence);
        if (out)
            for (int a = 0; a < q0; ++a) out[row * q0 + a] = result(share(x[a], evidence, inverse));
        if (call.log_evidence) call.log_evidence[row] = Base::logarithm(evidence);
        if (!plan.star && (plan.deepest > 0 || call.counts)) // the root's message downward is its prior
            for (int a = 0; a < q0; ++a) at(plan.mu[0])[a] = splat<P>(Numbers<T>::prior(m)[a]);
    }

    // All that is known of the top of a window is its law; above the filter level it is still a star.
    HF_INLINE void begin_window() const {
        Watch<P> watch = new_watch(), beliefs = watch;
        if (plan.star) {
            if (member == 0) Base::star_products(at(plan.root), watch);
            return;
        }
        const int q = m.alphabets[plan.top];
        const int64_t n = n_nodes(m, plan.top);
        for (int64_t i = member; i < n; i += members) {
            V* mu = at(plan.mu[0]) + i * q;
            for (int x = 0; x < q; ++x) {
                mu[x] = splat<P>(static_cast<T>(call.laws[i * q + x]));
                watch.entry(mu[x]);
            }
            emit(plan.top, i, at(plan.nu[plan.top]) + i * q, mu, beliefs);
        }
        note(watch, m.depth);
    }

    // -------------------------------------------------------------------------------- downward

    // mu_i(c) = sum_a pi(a) prod_{j != i} m_j(a) P_i[a, c], j in the group of i, and j < i alone if `causal`; a thread
    // takes a run of nodes.
    HF_INLINE void star_downward() const {
        const int k = m.filter_level, q0 = m.alphabets[0], qk = m.alphabets[k];
        const int64_t n = n_nodes(m, k);
        Watch<P> watch = new_watch(), beliefs = watch;
        for (int64_t c = member; c < plan.chunks; c += members) {
            WideNumber<P>* before = wide_at(plan.prefix) + c * q0;
            WideNumber<P>* after = wide_at(plan.suffix) + c * q0;
            const int64_t begin = c * plan.chunk_nodes, end = smaller<int64_t>(n, begin + plan.chunk_nodes);
            for (int64_t i = begin; i < end; ++i)
                for (int a = 0; a < q0; ++a) {
                    wide_at(plan.before)[i * q0 + a] = before[a];
                    before[a].multiply(at(plan.factor)[i * q0 + a]);
                }
            for (int64_t i = end - 1; i >= begin; --i) {
                const T* p = Numbers<T>::star(m) + i * q0 * qk;
                // The products of the other nodes, in place of what came before this one.
                WideNumber<P>* product = wide_at(plan.before) + i * q0;
                V* factor = at(plan.factor) + i * q0;
                for (int a = 0; a < q0; ++a) {
                    const WideNumber<P> left = product[a];
                    product[a] = after[a];
                    times<P>(product[a], left);
                    if (!call.causal) after[a].multiply(factor[a]);
                }
                V* weight = factor; // no longer needed
                watch.align(product, q0, weight);
                if (call.star_pairs) pair_with_root(i, weight, beliefs);
                V* out = at(plan.mu[0]) + i * qk;
                for (int b = 0; b < qk; ++b) out[b] = V{};
                for (int a = 0; a < q0; ++a)
                    for (int b = 0; b < qk; ++b) out[b] = out[b] + weight[a] * p[a * qk + b];
                watch.rescale(out, qk);
                emit(k, i, at(plan.nu[k]) + i * qk, out, beliefs);
            }
        }
        note(watch, m.depth + 1);
        note(beliefs, m.depth + 2);
    }

    // The joint posterior of the root and node i of the star, from the classes' weights.
    HF_INLINE void pair_with_root(int64_t i, const V* weight, Watch<P>& beliefs) const {
        const int q0 = m.alphabets[0], qk = m.alphabets[m.filter_level];
        const T* p = Numbers<T>::star(m) + i * q0 * qk;
        const V* nu = at(plan.nu[m.filter_level]) + i * qk;
        V sum{};
        for (int a = 0; a < q0; ++a)
            for (int c = 0; c < qk; ++c) sum = sum + weight[a] * p[a * qk + c] * nu[c];
        beliefs.counted(sum);
        const V inverse = inverse_sum(sum);
        Out* out = static_cast<Out*>(call.star_pairs) + (row * n_nodes(m, m.filter_level) + i) * q0 * qk;
        for (int a = 0; a < q0; ++a)
            for (int c = 0; c < qk; ++c)
                out[a * qk + c] = result(share(weight[a] * p[a * qk + c] * nu[c], sum, inverse));
    }

    HF_INLINE void downward(int d, int from) const {
        const hf_level& level = m.levels[d];
        const int s = m.arity, qc = level.n_symbols;
        const int64_t n = n_nodes(m, d);
        const V* mu = at(plan.mu[from]);
        Watch<P> watch = new_watch(), beliefs = watch;
        for (int64_t i = member; i < n; i += members) {
            const V* nu_below = at(plan.nu[d + 1]) + i * s * qc;
            V* mu_below = at(plan.mu[1 - from]) + i * s * qc;
            if (call.causal) downward_nodes<P, S, 0, 1, true>(level, s, mu + i * level.n_parents, nu_below, mu_below);
            else downward_nodes<P, S, 0, 1>(level, s, mu + i * level.n_parents, nu_below, mu_below);
            for (int r = 0; r < s; ++r) {
                watch.rescale(mu_below + r * qc, qc);
                emit(d + 1, i * s + r, nu_below + r * qc, mu_below + r * qc, beliefs);
            }
        }
        note(watch, m.depth + 3 + 2 * d);
        note(beliefs, m.depth + 4 + 2 * d);
    }

    // A node's belief nu * mu, and at a leaf mu alone, as far as they are wanted.
    HF_INLINE void emit(int d, int64_t i, const V* nu, const V* mu, Watch<P>& beliefs) const {
        const int q = m.alphabets[d];
        const int64_t where = (row * n_nodes(m, d) + i) * q;
        if (Out* out = static_cast<Out*>(call.beliefs[d])) {
            V sum = nu[0] * mu[0];
            for (int x = 1; x < q; ++x) sum = sum + nu[x] * mu[x];
            const V inverse = inverse_sum(sum);
            for (int x = 0; x < q; ++x) out[where + x] = result(share(nu[x] * mu[x], sum, inverse));
            beliefs.normalised(sum);
        }
        if (d == m.depth && call.leave_one_out) {
            Out* out = static_cast<Out*>(call.leave_one_out);
            V sum = mu[0];
            for (int x = 1; x < q; ++x) sum = sum + mu[x];
            const V inverse = inverse_sum(sum);
            for (int x = 0; x < q; ++x) out[where + x] = result(share(mu[x], sum, inverse));
        }
    }

    // ---------------------------------------------------------------------------------- counts

    // Of every node of a level one over the sum of what its rules weigh, where what they weigh for each symbol stood.
    HF_INLINE void count_nodes(int d, int from) const {
        const hf_level& level = m.levels[d];
        const int64_t n = n_nodes(m, d), children = int64_t(m.arity) * level.n_symbols;
        Watch<P> watch = new_watch();
        for (int64_t i = member; i < n; i += members) {
            const V* mu = at(plan.mu[from]) + i * level.n_parents;
            V* term = at(plan.inverse) + i * level.n_parents;
            upward_nodes<P, S, 0, 1>(level, m.arity, at(plan.nu[d + 1]) + i * children, term);
            V sum{};
            for (int a = 0; a < level.n_parents; ++a) sum = sum + mu[a] * term[a];
            watch.counted(sum);
            term[0] = splat<P>(1) / sum;
        }
        note(watch, 3 * m.depth + 3 + d);
    }

    // Adds the posterior probabilities of the rules at the nodes of a level: a thread takes a rule at every so-manieth
    // node, one after the other, so that sums have one order.
    HF_INLINE void count_rules(int d, int from) const {
        const hf_level& level = m.levels[d];
        const int64_t n = n_nodes(m, d), children = int64_t(m.arity) * level.n_symbols;
        for (int64_t x = member; x < int64_t(level.n_rules) * plan.count_parts; x += members) {
            const int rule = static_cast<int>(x % level.n_rules);
            const int64_t part = x / level.n_rules;
            int a = 0, end = level.n_parents; // the parent, by bisection
            while (end - a > 1) {
                const int middle = (a + end) / 2;
                if (level.first[middle] <= rule) a = middle;
                else end = middle;
            }
            const int32_t* b = level.children + static_cast<size_t>(rule) * m.arity;
            V& target = at(plan.counts)[part * m.n_counts + level.first_count + rule];
            V sum = target;
            for (int64_t i = part; i < n; i += plan.count_parts) {
                const V* child = at(plan.nu[d + 1]) + i * children;
                V term = at(plan.mu[from])[i * level.n_parents + a] * Numbers<T>::prob(level)[rule];
                for (int r = 0; r < m.arity; ++r) term = term * child[r * level.n_symbols + b[r]];
                sum = sum + term * at(plan.inverse)[i * level.n_parents];
            }
            target = sum;
        }
    }

    HF_INLINE void store_counts() const {
        Out* out = static_cast<Out*>(call.counts) + row * m.n_counts;
        for (int64_t x = member; x < m.n_counts; x += members) {
            V sum = at(plan.counts)[x];
            for (int part = 1; part < plan.count_parts; ++part) sum = sum + at(plan.counts)[part * m.n_counts + x];
            out[x] = result(sum);
        }
    }

    HF_INLINE Out result(V x) const { return state().invalid ? static_cast<Out>(NAN) : static_cast<Out>(to_double(x)); }

    HF_INLINE void finish() const {
        if (call.counts) store_counts();
        Base::report();
    }
};

} // namespace HF_NAMESPACE
