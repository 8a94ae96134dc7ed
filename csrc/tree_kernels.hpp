// THE compiled text: sampling and message passing for one pack of samples.
//
// A lane is a sample. Rules are walked in order, the same for all lanes, so the work is proportional
// to the number of rules and there is no divergence. hfilter/reference.py is the same text in Python;
// both round in the same order, and tests compare them with ==.
//
// Words: level 0 is the root, `k` the filter level, `nu` the upward message, `mu` the downward one.
// Every message is normalised to a maximum in [1, 2) by an exact power of two, so scaling costs no
// accuracy. What scaling cannot repair (entries of one message more than the exponent range apart,
// later needed because the evidence contradicts itself) is noticed and reported as HF_ROW_RANGE.
#pragma once

#include "hfilter.h"
#include "pack.hpp"
#include "philox.hpp"

namespace HF_NAMESPACE {

HF_INLINE int64_t n_nodes(const hf_model& m, int level) {
    int64_t n = 1;
    for (int d = 0; d < level; ++d) n *= m.arity;
    return n;
}

// ------------------------------------------------------------------------------------ sampling

template <int N> struct Indices {
    using U = typename LaneType<uint32_t, N>::type;
    U lo, hi;
};

template <class U> HF_INLINE uint32_t& element(U& v, int l) { return reinterpret_cast<uint32_t*>(&v)[l]; }

template <int N> HF_INLINE Indices<N> row_indices(uint64_t first) {
    Indices<N> r{};
    for (int l = 0; l < N; ++l) {
        element(r.lo, l) = static_cast<uint32_t>(first + static_cast<uint64_t>(l));
        element(r.hi, l) = static_cast<uint32_t>((first + static_cast<uint64_t>(l)) >> 32);
    }
    return r;
}

// The words of one purpose, four to a block, fetched in any order.
template <int N> struct WordStream {
    using U = typename LaneType<uint32_t, N>::type;
    Indices<N> index;
    uint32_t purpose, key0, key1;
    int64_t block = -1;
    Words<U> words{};

    HF_INLINE U operator[](int64_t t) {
        if ((t >> 2) != block) {
            block = t >> 2;
            words = philox4x32<U>(index.lo, index.hi, U{} + static_cast<uint32_t>(block), U{} + purpose, key0, key1);
        }
        return words.w[t & 3];
    }
};

// A word as the search sees it: the largest counts as its neighbour, so a padded cut point is never passed.
template <class U> HF_INLINE U clipped(U word) { return smaller<U>(word, U{} + 0xFFFFFFFEu); }

// Where in the table of cut points, rows of 1 << bits, the word falls in its row: the row's start plus how many
// cut points are <= the word, by binary search. `cut(i)` looks up entry i of the table in every lane.
template <class U, class Cut> HF_INLINE U search(int bits, U row, U word, const Cut& cut) {
    const U w = clipped(word);
    U position = row << bits;
    for (int b = bits - 1; b >= 0; --b) {
        const uint32_t step = 1u << b;
        position += cut(position + (step - 1u)) <= w ? U{} + step : U{};
    }
    return position;
}

// Entry i of a table in memory, for every lane.
template <int N, class U> HF_INLINE U gather(const uint32_t* table, U i) {
    U x{};
    for (int l = 0; l < N; ++l) element(x, l) = table[element(i, l)];
    return x;
}

// The search in a table of `entries` in all: in registers if it fits.
template <int N, class U> HF_INLINE U search_table(const uint32_t* cuts, int64_t entries, int bits, U row, U word) {
    if constexpr (RegisterTable<N>::capacity > 0)
        if (entries <= RegisterTable<N>::capacity) {
            RegisterTable<N> table;
            table.load(cuts, static_cast<int>(entries));
            return search<U>(bits, row, word, [&](U i) { return table.at(i, entries > 2 * N); });
        }
    return search<U>(bits, row, word, [&](U i) { return gather<N, U>(cuts, i); });
}

// What the nodes of one level draw from: if it is small, tables in registers, with the children of a rule packed
// into one word.
template <int N> struct RegisterLevel {
    RegisterTable<N> cuts, picks;
    int child_bits; // 0: too large
    bool wide;

    HF_INLINE void load(const hf_level& level, int arity) {
        constexpr int capacity = RegisterTable<N>::capacity;
        const int64_t entries = int64_t(level.n_parents) << level.cut_bits;
        child_bits = 0;
        if constexpr (capacity > 0) {
            if (entries > capacity || arity > 4 || int64_t(level.n_symbols) > int64_t(1) << (32 / arity)) return;
            uint32_t packed[capacity] = {};
            child_bits = 32 / arity;
            wide = entries > 2 * N;
            for (int i = 0; i < entries; ++i)
                for (int r = 0; r < arity; ++r) packed[i] |= level.picks[i * arity + r] << (r * child_bits);
            cuts.load(level.cuts, static_cast<int>(entries));
            picks.load(packed, static_cast<int>(entries));
        }
    }
};

// The n nodes of a level draw their rules and become n * s: from the last node to the first, in place.
template <int N, class U, class Stream> HF_INLINE void
expand_level(const hf_level& level, const RegisterLevel<N>& table, int s, int64_t n, Stream& words, U* symbols) {
    const int64_t first_word = 1 + (n - 1) / (s - 1); // of the level's first node, in heap order
    const int bits = level.cut_bits, child_bits = table.child_bits;
    if (child_bits > 0) {
        const uint32_t child_mask = static_cast<uint32_t>((uint64_t(1) << child_bits) - 1);
        for (int64_t i = n - 1; i >= 0; --i) {
            const U rule =
                search<U>(bits, symbols[i], words[first_word + i], [&](U x) { return table.cuts.at(x, table.wide); });
            const U pick = table.picks.at(rule, table.wide);
            for (int r = 0; r < s; ++r) symbols[i * s + r] = pick >> (r * child_bits) & child_mask;
        }
        return;
    }
    for (int64_t i = n - 1; i >= 0; --i) {
        const U rule =
            search<U>(bits, symbols[i], words[first_word + i], [&](U x) { return gather<N, U>(level.cuts, x); });
        for (int r = 0; r < s; ++r)
            symbols[i * s + r] = gather<N, U>(level.picks, rule * static_cast<uint32_t>(s) + static_cast<uint32_t>(r));
    }
}

// Trees of rows first … first + N - 1 of the stream into `symbols` (n_leaves packs), level by level
// in place: the children of node i overwrite entries that no node before i needs. `store(d, symbols)`
// sees every existing level. `tables[d]` is loaded from m.levels[d] for every level below the filter level.
template <int N, class Store>
HF_INLINE void sample_tree(const hf_model& m, const RegisterLevel<N>* tables, uint64_t seed, uint64_t first,
                           const int32_t* roots, typename LaneType<uint32_t, N>::type* symbols, const Store& store) {
    using U = typename LaneType<uint32_t, N>::type;
    const uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    WordStream<N> tree{row_indices<N>(first), kPurposeTree, key0, key1};
    U root{};
    if (roots) {
        const uint32_t last = static_cast<uint32_t>(m.alphabets[0] - 1);
        for (int l = 0; l < N; ++l) {
            const uint32_t r = static_cast<uint32_t>(roots[l]);
            element(root, l) = r < last ? r : last;
        }
    } else {
        root = search_table<N, U>(m.prior_cuts, 1 << m.prior_bits, m.prior_bits, U{}, tree[0]);
    }
    symbols[0] = root;
    store(0, symbols);
    const int k = m.filter_level;
    if (k > 0) {
        WordStream<N> star{row_indices<N>(first), kPurposeStar, key0, key1};
        const int64_t n = n_nodes(m, k);
        const int64_t entries = static_cast<int64_t>(m.alphabets[0]) << m.star_bits;
        const U row = root << m.star_bits;
        for (int64_t i = 0; i < n; ++i)
            symbols[i] = search_table<N, U>(m.star_cuts + i * entries, entries, m.star_bits, root, star[i]) - row;
        store(k, symbols);
    }
    for (int d = k; d < m.depth; ++d) {
        expand_level<N, U>(m.levels[d], tables[d], m.arity, n_nodes(m, d), tree, symbols);
        store(d + 1, symbols);
    }
}

// ----------------------------------------------------------------------------- message passing

// Typed views of the model and the call, chosen by the value type.
template <class T> struct Numbers;
template <> struct Numbers<float> {
    static HF_INLINE const float* prob(const hf_level& l) { return l.prob32; }
    static HF_INLINE const float* prior(const hf_model& m) { return m.prior32; }
    static HF_INLINE const float* star(const hf_model& m) { return m.star32; }
    static HF_INLINE float tiny(const hf_model& m) { return m.tiny32; }
    static HF_INLINE int32_t slack(const hf_model& m) { return m.slack32; }
};
template <> struct Numbers<double> {
    static HF_INLINE const double* prob(const hf_level& l) { return l.prob64; }
    static HF_INLINE const double* prior(const hf_model& m) { return m.prior64; }
    static HF_INLINE const double* star(const hf_model& m) { return m.star64; }
    static HF_INLINE double tiny(const hf_model& m) { return m.tiny64; }
    static HF_INLINE int64_t slack(const hf_model& m) { return m.slack64; }
};

// What has happened to the range of a row so far.
template <class P> struct Range {
    using I = typename P::I;
    static constexpr typename P::Int bias = Format<typename P::Scalar>::bias;
    typename P::V tiny;
    typename P::V smallest;                // of all non-zero entries of messages so far
    typename P::V least_top = splat<P>(1); // of all maxima and sums: 0 if some message is zero throughout
    I lost{};                              // mask: something else rounded to zero
    I spent{};                             // bits of cancellation, summed over levels
    I worst = splat_int<P>(bias);          // lowest (biased) exponent of the present level

    HF_INLINE explicit Range(typename P::Scalar limit)
        : tiny(splat<P>(limit)), smallest(limit > 1 ? typename P::V{} : splat<P>(2)) {}

    // If the limit is above 1, some rule is below the range of the type: in danger from the start.
    HF_INLINE I danger() const { return lost | as_mask<P>(smallest < tiny); }
    HF_INLINE I empty() const { return as_mask<P>(least_top == 0); }
    HF_INLINE void watch(typename P::V x) { smallest = smaller(smallest, x > 0 ? x : smallest); }
    // Watches what is known to be >= bound (or 0) without looking at it, if that is enough; false if it is not.
    HF_INLINE bool harmless(typename P::Scalar bound) const {
        return bound >= lane<P>(tiny, 0) && lane<P>(tiny, 0) <= 1;
    }
    // The largest entry, or the sum, of what is about to be normalised.
    HF_INLINE I normalising(typename P::V top) {
        const I e = biased_exponent<P>(top);
        worst = smaller(worst, e);
        least_top = smaller(least_top, top);
        return e;
    }
    // The sum that beliefs have been divided by.
    HF_INLINE void normalised(typename P::V sum) {
        normalising(sum);
        constexpr typename P::Scalar lowest_normal = Format<typename P::Scalar>::lowest_normal;
        lost |= as_mask<P>(sum < splat<P>(lowest_normal)) & as_mask<P>(sum > 0);
    }
    HF_INLINE void next_level() {
        spent += bias - worst;
        worst = splat_int<P>(bias);
    }
};

// Normalises one message of q entries; returns the biased exponent taken out (of a zero message: anything). `least`
// goes down to the smallest non-zero entry if Watch.
template <class P, bool Watch = true>
HF_INLINE typename P::I rescale(typename P::V* x, int q, Range<P>& range, typename P::V& least) {
    typename P::V top = x[0];
    for (int a = 1; a < q; ++a) top = larger(top, x[a]);
    const typename P::I e = range.normalising(top);
    const typename P::V factor = power_of_two<P>(Format<typename P::Scalar>::bias - e);
    typename P::V mine = splat<P>(2); // a chain of its own: the next message need not wait for it
    for (int a = 0; a < q; ++a) {
        x[a] = x[a] * factor;
        if constexpr (Watch) mine = smaller(mine, x[a] > 0 ? x[a] : splat<P>(2));
    }
    if constexpr (Watch) least = smaller(least, mine);
    return e;
}

// Normalises n messages of q entries, and watches over them unless `bound` says that no non-zero entry can be in
// danger. Returns the sum of the exponents taken out; `bound` becomes that of the level.
template <class P>
HF_INLINE typename P::I rescale_level(typename P::V* x, int64_t n, int q, Range<P>& range, typename P::Scalar& bound) {
    typename P::I total{};
    typename P::V least = splat<P>(2);
    if (range.harmless(bound))
        for (int64_t i = 0; i < n; ++i) total += rescale<P, false>(x + i * q, q, range, least);
    else {
        for (int64_t i = 0; i < n; ++i) total += rescale<P, true>(x + i * q, q, range, least);
        range.smallest = smaller(range.smallest, least);
        bound = lowest_lane<P>(least);
    }
    range.next_level();
    return total - static_cast<typename P::Int>(n) * Range<P>::bias;
}

// A bound under the non-zero entries of a message made by the rules of one level from messages with the bounds given,
// the other one s times: each entry has a term p * one * other^s, and normalising divides by at most 2^(s + 2) * q.
template <class T> HF_INLINE T next_bound(T smallest_prob, T one, T other, int s, int q) {
    T bound = smallest_prob * one / static_cast<T>(4 * q);
    for (int r = 0; r < s; ++r) bound = bound * (other / 2);
    return bound;
}

// S and Q are the arity and the size of all alphabets where they are known in advance, or 0.

// Levels are walked a few neighbouring nodes at a time: what a rule says is read once for all of them. Upward the
// sums stay in registers; downward they do not, and two nodes already fill the pipes.
constexpr int kNodesUp = 4, kNodesDown = 2;

// nu(a) = sum over the rules of a of p * prod_r nu_child_r(b_r), for U nodes side by side.
template <class P, int S, int Q, int U>
HF_INLINE void upward_nodes(const hf_level& level, int arity, const typename P::V* child, typename P::V* nu) {
    using V = typename P::V;
    const int s = S > 0 ? S : arity;
    const typename P::Scalar* prob = Numbers<typename P::Scalar>::prob(level);
    const int qp = Q > 0 ? Q : level.n_parents, qc = Q > 0 ? Q : level.n_symbols;
    for (int a = 0; a < qp; ++a) {
        V sum[U] = {};
        for (int rule = level.first[a]; rule < level.first[a + 1]; ++rule) {
            const int32_t* b = level.children + static_cast<size_t>(rule) * s;
            for (int u = 0; u < U; ++u) {
                const V* below = child + u * s * qc;
                V term = prob[rule] * below[b[0]];
                for (int r = 1; r < s; ++r) term = term * below[r * qc + b[r]];
                sum[u] = sum[u] + term;
            }
        }
        for (int u = 0; u < U; ++u) nu[u * qp + a] = sum[u];
    }
}

template <class P, int S, int Q>
HF_INLINE void upward_level(const hf_level& level, int arity, int64_t n, const typename P::V* below, typename P::V* nu,
                            typename P::I& total, Range<P>& range, typename P::Scalar& bound) {
    const int qp = Q > 0 ? Q : level.n_parents;
    const int64_t children = int64_t(S > 0 ? S : arity) * (Q > 0 ? Q : level.n_symbols);
    int64_t i = 0;
    for (; i + kNodesUp <= n; i += kNodesUp)
        upward_nodes<P, S, Q, kNodesUp>(level, arity, below + i * children, nu + i * qp);
    for (; i < n; ++i) upward_nodes<P, S, Q, 1>(level, arity, below + i * children, nu + i * qp);
    total += rescale_level<P>(nu, n, qp, range, bound);
}

// mu_child_r(b) = sum over rules with b at place r of mu(a) * p * prod_{r' != r} nu_child_r'(b_r').
template <class P, int S, int Q, int U>
HF_INLINE void downward_nodes(const hf_level& level, int arity, const typename P::V* mu, const typename P::V* nu_below,
                              typename P::V* mu_below) {
    using V = typename P::V;
    const int s = S > 0 ? S : arity;
    const typename P::Scalar* prob = Numbers<typename P::Scalar>::prob(level);
    const int qp = Q > 0 ? Q : level.n_parents, qc = Q > 0 ? Q : level.n_symbols;
    V right[HF_MAX_ARITY + 1]; // products of the siblings to the right
    for (int x = 0; x < U * s * qc; ++x) mu_below[x] = V{};
    for (int a = 0; a < qp; ++a) {
        for (int rule = level.first[a]; rule < level.first[a + 1]; ++rule) {
            const int32_t* b = level.children + static_cast<size_t>(rule) * s;
            for (int u = 0; u < U; ++u) {
                const V* up = nu_below + u * s * qc;
                V* out = mu_below + u * s * qc;
                V left = mu[u * qp + a] * prob[rule];
                if constexpr (S == 2) {
                    out[b[0]] = out[b[0]] + left * up[qc + b[1]];
                    out[qc + b[1]] = out[qc + b[1]] + left * up[b[0]];
                } else {
                    right[s] = splat<P>(1);
                    for (int r = s - 1; r > 0; --r) right[r] = up[r * qc + b[r]] * right[r + 1];
                    for (int r = 0; r < s; ++r) {
                        V& target = out[r * qc + b[r]];
                        target = target + left * right[r + 1];
                        left = left * up[r * qc + b[r]];
                    }
                }
            }
        }
    }
}

template <class P, int S, int Q> HF_INLINE void downward_level(const hf_level& level, int arity, int64_t n,
                                                               const typename P::V* mu, const typename P::V* nu_below,
                                                               typename P::V* mu_below, Range<P>& range,
                                                               typename P::Scalar& bound) {
    const int s = S > 0 ? S : arity;
    const int qp = Q > 0 ? Q : level.n_parents, qc = Q > 0 ? Q : level.n_symbols;
    const int64_t children = int64_t(s) * qc;
    int64_t i = 0;
    for (; i + kNodesDown <= n; i += kNodesDown)
        downward_nodes<P, S, Q, kNodesDown>(level, arity, mu + i * qp, nu_below + i * children,
                                            mu_below + i * children);
    for (; i < n; ++i)
        downward_nodes<P, S, Q, 1>(level, arity, mu + i * qp, nu_below + i * children, mu_below + i * children);
    rescale_level<P>(mu_below, n * s, qc, range, bound);
}

// A product of many factors per class, each class with its own exponent: over the arity^k nodes of a
// star one class may fall 10^5 powers of two behind and come back.
template <class P> struct WideNumber {
    typename P::V value; // in [1, 2), or 0
    typename P::I exponent;

    static HF_INLINE WideNumber of(typename P::V factor) {
        WideNumber x{splat<P>(1), typename P::I{}};
        x.multiply(factor);
        return x;
    }
    HF_INLINE void multiply(typename P::V factor) {
        value = value * factor;
        const typename P::I e = ::HF_NAMESPACE::exponent<P>(value);
        value = value * power_of_two<P>(-e);
        exponent += e;
    }
};

// Brings wide numbers to one common exponent, which is returned; x[a] * 2^result is the value.
template <class P> HF_INLINE typename P::I align(const WideNumber<P>* wide, int q, typename P::V* x, Range<P>& range) {
    using I = typename P::I;
    constexpr typename P::Int lowest = -(typename P::Int(1) << 30);
    constexpr typename P::Int floor_exponent = -Format<typename P::Scalar>::bias + 1;
    I top = splat_int<P>(lowest);
    for (int a = 0; a < q; ++a) top = larger<I>(top, wide[a].value > 0 ? wide[a].exponent : splat_int<P>(lowest));
    for (int a = 0; a < q; ++a) {
        // The exponent of a zero may be anything: it must not become a factor.
        const I there = as_mask<P>(wide[a].value > 0);
        const I shift = there & (wide[a].exponent - top);
        const I lost = there & as_mask<P>(shift < floor_exponent);
        const typename P::V aligned = wide[a].value * power_of_two<P>(larger<I>(shift, splat_int<P>(floor_exponent)));
        x[a] = lost != 0 ? typename P::V{} : aligned;
        range.watch(x[a]);
        range.lost |= lost;
    }
    return top <= lowest ? I{} : top;
}

// Scratch of one pack, in values: messages of every existing level, two downward levels, and the star.
template <class P> struct Layout {
    int64_t nu[64]; // offset of each level
    int64_t mu[2];
    int64_t star; // per node and class: m_i(a) and the product of those before it (value, exponent)
    int64_t size;

    HF_INLINE explicit Layout(const hf_model& m) {
        int64_t at = 0, widest = m.alphabets[0];
        for (int d = m.filter_level; d <= m.depth; ++d) {
            const int64_t level = n_nodes(m, d) * m.alphabets[d];
            nu[d] = at;
            at += level;
            if (level > widest) widest = level;
        }
        mu[0] = at;
        mu[1] = at + widest;
        star = at + 2 * widest;
        const int64_t q0 = m.alphabets[0];
        size = star + 2 * q0; // the root's message and its belief
        if (m.filter_level > 0) size += (3 * n_nodes(m, m.filter_level) + 3 * 2) * q0;
    }
};

// The root of a filtered tree: its s^k children are independent given it.
template <class P> struct Star {
    using V = typename P::V;
    const hf_model& m;
    const typename P::Scalar* channels;
    int64_t n;
    int q0, qk;
    V* factor;             // m_i(a) = sum_c P_i[a, c] nu_i(c)
    WideNumber<P>* before; // prod_{j < i} m_j(a)
    WideNumber<P>* suffix; // prod_{j > i} m_j(a), then scratch

    HF_INLINE Star(const hf_model& model, V* scratch)
        : m(model), channels(Numbers<typename P::Scalar>::star(model)), n(n_nodes(model, model.filter_level)),
          q0(model.alphabets[0]), qk(model.alphabets[model.filter_level]), factor(scratch),
          before(reinterpret_cast<WideNumber<P>*>(scratch + n * q0)), suffix(before + n * q0) {}

    // Returns the exponent of prod_i max_a m_i(a), which no single class may reach.
    HF_INLINE typename P::I upward(const V* nu, WideNumber<P>* root) {
        WideNumber<P> best = WideNumber<P>::of(splat<P>(1));
        for (int a = 0; a < q0; ++a) root[a] = WideNumber<P>::of(splat<P>(1));
        for (int64_t i = 0; i < n; ++i) {
            const typename P::Scalar* p = channels + i * q0 * qk;
            for (int a = 0; a < q0; ++a) {
                V sum{};
                for (int c = 0; c < qk; ++c) sum = sum + p[a * qk + c] * nu[i * qk + c];
                factor[i * q0 + a] = sum;
                before[i * q0 + a] = root[a];
                root[a].multiply(sum);
            }
            V top = factor[i * q0];
            for (int a = 1; a < q0; ++a) top = larger(top, factor[i * q0 + a]);
            best.multiply(top);
        }
        return best.exponent;
    }

    // mu_i(c) = sum_a pi(a) prod_{j != i} m_j(a) P_i[a, c]
    HF_INLINE void downward(V* mu, V* weight, Range<P>& range) {
        const typename P::Scalar* prior = Numbers<typename P::Scalar>::prior(m);
        WideNumber<P>* product = suffix + q0;
        for (int a = 0; a < q0; ++a) suffix[a] = WideNumber<P>::of(splat<P>(prior[a]));
        for (int64_t i = n - 1; i >= 0; --i) {
            const typename P::Scalar* p = channels + i * q0 * qk;
            for (int a = 0; a < q0; ++a) {
                product[a] = suffix[a];
                product[a].multiply(before[i * q0 + a].value);
                product[a].exponent += before[i * q0 + a].exponent;
                suffix[a].multiply(factor[i * q0 + a]);
            }
            align<P>(product, q0, weight, range);
            V* out = mu + i * qk;
            for (int c = 0; c < qk; ++c) out[c] = V{};
            for (int a = 0; a < q0; ++a)
                for (int c = 0; c < qk; ++c) out[c] = out[c] + weight[a] * p[a * qk + c];
            rescale<P>(out, qk, range, range.smallest);
        }
        range.next_level();
    }
};

} // namespace HF_NAMESPACE
