// Whole trees of rows: evidence into lanes, messages up, trees down, symbols out.
#pragma once

#include "cpu_infer.hpp"
#include "tree_choose.hpp"

namespace HF_NAMESPACE {
namespace {

template <class P, int S> void choose_pack(const hf_model& m, const hf_choose_args& args, const Rows& rows,
                                           const Plan<P>& plan, void* scratch, Scaling<P> scaling) {
    constexpr int N = P::lanes;
    using U = typename LaneType<uint32_t, N>::type;
    Passes<P, S> passes(m, args.evidence, rows, plan, static_cast<typename P::V*>(scratch), scaling);
    const bool draw = args.n_samples > 0;
    if (draw) {
        rise(passes);
    } else {
        passes.best();
        if (args.log_weight) passes.store_log(passes.evidence, args.log_weight);
    }
    if (args.evidence.log_evidence) passes.store_log(passes.evidence, args.evidence.log_evidence);
    passes.store_status();
    // The downward messages' room is free for symbols.
    U* symbols = reinterpret_cast<U*>(static_cast<typename P::V*>(scratch) + plan.at.mu[0]);
    const int64_t trees = draw ? args.n_samples : 1;
    const uint32_t key0 = static_cast<uint32_t>(args.seed), key1 = static_cast<uint32_t>(args.seed >> 32);
    for (int64_t j = 0; j < trees; ++j) {
        Indices<N> index{};
        for (int l = 0; l < N; ++l) {
            const uint64_t at = args.start + static_cast<uint64_t>((rows.first + l) * trees + j);
            element(index.lo, l) = static_cast<uint32_t>(at);
            element(index.hi, l) = static_cast<uint32_t>(at >> 32);
        }
        WordStream<N> words{index, kPurposePosterior, key0, key1}, star_words{index, kPurposePosteriorStar, key0, key1};
        const auto store = [&](int d, const U* level) {
            const int64_t n = n_nodes(m, d);
            const int64_t at = (rows.first * trees + j) * n, stride = trees * n;
            if (!args.levels[d]) return;
            const auto symbol = [=](int64_t i) { return level[i]; };
            if (args.level_bytes == 1)
                store_tokens<N>(symbol, n, rows.count, static_cast<uint8_t*>(args.levels[d]) + at, stride);
            else store_tokens<N>(symbol, n, rows.count, static_cast<uint16_t*>(args.levels[d]) + at, stride);
        };
        choose_tree<P, S>(
            m, draw, passes.root(), [&](int d) { return passes.nu(d); }, words, star_words, symbols, store);
    }
}

template <class P>
void choose_rows(const hf_model& m, const hf_choose_args& args, int64_t begin, int64_t end, void* scratch) {
    hf_infer_args evidence = args.evidence;
    evidence.table_values = nullptr; // trees need the messages of every level
    const Plan<P>& plan = KeptPlan<P>::of(m, evidence, scratch, true).plan;
    scratch = KeptPlan<P>::room(scratch);
    const Scaling<P> scaling{false, args.n_samples > 0 ? plan.lift(m, evidence) : 0}; // sums alone are lifted
    const FlushSubnormals flush(scaling.lift > 0);
    for (int64_t row = begin; row < end; row += P::lanes) {
        const Rows rows{args.evidence.n, row, end - row < P::lanes ? static_cast<int>(end - row) : P::lanes};
        if (m.arity == 2) choose_pack<P, 2>(m, args, rows, plan, scratch, scaling);
        else choose_pack<P, 0>(m, args, rows, plan, scratch, scaling);
    }
}

} // namespace
} // namespace HF_NAMESPACE
