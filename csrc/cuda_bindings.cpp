// Python module around cuda_api.h. Arrays cross as addresses: hfilter/cuda.py has checked what lies there
// and keeps it alive, and a model is the C struct that hfilter._cpu.Model holds.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cuda_api.h"

namespace py = pybind11;

namespace {

using Address = uint64_t; // 0 = none

template <class T> T* at(Address address) { return reinterpret_cast<T*>(static_cast<uintptr_t>(address)); }

const hf_cuda_executor* find(const std::string& name) {
    if (name == "host") return hf_cuda_host();
#if defined(HF_HAVE_CUDA)
    if (name == "device") return hf_cuda_device();
#endif
    throw std::invalid_argument("no executor '" + name + "' in this build");
}

const hf_model& model_at(Address address) {
    const hf_model* m = at<const hf_model>(address);
    if (!m || m->abi_version != HF_ABI_VERSION)
        throw std::invalid_argument("model: not one of this version; modules _cpu and _cuda belong together");
    return *m;
}

void check(const char* error) {
    if (error) throw std::runtime_error(error);
}

std::vector<void*> pointers(const hf_model& m, const py::list& levels) {
    if (static_cast<int32_t>(levels.size()) != m.depth + 1)
        throw std::invalid_argument("one address per level, root included");
    std::vector<void*> out;
    for (const py::handle& address : levels) out.push_back(at<void>(py::cast<Address>(address)));
    return out;
}

py::bytes pack(const std::string& executor, Address model, Address base, int32_t token_bytes) {
    const hf_cuda_executor* e = find(executor);
    const hf_model& m = model_at(model);
    std::string packed(e->pack(&m, base, token_bytes, nullptr), '\0');
    e->pack(&m, base, token_bytes, packed.data());
    return packed;
}

void sample(const std::string& executor, Address model, Address base, int64_t n, uint64_t seed, uint64_t start,
            Address roots, const py::list& levels, int32_t token_bytes, int32_t force, Address stream) {
    const hf_cuda_executor* e = find(executor);
    const hf_model& m = model_at(model);
    const std::vector<void*> out = pointers(m, levels);
    const hf_sample_args args{n, seed, start, at<const int32_t>(roots), out.data(), token_bytes};
    if (n < 0 || !base || (token_bytes != 1 && token_bytes != 2)) throw std::invalid_argument("sample: arguments");
    const py::gil_scoped_release release;
    check(e->sample(&m, base, &args, force, at<void>(stream)));
}

// `given` is () to fill, (tokens, token_bytes, vocab_size, signal, sigma) for leaves, (x0, a, b, s) for a step.
void noise(const std::string& executor, uint64_t seed, uint32_t tag, uint64_t start, int64_t n, int64_t size,
           Address out, const py::tuple& given, int32_t force, Address stream) {
    const hf_cuda_executor* e = find(executor);
    hf_noise_args args{};
    args.n = n;
    args.size = size;
    args.seed = seed;
    args.start = start;
    args.tag = tag;
    args.out = at<float>(out);
    if (given.size() == 5) {
        args.kind = HF_NOISE_LEAVES;
        args.tokens = at<const void>(given[0].cast<Address>());
        args.token_bytes = given[1].cast<int32_t>();
        args.vocab_size = given[2].cast<int32_t>();
        args.signal = at<const float>(given[3].cast<Address>());
        args.sigma = at<const float>(given[4].cast<Address>());
    } else if (given.size() == 4) {
        args.kind = HF_NOISE_STEP;
        args.x0 = at<const float>(given[0].cast<Address>());
        args.a = given[1].cast<float>();
        args.b = given[2].cast<float>();
        args.s = given[3].cast<float>();
    }
    const bool leaves = args.kind == HF_NOISE_LEAVES;
    if (n < 0 || size < 0 || size > int64_t(1) << 33) throw std::invalid_argument("noise: sizes");
    if (n == 0 || size == 0) return;
    if (!out || (args.kind == HF_NOISE_STEP && !args.x0) ||
        (leaves && (!args.tokens || !args.signal || !args.sigma || args.vocab_size < 1 || size % args.vocab_size ||
                    (args.token_bytes != 1 && args.token_bytes != 2))))
        throw std::invalid_argument("noise: arguments");
    const py::gil_scoped_release release;
    check(e->noise(&args, force, at<void>(stream)));
}

// n, token_bytes, field_bytes, tokens, mask, log_fields, causal, window, laws (in double precision)
using EvidenceTuple = std::tuple<int64_t, int32_t, int32_t, Address, Address, Address, bool, int32_t, Address>;
// value_bytes, log_evidence, root, beliefs, leave_one_out, counts, star_pairs
using OutputsTuple = std::tuple<int32_t, Address, Address, py::list, Address, Address, Address>;
// n_samples, seed, start, levels, level_bytes, log_weight
using TreesTuple = std::tuple<int64_t, uint64_t, uint64_t, py::list, int32_t, Address>;

// The question of an inference call, without a workspace.
struct Question {
    std::vector<void*> beliefs, levels;
    hf_infer_args args{};
    hf_choose_args trees{};
    bool chooses;

    Question(const hf_model& m, const EvidenceTuple& evidence, const OutputsTuple& out,
             const std::optional<TreesTuple>& chosen)
        : beliefs(pointers(m, std::get<3>(out))), chooses(chosen) {
        const auto& [n, token_bytes, field_bytes, tokens, mask, log_fields, causal, window, laws] = evidence;
        const auto& [value_bytes, log_evidence, root, levels_out, leave_one_out, counts, star_pairs] = out;
        const bool fields = field_bytes == 4 || field_bytes == 8, values = value_bytes == 4 || value_bytes == 8;
        if (n < 0 || !values || (fields ? token_bytes != 0 : token_bytes != 1 && token_bytes != 2))
            throw std::invalid_argument("infer: sizes");
        if (n > 0 && (fields ? !log_fields || tokens || mask : !tokens || log_fields))
            throw std::invalid_argument("infer: tokens or log_fields");
        for (int d = 0; d < m.filter_level || d == 0; ++d)
            if (beliefs[static_cast<size_t>(d)]) throw std::invalid_argument("beliefs: level does not exist");
        const bool deep = std::any_of(beliefs.begin(), beliefs.end(), [](const void* p) { return p; });
        if (window < 0 || window > m.depth || (window > 0 && (log_evidence || root || deep || counts || star_pairs)))
            throw std::invalid_argument("window: a level, and leave_one_out alone is asked for");
        if (n > 0 && window > 0 && window >= m.filter_level && !laws) throw std::invalid_argument("window: no laws");
        if ((star_pairs && m.filter_level == 0) || (counts && m.n_counts == 0))
            throw std::invalid_argument("counts or star_pairs: there are none");
        args.n = n;
        args.tokens = at<const void>(tokens);
        args.mask = at<const uint8_t>(mask);
        args.log_fields = at<const void>(log_fields);
        args.token_bytes = token_bytes;
        args.field_bytes = field_bytes;
        args.value_bytes = value_bytes;
        args.log_evidence = at<double>(log_evidence);
        args.root = at<void>(root);
        args.beliefs = beliefs.data();
        args.leave_one_out = at<void>(leave_one_out);
        args.causal = causal;
        args.window = window;
        args.laws = at<const void>(laws);
        args.counts = at<void>(counts);
        args.star_pairs = at<void>(star_pairs);
        if (!chosen) return;
        if (root || deep || leave_one_out || counts || star_pairs || window || causal)
            throw std::invalid_argument("trees: of the outputs of inference log_evidence alone");
        const auto& [n_samples, seed, start, levels_wanted, level_bytes, log_weight] = *chosen;
        if (n_samples < 0 || (level_bytes != 1 && level_bytes != 2)) throw std::invalid_argument("trees: sizes");
        levels = pointers(m, levels_wanted);
        trees.evidence = args;
        trees.n_samples = n_samples;
        trees.seed = seed;
        trees.start = start;
        trees.levels = levels.data();
        trees.level_bytes = level_bytes;
        trees.log_weight = at<double>(log_weight);
    }
    Question(const Question&) = delete;
    Question& operator=(const Question&) = delete;

    const hf_choose_args* choice() const { return chooses ? &trees : nullptr; }
};

} // namespace

PYBIND11_MODULE(_cuda, module, py::mod_gil_not_used()) {
    module.doc() = "CUDA kernels of hfilter, and the host loop that tests them. Private: use hfilter.TreeModel.";
    module.attr("abi_version") = HF_ABI_VERSION;
    module.attr("FORCE_GENERAL") = static_cast<int>(HF_FORCE_GENERAL);
    module.attr("FORCE_GLOBAL") = static_cast<int>(HF_FORCE_GLOBAL);
    module.attr("FORCE_FEW_BLOCKS") = static_cast<int>(HF_FORCE_FEW_BLOCKS);
    module.attr("FORCE_DOUBLE_RESCUE") = static_cast<int>(HF_FORCE_DOUBLE_RESCUE);
    module.attr("FORCE_BACKWARDS") = static_cast<int>(HF_FORCE_BACKWARDS);
    module.def(
        "has_device_code",
        [] {
#if defined(HF_HAVE_CUDA)
            return true;
#else
            return false;
#endif
        },
        "Whether nvcc was there when this module was built.");
    module.def(
        "devices",
        [](const std::string& executor) {
            const char* reason = "";
            const int32_t count = find(executor)->devices(&reason);
            return py::make_tuple(count, reason);
        },
        py::arg("executor"), "How many devices answer, and why none does.");
    module.def("pack", &pack, py::arg("executor"), py::arg("model"), py::arg("base"), py::arg("token_bytes"),
               "A model as one block of memory that will lie at address `base`.");
    module.def("sample", &sample, py::arg("executor"), py::arg("model"), py::arg("base"), py::arg("n"), py::arg("seed"),
               py::arg("start"), py::arg("roots"), py::arg("levels"), py::arg("token_bytes"), py::arg("force"),
               py::arg("stream"), "Draws n rows of the stream; returns before they are there.");
    module.def("noise", &noise, py::arg("executor"), py::arg("seed"), py::arg("tag"), py::arg("start"), py::arg("n"),
               py::arg("size"), py::arg("out"), py::arg("given"), py::arg("force"), py::arg("stream"),
               "Noise into n rows, alone, over leaves, or in a step of a process; returns before it is there.");
    module.def(
        "workspace",
        [](const std::string& executor, Address model, const EvidenceTuple& evidence, const OutputsTuple& outputs,
           const std::optional<TreesTuple>& trees, int32_t force) {
            const hf_model& m = model_at(model);
            const Question q(m, evidence, outputs, trees);
            return find(executor)->infer_workspace(&m, &q.args, q.choice(), force);
        },
        py::arg("executor"), py::arg("model"), py::arg("evidence"), py::arg("outputs"), py::arg("trees"),
        py::arg("force"), "Bytes that `infer` must be lent for this question.");
    module.def(
        "infer",
        [](const std::string& executor, Address model, Address base, int32_t packed_token_bytes,
           const EvidenceTuple& evidence, const OutputsTuple& outputs, const std::optional<TreesTuple>& trees,
           int32_t force, Address workspace, Address stream) {
            const hf_cuda_executor* e = find(executor);
            const hf_model& m = model_at(model);
            const Question q(m, evidence, outputs, trees);
            if (q.args.n == 0) return;
            if (!base || !workspace) throw std::invalid_argument("infer: no model or no workspace");
            const py::gil_scoped_release release;
            check(e->infer(&m, base, packed_token_bytes, &q.args, q.choice(), force, at<void>(workspace),
                           at<void>(stream)));
        },
        py::arg("executor"), py::arg("model"), py::arg("base"), py::arg("packed_token_bytes"), py::arg("evidence"),
        py::arg("outputs"), py::arg("trees"), py::arg("force"), py::arg("workspace"), py::arg("stream"),
        "Exact posteriors of n rows, or trees given their evidence; returns before they are there.");
}
