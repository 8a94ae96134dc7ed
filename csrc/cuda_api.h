// What the module _cuda asks of an executor: the device (cuda_backend.cu), or the host loop that runs the
// same kernels for the tests (cuda_host.cpp).
//
// Nothing here allocates, copies or waits. The caller lends all memory: the packed model, the outputs,
// and a workspace; all of it on the device, reached through `stream`.
#pragma once

#include "hfilter.h"

#ifdef __cplusplus
extern "C" {
#endif

enum hf_cuda_force {            // for tests: roads that would not be chosen
    HF_FORCE_GENERAL = 1,       // no kernels of known shape
    HF_FORCE_GLOBAL = 2,        // tables and scratch in global memory
    HF_FORCE_FEW_BLOCKS = 4,    // at most two: every loop over rows goes round
    HF_FORCE_DOUBLE_RESCUE = 8, // every row is done again in double precision, every one of these unbounded
    HF_FORCE_BACKWARDS = 16,    // the host loop takes blocks and threads last to first: a missing barrier shows
};

typedef struct hf_cuda_executor {
    int32_t abi_version;
    const char* name;
    // The number of devices, or why there is none.
    int32_t (*devices)(const char** reason);
    // Bytes of a packed model; writes it if `out` is given, to be copied to the device's address `base`.
    size_t (*pack)(const hf_model*, uint64_t base, int32_t token_bytes, void* out);
    // As hf_noise; all addresses are the device's. A size is at most 2^33.
    const char* (*noise)(const hf_noise_args*, int32_t force, void* stream);
    // Of trees if these are given, with the evidence that they are given; otherwise of beliefs. `args->laws` are in
    // double precision whatever the type of values.
    size_t (*infer_workspace)(const hf_model*, const hf_infer_args* args, const hf_choose_args*, int32_t force);
    // `base` is where the packed model lies. Null is success, anything else what went wrong.
    const char* (*sample)(const hf_model*, uint64_t base, const hf_sample_args*, int32_t force, void* stream);
    const char* (*infer)(const hf_model*, uint64_t base, int32_t token_bytes, const hf_infer_args*,
                         const hf_choose_args*, int32_t force, void* workspace, void* stream);
} hf_cuda_executor;

const hf_cuda_executor* hf_cuda_host(void);
const hf_cuda_executor* hf_cuda_device(void);

#ifdef __cplusplus
}
#endif
