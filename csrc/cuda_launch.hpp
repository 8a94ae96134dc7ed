// A kernel as a plain class, and what its text may ask of the machine it runs on.
//
//   struct Kernel {
//       static constexpr int kMaxThreads;                         // of a block
//       struct Args;                                              // passed by value
//       static int64_t phases(const Args&, const Launch&);        // the same for all threads of a block
//       static void phase(int64_t p, const Args&, const Launch&); // one thread's part of phase p
//   };
//
// A barrier of the block stands after every phase, and a thread keeps nothing from one phase to the
// next except in shared or lent memory. So a loop over (block, phase, thread) on the host executes
// exactly the text that the device executes: cuda_host.cpp is that loop, cuda_backend.cu the launch.
#pragma once

#include <math.h>

#include "tree_kernels.hpp"

#if defined(__CUDACC__)
#define HF_UNROLL _Pragma("unroll")
#define HF_NO_UNROLL _Pragma("unroll 1")
#else
#define HF_UNROLL
#define HF_NO_UNROLL
#endif

namespace HF_NAMESPACE {

constexpr int kMaxLevels = 28; // depth + 1 for at most 2^26 leaves, with room

struct Launch {
    int64_t block, grid;
    int thread, threads;
    unsigned char* shared;
};

// Sixteen bytes that move in one instruction.
struct alignas(16) Line {
    uint32_t word[4];
};

// Integer updates of memory that several threads share: order does not change the result.
HF_INLINE void add_to(int64_t* x, int64_t v) {
#if defined(__CUDA_ARCH__)
    atomicAdd(reinterpret_cast<unsigned long long*>(x), static_cast<unsigned long long>(v));
#else
    *x += v;
#endif
}
HF_INLINE void raise_to(int32_t* x, int32_t v) {
#if defined(__CUDA_ARCH__)
    atomicMax(x, v);
#else
    if (*x < v) *x = v;
#endif
}
// Takes the next place of a list.
HF_INLINE int64_t claim(int64_t* count) {
#if defined(__CUDA_ARCH__)
    return static_cast<int64_t>(atomicAdd(reinterpret_cast<unsigned long long*>(count), 1ull));
#else
    return (*count)++;
#endif
}

HF_INLINE int64_t power(int64_t base, int exponent) {
    int64_t p = 1;
    for (int i = 0; i < exponent; ++i) p *= base;
    return p;
}

// What one inference call reads and writes; pointers are the device's.
struct InferCall {
    int64_t n;
    const void* tokens;
    const uint8_t* mask;
    const void* log_fields;
    int32_t token_bytes, field_bytes;
    double* log_evidence;
    void* root;
    void* beliefs[kMaxLevels];
    void* leave_one_out;
    void* counts;
    void* star_pairs;
    const double* laws;     // of a window's tops
    int32_t causal, window; // hfilter.h: hf_infer_args
    int32_t best;           // max-product
    int64_t* suspects;      // [0] how many rows must be redone in a wider type, [1 …] which
    int32_t suspect_all;    // for tests: every row is redone
};

HF_INLINE void suspect(const InferCall& call, int64_t row) { call.suspects[1 + claim(call.suspects)] = row; }

} // namespace HF_NAMESPACE
