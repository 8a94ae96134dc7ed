// The executor that launches on a device: the caller's stream, no allocation, no copy, no waiting.
#define HF_NAMESPACE hf_cuda_on_device
#include "cuda_noise.hpp"
#include "cuda_plan.hpp"

namespace HF_NAMESPACE {
namespace {

template <class Kernel> __global__ void __launch_bounds__(Kernel::kMaxThreads)
    run_kernel(const __grid_constant__ typename Kernel::Args args) {
    extern __shared__ Line shared[];
    const Launch launch{blockIdx.x, gridDim.x, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x),
                        reinterpret_cast<unsigned char*>(shared)};
    const int64_t phases = Kernel::phases(args, launch);
    for (int64_t p = 0; p < phases; ++p) {
        Kernel::phase(p, args, launch);
        __syncthreads();
    }
}

class DeviceMachine {
  public:
    explicit DeviceMachine(void* stream) : stream_(static_cast<cudaStream_t>(stream)) {
        int device = 0;
        keep(cudaGetDevice(&device));
        keep(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device));
    }
    int multiprocessors() const { return multiprocessors_; }
    void clear(int64_t* x) const { keep(cudaMemsetAsync(x, 0, sizeof(*x), stream_)); }

    template <class Kernel>
    void run(const typename Kernel::Args& args, int64_t blocks, int threads, size_t shared) const {
        if (error_ != cudaSuccess || blocks == 0) return;
        if (shared > 48 * 1024) // more than a block gets unasked
            keep(cudaFuncSetAttribute(run_kernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared)));
        run_kernel<Kernel><<<static_cast<unsigned>(blocks), threads, shared, stream_>>>(args);
        keep(cudaGetLastError());
    }
    const char* error() const { return error_ == cudaSuccess ? nullptr : cudaGetErrorString(error_); }

  private:
    void keep(cudaError_t e) const {
        if (error_ == cudaSuccess) error_ = e;
    }
    cudaStream_t stream_;
    int multiprocessors_ = 1;
    mutable cudaError_t error_ = cudaSuccess; // the first
};

int32_t devices(const char** reason) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    *reason = error == cudaSuccess ? "" : cudaGetErrorString(error);
    (void)cudaGetLastError(); // not to be found again by somebody else's check
    return error == cudaSuccess ? count : 0;
}

const hf_cuda_executor kExecutor = {
    HF_ABI_VERSION,
    "device",
    devices,
    [](const hf_model* m, uint64_t base, int32_t token_bytes, void* out) {
        return pack_model(*m, base, token_bytes, out).size;
    },
    [](const hf_noise_args* args, int32_t force, void* stream) {
        const DeviceMachine machine(stream);
        make_noise(machine, *args, force);
        return machine.error();
    },
    [](const hf_model* m, const hf_infer_args* args, const hf_choose_args* trees, int32_t force) {
        return infer_workspace(*m, *args, trees, force);
    },
    [](const hf_model* m, uint64_t base, const hf_sample_args* args, int32_t force, void* stream) {
        const DeviceMachine machine(stream);
        sample(machine, *m, base, *args, force);
        return machine.error();
    },
    [](const hf_model* m, uint64_t base, int32_t token_bytes, const hf_infer_args* args, const hf_choose_args* trees,
       int32_t force, void* workspace, void* stream) {
        const DeviceMachine machine(stream);
        Inference<DeviceMachine>(machine, *m, base, token_bytes, *args, trees, force, workspace).run();
        return machine.error();
    },
};

} // namespace
} // namespace HF_NAMESPACE

extern "C" const hf_cuda_executor* hf_cuda_device(void) { return &HF_NAMESPACE::kExecutor; }
