// What roots and leave-one-out predictions of fully seen rows look up under an unambiguous binary grammar
// (cpu_parse_root.hpp, cpu_parse.hpp).
#pragma once

#include "cpu_rows.hpp"

namespace HF_NAMESPACE {
namespace {

// Of the table of a model's parses, in words: a first line that says how far it serves, then for every level what a
// pair of children's symbols has for a parent and the probability of that rule; and where the children's messages come
// from: by a child's own symbol that of the parent, and the probability of the rule. Narrow messages of both children
// go together, in a row for each pair of their symbols; of wide ones, either has a row for each symbol of its sibling.
// Symbol q: the child is impossible.
struct ParseShape {
    int width = 0; // entries of a message, with room to the next power of two; 0: no table
    int64_t words = 0;

    explicit ParseShape(const hf_model& m) {
        if (m.arity != 2 || m.filter_level != 0) return;
        int widest = m.alphabets[0];
        for (int d = 0; d < m.depth; ++d) {
            const int64_t q = m.levels[d].n_symbols;
            if (m.levels[d].n_rules > q * q) return; // two rules share a pair
            widest = larger<int>(widest, m.levels[d].n_symbols);
        }
        if (widest > 16) return;
        width = widest > 8 ? 16 : widest > 4 ? 8 : 4;
        words = 2 * line;
        for (int d = 0; d < m.depth; ++d) words += own(m, d) ? level_words(m, d) : 0;
    }

    static constexpr int64_t line = 16;
    // Levels with one table of rules share its block.
    static bool own(const hf_model& m, int d) { return source(m, d) == d; }
    static int source(const hf_model& m, int d) {
        int first = 0;
        while (m.levels[first].children != m.levels[d].children || m.levels[first].prob32 != m.levels[d].prob32 ||
               m.levels[first].n_parents != m.levels[d].n_parents)
            ++first;
        return first;
    }
    static int64_t pairs(const hf_model& m, int d) {
        const int64_t n = m.levels[d].n_symbols + 1;
        return (n * n + line - 1) / line * line;
    }
    int64_t level_words(const hf_model& m, int d) const {
        const int64_t base = m.levels[d].n_symbols + 1;
        return 2 * pairs(m, d) + (paired() ? base * base : base) * 4 * width;
    }
    bool paired() const { return width <= 8; }
};

// A symbol that lies among numbers.
using TableSymbol = int32_t __attribute__((may_alias));

// One level of such a table.
struct ParseLevel {
    int base;                   // q + 1
    const TableSymbol* parents; // (base, base)
    const float* prob;          // (base, base)
    const float* left;  // (base, 2, width): symbols of the parent, and weights; or of pairs (base^2, 2, 2, width)
    const float* right; // unless of pairs
};

struct ParseTable {
    ParseShape shape;
    bool serves = false; // all the way up and down
    bool up = false;     // to the root
    ParseLevel level[64];

    // `words`: room for shape.words.
    ParseTable(const hf_model& m, const float* words) : shape(m) {
        if (shape.width == 0 || !words) return;
        const float* at = words + (-(reinterpret_cast<uintptr_t>(words) / sizeof(float)) & (ParseShape::line - 1));
        serves = at[0] != 0;
        up = at[1] != 0;
        at += ParseShape::line;
        for (int d = 0; d < m.depth; ++d) {
            if (!ParseShape::own(m, d)) {
                level[d] = level[ParseShape::source(m, d)];
                continue;
            }
            const int base = m.levels[d].n_symbols + 1;
            const float* rows = at + 2 * ParseShape::pairs(m, d);
            level[d] = {base, reinterpret_cast<const TableSymbol*>(at), at + ParseShape::pairs(m, d), rows,
                        rows + base * 2 * shape.width};
            at += shape.level_words(m, d);
        }
    }

    // Fills the table, unless two rules share a pair, or numbers could leave the range of the type: a rule's on the way
    // up, where one stands alone; on the way down nothing is scaled, and no entry of a message may fall below the
    // watch.
    void fill(const hf_model& m, float* words) {
        if (shape.width == 0) return;
        for (int64_t i = 0; i < shape.words; ++i) words[i] = 0;
        const ParseTable mine(m, words); // where all is zero
        double rarest = 1, least = 1, ratio = 1;
        const auto reaches = [&](const float* x, int n) {
            float low = x[0], high = x[0];
            for (int i = 1; i < n; ++i) {
                low = smaller(low, x[i]);
                high = larger(high, x[i]);
            }
            rarest = smaller(rarest, static_cast<double>(low));
            least *= static_cast<double>(low);
            ratio *= static_cast<double>(low) / static_cast<double>(high);
        };
        reaches(m.prior32, m.alphabets[0]);
        for (int d = 0; d < m.depth; ++d) {
            const hf_level& rules = m.levels[d];
            reaches(rules.prob32, rules.n_rules);
            if (!ParseShape::own(m, d)) continue;
            const ParseLevel& to = mine.level[d];
            auto* parents = const_cast<TableSymbol*>(to.parents);
            auto *prob = const_cast<float*>(to.prob), *left = const_cast<float*>(to.left),
                 *right = const_cast<float*>(to.right);
            const int w = shape.width;
            for (int x = 0; x < to.base * to.base; ++x) {
                parents[x] = rules.n_parents;
                prob[x] = 1;
            }
            const auto put = [&](float* row, int64_t weights, int symbol, int parent, float weight) {
                reinterpret_cast<TableSymbol*>(row)[symbol] = parent;
                row[weights + symbol] = weight;
            };
            for (int a = 0; a < rules.n_parents; ++a)
                for (int rule = rules.first[a]; rule < rules.first[a + 1]; ++rule) {
                    const int b = rules.children[2 * rule], c = rules.children[2 * rule + 1];
                    TableSymbol& parent = parents[b * to.base + c];
                    if (parent != rules.n_parents) return;
                    parent = a;
                    const float p = prob[b * to.base + c] = rules.prob32[rule];
                    if (!shape.paired()) {
                        put(left + c * 2 * w, w, b, a, p);
                        put(right + b * 2 * w, w, c, a, p);
                    } else
                        for (int other = 0; other < to.base; ++other) {
                            put(left + (other * to.base + c) * 4 * w, 2 * w, b, a, p);
                            put(left + (b * to.base + other) * 4 * w + w, 2 * w, c, a, p);
                        }
                }
        }
        constexpr double lowest = 1e-30;
        const Range<Pack<float, 1>> range(m.tiny32);
        float* at = words + (-(reinterpret_cast<uintptr_t>(words) / sizeof(float)) & (ParseShape::line - 1));
        at[0] = least >= lowest && range.harmless(static_cast<float>(ratio / 2));
        at[1] = rarest >= lowest && range.harmless(1);
    }
};

} // namespace
} // namespace HF_NAMESPACE
