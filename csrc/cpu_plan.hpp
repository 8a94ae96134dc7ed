// What a call knows in advance: of its model, of what it is asked, and how its messages are to be kept in range.
#pragma once

#include "cpu_layout.hpp"
#include "tree_dense.hpp"
#include "tree_pairs.hpp"
#include "tree_rules.hpp"

#include <new>

namespace HF_NAMESPACE {
namespace {

template <class T> T smallest_positive(const T* x, int64_t n) {
    constexpr int side = 16; // searches side by side
    T least[side];
    for (T& own : least) own = T(1);
    const auto look = [&](int l, T value) { least[l] = value > 0 && value < least[l] ? value : least[l]; };
    int64_t i = 0;
    for (; i + side <= n; i += side)
        for (int l = 0; l < side; ++l) look(l, x[i + l]);
    for (; i < n; ++i) look(0, x[i]);
    for (int l = 1; l < side; ++l) look(0, least[l]);
    return least[0];
}

// Packs of rows of which one may be done twice, should messages of tokens turn out to be in danger as they come.
constexpr int64_t kWorthTrying = 8;

// What a call needs to know of its model, besides the model itself.
template <class P> struct Plan {
    using T = typename P::Scalar;
    Layout<P> at;
    TableShape table;
    T least_up[64]; // of a level's rules, as next_bound wants it
    T least_down[64];
    T least_prior;
    bool all_pairs[64];        // whether a level's rules are all there can be
    PairSquare<P> squares[64]; // of soft evidence and two children a rule, where there is one
    RuleLists<P> rules[64];    // of soft evidence and more children, where there are any
    int deepest;               // level that an output asks the downward pass for
    int star_level;            // the filter level, if there is one; else none
    bool counts;               // wanted
    bool up_alone;             // from tokens, and nothing asked for that is on the way down, of many rows
    bool last_at_once;         // the last level can be had with what is asked of the leaves

    // Without `scratch`, for those who need the messages of all levels at once.
    Plan(const hf_model& m, const hf_infer_args& args, void* scratch = nullptr)
        : at(m, args, !scratch), table(m), star_level(m.filter_level > 0 ? m.filter_level : -1),
          counts(args.counts != nullptr) {
        least_prior = smallest_positive(Numbers<T>::prior(m), m.alphabets[0]);
        if (args.log_fields && scratch) lay_out(m, static_cast<char*>(scratch) + at.size * sizeof(typename P::V));
        for (int d = m.filter_level; d < m.depth; ++d) {
            const bool told = told_before(m, d);
            const hf_level& level = m.levels[d];
            least_up[d] = told ? least_up[d - 1] : smallest_positive(Numbers<T>::prob(level), level.n_rules) / 4;
            least_down[d] = least_up[d] / static_cast<T>(m.alphabets[d]);
            all_pairs[d] = told ? all_pairs[d - 1] : m.arity == 2 && has_all_pairs(level);
        }
        deepest = args.leave_one_out ? m.depth : args.counts ? m.depth - 1 : args.star_pairs ? 1 : 0;
        for (int d = 1; d <= m.depth; ++d)
            if (args.beliefs && args.beliefs[d] && deepest < d) deepest = d;
        if (!args.tokens || !args.table_values || sizeof(T) != sizeof(float) || args.counts ||
            deepest > m.depth - table.height ||
            !Range<P>(Numbers<T>::tiny(m)).harmless(args.table_values[table.least()]))
            table.height = 0;
        up_alone = args.tokens && deepest == 0 && args.window == 0 && m.filter_level < m.depth &&
                   args.n >= kWorthTrying * P::lanes;
        last_at_once = deepest == m.depth && squares[m.depth - 1].parent && !args.causal && !args.counts &&
                       !args.leave_one_out != !(args.beliefs && args.beliefs[m.depth]);
    }

    // Whether messages of level d need no normalising as long as nothing threatens them: nobody counts on it.
    HF_INLINE bool lazy(int d) const { return (squares[d].parent || up_alone) && d != star_level && !counts; }
    // By how much messages may be lifted where something does: the more, the fewer are multiplied; `more` than those of
    // a rule's children.
    static HF_INLINE typename P::Int lift(const hf_model& m, const hf_infer_args& args, int more = 0) {
        if (!args.log_fields || args.causal || args.window > 0) return 0;
        return Format<T>::room_above / (m.arity + (args.counts ? 1 : more));
    }

    // What calls need besides their layout, in bytes.
    static int64_t rule_bytes(const hf_model& m, const hf_infer_args& args) {
        int64_t bytes = 0;
        if (args.log_fields)
            for (int d = m.filter_level; d < m.depth; ++d)
                if (!told_before(m, d)) bytes += level_bytes(m, d);
        return bytes;
    }

  private:
    static bool told_before(const hf_model& m, int d) {
        return d > m.filter_level && m.levels[d].children == m.levels[d - 1].children &&
               Numbers<T>::prob(m.levels[d]) == Numbers<T>::prob(m.levels[d - 1]);
    }
    static int64_t level_bytes(const hf_model& m, int d) {
        return PairSquare<P>::bytes(m.levels[d], m.arity) + RuleLists<P>::bytes(m.levels[d], m.arity);
    }
    void lay_out(const hf_model& m, char* memory) {
        for (int d = m.filter_level; d < m.depth; ++d) {
            if (told_before(m, d)) {
                squares[d] = squares[d - 1];
                rules[d] = rules[d - 1];
                continue;
            }
            const hf_level& level = m.levels[d];
            if (PairSquare<P>::bytes(level, m.arity) > 0) squares[d].fill(level, memory);
            if (RuleLists<P>::bytes(level, m.arity) > 0) rules[d].fill(level, m.arity, memory);
            memory += level_bytes(m, d);
        }
    }
};

// A thread's scratch begins with its plan, made with the first block of rows: the dispatcher clears `ready`.
template <class P> struct KeptPlan {
    uint64_t ready;
    bool calm; // no row of tokens has been in danger yet
    Plan<P> plan;

    static constexpr size_t bytes() { return (sizeof(KeptPlan) + 63) / 64 * 64; }
    static void* room(void* scratch) { return static_cast<char*>(scratch) + bytes(); } // for everything else
    // `whole`: as Layout has it.
    static KeptPlan& of(const hf_model& m, const hf_infer_args& args, void* scratch, bool whole) {
        auto* const kept = static_cast<KeptPlan*>(scratch);
        if (kept->ready) return *kept;
        new (&kept->plan) Plan<P>(m, args, whole ? nullptr : room(scratch));
        kept->ready = 1;
        kept->calm = true;
        return *kept;
    }
};

} // namespace
} // namespace HF_NAMESPACE
