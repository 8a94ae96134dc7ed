// A packed model (hfilter.tree) as module _cpu holds it.
#pragma once

#include "hfilter.h"
#include "views.hpp"

#include <mutex>
#include <vector>

namespace {

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

} // namespace
