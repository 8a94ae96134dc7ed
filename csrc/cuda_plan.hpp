// Which kernels answer a call, and with what geometry: one text for the device and for the host loop.
//
// `Machine` launches a kernel: template <class Kernel> void run(const Args&, int64_t blocks, int threads,
// size_t shared) const; clear(int64_t*) const sets a number to zero; int multiprocessors() const.
#pragma once

#include <string.h>

#include "cuda_api.h"
#include "cuda_layout.hpp"
#include "cuda_resident.hpp"
#include "cuda_sample.hpp"

namespace HF_NAMESPACE {

// --------------------------------------------------------------------------------- the packed model

// Lays a model out in one block of memory that will lie at `base`; without `out` only counts.
class Packer {
  public:
    Packer(uint64_t base, void* out) : base_(base), out_(static_cast<unsigned char*>(out)) {}

    template <class T> const T* add(const T* data, int64_t count) {
        at_ = (at_ + 15) / 16 * 16;
        if (out_ && count) memcpy(out_ + at_, data, static_cast<size_t>(count) * sizeof(T));
        const uint64_t where = base_ + at_;
        at_ += static_cast<size_t>(count) * sizeof(T);
        return reinterpret_cast<const T*>(where);
    }
    // The children of a table's entries as tokens, arity to an entry.
    template <class Token> void add_picks(const uint32_t* picks, int64_t count) {
        at_ = (at_ + 15) / 16 * 16;
        if (out_)
            for (int64_t i = 0; i < count; ++i) reinterpret_cast<Token*>(out_ + at_)[i] = static_cast<Token>(picks[i]);
        at_ += static_cast<size_t>(count) * sizeof(Token);
    }
    size_t size() const { return (at_ + 15) / 16 * 16; }

  private:
    uint64_t base_;
    unsigned char* out_;
    size_t at_ = 0;
};

struct PackedModel {
    const hf_model* model;
    SampleTables tables;
    size_t size;
};

inline PackedModel pack_model(const hf_model& m, uint64_t base, int32_t token_bytes, void* out) {
    Packer packer(base, out);
    hf_model copy = m;
    hf_level levels[kMaxLevels];
    PackedModel packed{};
    SampleTables& t = packed.tables;
    const int64_t q0 = m.alphabets[0], star = m.filter_level ? power(m.arity, m.filter_level) * q0 : 0;
    packed.model = packer.add(&copy, 1);
    // What sampling reads lies together, so that it can be copied to shared memory as one piece.
    const size_t tables_at = packer.size();
    t.bytes = reinterpret_cast<const unsigned char*>(base + tables_at);
    t.prior_bits = m.prior_bits;
    t.star_bits = m.star_bits;
    t.n_classes = static_cast<int32_t>(q0);
    const auto offset = [&] { return static_cast<int64_t>(packer.size() - tables_at); };
    t.prior = offset();
    copy.prior_cuts = packer.add(m.prior_cuts, int64_t(1) << m.prior_bits);
    t.star = offset();
    copy.star_cuts = packer.add(m.star_cuts, star << m.star_bits);
    for (int d = 0; d < m.depth; ++d) {
        const hf_level& level = m.levels[d];
        levels[d] = level;
        levels[d].picks = nullptr; // packed as tokens below
        t.bits[d] = level.cut_bits;
        if (d > 0 && level.cuts == m.levels[d - 1].cuts) { // one table serves several levels
            t.cuts[d] = t.cuts[d - 1];
            t.picks[d] = t.picks[d - 1];
            continue;
        }
        const int64_t entries = int64_t(level.n_parents) << level.cut_bits;
        t.cuts[d] = offset();
        levels[d].cuts = packer.add(level.cuts, entries);
        t.picks[d] = offset();
        if (token_bytes == 1) packer.add_picks<uint8_t>(level.picks, entries * m.arity);
        else packer.add_picks<uint16_t>(level.picks, entries * m.arity);
    }
    t.size = offset();
    for (int d = 0; d < m.depth; ++d) {
        const hf_level& level = m.levels[d];
        if (d > 0 && level.first == m.levels[d - 1].first) {
            levels[d] = levels[d - 1];
            continue;
        }
        levels[d].first = packer.add(level.first, level.n_parents + 1);
        levels[d].children = packer.add(level.children, int64_t(level.n_rules) * m.arity);
        levels[d].prob32 = packer.add(level.prob32, level.n_rules);
        levels[d].prob64 = packer.add(level.prob64, level.n_rules);
    }
    copy.alphabets = packer.add(m.alphabets, m.depth + 1);
    copy.prior32 = packer.add(m.prior32, q0);
    copy.prior64 = packer.add(m.prior64, q0);
    const int64_t channels = star * m.alphabets[m.filter_level];
    copy.star32 = packer.add(m.star32, channels);
    copy.star64 = packer.add(m.star64, channels);
    copy.levels = packer.add(levels, m.depth);
    packed.size = packer.size();
    if (out) memcpy(out, &copy, sizeof(copy)); // its pointers are known only now
    return packed;
}

// ---------------------------------------------------------------------------------------- sampling

constexpr int kSampleThreads = 256;

template <class Token, int H, bool Whole, class Machine>
void run_sample(const Machine& machine, const SampleArgs<Token>& args, int32_t force) {
    const int64_t items = args.n * power(args.arity, args.depth - args.height);
    const int64_t blocks = (items + kSampleThreads - 1) / kSampleThreads;
    const int64_t most = force & HF_FORCE_FEW_BLOCKS ? 2 : int64_t(machine.multiprocessors()) * 8;
    const size_t shared = args.in_shared ? static_cast<size_t>(args.tables.size) : 0;
    machine.template run<Sample<Token, H, Whole>>(args, smaller(blocks, most), kSampleThreads, shared);
}

template <class Token, class Machine> void sample_tokens(const Machine& machine, const hf_model& m, uint64_t base,
                                                         const hf_sample_args& call, int32_t force) {
    SampleArgs<Token> args{};
    args.n = call.n;
    args.seed = call.seed;
    args.start = call.start;
    args.roots = call.roots;
    uintptr_t together = 0;
    for (int d = 0; d <= m.depth; ++d) {
        args.levels[d] = static_cast<Token*>(call.levels[d]);
        together |= reinterpret_cast<uintptr_t>(call.levels[d]);
    }
    args.tables = pack_model(m, base, call.token_bytes, nullptr).tables;
    args.arity = m.arity;
    args.depth = m.depth;
    args.filter_level = m.filter_level;
    args.in_shared = args.tables.size <= kSharedTables && !(force & HF_FORCE_GLOBAL);
    const bool known = m.arity == 2 && args.in_shared && together % 16 == 0 && !(force & HF_FORCE_GENERAL);
    const bool whole = known && m.filter_level == 0;
    const int free_levels = m.depth - m.filter_level;
    if constexpr (sizeof(Token) == 1) {
        args.height = m.depth;
        if (whole && m.depth == 2) return run_sample<Token, 2, true>(machine, args, force);
        if (whole && m.depth == 3) return run_sample<Token, 3, true>(machine, args, force);
        if (whole && m.depth == 4) return run_sample<Token, 4, true>(machine, args, force);
        if (whole && m.depth == 5) return run_sample<Token, 5, true>(machine, args, force);
        args.height = 4;
        if (known && free_levels >= 4) return run_sample<Token, 4, false>(machine, args, force);
    }
    args.height = 0;
    while (args.height < m.depth && power(m.arity, args.height + 1) <= kMaxRun) ++args.height;
    run_sample<Token, 0, false>(machine, args, force);
}

template <class Machine>
void sample(const Machine& machine, const hf_model& m, uint64_t base, const hf_sample_args& call, int32_t force) {
    if (call.token_bytes == 1) sample_tokens<uint8_t>(machine, m, base, call, force);
    else sample_tokens<uint16_t>(machine, m, base, call, force);
}

// --------------------------------------------------------------------------------------- inference

inline int64_t blocks_in(const Geometry& g, int64_t budget) {
    return g.bytes_per_block == 0 ? int64_t(1) << 30 : larger<int64_t>(1, budget / g.bytes_per_block);
}

// Workspace: two lists of suspect rows, then the scratch, which the attempts use one after the other.
inline int64_t list_bytes(int64_t n) { return (n + 2) / 2 * 16; }

inline int64_t trees_of(const hf_choose_args* choose) {
    return !choose ? 0 : choose->n_samples > 0 ? choose->n_samples : 1;
}

inline size_t infer_workspace(const hf_model& m, const hf_infer_args& call, const hf_choose_args* choose,
                              int32_t force) {
    const int64_t trees = trees_of(choose);
    int64_t scratch = 0;
    const auto need = [&](const Geometry& g, int64_t budget) {
        const int64_t groups = (call.n + g.plan.rows - 1) / g.plan.rows;
        scratch = larger(scratch, smaller(groups, blocks_in(g, budget)) * g.bytes_per_block);
    };
    if (call.value_bytes == 4) need(plan_inference<Pack<float, 1>>(m, call, trees, force), kScratch);
    need(plan_inference<Pack<double, 1>>(m, call, trees, force), call.value_bytes == 8 ? kScratch : kRescueScratch);
    need(plan_inference<WidePack>(m, call, trees, force), kRescueScratch);
    return static_cast<size_t>(2 * list_bytes(call.n) + scratch);
}

template <class Machine> class Inference {
  public:
    // Of trees if `choose` is given, whose evidence `args` then is; otherwise of beliefs.
    Inference(const Machine& machine, const hf_model& m, uint64_t base, int32_t token_bytes, const hf_infer_args& args,
              const hf_choose_args* choose, int32_t force, void* workspace)
        : machine_(machine), m_(m), args_(args), choose_(choose), force_(force),
          model_(pack_model(m, base, token_bytes, nullptr).model), first_(static_cast<int64_t*>(workspace)),
          second_(first_ + list_bytes(args.n) / 8), scratch_(second_ + list_bytes(args.n) / 8) {
        call_.n = args.n;
        call_.tokens = args.tokens;
        call_.mask = args.mask;
        call_.log_fields = args.log_fields;
        call_.token_bytes = args.token_bytes;
        call_.field_bytes = args.field_bytes;
        call_.log_evidence = args.log_evidence;
        call_.root = args.root;
        for (int d = 1; d <= m.depth; ++d) call_.beliefs[d] = args.beliefs ? args.beliefs[d] : nullptr;
        call_.leave_one_out = args.leave_one_out;
        call_.counts = args.counts;
        call_.star_pairs = args.star_pairs;
        call_.laws = static_cast<const double*>(args.laws);
        call_.causal = args.causal;
        call_.window = args.window;
        call_.suspect_all = force & HF_FORCE_DOUBLE_RESCUE;
        if (!choose) return;
        call_.best = choose->n_samples == 0;
        trees_.n_samples = choose->n_samples;
        trees_.seed = choose->seed;
        trees_.start = choose->start;
        for (int d = 0; d <= m.depth; ++d) trees_.levels[d] = choose->levels[d];
        trees_.level_bytes = choose->level_bytes;
        trees_.log_weight = choose->log_weight;
    }

    // The whole ladder, on one stream: what a launch lists as suspect the next one does again.
    void run() {
        machine_.clear(first_);
        machine_.clear(second_);
        if (args_.value_bytes == 4) {
            call_.suspects = first_;
            if (!choose_ && !(force_ & HF_FORCE_GENERAL) && is_resident(m_, call_))
                run_resident(machine_, m_, call_, force_ & HF_FORCE_FEW_BLOCKS);
            else if (m_.arity == 2) general<Pack<float, 1>, float, 2>(nullptr);
            else general<Pack<float, 1>, float, 0>(nullptr);
            call_.suspects = second_;
            general<Pack<double, 1>, float, 0>(first_);
            call_.suspects = nullptr;
            general<WidePack, float, 0>(second_);
        } else {
            call_.suspects = second_;
            if (m_.arity == 2) general<Pack<double, 1>, double, 2>(nullptr);
            else general<Pack<double, 1>, double, 0>(nullptr);
            call_.suspects = nullptr;
            general<WidePack, double, 0>(second_);
        }
    }

  private:
    template <class P, class Out, int S> void general(const int64_t* again) {
        const Geometry g = plan_inference<P>(m_, args_, trees_of(choose_), force_);
        const int64_t groups = (call_.n + g.plan.rows - 1) / g.plan.rows;
        const int64_t at_once = int64_t(machine_.multiprocessors()) * 16;
        int64_t blocks = smaller(groups, blocks_in(g, again ? kRescueScratch : kScratch));
        blocks = smaller(blocks, force_ & HF_FORCE_FEW_BLOCKS ? int64_t(2) : at_once);
        const PassArgs args{model_, call_, g.plan, again, scratch_};
        if (choose_) machine_.template run<Choose<P, S>>(ChooseArgs{args, trees_}, blocks, g.threads, g.shared);
        else machine_.template run<Infer<P, Out, S>>(args, blocks, g.threads, g.shared);
    }

    const Machine& machine_;
    const hf_model& m_;
    const hf_infer_args& args_;
    const hf_choose_args* choose_;
    int32_t force_;
    const hf_model* model_;
    int64_t *first_, *second_;
    void* scratch_;
    InferCall call_{};
    TreesCall trees_{};
};

inline bool usable(const hf_model* m) {
    return m && m->abi_version == HF_ABI_VERSION && m->arity >= 2 && m->arity <= HF_MAX_ARITY && m->depth >= 1 &&
           m->depth < kMaxLevels && m->filter_level >= 0 && m->filter_level <= m->depth;
}

} // namespace HF_NAMESPACE
