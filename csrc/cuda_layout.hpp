// What a block's rows need in scratch, how many of them it takes, and how many phases that is.
#pragma once

#include "cuda_choose.hpp"
#include "cuda_infer.hpp"

namespace HF_NAMESPACE {

constexpr int kInferThreads = 128;
constexpr int kDeepThreads = 256;              // for a row that has a block to itself
constexpr int64_t kSharedScratch = 46 * 1024;  // what a block gets without asking for more
constexpr int64_t kScratch = int64_t(1) << 30; // of the first attempt, in global memory
constexpr int64_t kRescueScratch = int64_t(1) << 28;

struct Geometry {
    InferPlan plan;
    int threads;
    size_t shared;
    int64_t bytes_per_block; // of global scratch
};

inline int deepest_level(const hf_model& m, const hf_infer_args& call) {
    int deepest = call.leave_one_out ? m.depth : call.counts ? m.depth - 1 : 0;
    if (call.star_pairs) deepest = larger(deepest, m.filter_level);
    for (int d = 1; d <= m.depth; ++d)
        if (call.beliefs && call.beliefs[d] && d > deepest) deepest = d;
    return deepest;
}

// What a row needs in scratch. Depends on the model and the question alone: the bits of a row do not depend on its
// batch. `trees` are those to be chosen per row, 0: none.
template <class P> int64_t lay_out(const hf_model& m, const hf_infer_args& call, int64_t trees, InferPlan& plan) {
    using V = typename P::V;
    constexpr int64_t per_wide = sizeof(WideNumber<P>) / sizeof(V);
    const int k = m.filter_level;
    const int64_t q0 = m.alphabets[0], n = power(m.arity, k);
    plan.deepest = deepest_level(m, call);
    plan.top = larger(k, call.window);
    plan.star = k > call.window;
    int64_t at = 0, widest = 0;
    const auto take = [&](int64_t count) {
        at += count;
        return at - count;
    };
    if (plan.star) { // wide numbers first: they need the stricter alignment
        plan.group = power(m.arity, k - call.window);
        plan.chunk_nodes = plan.group; // a group is whole chunks
        while (n > 64 && plan.chunk_nodes > 1 && plan.chunk_nodes * kDeepThreads > n) plan.chunk_nodes /= m.arity;
        plan.chunks = n / plan.chunk_nodes;
        plan.product = take((q0 + 1) * per_wide);
        plan.chunk = take(plan.chunks * (q0 + 1) * per_wide);
        if (plan.deepest > 0) {
            plan.prefix = take(plan.chunks * q0 * per_wide);
            plan.suffix = take(plan.chunks * q0 * per_wide);
            plan.before = take(n * q0 * per_wide);
        }
        plan.factor = take(n * q0);
    }
    for (int d = plan.top; d <= m.depth; ++d) {
        const int64_t size = power(m.arity, d) * m.alphabets[d];
        plan.nu[d] = take(size);
        if (d <= plan.deepest) widest = larger(widest, size);
    }
    if (plan.deepest > 0 || call.counts) {
        plan.mu[0] = take(widest);
        plan.mu[1] = take(widest);
    }
    if (call.counts) {
        int64_t room = 0, most = 1;
        for (int d = k; d < m.depth; ++d) {
            room = larger(room, power(m.arity, d) * m.alphabets[d]);
            most = larger<int64_t>(most, m.levels[d].n_rules);
        }
        const bool deep = power(m.arity, m.depth) > 256;
        plan.count_parts = deep ? static_cast<int32_t>(larger<int64_t>(1, kDeepThreads / most)) : 1;
        plan.inverse = take(room);
        plan.counts = take(int64_t(plan.count_parts) * m.n_counts);
    }
    if (trees > 0) {
        const int64_t leaves = power(m.arity, m.depth);
        plan.at_once =
            static_cast<int32_t>(smaller<int64_t>(smaller<int64_t>(trees, 8), larger<int64_t>(1, 4096 / leaves)));
        plan.symbols = take((2 * plan.at_once * leaves * 2 + static_cast<int64_t>(sizeof(V)) - 1) /
                            static_cast<int64_t>(sizeof(V)));
    }
    plan.root = take(q0);
    // Neighbouring threads hold neighbouring rows: an odd distance in words keeps their banks apart.
    return sizeof(V) == 4 ? at | 1 : at + 1;
}

// Phases of one round of rows: evidence, upward, the root; then downward with beliefs, or trees a few at a time.
inline int64_t count_phases(const hf_model& m, const hf_infer_args& call, int64_t trees, const InferPlan& plan) {
    const int64_t rising = 2 + (m.depth - plan.top) + (plan.star ? 2 : 0) + 1;
    if (trees > 0) {
        const int64_t stages = 1 + plan.star + m.depth - m.filter_level;
        return rising + (trees + plan.at_once - 1) / plan.at_once * stages + 1;
    }
    const int64_t falling = call.counts ? 2 * (m.depth - plan.top) : larger(0, plan.deepest - plan.top);
    return rising + (plan.star && plan.deepest > 0 ? 1 : 0) + falling + 1;
}

template <class P> Geometry plan_inference(const hf_model& m, const hf_infer_args& call, int64_t trees, int32_t force) {
    using V = typename P::V;
    Geometry g{};
    InferPlan& plan = g.plan;
    plan.stride = lay_out<P>(m, call, trees, plan);
    plan.slots = 4 * m.depth + 6; // the last of the star's factors
    plan.phases = count_phases(m, call, trees, plan);
    const int64_t row_bytes = plan.stride * static_cast<int64_t>(sizeof(V));
    const auto state_bytes = [&](int rows, int threads) {
        const int64_t bytes = threads * 8 + rows * (static_cast<int64_t>(sizeof(RowState)) + plan.slots * 4);
        return (bytes + 15) / 16 * 16;
    };
    plan.rows = 32;
    g.threads = kInferThreads;
    while (plan.rows > 1 && state_bytes(plan.rows, g.threads) + plan.rows * row_bytes > kSharedScratch) plan.rows /= 2;
    plan.in_shared =
        state_bytes(plan.rows, g.threads) + plan.rows * row_bytes <= kSharedScratch && !(force & HF_FORCE_GLOBAL);
    if (plan.rows == 1) g.threads = kDeepThreads;
    plan.state_bytes = static_cast<int32_t>(state_bytes(plan.rows, g.threads));
    g.shared = static_cast<size_t>(plan.state_bytes + (plan.in_shared ? plan.rows * row_bytes : 0));
    g.bytes_per_block = plan.in_shared ? 0 : plan.rows * row_bytes;
    return g;
}

} // namespace HF_NAMESPACE
