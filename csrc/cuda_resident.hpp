// placeholder
#pragma once
#include "cuda_infer.hpp"
namespace HF_NAMESPACE {
inline bool is_resident(const hf_model&, const InferCall&) { return false; }
template <class Machine> void run_resident(const Machine&, const hf_model&, const InferCall&, int32_t) {}
} // namespace HF_NAMESPACE
