// What a call of inference needs to know of its model, besides the model itself, and its scratch.
#pragma once

#include "cpu_fields.hpp"
#include "subtree_table.hpp"

namespace HF_NAMESPACE {
namespace {

constexpr int64_t kNearBytes = int64_t(40) << 10; // what a first-level cache holds

template <class T> T smallest_positive(const T* x, int n) {
    T smallest = T(1);
    for (int i = 0; i < n; ++i) smallest = x[i] < smallest ? x[i] : smallest;
    return smallest;
}

template <class P> struct Plan {
    using T = typename P::Scalar;
    using V = typename P::V;
    Layout<P> at;
    TableShape table;
    T smallest[64];            // probability of a level's rules
    PairSquare<T> squares[64]; // of soft evidence, where there is one
    int deepest;               // level that an output asks the downward pass for
    bool last_at_once;         // the last level can be had with what is asked of the leaves
    int64_t packs;             // that take their steps in turn: see infer_rows

    // `scratch`, if squares are wanted, has the room that scratch_bytes says.
    Plan(const hf_model& m, const hf_infer_args& args, void* scratch = nullptr)
        : at(m, args), table(m), packs(packs_in_turn(at)) {
        if (args.log_fields && scratch)
            fill_squares(m, static_cast<char*>(scratch) + packs * at.size * static_cast<int64_t>(sizeof(V)));
        for (int d = m.filter_level; d < m.depth; ++d)
            smallest[d] = smallest_positive(Numbers<T>::prob(m.levels[d]), m.levels[d].n_rules);
        deepest = args.leave_one_out ? m.depth : args.counts ? m.depth - 1 : args.star_pairs ? 1 : 0;
        for (int d = 1; d <= m.depth; ++d)
            if (args.beliefs && args.beliefs[d] && deepest < d) deepest = d;
        if (!args.tokens || !args.table_values || sizeof(T) != sizeof(float) || args.counts ||
            deepest > m.depth - table.height ||
            !Range<P>(Numbers<T>::tiny(m)).harmless(args.table_values[table.least()]))
            table.height = 0;
        last_at_once = deepest == m.depth && squares[m.depth - 1].parent && !args.causal && !args.counts &&
                       !args.leave_one_out != !args.beliefs[m.depth];
    }

    static size_t scratch_bytes(const hf_model& m, const hf_infer_args& args) {
        const Layout<P> at(m, args);
        int64_t bytes = packs_in_turn(at) * at.size * static_cast<int64_t>(sizeof(V));
        if (args.log_fields)
            for (int d = m.filter_level; d < m.depth; ++d)
                if (!told_before(m, d)) bytes += PairSquare<T>::bytes(m.levels[d], m.arity);
        return static_cast<size_t>(bytes);
    }

  private:
    static int64_t packs_in_turn(const Layout<P>& at) {
        return P::lanes > 1 && 2 * at.size * static_cast<int64_t>(sizeof(V)) <= kNearBytes ? 2 : 1;
    }
    static bool told_before(const hf_model& m, int d) {
        return d > m.filter_level && m.levels[d].children == m.levels[d - 1].children;
    }
    void fill_squares(const hf_model& m, char* memory) {
        for (int d = m.filter_level; d < m.depth; ++d) {
            if (told_before(m, d)) {
                squares[d] = squares[d - 1];
                continue;
            }
            const int64_t bytes = PairSquare<T>::bytes(m.levels[d], m.arity);
            if (bytes > 0) squares[d].fill(m.levels[d], memory);
            memory += bytes;
        }
    }
};

} // namespace
} // namespace HF_NAMESPACE
