// Whole trees given the evidence, drawn or the most probable: from the messages that cuda_passes.hpp brought up, level
// by level downward, a thread to a node of one tree.
#pragma once

#include "cuda_passes.hpp"

namespace HF_NAMESPACE {

struct TreesCall {
    int64_t n_samples; // 0: the most probable one
    uint64_t seed, start;
    void* levels[kMaxLevels]; // (n, n_samples or 1, nodes) of the token type
    int32_t level_bytes;
    double* log_weight;
};

struct ChooseArgs : PassArgs {
    TreesCall trees;
};

// The picks of tree_choose.hpp for one sample: which of the entries first … last - 1, where `weight(j)` is what entry j
// weighs. Drawing, the first whose cumulated weight exceeds u times the sum; otherwise the first of the largest.
template <class V, class Weight> HF_INLINE int pick_one(bool draw, int first, int last, V u, const Weight& weight) {
    int at = first;
    if (draw) {
        V sum{}, cumulated{};
        for (int j = first; j < last; ++j) sum = sum + weight(j);
        const V threshold = u * sum;
        for (int j = first; j < last; ++j) {
            cumulated = cumulated + weight(j);
            at += cumulated <= threshold;
        }
    } else {
        V top = weight(first);
        for (int j = first + 1; j < last; ++j) {
            const V x = weight(j);
            at = x > top ? j : at;
            top = larger(top, x);
        }
    }
    return smaller(at, last - 1); // where all is zero nothing was passed
}

template <class P> HF_INLINE typename P::V uniform_number(uint32_t word) { return uniform<P>(word); }
template <> HF_INLINE Wide uniform_number<WidePack>(uint32_t word) { return wide(uniform<Pack<double, 1>>(word)); }

template <class P, int S> struct Choose : Passes<P, S> {
    using Base = Passes<P, S>;
    using V = typename P::V;
    using T = typename P::Scalar;
    using Args = ChooseArgs;

    static HF_INLINE void phase(int64_t p, const Args& args, const Launch& l) {
        const int64_t round = p / args.plan.phases;
        Choose thread(args, l, round);
        if (thread.row >= 0) thread.step(p - round * args.plan.phases);
    }

  private:
    using Base::at, Base::call, Base::m, Base::member, Base::members, Base::plan, Base::row, Base::state;

    HF_INLINE Choose(const Args& args, const Launch& l, int64_t round)
        : Base(args, l, round), trees(args.trees), per_row(trees.n_samples > 0 ? trees.n_samples : 1) {}

    const TreesCall& trees;
    const int64_t per_row;

    HF_INLINE void step(int64_t s) const {
        if (Base::rising(s)) return;
        if (s-- == 0) return root();
        const int stages = 1 + plan.star + m.depth - m.filter_level;
        const int64_t first = s / stages * plan.at_once;
        if (first >= per_row) return Base::report();
        const int count = static_cast<int>(smaller<int64_t>(plan.at_once, per_row - first));
        int stage = static_cast<int>(s % stages);
        if (stage == 0) return roots(first, count);
        if (plan.star && stage == 1) return star_nodes(first, count);
        children(m.filter_level + stage - 1 - plan.star, first, count, stage);
    }

    HF_INLINE void root() const {
        if (member != 0) return;
        Watch<P> watch = Base::new_watch();
        V* x = at(plan.root);
        Base::weigh_root(x, watch);
        V evidence = x[0];
        for (int a = 1; a < m.alphabets[0]; ++a) evidence = call.best ? larger(evidence, x[a]) : evidence + x[a];
        watch.normalised(evidence);
        Base::note(watch, m.depth);
        const double log = Base::logarithm(evidence);
        if (call.log_evidence) call.log_evidence[row] = log;
        if (trees.log_weight) trees.log_weight[row] = log;
        state().impossible = state().invalid || is_zero(evidence);
    }

    // ------------------------------------------------------------------------------------ trees

    // Symbols of the trees in hand, after that many stages: trees, nodes.
    HF_INLINE uint16_t* symbols(int stage) const {
        const int64_t half = plan.at_once * n_nodes(m, m.depth);
        return reinterpret_cast<uint16_t*>(at(plan.symbols)) + (stage & 1) * half;
    }
    HF_INLINE V random(int64_t tree, uint32_t purpose, int64_t word) const {
        if (trees.n_samples == 0) return V{};
        const uint64_t index = trees.start + static_cast<uint64_t>(row * per_row + tree);
        const Indices<1> at_row{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32)};
        WordStream<1> words{at_row, purpose, static_cast<uint32_t>(trees.seed),
                            static_cast<uint32_t>(trees.seed >> 32)};
        return uniform_number<P>(words[word]);
    }
    // One past the alphabet where the evidence is impossible.
    HF_INLINE void put(int d, int64_t tree, int64_t node, int symbol) const {
        if (!trees.levels[d]) return;
        const int64_t where = (row * per_row + tree) * n_nodes(m, d) + node;
        const int shown = state().impossible ? m.alphabets[d] : symbol;
        if (trees.level_bytes == 1) static_cast<uint8_t*>(trees.levels[d])[where] = static_cast<uint8_t>(shown);
        else static_cast<uint16_t*>(trees.levels[d])[where] = static_cast<uint16_t>(shown);
    }

    HF_INLINE void roots(int64_t first, int count) const {
        const V* weights = at(plan.root);
        for (int64_t t = member; t < count; t += members) {
            const V u = random(first + t, kPurposePosterior, 0);
            const int a = pick_one<V>(trees.n_samples > 0, 0, m.alphabets[0], u, [&](int j) { return weights[j]; });
            symbols(0)[t] = static_cast<uint16_t>(a);
            put(0, first + t, 0, a);
        }
    }

    HF_INLINE void star_nodes(int64_t first, int count) const {
        const int k = m.filter_level, q0 = m.alphabets[0], qk = m.alphabets[k];
        const int64_t n = n_nodes(m, k);
        for (int64_t x = member; x < n * count; x += members) {
            const int64_t t = x / n, i = x % n;
            const T* channel = Numbers<T>::star(m) + (i * q0 + symbols(0)[t]) * qk;
            const V* nu = at(plan.nu[k]) + i * qk;
            const V u = random(first + t, kPurposePosteriorStar, i);
            const int c = pick_one<V>(trees.n_samples > 0, 0, qk, u, [&](int j) { return channel[j] * nu[j]; });
            symbols(1)[x] = static_cast<uint16_t>(c);
            put(k, first + t, i, c);
        }
    }

    // The children of the nodes of level d, whose own symbols the stage before has left.
    HF_INLINE void children(int d, int64_t first, int count, int stage) const {
        const hf_level& level = m.levels[d];
        const int s = m.arity;
        const int64_t n = n_nodes(m, d), word = 1 + (n - 1) / (s - 1);
        for (int64_t x = member; x < n * count; x += members) {
            const int64_t t = x / n, i = x % n;
            const int a = symbols(stage - 1)[x];
            const V* child = at(plan.nu[d + 1]) + i * s * level.n_symbols;
            const V u = random(first + t, kPurposePosterior, word + i);
            const int rule = pick_one<V>(trees.n_samples > 0, level.first[a], level.first[a + 1], u,
                                         [&](int j) { return carried<P, S>(level, s, j, child); });
            for (int r = 0; r < s; ++r) {
                const int b = level.children[static_cast<int64_t>(rule) * s + r];
                symbols(stage)[x * s + r] = static_cast<uint16_t>(b);
                put(d + 1, first + t, i * s + r, b);
            }
        }
    }
};

} // namespace HF_NAMESPACE
