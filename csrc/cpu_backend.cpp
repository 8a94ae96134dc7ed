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
#include "cpu_parse.hpp"
#include "cpu_sample.hpp"
#include "cpu_tangent.hpp"

namespace HF_NAMESPACE {
namespace {

constexpr int kLanes32 = HF_VECTOR_BYTES / 4;
constexpr int kLanes64 = HF_VECTOR_BYTES / 8;

// ------------------------------------------------------------------------------------ sampling

size_t sample_scratch(const hf_model* m, int32_t narrow) { // of either token type
    return narrow ? SampleRoom<1, uint8_t>::bytes(*m) : SampleRoom<kLanes32, uint8_t>::bytes(*m);
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

template <class P> size_t layout_bytes(const hf_model& m, const hf_infer_args& args, bool whole) {
    return KeptPlan<P>::bytes() + static_cast<size_t>(Layout<P>(m, args, whole).size) * sizeof(typename P::V);
}
template <class P> size_t infer_bytes(const hf_model& m, const hf_infer_args& args) {
    return layout_bytes<P>(m, args, false) + static_cast<size_t>(Plan<P>::rule_bytes(m, args));
}

size_t infer_scratch(const hf_model* m, const hf_infer_args* args, int32_t narrow) {
    using Wide = Pack<float, kLanes32>;
    if (args->value_bytes == 8)
        return narrow ? infer_bytes<Pack<double, 1>>(*m, *args) : infer_bytes<Pack<double, kLanes64>>(*m, *args);
    if (narrow) return infer_bytes<Pack<float, 1>>(*m, *args);
    const int64_t parse = asks_one_out_alone(*m, *args) ? parse_packs<Wide>(*m)
                          : asks_root_alone(*m, *args)  ? RootParse<Wide>::packs(*m)
                                                        : 0;
    return larger(infer_bytes<Wide>(*m, *args), KeptPlan<Wide>::bytes() + static_cast<size_t>(parse) * sizeof(Wide::V));
}

void infer(const hf_model* m, const hf_infer_args* args, int64_t begin, int64_t end, int32_t narrow, void* scratch) {
    if (args->value_bytes == 4) {
        if (narrow) infer_rows<Pack<float, 1>>(*m, *args, begin, end, scratch);
        else parse_or_infer_rows<Pack<float, kLanes32>>(*m, *args, begin, end, scratch);
    } else {
        if (narrow) infer_rows<Pack<double, 1>>(*m, *args, begin, end, scratch);
        else infer_rows<Pack<double, kLanes64>>(*m, *args, begin, end, scratch);
    }
}

size_t choose_scratch(const hf_model* m, const hf_choose_args* args, int32_t narrow) {
    const hf_infer_args& evidence = args->evidence;
    if (evidence.value_bytes == 4)
        return narrow ? layout_bytes<Pack<float, 1>>(*m, evidence, true)
                      : layout_bytes<Pack<float, kLanes32>>(*m, evidence, true);
    return narrow ? layout_bytes<Pack<double, 1>>(*m, evidence, true)
                  : layout_bytes<Pack<double, kLanes64>>(*m, evidence, true);
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
    return KeptPlan<P>::bytes() + static_cast<size_t>(TangentLayout<P>(m, args).size) * sizeof(typename P::V);
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
    return {shape.values() + ParseShape(*m).words, shape.combinations};
}

using TablePack = Pack<float, kLanes32>;

size_t fill_scratch(const hf_model* m) { return static_cast<size_t>(fill_packs(*m)) * sizeof(TablePack::V); }

void fill(const hf_model* m, float* values, int32_t* powers, void* scratch) {
    const TableShape shape(*m);
    if (shape.height == 0) return;
    values[shape.least()] = values[shape.least_raw()] = 2;
    for (int64_t first = 0; first < shape.combinations; first += kLanes32)
        fill_table<TablePack>(*m, shape, first, static_cast<TablePack::V*>(scratch), values, powers);
    ParseTable(*m, nullptr).fill(*m, values + shape.values());
}

} // namespace
} // namespace HF_NAMESPACE

extern "C" __attribute__((visibility("hidden"))) const hf_backend* HF_JOIN(hf_backend_, HF_ISA)(void) {
    using namespace HF_NAMESPACE;
    static const hf_backend table = {HF_ABI_VERSION, HF_STRING(HF_ISA), sample_scratch, infer_scratch,   sample,
                                     infer,          choose_scratch,    choose,         tangent_scratch, tangent,
                                     kLanes32,       kLanes64,          table_size,     fill_scratch,    fill};
    return &table;
}
