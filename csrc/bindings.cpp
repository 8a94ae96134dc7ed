// Python module around the C ABI: buffers in, GIL released, status to exception.
//
// Arrays cross by the buffer protocol, so nothing here depends on NumPy's or torch's headers.
// hfilter/exact.py has already said everything a user can get wrong, in the user's words; the checks
// here are the last line that keeps a programming error of ours from reading out of bounds.
#include <pybind11/pybind11.h>

#include <cfenv>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "packed_model.hpp"

#include "row_bindings.hpp"

#define HF_NAMESPACE hf_bindings
#include "philox.hpp"

namespace py = pybind11;

namespace {

const hf_backend* find_backend(const std::string& name) {
    for (int32_t i = 0; i < hf_backend_count(); ++i)
        if (name == hf_backend_at(i)->name && hf_backend_supported(i)) return hf_backend_at(i);
    throw std::invalid_argument("no instruction set '" + name + "' here");
}

// Tokens of levels to fill, root included; those not wanted are None.
struct TokenLevels {
    std::vector<View> views;
    std::vector<void*> pointers;
    int32_t bytes = 0; // of a token

    TokenLevels(const Model& model, const py::list& levels, int64_t n) {
        const int depth = model.c().depth;
        if (static_cast<int32_t>(levels.size()) != depth + 1)
            throw std::invalid_argument("levels: one entry per level, root included");
        views.reserve(static_cast<size_t>(depth) + 1);
        pointers.reserve(static_cast<size_t>(depth) + 1);
        for (int d = 0; d <= depth; ++d) {
            views.push_back(view(levels[static_cast<size_t>(d)], "BH", true, n * model.nodes(d), "levels"));
            pointers.push_back(views.back().data<void>());
            const int32_t itemsize = views.back().itemsize();
            if (itemsize && bytes && itemsize != bytes) throw std::invalid_argument("levels: mixed element types");
            if (itemsize) bytes = itemsize;
        }
    }
};

void sample(const std::string& isa, const Model& model, int64_t n, uint64_t seed, uint64_t start,
            const py::object& roots, const py::list& levels, int32_t num_threads) {
    const hf_backend* backend = find_backend(isa);
    const View given = view(roots, "i", false, n, "roots");
    const TokenLevels drawn(model, levels, n);
    const hf_sample_args args{n, seed, start, given.data<const int32_t>(), drawn.pointers.data(), drawn.bytes};
    int32_t status;
    {
        const py::gil_scoped_release release;
        status = drawn.bytes ? hf_sample(backend, &model.c(), &args, num_threads) : HF_BAD_ARGUMENT;
    }
    check(status);
}

// What is known of n rows, and where the answers go: borrowed arrays, and the C struct of their addresses.
struct Question {
    View tokens, mask, log_fields, log_evidence, status;
    hf_infer_args args{};

    Question(const Model& model, int64_t n, const py::object& given_tokens, const py::object& given_mask,
             const py::object& given_fields, int32_t value_bytes, const py::object& evidence, const py::object& state)
        : tokens(view(given_tokens, "BH", false, n * leaves(model), "tokens")),
          mask(view(given_mask, "?B", false, n * leaves(model), "mask")),
          log_fields(
              view(given_fields, "fd", false, n * leaves(model) * model.alphabet(model.c().depth), "log_fields")),
          log_evidence(view(evidence, "d", true, n, "log_evidence")), status(view(state, "B", true, n, "status")) {
        if (value_bytes != 4 && value_bytes != 8) throw std::invalid_argument("value_bytes: 4 or 8");
        args.n = n;
        args.tokens = tokens.data<const void>();
        args.mask = mask.data<const uint8_t>();
        args.log_fields = log_fields.data<const void>();
        args.token_bytes = tokens.itemsize();
        args.field_bytes = log_fields.itemsize();
        args.value_bytes = value_bytes;
        args.log_evidence = log_evidence.data<double>();
        args.status = status.data<uint8_t>();
    }
    const char* value() const { return args.value_bytes == 4 ? "f" : "d"; }
    static int64_t leaves(const Model& model) { return model.nodes(model.c().depth); }
};

// Arrays of the levels' entries, one per level or None.
struct Levels {
    std::vector<View> views;
    std::vector<void*> pointers;

    Levels(const Model& model, const py::list& arrays, int64_t n, const char* value, bool writable, const char* name) {
        const int depth = model.c().depth, k = model.c().filter_level;
        if (static_cast<int32_t>(arrays.size()) != depth + 1)
            throw std::invalid_argument(std::string(name) + ": one entry per level, root included");
        views.reserve(static_cast<size_t>(depth) + 1);
        pointers.reserve(static_cast<size_t>(depth) + 1);
        for (int d = 0; d <= depth; ++d) {
            const py::object o = arrays[static_cast<size_t>(d)];
            if (!o.is_none() && d > 0 && d < k) throw std::invalid_argument(std::string(name) + ": no such level");
            views.push_back(view(o, value, writable, n * model.nodes(d) * model.alphabet(d), name));
            pointers.push_back(views.back().data<void>());
        }
    }
};

void infer(const std::string& isa, Model& model, int64_t n, const py::object& tokens, const py::object& mask,
           const py::object& log_fields, int32_t value_bytes, const py::object& log_evidence, const py::object& root,
           const py::list& beliefs, const py::object& leave_one_out, const py::object& counts,
           const py::object& star_pairs, bool causal, int32_t window, const py::object& laws, const py::object& status,
           int32_t num_threads) {
    const hf_backend* backend = find_backend(isa);
    const hf_model& m = model.c();
    Question question(model, n, tokens, mask, log_fields, value_bytes, log_evidence, status);
    const char* value = question.value();
    const int k = m.filter_level;
    if (window < 0 || window > m.depth) throw std::invalid_argument("window: no level of the tree");
    const View root_view = view(root, value, true, n * model.alphabet(0), "root");
    const View one_out_view =
        view(leave_one_out, value, true, n * Question::leaves(model) * model.alphabet(m.depth), "leave_one_out");
    const View count_view = view(counts, value, true, n * m.n_counts, "counts");
    const View pair_view = view(star_pairs, value, true,
                                k > 0 ? n * model.nodes(k) * model.alphabet(0) * model.alphabet(k) : -1, "star_pairs");
    const View law_view = view(laws, value, false, model.nodes(window) * model.alphabet(window), "laws");
    const Levels levels(model, beliefs, n, value, true, "beliefs");
    if (levels.pointers[0]) throw std::invalid_argument("beliefs: the root's is `root`");
    hf_infer_args& args = question.args;
    args.root = root_view.data<void>();
    args.beliefs = levels.pointers.data();
    args.leave_one_out = one_out_view.data<void>();
    args.counts = count_view.data<void>();
    args.star_pairs = pair_view.data<void>();
    args.causal = causal;
    args.window = window;
    args.laws = law_view.data<const void>();
    int32_t result;
    {
        const py::gil_scoped_release release;
        model.lend_table(backend, args);
        result = hf_infer(backend, &m, &args, num_threads);
    }
    check(result);
}

void choose(const std::string& isa, Model& model, int64_t n, const py::object& tokens, const py::object& mask,
            const py::object& log_fields, int32_t value_bytes, const py::object& log_evidence,
            const py::object& log_weight, int64_t n_samples, uint64_t seed, uint64_t start, const py::list& levels,
            const py::object& status, int32_t num_threads) {
    const hf_backend* backend = find_backend(isa);
    const hf_model& m = model.c();
    Question question(model, n, tokens, mask, log_fields, value_bytes, log_evidence, status);
    const View weight_view = view(log_weight, "d", true, n, "log_weight");
    if (n_samples < 0) throw std::invalid_argument("n_samples: negative");
    const TokenLevels drawn(model, levels, n * (n_samples > 0 ? n_samples : 1));
    if (!drawn.bytes) throw std::invalid_argument("levels: none is wanted");
    hf_choose_args args{};
    args.n_samples = n_samples;
    args.seed = seed;
    args.start = start;
    args.levels = drawn.pointers.data();
    args.level_bytes = drawn.bytes;
    args.log_weight = weight_view.data<double>();
    int32_t result;
    {
        const py::gil_scoped_release release;
        args.evidence = question.args;
        result = hf_choose(backend, &m, &args, num_threads);
    }
    check(result);
}

// What is known is (tokens, mask, log_fields); directions are (levels, rules, channels), where they go
// (log_evidence, root, levels, counts, star_pairs).
void tangent(const std::string& isa, Model& model, int64_t n, const py::tuple& known, int32_t value_bytes,
             const py::tuple& directions, const py::tuple& derivatives, const py::object& status, int32_t num_threads) {
    const hf_backend* backend = find_backend(isa);
    const hf_model& m = model.c();
    Question question(model, n, known[0], known[1], known[2], value_bytes, py::none(), status);
    const char* value = question.value();
    const int64_t q0 = model.alphabet(0),
                  star =
                      m.filter_level > 0 ? n * model.nodes(m.filter_level) * q0 * model.alphabet(m.filter_level) : -1;
    const Levels level_rates(model, directions[0], n, value, false, "level_rates");
    const View rule_rates = view(directions[1], value, false, n * m.n_counts, "rule_rates");
    const View channel_rates = view(directions[2], value, false, star, "channel_rates");
    const View log_evidence = view(derivatives[0], "d", true, n, "log_evidence");
    const View root = view(derivatives[1], value, true, n * q0, "root");
    const Levels levels(model, derivatives[2], n, value, true, "levels");
    const View counts = view(derivatives[3], value, true, n * m.n_counts, "counts");
    const View pairs = view(derivatives[4], value, true, star, "star_pairs");
    hf_tangent_args args{};
    args.evidence = question.args;
    args.evidence.counts = counts.data<void>();
    args.evidence.star_pairs = pairs.data<void>();
    args.level_rates = level_rates.pointers.data();
    args.rule_rates = rule_rates.data<const void>();
    args.channel_rates = channel_rates.data<const void>();
    args.log_evidence = log_evidence.data<double>();
    args.root = root.data<void>();
    args.levels = levels.pointers.data();
    int32_t result;
    {
        const py::gil_scoped_release release;
        result = hf_tangent(backend, &m, &args, num_threads);
    }
    check(result);
}

// The smallest and the largest value, and whether any is NaN, in one pass.
template <class T> py::tuple extremes_of(const T* x, int64_t n) {
    constexpr int kStreams = 16; // independent, so that they become vectors
    T low[kStreams] = {}, high[kStreams] = {};
    int bad[kStreams] = {};
    {
        const py::gil_scoped_release release;
        for (int j = 0; j < kStreams; ++j) low[j] = high[j] = n > 0 ? x[0] : T(0);
        const auto take = [&](const T* from, int count) {
            for (int j = 0; j < count; ++j) {
                low[j] = from[j] < low[j] ? from[j] : low[j];
                high[j] = from[j] > high[j] ? from[j] : high[j];
                bad[j] |= from[j] != from[j];
            }
        };
        int64_t i = 0;
        for (; i + kStreams <= n; i += kStreams) take(x + i, kStreams);
        take(x + i, static_cast<int>(n - i));
        for (int j = 1; j < kStreams; ++j) {
            low[0] = low[j] < low[0] ? low[j] : low[0];
            high[0] = high[j] > high[0] ? high[j] : high[0];
            bad[0] |= bad[j];
        }
    }
    return py::make_tuple(static_cast<double>(low[0]), static_cast<double>(high[0]), bad[0] != 0);
}

py::tuple extremes(const py::object& values) {
    const View v(values, "fd", false, "values");
    if (v.itemsize() == 4) return extremes_of(v.data<const float>(), v.size());
    return extremes_of(v.data<const double>(), v.size());
}

} // namespace

PYBIND11_MODULE(_cpu, module, py::mod_gil_not_used()) {
    module.doc() = "Compiled kernels of hfilter for this processor. Private: use hfilter.TreeModel.";
    module.attr("abi_version") = HF_ABI_VERSION;
    module.attr("max_arity") = HF_MAX_ARITY;
    module.def(
        "instruction_sets",
        [] {
            py::list sets;
            for (int32_t i = 0; i < hf_backend_count(); ++i)
                sets.append(py::make_tuple(hf_backend_at(i)->name, hf_backend_supported(i) != 0));
            return sets;
        },
        "Instruction sets of this build, best first, and whether this machine runs them.");
    module.def(
        "philox",
        [](uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
            const auto r = HF_NAMESPACE::philox4x32<uint32_t>(c0, c1, c2, c3, k0, k1);
            return py::make_tuple(r.w[0], r.w[1], r.w[2], r.w[3]);
        },
        py::arg("c0"), py::arg("c1"), py::arg("c2"), py::arg("c3"), py::arg("k0"), py::arg("k1"),
        "One block of Philox4x32-10.");
    module.def(
        "getenv",
        [](const char* name) -> py::object {
            const char* value = std::getenv(name);
            return value ? py::reinterpret_steal<py::object>(PyUnicode_DecodeFSDefault(value)) : py::none();
        },
        py::arg("name"), "A variable of the environment, or None.");
    module.def(
        "ieee_environment",
        [] {
            std::fenv_t saved;
            std::fegetenv(&saved);
            std::fesetenv(FE_DFL_ENV);
            return py::bytes(reinterpret_cast<const char*>(&saved), sizeof(saved));
        },
        "Sets this thread's floating-point environment to the IEEE default; returns what it was.");
    module.def(
        "restore_environment",
        [](const std::string& saved) {
            std::fenv_t environment;
            if (saved.size() != sizeof(environment)) throw std::invalid_argument("saved: not an environment");
            std::memcpy(&environment, saved.data(), sizeof(environment));
            std::fesetenv(&environment);
        },
        py::arg("saved"), "Restores what ieee_environment returned.");
    module.def("extremes", &extremes, py::arg("values"),
               "Smallest and largest of floating-point values, NaN aside, and whether any is NaN.");
    py::class_<Model>(module, "Model", "A packed model (hfilter.tree.pack).")
        .def(py::init<const py::dict&>(), py::arg("arrays"))
        .def_property_readonly(
            "address", [](const Model& model) { return reinterpret_cast<uintptr_t>(&model.c()); },
            "Where its C struct lies, for module _cuda.");
    module.def("sample", &sample, py::arg("isa"), py::arg("model"), py::arg("n"), py::arg("seed"), py::arg("start"),
               py::arg("roots"), py::arg("levels"), py::arg("num_threads"),
               "Draws n rows of the stream into the given levels.");
    module.def("infer", &infer, py::arg("isa"), py::arg("model"), py::arg("n"), py::arg("tokens"), py::arg("mask"),
               py::arg("log_fields"), py::arg("value_bytes"), py::arg("log_evidence"), py::arg("root"),
               py::arg("beliefs"), py::arg("leave_one_out"), py::arg("counts"), py::arg("star_pairs"),
               py::arg("causal"), py::arg("window"), py::arg("laws"), py::arg("status"), py::arg("num_threads"),
               "Exact posteriors of n rows.");
    module.def("tangent", &tangent, py::arg("isa"), py::arg("model"), py::arg("n"), py::arg("known"),
               py::arg("value_bytes"), py::arg("directions"), py::arg("derivatives"), py::arg("status"),
               py::arg("num_threads"), "Derivatives of the posteriors of n rows along directions.");
    module.def("choose", &choose, py::arg("isa"), py::arg("model"), py::arg("n"), py::arg("tokens"), py::arg("mask"),
               py::arg("log_fields"), py::arg("value_bytes"), py::arg("log_evidence"), py::arg("log_weight"),
               py::arg("n_samples"), py::arg("seed"), py::arg("start"), py::arg("levels"), py::arg("status"),
               py::arg("num_threads"), "Trees drawn given the evidence of n rows, or the most probable ones.");
    module.def("noise", &noise, py::arg("isa"), py::arg("seed"), py::arg("tag"), py::arg("start"), py::arg("n"),
               py::arg("size"), py::arg("out"), py::arg("kind"), py::arg("given"), py::arg("num_threads"),
               "Standard normal noise into n rows, alone, over leaves, or in a step of a process.");
    module.def("nearest", &nearest, py::arg("isa"), py::arg("rows"), py::arg("stored"), py::arg("n"),
               py::arg("n_stored"), py::arg("length"), py::arg("exclude_from"), py::arg("distance"), py::arg("index"),
               py::arg("count"), py::arg("num_threads"), "The nearest of stored rows in Hamming distance.");
    module.def("empirical", &empirical, py::arg("isa"), py::arg("n"), py::arg("length"), py::arg("vocab_size"),
               py::arg("strings"), py::arg("log_fields"), py::arg("marginals"), py::arg("mass"), py::arg("shift"),
               py::arg("num_threads"), "Posterior marginals under the uniform law on stored rows.");
}
