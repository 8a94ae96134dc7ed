// Kernels on rows that know no tree: noise, the nearest stored row, the posterior of stored rows. Compiled once per
// instruction set as cpu_backend.cpp is, apart from it so that neither waits for the other.
#ifndef HF_ISA
#error "HF_ISA names the instruction set, HF_VECTOR_BYTES its width"
#endif
#define HF_JOIN_(a, b) a##b
#define HF_JOIN(a, b) HF_JOIN_(a, b)
#define HF_NAMESPACE HF_JOIN(hf_on_rows_, HF_ISA)

#include "cpu_empirical.hpp"
#include "cpu_nearest.hpp"
#include "cpu_noise.hpp"

namespace HF_NAMESPACE {
namespace {

constexpr int kLanes32 = HF_VECTOR_BYTES / 4;
constexpr int kLanes64 = HF_VECTOR_BYTES / 8;

void noise(const hf_noise_args* args, int64_t begin, int64_t end) { make_noise<kLanes32>(args, begin, end); }

size_t nearest_scratch(const hf_nearest_args* args) { return nearest_bytes<uint8_t>(*args); }

void nearest(const hf_nearest_args* args, int64_t begin, int64_t end, void* scratch) {
    if (args->symbol_bytes == 1) nearest_rows<uint8_t>(*args, begin, end, scratch);
    else if (args->symbol_bytes == 2) nearest_rows<uint16_t>(*args, begin, end, scratch);
    else nearest_rows<uint32_t>(*args, begin, end, scratch);
}

size_t empirical_scratch(const hf_empirical_args* args) {
    return args->value_bytes == 4 ? empirical_bytes<Pack<float, kLanes32>>(*args)
                                  : empirical_bytes<Pack<double, kLanes64>>(*args);
}

void empirical(const hf_empirical_args* args, int64_t begin, int64_t end, void* scratch) {
    if (args->value_bytes == 4) empirical_rows<Pack<float, kLanes32>>(*args, begin, end, scratch);
    else empirical_rows<Pack<double, kLanes64>>(*args, begin, end, scratch);
}

} // namespace
} // namespace HF_NAMESPACE

extern "C" __attribute__((visibility("hidden"))) const hf_row_kernels* HF_JOIN(hf_rows_, HF_ISA)(void) {
    using namespace HF_NAMESPACE;
    static const hf_row_kernels table = {HF_ABI_VERSION,    noise,     nearest_scratch, nearest,
                                         empirical_scratch, empirical, kLanes32,        kLanes64};
    return &table;
}
