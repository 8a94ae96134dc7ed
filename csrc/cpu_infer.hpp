// Inference of rows: loads evidence into lanes, passes messages up and down, stores what is asked for.
#pragma once

#include "cpu_answers.hpp"
#include "cpu_fields.hpp"
#include "cpu_plan.hpp"
#include "subnormals.hpp"
#include "tree_choose.hpp"

namespace HF_NAMESPACE {
namespace {

// What is passed at a time: the subtree of node `index` of level `level`. The tree itself is {0, 0}.
struct Part {
    int level;
    int64_t index;
};

// The passes over one pack of rows. S as in tree_messages.hpp.
template <class P, int S> struct Passes {
    using V = typename P::V;
    using I = typename P::I;
    using T = typename P::Scalar;
    const hf_model& m;
    const hf_infer_args& args;
    const Rows& rows;
    const Plan<P>& plan;
    V* scratch;
    Scaling<P> scaling;
    int q0;
    const T* prior;
    Range<P> range;
    Star<P> star;
    typename LaneType<double, P::lanes>::type shift{};
    I total{}, invalid{};
    T bounds[64]; // of the non-zero entries of the upward messages, by level
    V evidence{};

    HF_INLINE Passes(const hf_model& model, const hf_infer_args& call, const Rows& r, const Plan<P>& p, V* memory,
                     Scaling<P> how = {})
        : m(model), args(call), rows(r), plan(p), scratch(memory), scaling(how), q0(m.alphabets[0]),
          prior(Numbers<T>::prior(m)), range(Numbers<T>::tiny(m)), star(m, memory + plan.at.star, args.window, how) {}

    HF_INLINE int64_t nodes(int d) const { return S == 2 ? int64_t(1) << d : n_nodes(m, d); }
    HF_INLINE V* nu(int d) const { return scratch + plan.at.nu[d]; }
    HF_INLINE V* root() const { return scratch + plan.at.root; }

    HF_INLINE Leaves leaves_of(Part part) const {
        const int64_t n = nodes(m.depth - part.level);
        return {part.index * n, n};
    }
    HF_INLINE void leaves(Part part = {0, 0}) {
        V* out = nu(m.depth);
        T& bound = bounds[m.depth] = T(1);
        const Leaves own = leaves_of(part);
        if (!args.log_fields) load_tokens<P>(m, args, rows, own, out);
        else
            with_alphabet<P, true>(m.levels[m.depth - 1], [&](auto q) {
                if (args.field_bytes == 4)
                    load_fields<P, q.size, float>(m, args, rows, own, out, scaling.lift, shift, range, bound, invalid);
                else load_fields<P, 0, double>(m, args, rows, own, out, scaling.lift, shift, range, bound, invalid);
            });
        total -= static_cast<typename P::Int>(own.n * scaling.lift);
    }

    // Upward to level `top`: above the parts, if there are any.
    HF_INLINE void upward(int top) {
        if (plan.at.parts == 1) return upward_in({0, 0}, top);
        const int cut = plan.at.cut;
        for (int x = 0; x < 3 * (m.depth + 1); ++x) worst(0)[x] = I{};
        T bound = 2;
        for (int64_t i = 0; i < plan.at.parts; ++i) {
            upward_in({cut, i}, cut);
            if (in_danger()) return;
            bound = smaller(bound, bounds[cut]);
        }
        bounds[cut] = bound;
        spend(worst(0));
        for (int d = cut - 1; d >= top; --d) upward_from(d, nodes(d), nu(d));
    }

    // Max-product upward, up to the root's weights; the largest of them stands for the evidence.
    HF_INLINE void best() {
        leaves();
        for (int d = m.depth - 1; d >= m.filter_level; --d) {
            bounds[d] = next_bound(plan.least_up[d], T(1), bounds[d + 1], S > 0 ? S : m.arity);
            best_level<P, S>(m.levels[d], m.arity, nodes(d), nu(d + 1), nu(d), total, range, bounds[d]);
        }
        const I below = range.danger();
        if (m.filter_level > 0) star.template upward<true>(nu(m.filter_level), star.suffix, range);
        weigh_root(below);
        V top = root()[0];
        for (int a = 1; a < q0; ++a) top = larger(top, root()[a]);
        range.normalised(top);
        range.next_level();
        evidence = top;
    }

    // The root: its message, times the prior, is the belief; the sum is the evidence. Windows have a root each.
    HF_INLINE void meet(bool windowed) {
        const I below = range.danger();
        if (m.filter_level > 0) star.upward(nu(m.filter_level), star.suffix, range);
        if (windowed) {
            if (any_lane<P>(below)) range.spent += below & star.disagreement();
            return;
        }
        weigh_root(below);
        V* belief = root() + q0;
        evidence = args.root ? normalise<P>(root(), q0, belief) : sum_of<P>(root(), q0);
        range.normalised(evidence);
        range.next_level(m.filter_level > 0 ? 0 : scaling.lift);
        if (args.root) store_rows<P>(belief, rows, q0, static_cast<T*>(args.root));
    }

    // Downward, as deep as an output asks for.
    HF_INLINE void downward() {
        V *mu = scratch + plan.at.mu[0], *room = scratch + plan.at.mu[1];
        T bound = T(0); // not known: to be measured
        int d = m.filter_level;
        if (args.window > 0 && args.window >= d) { // windows: all that is known of their tops is their laws
            d = args.window;
            const T* laws = static_cast<const T*>(args.laws);
            const int64_t size = nodes(d) * m.alphabets[d];
            for (int64_t x = 0; x < size; ++x) mu[x] = splat<P>(laws[x]);
            bound = smallest_positive(laws, size);
        } else if (d > 0) {
            bound = star.downward(mu, root(), range, args.causal != 0,
                                  [&](int64_t i, const V* weight) { pair_with_root(i, weight); });
            if (args.star_pairs)
                store_rows<P>(scratch + plan.at.pairs, rows, star.n * q0 * star.qk, static_cast<T*>(args.star_pairs));
        } else {
            const T one = power_of_two<Pack<T, 1>>(scaling.lift);
            for (int a = 0; a < q0; ++a) mu[a] = splat<P>(prior[a] * one);
            bound = plan.least_prior;
        }
        V* counts = scratch + plan.at.counts;
        if (args.counts)
            for (int r = 0; r < m.n_counts; ++r) counts[r] = V{};
        mu = descend({0, 0}, d, plan.at.parts > 1 ? plan.at.cut : m.depth, mu, room, mu, bound);
        if (plan.at.parts > 1 && plan.deepest > plan.at.cut) descend_in_parts(mu, bound);
        if (args.counts) store_rows<P>(counts, rows, m.n_counts, static_cast<T*>(args.counts));
    }

    // Whether messages were left as they came although some row's range is in danger.
    HF_INLINE bool in_danger() const { return scaling.lazy && any_lane<P>(range.danger()); }
    // Which rows' evidence left the range of the type, or is none.
    HF_INLINE void store_status() const {
        const I suspect = range.danger() & (as_mask<P>(range.spent > Numbers<T>::slack(m)) | range.empty());
        const I doubt = (suspect & ~invalid & splat_int<P>(HF_ROW_RANGE)) | (invalid & splat_int<P>(HF_ROW_NAN));
        const auto status = convert_lanes<typename LaneType<int8_t, P::lanes>::type, P::lanes>(doubt);
        __builtin_memcpy(args.status + rows.first, &status, static_cast<size_t>(rows.count));
    }
    HF_INLINE void store_log(V x, double* out) const {
        const auto log = log_scaled<P>(x, total) + shift;
        __builtin_memcpy(out + rows.first, &log, static_cast<size_t>(rows.count) * sizeof(double));
    }

  private:
    // How the messages that the rules of level d bring forth are kept.
    HF_INLINE Scaling<P> at(int d) const { return {scaling.lazy && plan.lazy(d), scaling.lift}; }
    // What cancels on a level is what cancels at its worst node: of a tree in parts, in the worst of them.
    HF_INLINE I* worst(int pass) const { return reinterpret_cast<I*>(scratch + plan.at.worst) + pass * (m.depth + 1); }
    HF_INLINE void of_one(Part part, I before, int pass, int d) {
        if (part.level == 0) return;
        worst(pass)[d] = larger<I>(worst(pass)[d], range.spent - before);
        range.spent = before;
    }
    HF_INLINE void spend(const I* worst_of) {
        for (int d = plan.at.cut; d <= m.depth; ++d) range.spent += worst_of[d];
    }

    // Upward to level `top` in a part, from the leaves or from subtrees that a table knows.
    HF_NOINLINE void upward_in(Part part, int top) {
        const auto to = [&](int d) { return nu(d) + (d == part.level ? part.index * m.alphabets[d] : 0); };
        int level = m.depth;
        if (plan.table.height > 0) {
            if constexpr (sizeof(T) == sizeof(float)) {
                auto* entries = reinterpret_cast<typename LaneType<uint32_t, P::lanes>::type*>(nu(level));
                find_entries<P::lanes>(m, plan.table, args, rows, leaves_of(part), entries);
                level -= plan.table.height;
                I spent[kTableHeight] = {};
                total += look_up_level<P>(m, plan.table, args, nodes(level - part.level), at(level).lazy, entries,
                                          to(level), range, spent, bounds[level]);
                for (int h = 0; h < plan.table.height; ++h) {
                    const I before = range.spent;
                    range.spent += spent[h];
                    of_one(part, before, 0, m.depth - 1 - h);
                }
            }
        } else leaves(part);
        if (in_danger()) return; // strong evidence: what would follow takes long
        for (int d = level - 1; d >= top; --d) {
            const I before = range.spent;
            upward_from(d, nodes(d - part.level), to(d));
            of_one(part, before, 0, d);
        }
    }

    // Downward in a part from level d, the messages to which are `mu`, to level `end`, each level's in the room after
    // the other. Returns where those of the last one are.
    HF_NOINLINE V* descend(Part part, int d, int end, V* mu, V* room, V* after, T& bound) {
        V* counts = scratch + plan.at.counts;
        for (;; ++d) {
            const int q = m.alphabets[d];
            const int64_t n = nodes(d - part.level), stride = nodes(d) * q, first = part.index * n * q;
            I before = range.spent;
            if (d > part.level && args.beliefs && args.beliefs[d])
                store_beliefs<P>(rows, stride, n, q, nu(d), mu, static_cast<T*>(args.beliefs[d]) + first, room, range,
                                 2 * scaling.lift);
            of_one(part, before, 2, d);
            if (d == m.depth && args.leave_one_out)
                store_predictions<P>(rows, stride, n, q, mu, static_cast<T*>(args.leave_one_out) + first, room);
            if (args.counts && d < m.depth)
                count_level<P, S>(m.levels[d], m.arity, n, mu, nu(d + 1), counts + m.n_counts,
                                  counts + m.levels[d].first_count, range);
            if (d == end || d >= plan.deepest) return mu;
            bound = next_bound(plan.least_down[d], bound, bounds[d + 1], (S > 0 ? S : m.arity) - 1);
            before = range.spent;
            const bool at_once = d + 1 == m.depth && plan.last_at_once;
            if (at_once)
                with_alphabet<P, true>(m.levels[d], [&](auto size) {
                    last_level<P, size.size>(m, args, rows, leaves_of(part), plan.squares[d], mu, nu(d + 1), room,
                                             range, bound, at(d));
                });
            else downward_from(d, n, mu, room, bound);
            of_one(part, before, 1, d);
            if (at_once) return mu;
            mu = room;
            room = after;
            after = mu;
        }
    }

    // The rest of the way, from the messages to the parts: those upward inside are made once more.
    HF_INLINE void descend_in_parts(V* mu, T bound) {
        const int cut = plan.at.cut;
        const I taken_out = total;
        const auto taken = shift;
        for (int64_t i = 0; i < plan.at.parts && !in_danger(); ++i) {
            upward_in({cut, i}, cut + 1);
            T below = bound;
            descend({cut, i}, cut, m.depth, mu + i * m.alphabets[cut], scratch + plan.at.mu_part[0],
                    scratch + plan.at.mu_part[1], below);
        }
        total = taken_out;
        shift = taken;
        spend(worst(1));
        spend(worst(2));
    }

    // Calls with the alphabet, and whether sums may be fused.
    template <class Call> HF_INLINE void with_sums(const hf_level& level, const Call& call) const {
        with_alphabet<P, false>(level, [&](auto q) {
            if (args.log_fields) call(q, std::true_type());
            else call(q, std::false_type());
        });
    }

    // One level upward, to n nodes of level d, in the way that suits its rules and the evidence.
    HF_INLINE void upward_from(int d, int64_t n, V* to) {
        const hf_level& level = m.levels[d];
        bounds[d] = next_bound(plan.least_up[d], T(1), bounds[d + 1], S > 0 ? S : m.arity);
        if constexpr (S == 2) {
            if (plan.squares[d].parent)
                with_alphabet<P, true>(level, [&](auto q) {
                    upward_level_pairs<P, q.size>(level, plan.squares[d], n, nu(d + 1), to, total, range, bounds[d],
                                                  at(d));
                });
            else if (plan.all_pairs[d] && !args.log_fields && level.n_parents == 4 && level.n_symbols == 4)
                upward_level_small<P, 4>(level, n, nu(d + 1), to, total, range, bounds[d], at(d));
            else if (plan.all_pairs[d])
                with_sums(level, [&](auto q, auto soft) {
                    upward_level_dense<P, q.size, soft.value>(level, n, nu(d + 1), to, total, range, bounds[d], at(d));
                });
            else if (args.log_fields)
                upward_level<P, 2, 0, true>(level, 2, n, nu(d + 1), to, total, range, bounds[d], at(d));
            else
                with_alphabet<P, false>(level, [&](auto q) {
                    upward_level<P, 2, q.size>(level, 2, n, nu(d + 1), to, total, range, bounds[d], at(d));
                });
        } else if (plan.rules[d].up)
            with_arity<P>(m.arity, [&](auto s) {
                upward_level_rules<P, s.size>(level, plan.rules[d], n, nu(d + 1), to, total, range, bounds[d], at(d));
            });
        else upward_level<P, S, 0>(level, m.arity, n, nu(d + 1), to, total, range, bounds[d], at(d));
    }

    // And one downward, from them to their children.
    HF_INLINE void downward_from(int d, int64_t n, const V* mu, V* below, T& bound) {
        const hf_level& level = m.levels[d];
        if (args.causal) return downward_level<P, S, 0, true>(level, m.arity, n, mu, nu(d + 1), below, range, bound);
        if constexpr (S == 2) {
            if (plan.squares[d].parent)
                with_alphabet<P, true>(level, [&](auto q) {
                    downward_level_pairs<P, q.size>(level, plan.squares[d], n, mu, nu(d + 1), below, range, bound,
                                                    at(d));
                });
            else if (plan.all_pairs[d])
                with_sums(level, [&](auto q, auto soft) {
                    downward_level_dense<P, q.size, soft.value>(level, n, mu, nu(d + 1), below, range, bound, at(d));
                });
            else if (args.log_fields)
                downward_level<P, 2, 0, false, true>(level, 2, n, mu, nu(d + 1), below, range, bound, at(d));
            else
                with_alphabet<P, false>(level, [&](auto q) {
                    downward_level<P, 2, q.size>(level, 2, n, mu, nu(d + 1), below, range, bound);
                });
        } else if (plan.rules[d].up)
            with_arity<P>(m.arity, [&](auto s) {
                downward_level_rules<P, s.size>(level, plan.rules[d], n, mu, nu(d + 1), below, range, bound, at(d));
            });
        else downward_level<P, S, 0>(level, m.arity, n, mu, nu(d + 1), below, range, bound, at(d));
    }

    // The root's weights; `below` is what was in danger before.
    HF_INLINE void weigh_root(I below) {
        if (m.filter_level > 0) {
            WideNumber<P>* product = star.suffix;
            for (int a = 0; a < q0; ++a) product[a].multiply(splat<P>(prior[a]));
            const I top = align<P>(product, q0, root(), range);
            total += top;
            // What was lost below the star, the disagreement of its classes brings forth.
            if (any_lane<P>(below)) range.spent += below & larger<I>(star.reach() - top, I{});
        } else {
            for (int a = 0; a < q0; ++a) root()[a] = nu(0)[a] * prior[a];
        }
    }

    HF_INLINE void pair_with_root(int64_t i, const V* weight) {
        if (!args.star_pairs) return;
        const int qk = star.qk;
        V* out = scratch + plan.at.pairs + i * q0 * qk;
        for (int a = 0; a < q0; ++a)
            for (int c = 0; c < qk; ++c)
                out[a * qk + c] = weight[a] * star.channels[(i * q0 + a) * qk + c] * nu(m.filter_level)[i * qk + c];
        range.counted(normalise<P>(out, q0 * qk, out));
    }
};

// Up to the root, for those who go down in ways of their own.
template <class P, int S> HF_NOINLINE void rise(Passes<P, S>& passes) {
    passes.upward(passes.m.filter_level);
    passes.meet(false);
}

// Returns false, if messages were left as they came, where some row's range is in danger: what it has spent is then to
// be counted level by level, or a row's status would depend on its neighbours.
template <class P, int S> bool infer_pack(const hf_model& m, const hf_infer_args& args, const Rows& rows,
                                          const Plan<P>& plan, void* scratch, Scaling<P> scaling) {
    Passes<P, S> passes(m, args, rows, plan, static_cast<typename P::V*>(scratch), scaling);
    const bool windowed = args.window > 0;
    passes.upward(windowed && args.window > m.filter_level ? args.window : m.filter_level);
    if (passes.in_danger()) return false;
    if (!(windowed && args.window >= m.filter_level)) passes.meet(windowed);
    if (plan.deepest > 0 || args.counts) passes.downward();
    if (passes.in_danger()) return false;
    passes.store_status();
    if (args.log_evidence) passes.store_log(passes.evidence, args.log_evidence);
    return true;
}

template <class P>
void infer_rows(const hf_model& m, const hf_infer_args& args, int64_t begin, int64_t end, void* scratch) {
    KeptPlan<P>& kept = KeptPlan<P>::of(m, args, scratch, false);
    const Plan<P>& plan = kept.plan;
    scratch = KeptPlan<P>::room(scratch);
    const auto infer = [&](int64_t row, Scaling<P> scaling) {
        const Rows rows{args.n, row, end - row < P::lanes ? static_cast<int>(end - row) : P::lanes};
        return m.arity == 2 ? infer_pack<P, 2>(m, args, rows, plan, scratch, scaling)
                            : infer_pack<P, 0>(m, args, rows, plan, scratch, scaling);
    };
    int64_t row = begin;
    // Messages are left as they come until there is a danger: where one is, others are near. From tokens they are most
    // often of the model's making, and in all rows.
    if (plan.lazy(m.depth - 1) && kept.calm)
        while (row < end && infer(row, {true, 0})) row += P::lanes;
    if (row >= end) return;
    kept.calm = kept.calm && args.log_fields != nullptr;
    const Scaling<P> scaling{false, plan.lift(m, args)};
    const FlushSubnormals flush(scaling.lift > 0); // lifted messages need none of them
    for (; row < end; row += P::lanes) infer(row, scaling);
}

} // namespace
} // namespace HF_NAMESPACE
