// Derivatives of posteriors of rows: evidence and directions into lanes, the passes, derivatives out.
#pragma once

#include "cpu_infer.hpp"
#include "tree_tangent.hpp"

namespace HF_NAMESPACE {
namespace {

// Scratch beyond that of the posteriors, in packs.
template <class P> struct TangentLayout {
    Layout<P> base;
    int64_t rho;         // as the upward messages lie
    int64_t moved[2];    // derivatives of two levels' beliefs; the beliefs take the downward messages' room
    int64_t rates, star; // of the rules, and of the star's channels
    int64_t size;

    TangentLayout(const hf_model& m, const hf_tangent_args& args) : base(m, args.evidence, true) {
        const int64_t widest = base.mu[1] - base.mu[0], messages = base.mu[0], q0 = m.alphabets[0];
        rho = base.size;
        moved[0] = rho + messages + q0; // the root's rates, if the root is that of a star
        moved[1] = moved[0] + widest;
        rates = moved[1] + widest;
        star = rates + (args.rule_rates ? m.n_counts : 0);
        size = star + (args.channel_rates ? n_nodes(m, m.filter_level) * q0 * m.alphabets[m.filter_level] : 0);
    }
};

template <class P, int S> void tangent_pack(const hf_model& m, const hf_tangent_args& args, const Rows& rows,
                                            const Plan<P>& plan, const TangentLayout<P>& at, void* memory,
                                            Scaling<P> scaling) {
    using V = typename P::V;
    using T = typename P::Scalar;
    const hf_infer_args& out = args.evidence;
    V* scratch = static_cast<V*>(memory);
    Passes<P, S> passes(m, out, rows, plan, scratch, scaling);
    const int k = m.filter_level, depth = m.depth, q0 = m.alphabets[0];
    rise(passes);
    passes.range.next_level();
    const auto size = [&](int d) { return n_nodes(m, d) * m.alphabets[d]; };
    const auto read = [&](const void* from, int64_t n, V* to) HF_NOINLINE {
        if (from) load_rows<P>(static_cast<const T*>(from), n, rows, n, to);
        else
            for (int64_t i = 0; i < n; ++i) to[i] = V{};
        return from ? to : nullptr;
    };
    const V* rates = args.rule_rates ? read(args.rule_rates, m.n_counts, scratch + at.rates) : nullptr;
    const V* star_rates =
        args.channel_rates ? read(args.channel_rates, passes.star.n * q0 * m.alphabets[k], scratch + at.star) : nullptr;
    const auto rho = [&](int d) { return scratch + at.rho + at.base.nu[d]; };
    const auto node = [&](int d, int64_t i) {
        const int64_t child = i * m.arity * m.alphabets[d + 1];
        return NodeRules<P, S>{m.levels[d], m.arity, passes.nu(d + 1) + child, rho(d + 1) + child,
                               rates ? rates + m.levels[d].first_count : nullptr};
    };
    const auto spoke = [&](int64_t i) {
        const int64_t at_i = i * q0 * passes.star.qk;
        return StarRules<P>{passes.star.channels + at_i,
                            q0,
                            passes.star.qk,
                            passes.nu(k) + i * passes.star.qk,
                            rho(k) + i * passes.star.qk,
                            star_rates ? star_rates + at_i : nullptr};
    };

    // Up: expected rates.
    read(args.level_rates[depth], size(depth), rho(depth));
    for (int d = depth - 1; d >= k; --d) {
        read(args.level_rates[d], size(d), rho(d));
        for (int64_t i = 0; i < n_nodes(m, d); ++i)
            rates_up<P, S>(node(d, i), rho(d) + i * m.alphabets[d], passes.range);
    }
    V* root = k > 0 ? scratch + at.moved[0] - q0 : rho(0);
    if (k > 0) {
        read(args.level_rates[0], q0, root);
        for (int64_t i = 0; i < passes.star.n; ++i) spoke(i).up(root, passes.range);
    }

    // Down: beliefs and their derivatives.
    V *belief = scratch + at.base.mu[0], *belief_below = scratch + at.base.mu[1];
    V *moved = scratch + at.moved[1], *moved_below = scratch + at.moved[0];
    V *posterior = passes.root() + q0, mean{};
    normalise<P>(passes.root(), q0, posterior);
    for (int a = 0; a < q0; ++a) {
        belief[a] = posterior[a];
        mean = mean + posterior[a] * root[a];
    }
    for (int a = 0; a < q0; ++a) moved[a] = belief[a] * (root[a] - mean);
    if (args.root) store_rows<P>(moved, rows, q0, static_cast<T*>(args.root));
    if (args.log_evidence) {
        const auto wide = convert_lanes<typename LaneType<double, P::lanes>::type, P::lanes>(mean);
        __builtin_memcpy(args.log_evidence + rows.first, &wide, static_cast<size_t>(rows.count) * sizeof(double));
    }
    const auto descend = [&](int d) {
        V* swap = belief;
        belief = belief_below;
        belief_below = swap;
        swap = moved;
        moved = moved_below;
        moved_below = swap;
        if (d > 0 && args.levels[d]) store_rows<P>(moved, rows, size(d), static_cast<T*>(args.levels[d]));
    };
    if (k > 0) {
        V* pairs = scratch + at.base.pairs;
        const int64_t joint = q0 * passes.star.qk;
        for (int64_t i = 0; i < passes.star.n; ++i)
            spoke(i).down(belief, moved, belief_below + i * passes.star.qk, moved_below + i * passes.star.qk,
                          out.star_pairs ? pairs + i * joint : nullptr);
        if (out.star_pairs) store_rows<P>(pairs, rows, passes.star.n * joint, static_cast<T*>(out.star_pairs));
        descend(k);
    }
    V* counts = scratch + at.base.counts;
    if (out.counts)
        for (int r = 0; r < m.n_counts; ++r) counts[r] = V{};
    for (int d = k; d < depth; ++d) {
        const int64_t children = int64_t(m.arity) * m.alphabets[d + 1];
        for (int64_t i = 0; i < n_nodes(m, d); ++i)
            beliefs_down<P, S>(node(d, i), belief + i * m.alphabets[d], moved + i * m.alphabets[d],
                               belief_below + i * children, moved_below + i * children,
                               out.counts ? counts + m.levels[d].first_count : nullptr);
        descend(d + 1);
    }
    if (out.counts) store_rows<P>(counts, rows, m.n_counts, static_cast<T*>(out.counts));
    passes.store_status();
}

template <class P>
void tangent_rows(const hf_model& m, const hf_tangent_args& args, int64_t begin, int64_t end, void* scratch) {
    const TangentLayout<P> at(m, args);
    hf_infer_args evidence = args.evidence;
    evidence.table_values = nullptr; // the messages of every level are needed
    const Plan<P>& plan = KeptPlan<P>::of(m, evidence, scratch, true).plan;
    scratch = KeptPlan<P>::room(scratch);
    const Scaling<P> scaling{false, plan.lift(m, evidence, 1)};
    const FlushSubnormals flush(scaling.lift > 0);
    for (int64_t row = begin; row < end; row += P::lanes) {
        const Rows rows{evidence.n, row, end - row < P::lanes ? static_cast<int>(end - row) : P::lanes};
        if (m.arity == 2) tangent_pack<P, 2>(m, args, rows, plan, at, scratch, scaling);
        else tangent_pack<P, 0>(m, args, rows, plan, at, scratch, scaling);
    }
}

} // namespace
} // namespace HF_NAMESPACE
