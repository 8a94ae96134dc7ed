// Python module around the C ABI: buffers in, GIL released, status to exception.
//
// Arrays cross by the buffer protocol, so nothing here depends on NumPy's or torch's headers.
// hfilter/exact.py has already said everything a user can get wrong, in the user's words; the checks
// here are the last line that keeps a programming error of ours from reading out of bounds.
#include <pybind11/pybind11.h>

#include <cfenv>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "hfilter.h"

#define HF_NAMESPACE hf_bindings
#include "philox.hpp"

namespace py = pybind11;

namespace {

// A borrowed C-contiguous buffer of one of a few element types.
class View {
  public:
    View() = default;
    View(const py::handle& object, const char* formats, bool writable, const char* name) {
        const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
        if (PyObject_GetBuffer(object.ptr(), &buffer_, flags) != 0) throw py::error_already_set();
        held_ = true;
        const char* format = buffer_.format ? buffer_.format : "B";
        if (*format == '=' || *format == '<' || *format == '@') ++format;
        if (std::strlen(format) != 1 || !std::strchr(formats, *format))
            throw std::invalid_argument(std::string(name) + ": element type '" + format + "', wanted one of '" +
                                        formats + "'");
    }
    View(View&& other) noexcept : buffer_(other.buffer_), held_(other.held_) { other.held_ = false; }
    View(const View&) = delete;
    View& operator=(const View&) = delete;
    View& operator=(View&&) = delete;
    ~View() {
        if (held_) PyBuffer_Release(&buffer_);
    }
    template <class T> T* data() const { return held_ ? static_cast<T*>(buffer_.buf) : nullptr; }
    int64_t size() const { return held_ ? buffer_.len / buffer_.itemsize : 0; }
    int32_t itemsize() const { return held_ ? static_cast<int32_t>(buffer_.itemsize) : 0; }

  private:
    Py_buffer buffer_{};
    bool held_ = false;
};

View view(const py::handle& object, const char* formats, bool writable, int64_t size, const char* name) {
    if (object.is_none()) return View();
    View v(object, formats, writable, name);
    if (v.size() != size)
        throw std::invalid_argument(std::string(name) + ": " + std::to_string(v.size()) + " elements, wanted " +
                                    std::to_string(size));
    return v;
}

View required(const py::handle& object, const char* formats, int64_t size, const char* name) {
    if (object.is_none()) throw std::invalid_argument(std::string(name) + " is required");
    return view(object, formats, false, size, name);
}

int64_t power(int64_t base, int exponent) {
    int64_t p = 1;
    for (int i = 0; i < exponent; ++i) p *= base;
    return p;
}

// A packed model: the C struct and the arrays it points into.
class Model {
  public:
    explicit Model(const py::dict& d) {
        const auto integer = [&](const char* key) { return py::cast<int32_t>(d[key]); };
        c_.abi_version = HF_ABI_VERSION;
        c_.arity = integer("arity");
        c_.depth = integer("depth");
        c_.filter_level = integer("filter_level");
        if (c_.arity < 2 || c_.arity > HF_MAX_ARITY || c_.depth < 1 || c_.depth >= 63 || c_.filter_level < 0 ||
            c_.filter_level > c_.depth)
            throw std::invalid_argument("arity, depth or filter_level out of range");
        c_.alphabets = keep<int32_t>(d["alphabets"], "i", c_.depth + 1, "alphabets");
        const int64_t q0 = c_.alphabets[0];
        const int k = c_.filter_level;
        c_.prior_bits = integer("prior_bits");
        c_.prior32 = keep<float>(d["prior32"], "f", q0, "prior32");
        c_.prior64 = keep<double>(d["prior64"], "d", q0, "prior64");
        c_.prior_cuts = keep<uint32_t>(d["prior_cuts"], "IL", int64_t(1) << c_.prior_bits, "prior_cuts");
        c_.star_bits = integer("star_bits");
        if (k > 0) {
            const int64_t n = power(c_.arity, k);
            c_.star32 = keep<float>(d["star32"], "f", n * q0 * c_.alphabets[k], "star32");
            c_.star64 = keep<double>(d["star64"], "d", n * q0 * c_.alphabets[k], "star64");
            c_.star_cuts = keep<uint32_t>(d["star_cuts"], "IL", n * (q0 << c_.star_bits), "star_cuts");
        }
        c_.tiny32 = py::cast<float>(d["tiny32"]);
        c_.tiny64 = py::cast<double>(d["tiny64"]);
        c_.slack32 = integer("slack32");
        c_.slack64 = integer("slack64");
        c_.n_counts = integer("n_counts");
        const py::list levels = d["levels"];
        if (static_cast<int32_t>(levels.size()) != c_.depth) throw std::invalid_argument("levels: one table per level");
        const int32_t* first_counts = keep<int32_t>(d["first_counts"], "i", c_.depth, "first_counts");
        for (int i = 0; i < c_.depth; ++i) levels_.push_back(level(levels[static_cast<size_t>(i)], i, first_counts[i]));
        c_.levels = levels_.data();
    }
    const hf_model& c() const { return c_; }

    // The table of small subtrees, computed by the first call that is large enough to be worth it.
    void lend_table(const hf_backend* backend, hf_infer_args& args) {
        const hf_table_size size = backend->table_size(&c_);
        if (!args.tokens || args.value_bytes != 4 || size.powers == 0) return;
        const std::lock_guard<std::mutex> lock(table_mutex_);
        if (table_powers_.empty()) {
            if (args.n * nodes(c_.depth) < 4 * size.powers) return; // leaves there are against entries to compute
            std::vector<float> values(static_cast<size_t>(size.values));
            std::vector<int32_t> powers(static_cast<size_t>(size.powers));
            if (hf_fill_table(backend, &c_, values.data(), powers.data()) != HF_OK) return;
            table_values_ = std::move(values);
            table_powers_ = std::move(powers);
        }
        args.table_values = table_values_.data();
        args.table_powers = table_powers_.data();
    }
    int64_t nodes(int d) const { return power(c_.arity, d); }
    int64_t alphabet(int d) const { return c_.alphabets[d]; }

  private:
    template <class T> const T* keep(const py::handle& object, const char* formats, int64_t size, const char* name) {
        views_.push_back(required(object, formats, size, name));
        return views_.back().data<T>();
    }

    hf_level level(const py::dict& d, int i, int32_t first_count) {
        hf_level l{};
        l.n_parents = c_.alphabets[i];
        l.n_symbols = c_.alphabets[i + 1];
        l.n_rules = py::cast<int32_t>(d["n_rules"]);
        l.cut_bits = py::cast<int32_t>(d["cut_bits"]);
        l.first_count = first_count;
        if (i >= c_.filter_level && (first_count < 0 || first_count > c_.n_counts - l.n_rules))
            throw std::invalid_argument("first_counts: past the end");
        const int64_t padded = int64_t(l.n_parents) << l.cut_bits;
        l.first = keep<int32_t>(d["first"], "i", l.n_parents + 1, "first");
        l.children = keep<int32_t>(d["children"], "i", int64_t(l.n_rules) * c_.arity, "children");
        l.prob32 = keep<float>(d["prob32"], "f", l.n_rules, "prob32");
        l.prob64 = keep<double>(d["prob64"], "d", l.n_rules, "prob64");
        l.cuts = keep<uint32_t>(d["cuts"], "IL", padded, "cuts");
        l.picks = keep<uint32_t>(d["picks"], "IL", padded * c_.arity, "picks");
        // Indices that the kernels follow without asking.
        if (l.first[0] != 0 || l.first[l.n_parents] != l.n_rules)
            throw std::invalid_argument("first: does not span the rules");
        for (int a = 0; a < l.n_parents; ++a)
            if (l.first[a] > l.first[a + 1]) throw std::invalid_argument("first: not sorted");
        for (int64_t j = 0; j < int64_t(l.n_rules) * c_.arity; ++j)
            if (l.children[j] < 0 || l.children[j] >= l.n_symbols)
                throw std::invalid_argument("children: symbol out of range");
        for (int64_t j = 0; j < padded * c_.arity; ++j)
            if (l.picks[j] >= static_cast<uint32_t>(l.n_symbols))
                throw std::invalid_argument("picks: symbol out of range");
        return l;
    }

    hf_model c_{};
    std::mutex table_mutex_;
    std::vector<float> table_values_;
    std::vector<int32_t> table_powers_;
    std::vector<hf_level> levels_;
    std::vector<View> views_;
};

const hf_backend* find_backend(const std::string& name) {
    for (int32_t i = 0; i < hf_backend_count(); ++i)
        if (name == hf_backend_at(i)->name && hf_backend_supported(i)) return hf_backend_at(i);
    throw std::invalid_argument("no instruction set '" + name + "' here");
}

void check(int32_t status) {
    if (status == HF_OUT_OF_MEMORY) throw std::bad_alloc();
    if (status != HF_OK)
        throw std::runtime_error("kernel refused its arguments (status " + std::to_string(status) + ")");
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
    if (static_cast<int32_t>(beliefs.size()) != m.depth + 1)
        throw std::invalid_argument("beliefs: one entry per level, root included");
    if (window < 0 || window > m.depth) throw std::invalid_argument("window: no level of the tree");
    const View root_view = view(root, value, true, n * model.alphabet(0), "root");
    const View one_out_view =
        view(leave_one_out, value, true, n * Question::leaves(model) * model.alphabet(m.depth), "leave_one_out");
    const View count_view = view(counts, value, true, n * m.n_counts, "counts");
    const View pair_view = view(star_pairs, value, true,
                                k > 0 ? n * model.nodes(k) * model.alphabet(0) * model.alphabet(k) : -1, "star_pairs");
    const View law_view = view(laws, value, false, model.nodes(window) * model.alphabet(window), "laws");
    std::vector<View> views;
    std::vector<void*> pointers;
    for (int d = 0; d <= m.depth; ++d) {
        const py::object o = beliefs[static_cast<size_t>(d)];
        if (!o.is_none() && (d == 0 || d < k)) throw std::invalid_argument("beliefs: level does not exist");
        views.push_back(view(o, value, true, n * model.nodes(d) * model.alphabet(d), "beliefs"));
        pointers.push_back(views.back().data<void>());
    }
    hf_infer_args& args = question.args;
    args.root = root_view.data<void>();
    args.beliefs = pointers.data();
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
    module.def("choose", &choose, py::arg("isa"), py::arg("model"), py::arg("n"), py::arg("tokens"), py::arg("mask"),
               py::arg("log_fields"), py::arg("value_bytes"), py::arg("log_evidence"), py::arg("log_weight"),
               py::arg("n_samples"), py::arg("seed"), py::arg("start"), py::arg("levels"), py::arg("status"),
               py::arg("num_threads"), "Trees drawn given the evidence of n rows, or the most probable ones.");
}
