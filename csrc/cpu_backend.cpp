// Loads samples into lanes, calls the text, stores. Compiled once per instruction set, each time in a
// namespace of its own and exporting one symbol: nothing of it can be picked by the linker for another.
#ifndef HF_ISA
#error "HF_ISA names the instruction set, HF_VECTOR_BYTES its width"
#endif
#define HF_JOIN_(a, b) a##b
#define HF_JOIN(a, b) HF_JOIN_(a, b)
#define HF_STRING_(x) #x
#define HF_STRING(x) HF_STRING_(x)
#define HF_NAMESPACE HF_JOIN(hf_, HF_ISA)

#include "cpu_choose.hpp"
#include "cpu_infer.hpp"
#include "cpu_tangent.hpp"

namespace HF_NAMESPACE {
namespace {

constexpr int kLanes32 = HF_VECTOR_BYTES / 4;
constexpr int kLanes64 = HF_VECTOR_BYTES / 8;

// ------------------------------------------------------------------------------------ sampling

template <int N, class Token>
void sample_rows(const hf_model& m, const hf_sample_args& args, int64_t begin, int64_t end, void* scratch) {
    using U = typename LaneType<uint32_t, N>::type;
    U* symbols = static_cast<U*>(scratch);
    auto* tables = reinterpret_cast<RegisterLevel<N>*>(symbols + n_nodes(m, m.depth));
    for (int d = m.filter_level; d < m.depth; ++d) tables[d].load(m.levels[d], m.arity);
    for (int64_t row = begin; row < end; row += N) {
        const int count = end - row < N ? static_cast<int>(end - row) : N;
        int32_t roots[N];
        if (args.roots)
            for (int l = 0; l < N; ++l) roots[l] = args.roots[row + (l < count ? l : 0)];
        const auto store = [&](int d, const U* level) {
            const int64_t n = n_nodes(m, d);
            if (args.levels[d]) store_tokens<N>(level, n, count, static_cast<Token*>(args.levels[d]) + row * n, n);
        };
        sample_tree<N>(m, tables, args.seed, args.start + static_cast<uint64_t>(row), args.roots ? roots : nullptr,
                       symbols, store);
    }
}

template <int N> size_t sample_bytes(const hf_model& m) {
    return static_cast<size_t>(n_nodes(m, m.depth)) * sizeof(uint32_t) * N +
           static_cast<size_t>(m.depth) * sizeof(RegisterLevel<N>);
}

size_t sample_scratch(const hf_model* m, int32_t narrow) {
    return narrow ? sample_bytes<1>(*m) : sample_bytes<kLanes32>(*m);
}

void sample(const hf_model* m, const hf_sample_args* args, int64_t begin, int64_t end, int32_t narrow, void* scratch) {
    const bool bytes = args->token_bytes == 1;
    if (narrow) {
        if (bytes) sample_rows<1, uint8_t>(*m, *args, begin, end, scratch);
        else sample_rows<1, uint16_t>(*m, *args, begin, end, scratch);
    } else {
        if (bytes) sample_rows<kLanes32, uint8_t>(*m, *args, begin, end, scratch);
        else sample_rows<kLanes32, uint16_t>(*m, *args, begin, end, scratch);
    }
}

// ----------------------------------------------------------------------------------- inference

template <class P> size_t layout_bytes(const hf_model& m, const hf_infer_args& args) {
    return static_cast<size_t>(Layout<P>(m, args).size) * sizeof(typename P::V) +
           static_cast<size_t>(Plan<P>::square_bytes(m, args));
}

size_t infer_scratch(const hf_model* m, const hf_infer_args* args, int32_t narrow) {
    if (args->value_bytes == 4)
        return narrow ? layout_bytes<Pack<float, 1>>(*m, *args) : layout_bytes<Pack<float, kLanes32>>(*m, *args);
    return narrow ? layout_bytes<Pack<double, 1>>(*m, *args) : layout_bytes<Pack<double, kLanes64>>(*m, *args);
}

void infer(const hf_model* m, const hf_infer_args* args, int64_t begin, int64_t end, int32_t narrow, void* scratch) {
    if (args->value_bytes == 4) {
        if (narrow) infer_rows<Pack<float, 1>>(*m, *args, begin, end, scratch);
        else infer_rows<Pack<float, kLanes32>>(*m, *args, begin, end, scratch);
    } else {
        if (narrow) infer_rows<Pack<double, 1>>(*m, *args, begin, end, scratch);
        else infer_rows<Pack<double, kLanes64>>(*m, *args, begin, end, scratch);
    }
}

void choose(const hf_model* m, const hf_choose_args* args, int64_t begin, int64_t end, int32_t narrow, void* scratch) {
    if (args->evidence.value_bytes == 4) {
        if (narrow) choose_rows<Pack<float, 1>>(*m, *args, begin, end, scratch);
        else choose_rows<Pack<float, kLanes32>>(*m, *args, begin, end, scratch);
    } else {
        if (narrow) choose_rows<Pack<double, 1>>(*m, *args, begin, end, scratch);
        else choose_rows<Pack<double, kLanes64>>(*m, *args, begin, end, scratch);
    }
}

template <class P> size_t tangent_bytes(const hf_model& m, const hf_tangent_args& args) {
    return static_cast<size_t>(TangentLayout<P>(m, args).size) * sizeof(typename P::V);
}

size_t tangent_scratch(const hf_model* m, const hf_tangent_args* args, int32_t narrow) {
    if (args->evidence.value_bytes == 4)
        return narrow ? tangent_bytes<Pack<float, 1>>(*m, *args) : tangent_bytes<Pack<float, kLanes32>>(*m, *args);
    return narrow ? tangent_bytes<Pack<double, 1>>(*m, *args) : tangent_bytes<Pack<double, kLanes64>>(*m, *args);
}

void tangent(const hf_model* m, const hf_tangent_args* args, int64_t begin, int64_t end, int32_t narrow,
             void* scratch) {
    if (args->evidence.value_bytes == 4) {
        if (narrow) tangent_rows<Pack<float, 1>>(*m, *args, begin, end, scratch);
        else tangent_rows<Pack<float, kLanes32>>(*m, *args, begin, end, scratch);
    } else {
        if (narrow) tangent_rows<Pack<double, 1>>(*m, *args, begin, end, scratch);
        else tangent_rows<Pack<double, kLanes64>>(*m, *args, begin, end, scratch);
    }
}

hf_table_size table_size(const hf_model* m) {
    const TableShape shape(*m);
    if (shape.height == 0) return {0, 0};
    return {shape.least() + 1, shape.combinations};
}

using TablePack = Pack<float, kLanes32>;

size_t fill_scratch(const hf_model* m) { return static_cast<size_t>(fill_packs(*m)) * sizeof(TablePack::V); }

void fill(const hf_model* m, float* values, int32_t* powers, void* scratch) {
    const TableShape shape(*m);
    if (shape.height == 0) return;
    float least = 2;
    for (int64_t first = 0; first < shape.combinations; first += kLanes32)
        least = smaller(least,
                        fill_table<TablePack>(*m, shape, first, static_cast<TablePack::V*>(scratch), values, powers));
    values[shape.least()] = least;
}

} // namespace
} // namespace HF_NAMESPACE

extern "C" __attribute__((visibility("hidden"))) const hf_backend* HF_JOIN(hf_backend_, HF_ISA)(void) {
    using namespace HF_NAMESPACE;
    static const hf_backend table = {
        HF_ABI_VERSION,  HF_STRING(HF_ISA), sample_scratch, infer_scratch, sample,     infer,        choose,
        tangent_scratch, tangent,           kLanes32,       kLanes64,      table_size, fill_scratch, fill};
    return &table;
}
