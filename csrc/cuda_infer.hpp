// Inference for any tree: a block takes a few rows, its threads take the nodes of a level, and a
// barrier stands between levels. Threads of one warp take neighbouring rows first, so that small trees
// run a warp over one node of 32 rows, and a deep tree has a whole block to itself.
//
// A thread calls the text of tree_kernels.hpp for one node at a time. P computes, Out is what the
// results are stored as; S is the arity where it is known (2), else 0.
#pragma once

#include "cuda_wide.hpp"

namespace HF_NAMESPACE {

// What a block knows of a row; several threads write, integers only.
struct RowState {
    int64_t total; // exponents taken out
    int64_t extra; // bits of cancellation inside a star
    int32_t danger, empty, invalid, unused;
};

// Where things lie in the scratch of a row, in values; computed on the host (cuda_plan.hpp).
struct InferPlan {
    int64_t nu[kMaxLevels], mu[2];
    int64_t factor, before, chunk, prefix, suffix, product, root; // of the star, and the root's message
    int64_t stride;                                               // from row to row
    int64_t chunk_nodes, chunks;                                  // the star's nodes, in runs of one thread
    int32_t rows;                                                 // that a block takes at a time
    int32_t deepest;                                              // level the downward pass must reach
    int32_t phases, slots;
    int32_t in_shared; // scratch lies in shared memory, otherwise in `scratch`
    int32_t state_bytes;
};

template <class P, class Out, int S> struct Infer {
    using V = typename P::V;
    using T = typename P::Scalar;
    static constexpr int kMaxThreads = 256;

    struct Args {
        const hf_model* model;
        InferCall call;
        InferPlan plan;
        const int64_t* again; // null: all rows; else [0] how many, [1 …] which
        void* scratch;
    };

    static HF_INLINE int64_t count(const Args& args) { return args.again ? args.again[0] : args.call.n; }

    static HF_INLINE int64_t phases(const Args& args, const Launch& l) {
        const int64_t groups = (count(args) + args.plan.rows - 1) / args.plan.rows;
        return groups <= l.block ? 0 : ((groups - 1 - l.block) / l.grid + 1) * args.plan.phases;
    }

    static HF_INLINE void phase(int64_t p, const Args& args, const Launch& l) {
        const int64_t round = p / args.plan.phases;
        Infer thread(args, l, (l.block + round * l.grid) * args.plan.rows);
        if (thread.row >= 0) thread.step(static_cast<int>(p - round * args.plan.phases));
    }

  private:
    HF_INLINE Infer(const Args& args, const Launch& l, int64_t first)
        : call(args.call), plan(args.plan), m(*args.model), local(l.thread % plan.rows), member(l.thread / plan.rows),
          members(l.threads / plan.rows) {
        const int64_t at = first + local;
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

    HF_INLINE void step(int s) const {
        const int k = m.filter_level, up = m.depth - k;
        if (s-- == 0) return clear();
        if (s-- == 0) return call.tokens ? leaves_from_tokens() : leaves_from_fields();
        if (s < up) return upward(m.depth - 1 - s);
        s -= up;
        if (k > 0) {
            if (s-- == 0) return factors();
            if (s-- == 0) return chunk_products();
        }
        if (s-- == 0) return root();
        if (k > 0 && plan.deepest > 0 && s-- == 0) return star_downward();
        if (k + s < plan.deepest) return downward(k + s, s & 1);
        finish();
    }

    HF_INLINE void clear() const {
        for (int i = member; i < plan.slots; i += members) slots[i] = 0;
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
            upward_nodes<P, S, 0, 1>(level, m.arity, at(plan.nu[d + 1]) + i * children, nu);
            exponents += watch.rescale(nu, level.n_parents);
        }
        if (exponents) add_to(&state().total, exponents);
        note(watch, d);
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
                for (int c = 0; c < qk; ++c) sum = sum + p[a * qk + c] * nu[c];
                at(plan.factor)[i * q0 + a] = sum;
            }
        }
    }

    HF_INLINE void chunk_products() const {
        const int q0 = m.alphabets[0];
        const int64_t n = n_nodes(m, m.filter_level);
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
                out[q0].multiply(top);
            }
        }
    }

    // ------------------------------------------------------------------------------------ root

    HF_INLINE void root() const {
        if (member != 0) return;
        const int q0 = m.alphabets[0];
        const T* prior = Numbers<T>::prior(m);
        Watch<P> watch = new_watch();
        V* x = at(plan.root);
        if (m.filter_level > 0) star_upward(x, watch);
        else
            for (int a = 0; a < q0; ++a) x[a] = at(plan.nu[0])[a] * prior[a];
        V evidence = x[0];
        for (int a = 1; a < q0; ++a) evidence = evidence + x[a];
        watch.normalised(evidence);
        note(watch, m.depth);
        Out* out = static_cast<Out*>(call.root);
        const V inverse = inverse_sum(evidence);
        if (out)
            for (int a = 0; a < q0; ++a) out[row * q0 + a] = result(share(x[a], evidence, inverse));
        if (call.log_evidence) {
            double shift = 0;
            for (int i = 0; i < members; ++i) shift += shifts[i * plan.rows + local];
            call.log_evidence[row] = state().invalid ? NAN : log_of(evidence, state().total) + shift;
        }
    }

    HF_INLINE void star_upward(V* x, Watch<P>& watch) const {
        const int q0 = m.alphabets[0];
        const T* prior = Numbers<T>::prior(m);
        const WideNumber<P>* chunk = wide_at(plan.chunk);
        WideNumber<P>* product = wide_at(plan.product); // q0 + 1
        const bool below = state().danger;
        for (int a = 0; a <= q0; ++a) product[a] = WideNumber<P>::of(splat<P>(1));
        for (int64_t c = 0; c < plan.chunks; ++c)
            for (int a = 0; a <= q0; ++a) {
                if (plan.deepest > 0 && a < q0) wide_at(plan.prefix)[c * q0 + a] = product[a];
                times<P>(product[a], chunk[c * (q0 + 1) + a]);
            }
        const int64_t best = exponent_of<P>(product[q0]);
        for (int a = 0; a < q0; ++a) product[a].multiply(splat<P>(prior[a]));
        const int64_t top = watch.align(product, q0, x);
        state().total += top;
        // What was lost below the star, the disagreement of its classes brings forth.
        if (below && best > top) state().extra = best - top;
        if (plan.deepest == 0) return;
        for (int a = 0; a < q0; ++a) product[a] = WideNumber<P>::of(splat<P>(prior[a]));
        for (int64_t c = plan.chunks - 1; c >= 0; --c)
            for (int a = 0; a < q0; ++a) {
                wide_at(plan.suffix)[c * q0 + a] = product[a];
                times<P>(product[a], chunk[c * (q0 + 1) + a]);
            }
    }

    // -------------------------------------------------------------------------------- downward

    // mu_i(c) = sum_a pi(a) prod_{j != i} m_j(a) P_i[a, c]; a thread takes a run of nodes.
    HF_INLINE void star_downward() const {
        const int k = m.filter_level, q0 = m.alphabets[0], qk = m.alphabets[k];
        const int64_t n = n_nodes(m, k);
        Watch<P> watch = new_watch(), beliefs = watch;
        for (int64_t c = member; c < plan.chunks; c += members) {
            WideNumber<P>* before = wide_at(plan.prefix) + c * q0;
            WideNumber<P>* after = wide_at(plan.suffix) + c * q0;
            const int64_t begin = c * plan.chunk_nodes, end = smaller<int64_t>(n, begin + plan.chunk_nodes);
            for (int64_t i = begin; i < end; ++i)
                for (int a = 0; a < q0; ++a) {
                    wide_at(plan.before)[i * q0 + a] = before[a];
                    before[a].multiply(at(plan.factor)[i * q0 + a]);
                }
            for (int64_t i = end - 1; i >= begin; --i) {
                const T* p = Numbers<T>::star(m) + i * q0 * qk;
                // The products of the other nodes, in place of what came before this one.
                WideNumber<P>* product = wide_at(plan.before) + i * q0;
                V* factor = at(plan.factor) + i * q0;
                for (int a = 0; a < q0; ++a) {
                    const WideNumber<P> left = product[a];
                    product[a] = after[a];
                    times<P>(product[a], left);
                    after[a].multiply(factor[a]);
                }
                V* weight = factor; // no longer needed
                watch.align(product, q0, weight);
                V* out = at(plan.mu[0]) + i * qk;
                for (int b = 0; b < qk; ++b) out[b] = V{};
                for (int a = 0; a < q0; ++a)
                    for (int b = 0; b < qk; ++b) out[b] = out[b] + weight[a] * p[a * qk + b];
                watch.rescale(out, qk);
                emit(k, i, at(plan.nu[k]) + i * qk, out, beliefs);
            }
        }
        note(watch, m.depth + 1);
        note(beliefs, m.depth + 2);
    }

    HF_INLINE void downward(int d, int from) const {
        const hf_level& level = m.levels[d];
        const int s = m.arity, qc = level.n_symbols;
        const int64_t n = n_nodes(m, d);
        const V* mu = at(plan.mu[from]);
        Watch<P> watch = new_watch(), beliefs = watch;
        if (d == 0) { // the root's message is its prior
            const T* prior = Numbers<T>::prior(m);
            V* own = at(plan.root);
            if (member == 0)
                for (int a = 0; a < m.alphabets[0]; ++a) own[a] = splat<P>(prior[a]);
            mu = own;
        }
        for (int64_t i = member; i < n; i += members) {
            const V* nu_below = at(plan.nu[d + 1]) + i * s * qc;
            V* mu_below = at(plan.mu[1 - from]) + i * s * qc;
            downward_nodes<P, S, 0, 1>(level, s, mu + i * level.n_parents, nu_below, mu_below);
            for (int r = 0; r < s; ++r) {
                watch.rescale(mu_below + r * qc, qc);
                emit(d + 1, i * s + r, nu_below + r * qc, mu_below + r * qc, beliefs);
            }
        }
        note(watch, m.depth + 3 + 2 * d);
        note(beliefs, m.depth + 4 + 2 * d);
    }

    // A node's belief nu * mu, and at a leaf mu alone, as far as they are wanted.
    HF_INLINE void emit(int d, int64_t i, const V* nu, const V* mu, Watch<P>& beliefs) const {
        const int q = m.alphabets[d];
        const int64_t where = (row * n_nodes(m, d) + i) * q;
        if (Out* out = static_cast<Out*>(call.beliefs[d])) {
            V sum = nu[0] * mu[0];
            for (int x = 1; x < q; ++x) sum = sum + nu[x] * mu[x];
            const V inverse = inverse_sum(sum);
            for (int x = 0; x < q; ++x) out[where + x] = result(share(nu[x] * mu[x], sum, inverse));
            beliefs.normalised(sum);
        }
        if (d == m.depth && call.leave_one_out) {
            Out* out = static_cast<Out*>(call.leave_one_out);
            V sum = mu[0];
            for (int x = 1; x < q; ++x) sum = sum + mu[x];
            const V inverse = inverse_sum(sum);
            for (int x = 0; x < q; ++x) out[where + x] = result(share(mu[x], sum, inverse));
        }
    }

    HF_INLINE Out result(V x) const { return state().invalid ? static_cast<Out>(NAN) : static_cast<Out>(to_double(x)); }

    HF_INLINE void finish() const {
        if (member != 0 || !call.suspects) return;
        int64_t spent = state().extra;
        for (int i = 0; i < plan.slots; ++i) spent += slots[i];
        const bool doubtful = state().danger && (spent > Numbers<T>::slack(m) || state().empty);
        if ((doubtful && !state().invalid) || call.suspect_all) suspect(call, row);
    }
};

} // namespace HF_NAMESPACE
