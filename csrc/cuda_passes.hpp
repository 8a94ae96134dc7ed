// What every inference on any tree begins with: evidence into messages, messages up to the root. A block takes a few
// rows, its threads take the nodes of a level, and a barrier stands between levels. Threads of one warp take
// neighbouring rows first, so that small trees run a warp over one node of 32 rows, and a deep tree has a whole block
// to itself. cuda_infer.hpp goes down again with beliefs, cuda_choose.hpp with whole trees.
//
// A thread calls the text of tree_kernels.hpp for one node at a time. P computes; S is the arity where it is known
// (2), else 0.
#pragma once

#include "cuda_wide.hpp"
#include "tree_choose.hpp"

namespace HF_NAMESPACE {

// What a block knows of a row; several threads write, integers only.
struct RowState {
    int64_t total; // exponents taken out
    int64_t extra; // bits of cancellation inside a star
    int32_t danger, empty, invalid, impossible;
};

// Where things lie in the scratch of a row, in values; computed on the host (cuda_plan.hpp).
struct InferPlan {
    int64_t nu[kMaxLevels], mu[2];
    int64_t factor, before, chunk, prefix, suffix, product, root; // of the star, and the root's message
    int64_t inverse, counts;                                      // of the nodes of a level; of the rules, by part
    int64_t symbols;                                              // of trees, two levels, as uint16_t
    int64_t stride;                                               // from row to row
    int64_t chunk_nodes, chunks;                                  // the star's nodes, in runs of one thread
    int64_t group;                                                // of the star's nodes that know of each other
    int64_t phases;
    int32_t rows;        // that a block takes at a time
    int32_t top;         // first level whose messages come from its rules: the filter level, or that of a window
    int32_t star;        // whether the filter level's nodes meet in the root
    int32_t deepest;     // level the downward pass must reach
    int32_t count_parts; // nodes of a level, for the counts of rules
    int32_t at_once;     // trees chosen together
    int32_t slots;
    int32_t in_shared; // scratch lies in shared memory, otherwise in `scratch`
    int32_t state_bytes;
};

struct PassArgs {
    const hf_model* model;
    InferCall call;
    InferPlan plan;
    const int64_t* again; // null: all rows; else [0] how many, [1 …] which
    void* scratch;
};

template <class P, int S> struct Passes {
    using V = typename P::V;
    using T = typename P::Scalar;
    static constexpr int kMaxThreads = 256;

    static HF_INLINE int64_t count(const PassArgs& args) { return args.again ? args.again[0] : args.call.n; }

    static HF_INLINE int64_t phases(const PassArgs& args, const Launch& l) {
        const int64_t groups = (count(args) + args.plan.rows - 1) / args.plan.rows;
        return groups <= l.block ? 0 : ((groups - 1 - l.block) / l.grid + 1) * args.plan.phases;
    }

  protected:
    HF_INLINE Passes(const PassArgs& args, const Launch& l, int64_t round)
        : call(args.call), plan(args.plan), m(*args.model), local(l.thread % plan.rows), member(l.thread / plan.rows),
          members(l.threads / plan.rows) {
        const int64_t at = (l.block + round * l.grid) * plan.rows + local;
        row = at >= count(args) ? -1 : args.again ? args.again[1 + at] : at;
        shifts = reinterpret_cast<double*>(l.shared);
        states = reinterpret_cast<RowState*>(shifts + l.threads);
        slots = reinterpret_cast<int32_t*>(states + plan.rows) + local * plan.slots;
        V* base = plan.in_shared ? reinterpret_cast<V*>(l.shared + plan.state_bytes)
                                 : static_cast<V*>(args.scratch) + l.block * plan.rows * plan.stride;
        scratch = base + local * plan.stride;
    }

    const InferCall& call;
    const InferPlan& plan;
    const hf_model& m;
    int local, member, members; // which row of the block's, which of its threads, of how many
    int64_t row;
    double* shifts; // per thread: largest fields taken out
    RowState* states;
    int32_t* slots; // per level: bits of cancellation
    V* scratch;

    HF_INLINE RowState& state() const { return states[local]; }
    HF_INLINE V* at(int64_t offset) const { return scratch + offset; }
    HF_INLINE WideNumber<P>* wide_at(int64_t offset) const {
        return reinterpret_cast<WideNumber<P>*>(scratch + offset);
    }

    // The phases up to the root's, which is left to the caller; false: done, and s is what phase comes after.
    HF_INLINE bool rising(int64_t& s) const {
        const int up = m.depth - plan.top;
        if (s == 0) return clear(), true;
        if (s == 1) return call.tokens ? leaves_from_tokens() : leaves_from_fields(), true;
        s -= 2;
        if (s < up) return upward(m.depth - 1 - static_cast<int>(s)), true;
        s -= up;
        if (!plan.star) return false;
        if (s == 0) return factors(), true;
        if (s == 1) return chunk_products(), true;
        s -= 2;
        return false;
    }

    HF_INLINE void clear() const {
        for (int i = member; i < plan.slots; i += members) slots[i] = 0;
        if (call.counts)
            for (int64_t x = member; x < int64_t(m.n_counts) * plan.count_parts; x += members) at(plan.counts)[x] = V{};
        if (member == 0) state() = RowState{};
    }

    // Enters what this thread saw of the row's range in one level.
    HF_INLINE void note(const Watch<P>& watch, int slot) const {
        if (watch.danger) raise_to(&state().danger, 1);
        if (watch.empty) raise_to(&state().empty, 1);
        if (watch.spent > 0) raise_to(&slots[slot], static_cast<int32_t>(smaller<int64_t>(watch.spent, 1 << 30)));
    }
    HF_INLINE Watch<P> new_watch() const { return Watch<P>(Numbers<T>::tiny(m)); }

    // ---------------------------------------------------------------------------------- leaves

    HF_INLINE void leaves_from_tokens() const {
        const int64_t n = n_nodes(m, m.depth);
        const int q = m.alphabets[m.depth];
        V* nu = at(plan.nu[m.depth]);
        for (int64_t j = member; j < n; j += members) {
            const int64_t where = row * n + j;
            const int token = call.token_bytes == 1 ? static_cast<const uint8_t*>(call.tokens)[where]
                                                    : static_cast<const uint16_t*>(call.tokens)[where];
            if (token > q) raise_to(&state().invalid, 1);
            const bool hidden = token >= q || (call.mask && call.mask[where]);
            for (int x = 0; x < q; ++x) nu[j * q + x] = hidden || token == x ? splat<P>(1) : V{};
        }
        if (member == 0) note(new_watch(), 0);
        shifts[member * plan.rows + local] = 0;
    }

    HF_INLINE void leaves_from_fields() const {
        if (call.field_bytes == 4) fields(static_cast<const float*>(call.log_fields));
        else fields(static_cast<const double*>(call.log_fields));
    }

    template <class Field> HF_INLINE void fields(const Field* log_fields) const {
        const int64_t n = n_nodes(m, m.depth);
        const int q = m.alphabets[m.depth];
        const Field infinity = static_cast<Field>(INFINITY);
        Watch<P> watch = new_watch();
        double shift = 0;
        for (int64_t j = member; j < n; j += members) {
            const Field* h = log_fields + (row * n + j) * q;
            V* out = at(plan.nu[m.depth]) + j * q;
            Field top = h[0];
            for (int x = 0; x < q; ++x) {
                top = larger(top, h[x]);
                if (!(h[x] < infinity)) raise_to(&state().invalid, 1);
            }
            if (!(top > -infinity)) top = 0;
            shift += static_cast<double>(top);
            for (int x = 0; x < q; ++x) out[x] = weight(h[x], top, watch);
        }
        shifts[member * plan.rows + local] = shift;
        note(watch, 0);
    }

    template <class Field> static HF_INLINE V weight(Field h, Field top, Watch<P>& watch) {
        if constexpr (sizeof(V) > sizeof(double)) {
            return wide_exp(static_cast<double>(h) - static_cast<double>(top));
        } else {
            using Sum = decltype(T() + Field());
            const T lowest = T(4) * Format<T>::exp_lowest, infinity = static_cast<T>(INFINITY);
            T below = static_cast<T>(Sum(h) - Sum(top));
            // A finite field may be too far below for the type: it must not pass for impossible.
            if (h > -static_cast<Field>(INFINITY) && !(below > lowest)) below = lowest;
            const T x = exp_nonpositive<P>(below);
            watch.entry(x);
            watch.danger |= x == 0 && below > -infinity;
            return x;
        }
    }

    // ---------------------------------------------------------------------------------- upward

    HF_INLINE void upward(int d) const {
        const hf_level& level = m.levels[d];
        const int64_t n = n_nodes(m, d), children = int64_t(m.arity) * level.n_symbols;
        int64_t exponents = 0;
        Watch<P> watch = new_watch();
        for (int64_t i = member; i < n; i += members) {
            V* nu = at(plan.nu[d]) + i * level.n_parents;
            if (call.best) best_node(level, at(plan.nu[d + 1]) + i * children, nu);
            else upward_nodes<P, S, 0, 1>(level, m.arity, at(plan.nu[d + 1]) + i * children, nu);
            exponents += watch.rescale(nu, level.n_parents);
        }
        if (exponents) add_to(&state().total, exponents);
        note(watch, d);
    }

    // Max-product: the largest of the terms.
    HF_INLINE void best_node(const hf_level& level, const V* child, V* nu) const {
        for (int a = 0; a < level.n_parents; ++a) {
            V top{};
            for (int rule = level.first[a]; rule < level.first[a + 1]; ++rule)
                top = larger(top, carried<P, S>(level, m.arity, rule, child));
            nu[a] = top;
        }
    }

    // The star: m_i(a) = sum_c P_i[a, c] nu_i(c), and its products over runs of nodes.
    HF_INLINE void factors() const {
        const int k = m.filter_level, q0 = m.alphabets[0], qk = m.alphabets[k];
        const int64_t n = n_nodes(m, k);
        for (int64_t i = member; i < n; i += members) {
            const T* p = Numbers<T>::star(m) + i * q0 * qk;
            const V* nu = at(plan.nu[k]) + i * qk;
            for (int a = 0; a < q0; ++a) {
                V sum{};
                for (int c = 0; c < qk; ++c) {
                    const V x = p[a * qk + c] * nu[c];
                    sum = call.best ? larger(sum, x) : sum + x;
                }
                at(plan.factor)[i * q0 + a] = sum;
            }
        }
    }

    HF_INLINE void chunk_products() const {
        const int q0 = m.alphabets[0];
        const int64_t n = n_nodes(m, m.filter_level);
        auto watch = new_watch();
        for (int64_t c = member; c < plan.chunks; c += members) {
            WideNumber<P>* out = wide_at(plan.chunk) + c * (q0 + 1); // one per class, and that of the largest factors
            for (int a = 0; a <= q0; ++a) out[a] = WideNumber<P>::of(splat<P>(1));
            const int64_t end = smaller<int64_t>(n, (c + 1) * plan.chunk_nodes);
            for (int64_t i = c * plan.chunk_nodes; i < end; ++i) {
                const V* factor = at(plan.factor) + i * q0;
                V top = factor[0];
                for (int a = 0; a < q0; ++a) {
                    out[a].multiply(factor[a]);
                    if constexpr (sizeof(V) <= sizeof(double)) top = larger(top, factor[a]);
                }
                if constexpr (Watch<P>::bounded) watch.normalising(top);
                out[q0].multiply(top);
            }
        }
        note(watch, plan.slots - 1);
    }

    // ------------------------------------------------------------------------------------ root

    // The root's weights; for one thread.
    HF_INLINE void weigh_root(V* x, Watch<P>& watch) const {
        if (plan.star) return star_products(x, watch);
        for (int a = 0; a < m.alphabets[0]; ++a) x[a] = at(plan.nu[0])[a] * Numbers<T>::prior(m)[a];
    }

    HF_INLINE double logarithm(V evidence) const {
        double shift = 0;
        for (int i = 0; i < members; ++i) shift += shifts[i * plan.rows + local];
        return state().invalid ? NAN : log_of(evidence, state().total) + shift;
    }

    // How many powers of two a window's classes stay behind what no single one may reach.
    HF_INLINE int64_t disagreement(const WideNumber<P>* product) const {
        const int q0 = m.alphabets[0];
        int64_t reached = -(int64_t(1) << 30);
        for (int a = 0; a < q0; ++a) {
            WideNumber<P> x = product[a];
            x.multiply(splat<P>(Numbers<T>::prior(m)[a]));
            if (!is_zero(x.value)) reached = larger<int64_t>(reached, exponent_of<P>(x));
        }
        return exponent_of<P>(product[q0]) - reached;
    }

    // Of all nodes of the star, or of each group of them: what a run of nodes has before it and after it.
    HF_INLINE void star_products(V* x, Watch<P>& watch) const {
        const int q0 = m.alphabets[0];
        const T* prior = Numbers<T>::prior(m);
        const WideNumber<P>* chunk = wide_at(plan.chunk);
        WideNumber<P>* product = wide_at(plan.product); // q0 + 1
        const bool below = state().danger;
        for (int64_t c = 0; c < plan.chunks; ++c) {
            for (int a = 0; a <= q0; ++a) {
                if (c * plan.chunk_nodes % plan.group == 0) product[a] = WideNumber<P>::of(splat<P>(1));
                if (plan.deepest > 0 && a < q0) wide_at(plan.prefix)[c * q0 + a] = product[a];
                times<P>(product[a], chunk[c * (q0 + 1) + a]);
            }
            if (call.window > 0 && below && (c + 1) * plan.chunk_nodes % plan.group == 0)
                state().extra = larger(state().extra, disagreement(product));
        }
        if (call.window == 0) {
            const int64_t best = exponent_of<P>(product[q0]);
            for (int a = 0; a < q0; ++a) product[a].multiply(splat<P>(prior[a]));
            const int64_t top = watch.align(product, q0, x);
            state().total += top;
            // What was lost below the star, the disagreement of its classes brings forth.
            if (below && best > top) state().extra = best - top;
        }
        if (plan.deepest == 0) return;
        for (int64_t c = plan.chunks - 1; c >= 0; --c)
            for (int a = 0; a < q0; ++a) {
                if (c == plan.chunks - 1 || (c + 1) * plan.chunk_nodes % plan.group == 0)
                    product[a] = WideNumber<P>::of(splat<P>(prior[a]));
                wide_at(plan.suffix)[c * q0 + a] = product[a];
                if (!call.causal) times<P>(product[a], chunk[c * (q0 + 1) + a]);
            }
    }

    // ----------------------------------------------------------------------------------- finish

    HF_INLINE void report() const {
        if (member != 0 || !call.suspects) return;
        int64_t spent = state().extra;
        for (int i = 0; i < plan.slots; ++i) spent += slots[i];
        const bool doubtful = state().danger && (spent > Numbers<T>::slack(m) || state().empty);
        if ((doubtful && !state().invalid) || call.suspect_all) suspect(call, row);
    }
};

} // namespace HF_NAMESPACE
