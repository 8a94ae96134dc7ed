// Which instruction sets this build holds and this machine runs; blocks of rows over threads; the
// floating-point environment. Compiled for the baseline processor.
#include "hfilter.h"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstdlib>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#define HF_NAMESPACE hf_dispatch

extern "C" {
const hf_backend* hf_backend_portable(void);
const hf_row_kernels* hf_rows_portable(void);
#if defined(HF_HAVE_AVX2)
const hf_backend* hf_backend_avx2(void);
const hf_row_kernels* hf_rows_avx2(void);
#endif
#if defined(HF_HAVE_AVX512)
const hf_backend* hf_backend_avx512(void);
const hf_row_kernels* hf_rows_avx512(void);
#endif
}

namespace {

struct Entry {
    const hf_backend* (*table)();
    const hf_row_kernels* (*rows)();
    bool (*supported)();
};

const Entry kEntries[] = {
#if defined(HF_HAVE_AVX512)
    {hf_backend_avx512, hf_rows_avx512,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("fma");
     }},
#endif
#if defined(HF_HAVE_AVX2)
    {hf_backend_avx2, hf_rows_avx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {hf_backend_portable, hf_rows_portable, [] { return true; }},
};
constexpr int kEntryCount = static_cast<int>(sizeof(kEntries) / sizeof(kEntries[0]));

// torch can switch a thread to flushing subnormals; results must not depend on it.
class IeeeEnvironment {
  public:
    IeeeEnvironment() {
        std::fegetenv(&saved_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~IeeeEnvironment() { std::fesetenv(&saved_); }
    IeeeEnvironment(const IeeeEnvironment&) = delete;
    IeeeEnvironment& operator=(const IeeeEnvironment&) = delete;

  private:
    std::fenv_t saved_;
};

class Scratch {
  public:
    explicit Scratch(size_t bytes)
        : memory_(::operator new((bytes + 63) / 64 * 64 + 64, std::align_val_t(64), std::nothrow)) {}
    ~Scratch() { ::operator delete(memory_, std::align_val_t(64)); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    void* get() const { return memory_; }

  private:
    void* memory_;
};

// Calls work(begin, end, scratch) on every block of rows. A thread that cannot start is done without.
template <class Work>
int32_t over_threads(int64_t n, int64_t block, size_t scratch_bytes, int32_t num_threads, const Work& work) {
    const int64_t blocks = (n + block - 1) / block;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    const auto run = [&] {
        const IeeeEnvironment environment;
        const Scratch scratch(scratch_bytes);
        if (!scratch.get()) {
            failed = true;
            return;
        }
        *static_cast<uint64_t*>(scratch.get()) = 0; // nothing is prepared in it yet
        for (int64_t b = next++; b < blocks; b = next++) work(b * block, std::min(n, (b + 1) * block), scratch.get());
    };
    std::vector<std::thread> threads;
    const int64_t helpers = std::min<int64_t>(std::max<int32_t>(num_threads, 1), blocks) - 1;
    try {
        threads.reserve(static_cast<size_t>(std::max<int64_t>(helpers, 0)));
        for (int64_t t = 0; t < helpers; ++t) threads.emplace_back(run);
    } catch (const std::system_error&) {
    } catch (const std::bad_alloc&) {}
    run();
    for (std::thread& t : threads) t.join();
    // A worker without scratch leaves its blocks to the others; only if all failed is work undone.
    return failed && next < blocks ? HF_OUT_OF_MEMORY : HF_OK;
}

constexpr size_t kWideScratchLimit = size_t(256) << 20; // beyond it one lane at a time: memory stays bounded
constexpr int64_t kBlockWork = 1 << 18;                 // rule updates a block of rows should have
constexpr int64_t kSmallWork = 1 << 20;                 // and those below which starting a thread takes longer

// Rough cost of drawing one row: a node costs about as much as this many rule updates.
int64_t draw_cost(const hf_model& m) {
    int64_t cost = 0, nodes = 1;
    for (int d = 0; d <= m.depth; ++d, nodes *= m.arity) cost += d >= m.filter_level ? 2 * nodes : 0;
    return cost;
}

// Rough cost of inference on one row, in rule updates: decides blocks and whether threads pay.
int64_t row_cost(const hf_model& m) {
    int64_t cost = 0, nodes = 1;
    for (int d = 0; d <= m.depth; ++d) {
        if (d >= m.filter_level && d < m.depth) cost += nodes * m.levels[d].n_rules;
        if (d == m.filter_level && d > 0) cost += nodes * m.alphabets[0] * m.alphabets[d];
        if (d == m.depth) cost += nodes * m.alphabets[d];
        nodes *= m.arity;
    }
    return std::max<int64_t>(cost, 1);
}

int64_t block_rows(int64_t cost, int32_t lanes) {
    const int64_t rows = kBlockWork / cost;
    return std::max<int64_t>(lanes, std::min<int64_t>(rows, 4096) / lanes * lanes);
}

bool usable(const hf_backend* b, const hf_model* m) {
    return b && m && b->abi_version == HF_ABI_VERSION && m->abi_version == HF_ABI_VERSION && m->levels &&
           m->alphabets && m->arity >= 2 && m->arity <= HF_MAX_ARITY && m->depth >= 1 && m->depth < 63 &&
           m->filter_level >= 0 && m->filter_level <= m->depth;
}

bool usable(const hf_model* m, const hf_infer_args* args) {
    if (!args || args->n < 0 || !args->status || (!args->tokens == !args->log_fields) ||
        (args->value_bytes != 4 && args->value_bytes != 8) || args->window < 0 || args->window > m->depth)
        return false;
    const bool other = args->log_evidence || args->root || args->counts || args->star_pairs;
    return args->window == 0 || (args->leave_one_out && !other && (args->laws || args->window < m->filter_level));
}

constexpr int64_t kNoiseBlock = 1 << 15;   // numbers in a block of rows: they stay in the cache
constexpr int64_t kCompareBlock = 1 << 24; // symbols compared
constexpr int64_t kSmallNoise = 1 << 16;   // and what is done sooner than a thread is started

bool usable(const hf_row_kernels* k, const hf_noise_args* args) {
    if (!k || k->abi_version != HF_ABI_VERSION || !args || args->n < 0 || args->size < 0 ||
        args->size > int64_t(1) << 33 || !args->out)
        return false;
    if (args->kind == HF_NOISE_FILL) return true;
    if (args->kind == HF_NOISE_STEP) return args->x0 != nullptr;
    return args->kind == HF_NOISE_LEAVES && args->tokens && args->signal && args->sigma && args->vocab_size > 0 &&
           args->size % args->vocab_size == 0 && (args->token_bytes == 1 || args->token_bytes == 2);
}

bool usable(const hf_row_kernels* k, const hf_nearest_args* args) {
    return k && k->abi_version == HF_ABI_VERSION && args && args->n >= 0 && args->n_stored > 0 && args->length > 0 &&
           (args->symbol_bytes == 1 || args->symbol_bytes == 2 || args->symbol_bytes == 4) &&
           args->length < (int64_t(1) << (args->symbol_bytes == 4 ? 31 : 8 * args->symbol_bytes)) - 1 && args->rows &&
           args->stored && args->distance && args->index && args->count;
}

bool usable(const hf_row_kernels* k, const hf_empirical_args* args) {
    const auto four_or_eight = [](int32_t bytes) { return bytes == 4 || bytes == 8; };
    return k && k->abi_version == HF_ABI_VERSION && args && args->n >= 0 && args->n_stored > 0 &&
           args->n_stored < int64_t(1) << 31 && args->length > 0 && args->vocab_size > 0 && args->n_groups > 0 &&
           args->n_head >= 0 && args->n_head < args->n_groups && args->n_groups <= args->n_head + 2 &&
           args->n_runs > 0 && args->runs && args->n_strings > 0 && args->width > 0 &&
           four_or_eight(args->field_bytes) && four_or_eight(args->value_bytes) && args->first_position &&
           args->first_string && args->strings && args->symbols && args->log_fields && args->marginals && args->mass &&
           args->shift;
}

template <class Call> int32_t guarded(const Call& call) {
    try {
        return call();
    } catch (...) { // nothing may leave the C boundary
        return HF_OUT_OF_MEMORY;
    }
}

} // namespace

extern "C" {

int32_t hf_backend_count(void) { return kEntryCount; }

const hf_backend* hf_backend_at(int32_t i) { return i >= 0 && i < kEntryCount ? kEntries[i].table() : nullptr; }

int32_t hf_backend_supported(int32_t i) { return i >= 0 && i < kEntryCount && kEntries[i].supported() ? 1 : 0; }

const hf_row_kernels* hf_row_kernels_at(int32_t i) { return i >= 0 && i < kEntryCount ? kEntries[i].rows() : nullptr; }

int32_t hf_sample(const hf_backend* b, const hf_model* m, const hf_sample_args* args, int32_t num_threads) {
    if (!usable(b, m) || !args || !args->levels || args->n < 0 || (args->token_bytes != 1 && args->token_bytes != 2))
        return HF_BAD_ARGUMENT;
    if (args->n == 0) return HF_OK;
    return guarded([&] {
        const size_t wide = b->sample_scratch(m, 0);
        const int32_t narrow = wide > kWideScratchLimit;
        const int64_t cost = draw_cost(*m);
        const int32_t threads = args->n <= kSmallWork / cost ? 1 : num_threads;
        return over_threads(
            args->n, block_rows(cost, b->lanes32), narrow ? b->sample_scratch(m, 1) : wide, threads,
            [&](int64_t begin, int64_t end, void* scratch) { b->sample(m, args, begin, end, narrow, scratch); });
    });
}

int32_t hf_infer(const hf_backend* b, const hf_model* m, const hf_infer_args* args, int32_t num_threads) {
    if (!usable(b, m) || !usable(m, args)) return HF_BAD_ARGUMENT;
    if (args->n == 0) return HF_OK;
    return guarded([&] {
        const size_t wide = b->infer_scratch(m, args, 0);
        const int32_t narrow = wide > kWideScratchLimit || args->n == 1;
        // A table leaves the upper levels to compute, if nothing below is asked for.
        const bool looked_up =
            args->table_values && !args->leave_one_out && !args->counts && !(args->beliefs && args->beliefs[m->depth]);
        const int64_t cost = std::max<int64_t>(row_cost(*m) / (looked_up ? 4 : 1), 1);
        const int32_t threads = args->n <= kSmallWork / cost ? 1 : num_threads;
        const int32_t lanes = args->value_bytes == 4 ? b->lanes32 : b->lanes64;
        return over_threads(
            args->n, block_rows(cost, lanes), narrow ? b->infer_scratch(m, args, 1) : wide, threads,
            [&](int64_t begin, int64_t end, void* scratch) { b->infer(m, args, begin, end, narrow, scratch); });
    });
}

int32_t hf_choose(const hf_backend* b, const hf_model* m, const hf_choose_args* args, int32_t num_threads) {
    if (!usable(b, m) || !args || !usable(m, &args->evidence) || !args->levels || args->n_samples < 0 ||
        (args->level_bytes != 1 && args->level_bytes != 2))
        return HF_BAD_ARGUMENT;
    const hf_infer_args& evidence = args->evidence;
    if (evidence.n == 0) return HF_OK;
    return guarded([&] {
        const size_t wide = b->choose_scratch(m, args, 0);
        const int32_t narrow = wide > kWideScratchLimit || evidence.n == 1;
        const int64_t cost = row_cost(*m) * (1 + 2 * std::max<int64_t>(args->n_samples, 1)); // a rule is walked twice
        const int32_t threads = evidence.n <= kSmallWork / cost ? 1 : num_threads;
        const int32_t lanes = evidence.value_bytes == 4 ? b->lanes32 : b->lanes64;
        return over_threads(
            evidence.n, block_rows(cost, lanes), narrow ? b->choose_scratch(m, args, 1) : wide, threads,
            [&](int64_t begin, int64_t end, void* scratch) { b->choose(m, args, begin, end, narrow, scratch); });
    });
}

int32_t hf_tangent(const hf_backend* b, const hf_model* m, const hf_tangent_args* args, int32_t num_threads) {
    if (!usable(b, m) || !args || !usable(m, &args->evidence) || !args->level_rates || !args->levels)
        return HF_BAD_ARGUMENT;
    const hf_infer_args& evidence = args->evidence;
    if (evidence.n == 0) return HF_OK;
    return guarded([&] {
        const size_t wide = b->tangent_scratch(m, args, 0);
        const int32_t narrow = wide > kWideScratchLimit || evidence.n == 1;
        const int64_t cost = 5 * row_cost(*m); // a rule is walked upward, for the rates twice, downward twice
        const int32_t threads = evidence.n <= kSmallWork / cost ? 1 : num_threads;
        const int32_t lanes = evidence.value_bytes == 4 ? b->lanes32 : b->lanes64;
        return over_threads(
            evidence.n, block_rows(cost, lanes), narrow ? b->tangent_scratch(m, args, 1) : wide, threads,
            [&](int64_t begin, int64_t end, void* scratch) { b->tangent(m, args, begin, end, narrow, scratch); });
    });
}

int32_t hf_fill_table(const hf_backend* b, const hf_model* m, float* values, int32_t* powers) {
    if (!usable(b, m) || !values || !powers) return HF_BAD_ARGUMENT;
    return guarded([&] {
        const IeeeEnvironment environment;
        const Scratch scratch(b->fill_scratch(m));
        if (!scratch.get()) return HF_OUT_OF_MEMORY;
        b->fill_table(m, values, powers, scratch.get());
        return HF_OK;
    });
}

int32_t hf_noise(const hf_row_kernels* k, const hf_noise_args* args, int32_t num_threads) {
    if (!usable(k, args)) return HF_BAD_ARGUMENT;
    if (args->n == 0 || args->size == 0) return HF_OK;
    return guarded([&] {
        const int32_t threads = args->n <= kSmallNoise / args->size ? 1 : num_threads;
        const int64_t block = std::max<int64_t>(1, kNoiseBlock / args->size);
        return over_threads(args->n, block, 0, threads,
                            [&](int64_t begin, int64_t end, void*) { k->noise(args, begin, end); });
    });
}

int32_t hf_nearest(const hf_row_kernels* k, const hf_nearest_args* args, int32_t num_threads) {
    if (!usable(k, args)) return HF_BAD_ARGUMENT;
    if (args->n == 0) return HF_OK;
    return guarded([&] {
        const int64_t tile = 4, work = std::max<int64_t>(1, args->n_stored * args->length);
        const int64_t block = std::max<int64_t>(tile, kCompareBlock / work / tile * tile);
        return over_threads(args->n, block, k->nearest_scratch(args),
                            args->n <= kSmallNoise * 8 / work ? 1 : num_threads,
                            [&](int64_t begin, int64_t end, void* scratch) { k->nearest(args, begin, end, scratch); });
    });
}

int32_t hf_empirical(const hf_row_kernels* k, const hf_empirical_args* args, int32_t num_threads) {
    if (!usable(k, args)) return HF_BAD_ARGUMENT;
    if (args->n == 0) return HF_OK;
    return guarded([&] {
        const int64_t lanes = args->value_bytes == 4 ? k->lanes32 : k->lanes64;
        const int32_t threads = args->n_stored * args->n_groups <= kSmallNoise / 4 ? 1 : num_threads;
        return over_threads(
            args->n, lanes, k->empirical_scratch(args), threads,
            [&](int64_t begin, int64_t end, void* scratch) { k->empirical(args, begin, end, scratch); });
    });
}

} // extern "C"
