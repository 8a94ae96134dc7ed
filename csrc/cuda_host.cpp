// The kernels of cuda_backend.cu executed on the host, thread by thread and phase by phase, so that tests
// judge the text, the geometry and the bounds of shared memory where no GPU is at hand.
#define HF_NAMESPACE hf_cuda_on_host
#include "cuda_noise.hpp"
#include "cuda_plan.hpp"

#include <cfenv>
#include <memory>
#include <new>

namespace HF_NAMESPACE {
namespace {

struct HostMachine {
    bool backwards;

    int multiprocessors() const { return 2; }
    void clear(int64_t* x) const { *x = 0; }

    template <class Kernel>
    void run(const typename Kernel::Args& args, int64_t blocks, int threads, size_t shared) const {
        // Fresh for every block, no larger than asked for, and filled with what no kernel may rely on.
        const size_t lines = (shared + sizeof(Line) - 1) / sizeof(Line);
        for (int64_t b = 0; b < blocks; ++b) {
            const std::unique_ptr<Line[]> memory(new Line[lines]);
            memset(memory.get(), 0xA5, lines * sizeof(Line));
            Launch launch{backwards ? blocks - 1 - b : b, blocks, 0, threads,
                          reinterpret_cast<unsigned char*>(memory.get())};
            const int64_t phases = Kernel::phases(args, launch);
            for (int64_t p = 0; p < phases; ++p)
                for (int t = 0; t < threads; ++t) {
                    launch.thread = backwards ? threads - 1 - t : t;
                    Kernel::phase(p, args, launch);
                }
        }
    }
};

class IeeeEnvironment { // as a device has it, whatever the caller set
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

template <class Call> const char* guarded(const Call& call) {
    try {
        const IeeeEnvironment environment;
        call();
        return nullptr;
    } catch (const std::bad_alloc&) { // nothing may leave the C boundary
        return "out of memory";
    }
}

int32_t devices(const char** reason) {
    *reason = "";
    return 1;
}

const hf_cuda_executor kExecutor = {
    HF_ABI_VERSION,
    "host",
    devices,
    [](const hf_model* m, uint64_t base, int32_t token_bytes, void* out) {
        return pack_model(*m, base, token_bytes, out).size;
    },
    [](const hf_noise_args* args, int32_t force, void*) {
        return guarded([&] { make_noise(HostMachine{(force & HF_FORCE_BACKWARDS) != 0}, *args, force); });
    },
    [](const hf_model* m, const hf_infer_args* args, const hf_choose_args* trees, int32_t force) {
        return infer_workspace(*m, *args, trees, force);
    },
    [](const hf_model* m, uint64_t base, const hf_sample_args* args, int32_t force, void*) {
        return guarded([&] { sample(HostMachine{(force & HF_FORCE_BACKWARDS) != 0}, *m, base, *args, force); });
    },
    [](const hf_model* m, uint64_t base, int32_t token_bytes, const hf_infer_args* args, const hf_choose_args* trees,
       int32_t force, void* workspace, void*) {
        return guarded([&] {
            const HostMachine machine{(force & HF_FORCE_BACKWARDS) != 0};
            Inference<HostMachine>(machine, *m, base, token_bytes, *args, trees, force, workspace).run();
        });
    },
};

} // namespace
} // namespace HF_NAMESPACE

extern "C" const hf_cuda_executor* hf_cuda_host(void) { return &HF_NAMESPACE::kExecutor; }
