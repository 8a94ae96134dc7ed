// Evidence given as fields: loaded into lanes, and the last level of its downward pass.
#pragma once

#include "cpu_rows.hpp"
#include "tree_pairs.hpp"

namespace HF_NAMESPACE {
namespace {

// Leaves are handled a few at a time, all the way, so that what lies between two steps stays in the nearest cache: as
// many as have this many values a row, and at least one.
constexpr int kValuesTogether = 64;

// Where what is said of the leaves goes: beliefs or, if these are asked for instead, predictions that leave the leaf
// out.
inline void* leaf_answer(const hf_model& m, const hf_infer_args& args) {
    return args.leave_one_out ? args.leave_one_out : args.beliefs ? args.beliefs[m.depth] : nullptr;
}

// The fields of a pack of rows, in lanes.
template <class P, int Q, class Field> struct Fields {
    using V = typename P::V;
    using T = typename P::Scalar;
    using Given = typename LaneType<Field, P::lanes>::type;
    using Doubles = typename LaneType<double, P::lanes>::type;
    using Wide = typename LaneType<decltype(T() + Field()), P::lanes>::type;
    static constexpr bool as_they_are = sizeof(Field) == sizeof(T);
    const Field* values;
    const Rows& rows;
    int64_t n, stride; // of leaves
    int q;
    V* nu; // where messages will be; before that, what was read of their leaves

    HF_INLINE Fields(const hf_model& m, const hf_infer_args& args, const Rows& r, Leaves leaves, V* out)
        : rows(r), n(leaves.n), stride(n_nodes(m, m.depth)), q(Q > 0 ? Q : m.alphabets[m.depth]), nu(out) {
        values = static_cast<const Field*>(args.log_fields) + leaves.first * q;
    }

    // Those of leaves j to end, to be asked for.
    HF_INLINE void read(int64_t j, int64_t end) const {
        if constexpr (as_they_are) load_rows<P>(values + j * q, stride * q, rows, (end - j) * q, nu + j * q);
    }
    HF_INLINE Given of(int64_t j, int x) const {
        if constexpr (as_they_are) return nu[j * q + x];
        else {
            Given h{};
            for (int l = 0; l < P::lanes; ++l) reinterpret_cast<Field*>(&h)[l] = values[(rows(l) * stride + j) * q + x];
            return h;
        }
    }
    // The largest of a leaf; `least` if all are below. Never -0: what is subtracted from it leaves no -0 either.
    HF_INLINE Given top(int64_t j, Field least) const {
        Given largest = Given{} + least;
        for (int x = 0; x < q; ++x) largest = larger(largest, of(j, x));
        return largest + Field(0);
    }
    static HF_INLINE V distance(Given top, Given h) {
        return convert_lanes<V, P::lanes>(convert_lanes<Wide, P::lanes>(top) - convert_lanes<Wide, P::lanes>(h));
    }
};

// Fields so far apart that a message has zeros. Returns how far the finite ones are from the largest of their leaf;
// `shift` has the sum of these added.
template <class P, int Q, class Field>
HF_NOINLINE typename P::V load_far_fields(const Fields<P, Q, Field>& fields, typename P::Int lift,
                                          typename LaneType<double, P::lanes>::type& shift) {
    using F = Fields<P, Q, Field>;
    const Field infinity = static_cast<Field>(__builtin_inf());
    typename P::V farthest{};
    fields.read(0, fields.n);
    for (int64_t j = 0; j < fields.n; ++j) {
        typename F::Given top = fields.top(j, -infinity);
        top = top > -infinity ? top : typename F::Given{};
        shift += convert_lanes<typename F::Doubles, P::lanes>(top);
        for (int x = 0; x < fields.q; ++x) {
            const typename F::Given h = fields.of(j, x);
            const typename P::V distance = F::distance(top, h);
            farthest = larger(farthest, F::distance(h > -infinity ? top : typename F::Given{},
                                                    h > -infinity ? h : typename F::Given{}));
            fields.nu[j * fields.q + x] = exp_nonpositive<P>(-distance, lift);
        }
    }
    return farthest;
}

// Fields become numbers relative to the largest of their leaf, which goes into the log-evidence; the largest is
// 2^lift then.
template <class P, int Q, class Field>
HF_NOINLINE void load_fields(const hf_model& m, const hf_infer_args& args, const Rows& rows, Leaves leaves,
                             typename P::V* nu, typename P::Int lift, typename LaneType<double, P::lanes>::type& shift,
                             Range<P>& range, typename P::Scalar& bound, typename P::I& invalid) {
    using V = typename P::V;
    using T = typename P::Scalar;
    using F = Fields<P, Q, Field>;
    const F fields(m, args, rows, leaves, nu);
    const int64_t n = fields.n;
    const int q = fields.q;
    const int64_t together = kValuesTogether > q ? kValuesTogether / q : 1; // leaves read at a time
    // What lies together is asked for long before it is read, or written to.
    const bool whole = n == fields.stride;
    const Field* next =
        whole && rows.first + 2 * P::lanes <= args.n ? fields.values + (rows.first + P::lanes) * n * q : nullptr;
    const T* answer = static_cast<const T*>(leaf_answer(m, args));
    if (answer) answer = whole && rows.count == P::lanes ? answer + rows.first * n * q : nullptr;
    V farthest{}; // from the largest field of the leaf
    typename F::Doubles tops = shift;
    for (int64_t j = 0; j < n;) {
        const int64_t end = j + 2 * together <= n ? j + together : n;
        fields.read(j, end);
        for (; j < end; ++j) {
            const int64_t begin = j * q * P::lanes, size = q * P::lanes; // a leaf's share of the pack's memory
            if (next) prefetch(next + begin, size);
            if (answer) prefetch<true>(answer + begin, size);
            const typename F::Given top = fields.top(j, Format<Field>::lowest);
            tops += convert_lanes<typename F::Doubles, P::lanes>(top);
            for (int x = 0; x < q; ++x) {
                const V distance = F::distance(top, fields.of(j, x));
                farthest = larger_or_nan<P>(farthest, distance);
                nu[j * q + x] = exp_minus<P>(distance, lift);
            }
        }
    }
    invalid |= as_mask<P>(farthest != farthest);
    farthest = farthest == farthest ? farthest : V{};
    // Something became zero? If it was finite, only too far below for the type, it must not pass for impossible.
    const T lowest = exp_lowest<T>(lift);
    if (lowest_lane<P>(-farthest) < lowest) farthest = load_far_fields(fields, lift, shift);
    else shift = tops;
    range.lost |= as_mask<P>(-farthest < splat<P>(lowest));
    const V least = exp_nonpositive<P>(-farthest, lift), scale = power_of_two<P>(splat_int<P>(-lift));
    range.watch(least);
    bound = lowest_lane<P>(least > 0 ? least * scale : splat<P>(1)); // what was lost needs no bound
}

// Divides by the sum, as `normalise` does, but adds in another order and looks for certainty where there may be one.
template <class P> HF_INLINE typename P::V normalise_soft(typename P::V* x, int q) {
    if (q == 1) return normalise<P>(x, q, x);
    typename P::V low = x[0], high = x[q - 1];
    for (int a = 1; a < q / 2; ++a) low = low + x[a];
    for (int a = q / 2; a < q - 1; ++a) high = high + x[a];
    const typename P::V sum = low + high, inverse = splat<P>(1) / sum;
    if (meets<P>(low, sum) || meets<P>(high, sum)) return divide<P>(x, q, sum, inverse, x);
    for (int a = 0; a < q; ++a) x[a] = x[a] * inverse;
    return sum;
}

// The last level downward, a few nodes at a time from the messages of their parents `mu` to what is stored of their
// leaves. `out` is room for the messages of a level.
template <class P, int Q> HF_NOINLINE void last_level(const hf_model& m, const hf_infer_args& args, const Rows& rows,
                                                      Leaves all, const PairSquare<P>& square, const typename P::V* mu,
                                                      const typename P::V* nu, typename P::V* out, Range<P>& range,
                                                      typename P::Scalar& bound, Scaling<P> scaling) {
    using T = typename P::Scalar;
    const hf_level& level = m.levels[m.depth - 1];
    const int q = Q > 0 ? Q : level.n_symbols;
    const int64_t n = all.n / 2, stride = n_nodes(m, m.depth) * q;
    const bool without = args.leave_one_out != nullptr;
    T* to = static_cast<T*>(leaf_answer(m, args)) + all.first * q;
    const int64_t together = kValuesTogether > 2 * q ? kValuesTogether / (2 * q) : 1; // nodes
    LevelScale<P> scale(range, bound, scaling);
    typename P::V least = splat<P>(-Format<T>::lowest); // of the sums
    for (int64_t i = 0; i < n;) {
        const int64_t end = i + 2 * together <= n ? i + together : n, leaves = 2 * (end - i);
        const auto down = [&](int64_t u, auto nodes) {
            constexpr int size = Q > 0 ? 2 * nodes.size * Q : 1; // what the compiler knows stays in registers
            typename P::V known[size], *leaf = Q > 0 ? known : out + 2 * u * q;
            downward_pairs<P, Q, nodes.size>(square, level.n_parents, q, mu + (i + u) * level.n_parents,
                                             nu + 2 * (i + u) * q, leaf);
            scale.rescale(leaf, 2 * nodes.size, q);
            for (int j = 0; j < 2 * nodes.size; ++j, leaf += q) {
                if (!without)
                    for (int x = 0; x < q; ++x) leaf[x] = nu[2 * (i + u) * q + j * q + x] * leaf[x];
                least = smaller(least, normalise_soft<P>(leaf, q));
            }
            if constexpr (Q > 0)
                for (int x = 0; x < size; ++x) out[2 * u * q + x] = known[x];
        };
        int64_t u = 0;
        for (; i + u + kPairsDown<Q> <= end; u += kPairsDown<Q>) down(u, Fixed<kPairsDown<Q>>());
        if (i + u < end) down(u, Fixed<1>());
        store_rows<P>(out, rows, stride, leaves * q, to + 2 * i * q);
        i = end;
    }
    scale.finish(2 * n);
    range.normalised(least);
    range.next_level(scaling.lift * (without ? 1 : 2));
}

} // namespace
} // namespace HF_NAMESPACE
