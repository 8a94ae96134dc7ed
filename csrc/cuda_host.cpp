// The kernels of cuda_backend.cu executed on the host, thread by thread and phase by phase, so that tests
// judge the text, the geometry and the bounds of shared memory where no GPU is at hand.
#define HF_NAMESPACE hf_cuda_on_host
#include "cuda_plan.hpp"

#include <cfenv>
#include <memory>
#include <new>

namespace HF_NAMESPACE {
namespace {

struct HostMachine {
    int multiprocessors() const { return 2; }
    void clear(int64_t* x) const { *x = 0; }

    template <class Kernel>
    void run(const typename Kernel::Args& args, int64_t blocks, int threads, size_t shared) const {
        // Fresh for every block and filled with what no kernel may rely on.
        const size_t lines = shared / sizeof(Line) + 1;
        for (int64_t block = 0; block < blocks; ++block) {
            const std::unique_ptr<Line[]> memory(new Line[lines]);
            memset(memory.get(), 0xA5, lines * sizeof(Line));
            Launch launch{block, blocks, 0, threads, reinterpret_cast<unsigned char*>(memory.get())};
            const int64_t phases = Kernel::phases(args, launch);
            for (int64_t p = 0; p < phases; ++p)
                for (launch.thread = 0; launch.thread < threads; ++launch.thread) Kernel::phase(p, args, launch);
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
    [](const hf_model* m, const hf_infer_args* args, int32_t force) { return infer_workspace(*m, *args, force); },
    [](const hf_model* m, uint64_t base, const hf_sample_args* args, int32_t force, void*) {
        return guarded([&] { sample(HostMachine(), *m, base, *args, force); });
    },
    [](const hf_model* m, uint64_t base, int32_t token_bytes, const hf_infer_args* args, int32_t force, void* workspace,
       void*) {
        return guarded([&] {
            const HostMachine machine;
            Inference<HostMachine>(machine, *m, base, token_bytes, *args, force, workspace).run();
        });
    },
};

} // namespace
} // namespace HF_NAMESPACE

extern "C" const hf_cuda_executor* hf_cuda_host(void) { return &HF_NAMESPACE::kExecutor; }
