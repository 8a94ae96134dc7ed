// A small random tree model in the layout of csrc/hfilter.h, and the evidence of a row computed the plain way.
#pragma once

#include "hfilter.h"

#include <cstdint>
#include <random>
#include <vector>

struct Rule {
    int parent;
    std::vector<int> children;
    double prob;
};

using Fields = std::vector<std::vector<double>>; // one likelihood vector per leaf

struct Clamp { // restricts one node to one symbol; level -1: nothing
    int level = -1;
    int64_t node = 0;
    int symbol = 0;
};

struct Tree {
    int arity, depth, filter_level;
    std::vector<int32_t> alphabets;
    std::vector<std::vector<Rule>> rules; // per level
    std::vector<double> prior;
    std::vector<std::vector<double>> channels; // per node of the filter level: (q_0, q_k)

    // What hf_model points to.
    struct PackedLevel {
        std::vector<int32_t> first, children;
        std::vector<float> prob32;
        std::vector<double> prob64;
        std::vector<uint32_t> cuts, picks;
    };
    std::vector<PackedLevel> packed;
    std::vector<hf_level> levels;
    std::vector<float> prior32, star32;
    std::vector<double> star64;
    std::vector<uint32_t> prior_cuts, star_cuts;
    hf_model model{};

    Tree(int arity, int filter_level, std::vector<int32_t> alphabets, std::vector<std::vector<Rule>> rules,
         std::vector<double> prior);
    Tree(const Tree&) = delete; // the model points into it
    Tree& operator=(const Tree&) = delete;

    int64_t nodes(int level) const {
        int64_t n = 1;
        for (int d = 0; d < level; ++d) n *= arity;
        return n;
    }
    int64_t leaves() const { return nodes(depth); }

    std::vector<double> message(const Fields& fields, const Clamp& clamp, int level, int64_t node) const;
    // The sum over every latent configuration that agrees with `clamp`.
    double evidence(const Fields& fields, const Clamp& clamp = {}) const;

  private:
    void pack();
    void set_channels();
};

// Cut points of a distribution in a row of 1 << bits entries, padded with 2^32 - 1.
inline std::vector<uint32_t> cut_points(const std::vector<double>& p, int bits) {
    std::vector<uint32_t> cuts(size_t(1) << bits, 0xFFFFFFFFu);
    double sum = 0;
    for (size_t i = 0; i + 1 < p.size(); ++i) {
        sum += p[i];
        cuts[i] = sum >= 1 ? 0xFFFFFFFFu : static_cast<uint32_t>(sum * 4294967296.0);
    }
    return cuts;
}

inline int bits_for(size_t entries) {
    int bits = 0;
    while ((size_t(1) << bits) < entries) ++bits;
    return bits;
}

inline Tree::Tree(int s, int k, std::vector<int32_t> q, std::vector<std::vector<Rule>> r, std::vector<double> p)
    : arity(s), depth(static_cast<int>(q.size()) - 1), filter_level(k), alphabets(std::move(q)), rules(std::move(r)),
      prior(std::move(p)) {
    set_channels();
    pack();
}

// One to five rules for each symbol, so that most tuples are forbidden.
inline Tree random_tree(int arity, int filter_level, const std::vector<int32_t>& alphabets, unsigned seed) {
    std::mt19937 random(seed);
    std::uniform_real_distribution<double> uniform(0.05, 1.0);
    std::vector<std::vector<Rule>> rules;
    for (size_t d = 0; d + 1 < alphabets.size(); ++d) {
        std::vector<Rule> level;
        for (int a = 0; a < alphabets[d]; ++a) {
            const size_t begin = level.size();
            const unsigned count = 1 + random() % 5;
            double sum = 0;
            for (unsigned i = 0; i < count; ++i) {
                Rule rule{a, {}, uniform(random)};
                for (int r = 0; r < arity; ++r) rule.children.push_back(static_cast<int>(random() % alphabets[d + 1]));
                sum += rule.prob;
                level.push_back(rule);
            }
            for (size_t i = begin; i < level.size(); ++i) level[i].prob /= sum;
        }
        rules.push_back(level);
    }
    std::vector<double> prior;
    double sum = 0;
    for (int a = 0; a < alphabets[0]; ++a) sum += prior.emplace_back(uniform(random));
    for (double& p : prior) p /= sum;
    return Tree(arity, filter_level, alphabets, rules, prior);
}

// The channel of node (k, i): the product of the child marginals along its path from the root.
inline void Tree::set_channels() {
    const int q0 = alphabets[0];
    std::vector<double> identity(static_cast<size_t>(q0) * q0, 0.0);
    for (int a = 0; a < q0; ++a) identity[a * q0 + a] = 1;
    channels = {identity};
    for (int d = 0; d < filter_level; ++d) {
        const int from = alphabets[d], to = alphabets[d + 1];
        std::vector<std::vector<double>> next;
        for (const auto& parent : channels)
            for (int r = 0; r < arity; ++r) {
                std::vector<double> child(static_cast<size_t>(q0) * to, 0.0);
                for (const Rule& rule : rules[d])
                    for (int a = 0; a < q0; ++a)
                        child[a * to + rule.children[r]] += parent[a * from + rule.parent] * rule.prob;
                next.push_back(child);
            }
        channels = next;
    }
}

inline void Tree::pack() {
    packed.resize(depth);
    for (int d = 0; d < depth; ++d) {
        PackedLevel& p = packed[d];
        std::vector<std::vector<const Rule*>> of(alphabets[d]);
        for (const Rule& rule : rules[d]) of[rule.parent].push_back(&rule);
        size_t most = 1;
        for (const auto& list : of) most = most < list.size() ? list.size() : most;
        const int bits = bits_for(most);
        p.first.push_back(0);
        for (const auto& list : of) {
            std::vector<double> probs;
            for (const Rule* rule : list) {
                p.children.insert(p.children.end(), rule->children.begin(), rule->children.end());
                p.prob64.push_back(rule->prob);
                p.prob32.push_back(static_cast<float>(rule->prob));
                probs.push_back(rule->prob);
            }
            p.first.push_back(static_cast<int32_t>(p.prob64.size()));
            const auto cuts = cut_points(probs, bits);
            p.cuts.insert(p.cuts.end(), cuts.begin(), cuts.end());
            for (size_t i = 0; i < cuts.size(); ++i)
                for (int child : list[i < list.size() ? i : list.size() - 1]->children) p.picks.push_back(child);
        }
        levels.push_back({alphabets[d], alphabets[d + 1], static_cast<int32_t>(rules[d].size()), bits, p.first.data(),
                          p.children.data(), p.prob32.data(), p.prob64.data(), p.cuts.data(), p.picks.data(),
                          static_cast<int>(d) >= filter_level ? model.n_counts : -1});
        if (static_cast<int>(d) >= filter_level) model.n_counts += levels.back().n_rules;
    }
    prior32.assign(prior.begin(), prior.end());
    model.prior_bits = bits_for(prior.size());
    prior_cuts = cut_points(prior, model.prior_bits);
    if (filter_level > 0) {
        const int qk = alphabets[filter_level];
        model.star_bits = bits_for(qk);
        for (const auto& channel : channels) {
            star64.insert(star64.end(), channel.begin(), channel.end());
            for (int a = 0; a < alphabets[0]; ++a) {
                const auto cuts =
                    cut_points({channel.begin() + a * qk, channel.begin() + (a + 1) * qk}, model.star_bits);
                star_cuts.insert(star_cuts.end(), cuts.begin(), cuts.end());
            }
        }
        star32.assign(star64.begin(), star64.end());
    }
    model.abi_version = HF_ABI_VERSION;
    model.arity = arity;
    model.depth = depth;
    model.filter_level = filter_level;
    model.alphabets = alphabets.data();
    model.levels = levels.data();
    model.prior32 = prior32.data();
    model.prior64 = prior.data();
    model.prior_cuts = prior_cuts.data();
    model.star32 = filter_level > 0 ? star32.data() : nullptr;
    model.star64 = filter_level > 0 ? star64.data() : nullptr;
    model.star_cuts = filter_level > 0 ? star_cuts.data() : nullptr;
    model.tiny32 = 0x1p-60f;
    model.tiny64 = 0x1p-500;
    model.slack32 = 40;
    model.slack64 = 400;
}

inline std::vector<double> Tree::message(const Fields& fields, const Clamp& clamp, int level, int64_t node) const {
    std::vector<double> result(alphabets[level], 0.0);
    if (level == depth) {
        result = fields[node];
    } else {
        std::vector<std::vector<double>> below;
        for (int r = 0; r < arity; ++r) below.push_back(message(fields, clamp, level + 1, node * arity + r));
        for (const Rule& rule : rules[level]) {
            double term = rule.prob;
            for (int r = 0; r < arity; ++r) term *= below[r][rule.children[r]];
            result[rule.parent] += term;
        }
    }
    if (clamp.level == level && clamp.node == node)
        for (int a = 0; a < alphabets[level]; ++a)
            if (a != clamp.symbol) result[a] = 0;
    return result;
}

inline double Tree::evidence(const Fields& fields, const Clamp& clamp) const {
    std::vector<double> weight = prior;
    const int qk = alphabets[filter_level];
    for (int64_t i = 0; i < nodes(filter_level); ++i) {
        const std::vector<double> nu = message(fields, clamp, filter_level, i);
        for (int a = 0; a < alphabets[0]; ++a) {
            double sum = 0;
            for (int c = 0; c < qk; ++c) sum += channels[i][a * qk + c] * nu[c];
            weight[a] *= sum;
        }
    }
    double total = 0;
    for (int a = 0; a < alphabets[0]; ++a)
        if (clamp.level != 0 || clamp.symbol == a) total += weight[a];
    return total;
}
