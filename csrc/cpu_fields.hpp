// Evidence given as fields: loaded into lanes, and the last level of its downward pass.
#pragma once

#include "cpu_rows.hpp"
#include "tree_pairs.hpp"

namespace HF_NAMESPACE {
namespace {

// Leaves are handled a few at a time, all the way, so that what lies between two steps stays in the nearest cache: as
// many as have this many values a row, and at least one.
constexpr int64_t kValuesTogether = 64;

struct True {
    constexpr operator bool() const { return true; }
};
struct False {
    constexpr operator bool() const { return false; }
};

// Fields become numbers relative to the largest of their leaf, which goes into the log-evidence.
template <class P, int Q, class Field>
HF_NOINLINE void load_fields(const hf_model& m, const hf_infer_args& args, const Rows& rows, typename P::V* nu,
                             typename LaneType<double, P::lanes>::type& shift, Range<P>& range,
                             typename P::Scalar& bound, typename P::I& invalid) {
    using V = typename P::V;
    using T = typename P::Scalar;
    constexpr int N = P::lanes;
    using Given = typename LaneType<Field, N>::type; // a field in every lane
    using Wide = typename LaneType<decltype(T() + Field()), N>::type;
    const int64_t n = n_nodes(m, m.depth);
    const int q = Q > 0 ? Q : m.alphabets[m.depth];
    const Field* fields = static_cast<const Field*>(args.log_fields);
    const Field minus_infinity = -static_cast<Field>(__builtin_inf());
    const auto field = [&](int64_t at) {
        if constexpr (sizeof(Field) == sizeof(T)) return nu[at];
        else {
            Given h{};
            for (int l = 0; l < N; ++l) reinterpret_cast<Field*>(&h)[l] = fields[rows(l) * n * q + at];
            return h;
        }
    };
    const auto convert = [](auto from, auto like) {
        if constexpr (N == 1) return static_cast<decltype(like)>(from);
        else return __builtin_convertvector(from, decltype(like));
    };
    const int64_t pack_bytes = n * q * N * static_cast<int64_t>(sizeof(Field));
    const Field* next = rows.first + 2 * N <= args.n ? fields + (rows.first + N) * n * q : nullptr;
    const int64_t together = kValuesTogether > q ? kValuesTogether / q : 1; // leaves read at a time
    V sum{};                                                                // of all fields so relative: NaN if one is
    V lowest{}; // relative to the largest field of the leaf: of all fields, or of the finite ones if `careful`
    const auto all_leaves = [&](auto careful) {
        typename LaneType<double, N>::type tops{};
        lowest = V{};
        for (int64_t j = 0, loaded = 0; j < n; ++j) {
            if constexpr (sizeof(Field) == sizeof(T))
                if (j == loaded) {
                    loaded = j + 2 * together <= n ? j + together : n;
                    load_rows<P>(fields + j * q, n * q, rows, (loaded - j) * q, nu + j * q);
                }
            if (!careful && next) prefetch_rows(next, pack_bytes, j, n);
            V* out = nu + j * q;
            Given top = field(j * q);
            for (int x = 1; x < q; ++x) top = larger(top, field(j * q + x));
            top = top > minus_infinity ? top : Given{};
            tops += convert(top, typename LaneType<double, N>::type{});
            const Wide origin = convert(top, Wide{});
            V least{};
            for (int x = 0; x < q; ++x) {
                const Given h = field(j * q + x);
                const V below = convert(convert(h, Wide{}) - origin, V{});
                if constexpr (careful) {
                    const V excluded = convert(h > minus_infinity ? Given{} : Given{} + 1, V{});
                    least = smaller(least, excluded == 0 ? below : V{});
                } else {
                    least = smaller(least, below);
                }
                sum = sum + below;
                out[x] = exp_nonpositive<P>(below);
            }
            lowest = smaller(lowest, least);
        }
        shift = tops;
    };
    all_leaves(False{});
    // Something became zero? If it was finite, only too far below for the type, it must not pass for impossible.
    if (lowest_lane<P>(lowest) < Format<T>::exp_lowest) all_leaves(True{});
    invalid = as_mask<P>(sum != sum);
    range.lost |= as_mask<P>(lowest < splat<P>(Format<T>::exp_lowest));
    const V least = exp_nonpositive<P>(lowest);
    range.watch(least);
    bound = lowest_lane<P>(least > 0 ? least : splat<P>(1)); // what was lost needs no bound
}

// The last level downward, a few nodes at a time from the messages of their parents `mu` to what is stored of their
// leaves: beliefs or, if these are asked for instead, predictions that leave the leaf out. `out` is room for the
// messages of a level.
template <class P, int Q> HF_NOINLINE void last_level(const hf_model& m, const hf_infer_args& args, const Rows& rows,
                                                      const PairSquare<typename P::Scalar>& square,
                                                      const typename P::V* mu, const typename P::V* nu,
                                                      typename P::V* out, Range<P>& range, typename P::Scalar& bound) {
    using T = typename P::Scalar;
    const hf_level& level = m.levels[m.depth - 1];
    const int64_t n = n_nodes(m, m.depth - 1);
    const int q = Q > 0 ? Q : level.n_symbols;
    const bool without = args.leave_one_out != nullptr;
    T* to = static_cast<T*>(without ? args.leave_one_out : args.beliefs[m.depth]);
    const int64_t together = kValuesTogether > 2 * q ? kValuesTogether / (2 * q) : 1;
    LevelScale<P> scale(range, bound);
    for (int64_t i = 0; i < n;) {
        const int64_t end = i + 2 * together <= n ? i + together : n, leaves = 2 * (end - i);
        for (int64_t u = 0; i + u < end; ++u)
            downward_pairs<P, Q>(square, q, mu + (i + u) * level.n_parents, nu + 2 * (i + u) * q, out + 2 * u * q);
        scale.rescale(out, leaves, q);
        for (int64_t j = 0; j < leaves; ++j) {
            typename P::V* leaf = out + j * q;
            if (without) {
                normalise<P>(leaf, q, leaf);
                continue;
            }
            for (int x = 0; x < q; ++x) leaf[x] = nu[2 * i * q + j * q + x] * leaf[x];
            range.normalised(normalise<P>(leaf, q, leaf));
        }
        store_rows<P>(out, rows, 2 * n * q, leaves * q, to + 2 * i * q);
        i = end;
    }
    scale.finish(2 * n);
    range.next_level();
}

} // namespace
} // namespace HF_NAMESPACE
