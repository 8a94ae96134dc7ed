// The posterior of stored rows: a lane is a question, and every stored row is weighed for all lanes.
//
// Positions are cut into groups, and each group's strings that occur are numbered (hfilter/diffusion/strings.py): a row
// is a few numbers. Rows that share their first groups, the head, follow each other in a run.
//
// Where some row is not much worse than the best strings put together, its weight is the product of its strings'
// weights, relative to the best string of each group: one or two products a row and no exponential. Lanes where this
// leaves too little (evidence far from every row) are done again in logarithms, relative to the best row. Which way a
// lane goes depends on that lane alone.
#pragma once

#include "exp_log.hpp"
#include "hfilter.h"
#include "subnormals.hpp"

#include <initializer_list>
#include <math.h>

namespace HF_NAMESPACE {
namespace { // templates that are not inlined stay in their object

template <class P> struct EmpiricalLayout {
    int64_t fields, strings; // in packs
    size_t bytes;
    explicit EmpiricalLayout(const hf_empirical_args& args)
        : fields(0), strings(args.length * args.vocab_size),
          bytes(static_cast<size_t>(strings + 2 * args.n_strings) * sizeof(typename P::V)) {}
};

template <class Mask> HF_INLINE bool any_lane(const Mask& mask) {
    uint64_t words[(sizeof(Mask) + 7) / 8] = {}, any = 0;
    __builtin_memcpy(words, &mask, sizeof(Mask));
    for (const uint64_t word : words) any |= word;
    return any != 0;
}
template <class V> HF_INLINE bool any_above(const V& a, const V& b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(a[0]) == 4) return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ) != 0;
    else return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
    if constexpr (sizeof(a[0]) == 4) return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ)) != 0;
    else return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_GT_OQ)) != 0;
#else
    return any_lane(a > b);
#endif
}

// exp(x) for x up to a little above 0, to 2e-7 of it near 0 and 5e-6 at the low end, where weights no longer count;
// exactly 0 below. A few steps shorter than exp_nonpositive, which serves double precision.
template <class P> HF_INLINE typename P::V weight_of(typename P::V x) {
    if constexpr (sizeof(typename P::Scalar) == 8) return exp_nonpositive<P>(smaller(x, typename P::V{}));
    else {
        using F = Format<float>;
        using V = typename P::V;
        const V rounded = x * 1.44269504f + F::round_magic; // an integer, in the last bits of the mantissa
        const V r = multiply_add<P>(rounded - F::round_magic, splat<P>(-0.693147181f), x);
        V sum = splat<P>(1.0f / 720);
        for (const float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
            sum = multiply_add<P>(sum, r, splat<P>(c));
        const typename P::I e = bits_of<P>(rounded) - bits_of<P>(splat<P>(F::round_magic));
        return x < F::exp_lowest ? V{} : sum * power_of_two<P>(e);
    }
}

// A block of questions, one in each lane.
template <class P> struct Empirical {
    using V = typename P::V;
    using I = typename P::I;
    using T = typename P::Scalar;
    using D = typename LaneType<double, P::lanes>::type;
    static constexpr int N = P::lanes;
    // A sum of products that is no smaller has its largest ones far above what is flushed to zero: 47 or 400 nats.
    static constexpr T kEnough = sizeof(T) == 4 ? T(4e-18) : T(1e-130);
    static constexpr T kPrecise = -32; // sums of fields that are larger have lost digits
    const hf_empirical_args& args;
    // A string: its fields' sum, and the weight of the rows that have it. What fetches one fetches the other.
    struct Cell {
        V sum, weight;
    };
    V* fields;
    Cell* cells;
    uint8_t* there; // whether a symbol occurs at a position
    V tail_best[2];
    int64_t row[N];  // of the arguments
    double shift[N]; // shift: what the logarithms of weights are relative to
    bool possible[N], settled[N], fast[N];

    Empirical(const hf_empirical_args& asked, V* own_fields, V* own_cells, uint8_t* symbols_there)
        : args(asked), fields(own_fields), cells(reinterpret_cast<Cell*>(own_cells)), there(symbols_there) {
        for (int64_t p = 0; p < args.length * args.vocab_size; ++p) there[p] = 0;
        for (int32_t g = 0; g < args.n_groups; ++g)
            for (int64_t e = args.first_string[g]; e < args.first_string[g + 1]; ++e)
                for (int64_t j = args.first_position[g]; j < args.first_position[g + 1]; ++j)
                    there[j * args.vocab_size + symbol(e, j - args.first_position[g])] = 1;
    }

    double field(int64_t i, int64_t j, int64_t b) const {
        const int64_t at = (i * args.length + j) * args.vocab_size + b;
        return args.field_bytes == 4 ? static_cast<double>(static_cast<const float*>(args.log_fields)[at])
                                     : static_cast<const double*>(args.log_fields)[at];
    }
    bool occurs(int64_t j, int64_t b) const { return there[j * args.vocab_size + b] != 0; }
    int64_t symbol(int64_t string, int64_t p) const { return args.symbols[string * args.width + p]; }

    // Sums of every string, from fields in the order of positions; `offset` comes into the first group. Large fields
    // may cancel: in double precision they do so without a loss.
    template <class Wide> void add_up(T offset) {
        for (int32_t g = 0; g < args.n_groups; ++g) {
            const int64_t first = args.first_position[g], n = args.first_position[g + 1] - first;
            for (int64_t e = args.first_string[g]; e < args.first_string[g + 1]; ++e) {
                Wide total = Wide{} + (g == 0 ? offset : T(0));
                for (int64_t p = 0; p < n; ++p)
                    total = total + convert_lanes<Wide, N>(fields[(first + p) * args.vocab_size + symbol(e, p)]);
                cells[e].sum = convert_lanes<V, N>(total);
            }
        }
    }

    // Adding up is monotonic, so what the best strings of the tail give bounds what any of them does.
    void bound_tail() {
        for (int32_t t = 0; t < 2; ++t) tail_best[t] = V{};
        for (int32_t g = args.n_head; g < args.n_groups; ++g) {
            V best = V{} + T(-HUGE_VAL);
            for (int64_t e = args.first_string[g]; e < args.first_string[g + 1]; ++e) best = larger(cells[e].sum, best);
            tail_best[g - args.n_head] = best;
        }
    }
    HF_INLINE V head_sum(const int32_t* strings) const {
        V total{};
        for (int32_t g = 0; g < args.n_head; ++g) total = total + cells[strings[g]].sum;
        return total;
    }
    template <int Tail> HF_INLINE V add_tail(V head, const int32_t* strings) const {
        for (int t = 0; t < Tail; ++t) head = head + cells[strings[args.n_head + t]].sum;
        return head;
    }
    template <int Tail> HF_INLINE V bound_of(V head) const {
        for (int t = 0; t < Tail; ++t) head = head + tail_best[t];
        return head;
    }

    // The largest sum of every lane, and the stored row that has it.
    template <int Tail> void find_best(V& best, I& where) {
        for (int l = 0; l < N; ++l) best[l] = settled[l] ? T(HUGE_VAL) : T(-HUGE_VAL);
        where = I{};
        bound_tail();
        for (int64_t r = 0; r < args.n_runs; ++r) {
            const int64_t begin = args.runs[r], end = args.runs[r + 1];
            const int32_t* strings = args.strings + begin * args.n_groups;
            const V head = head_sum(strings);
            if (!any_above(bound_of<Tail>(head), best)) continue;
            for (int64_t m = begin; m < end; ++m, strings += args.n_groups) {
                const V total = add_tail<Tail>(head, strings);
                if (!any_above(total, best)) continue; // a running maximum rises rarely
                const I better = as_mask<P>(total > best);
                where = better ? I{} + static_cast<typename P::Int>(m) : where;
                best = larger(total, best);
            }
        }
    }
    // Fields relative to those of the best row, in lanes that are not settled yet; whether all are now.
    bool centre_on(const V& best, const I& where) {
        bool all = true;
        for (int l = 0; l < N; ++l) {
            if (settled[l]) continue;
            const int32_t* strings = args.strings + static_cast<int64_t>(where[l]) * args.n_groups;
            possible[l] = best[l] > T(-HUGE_VAL);
            shift[l] = 0;
            for (int32_t g = 0; g < args.n_groups; ++g)
                for (int64_t j = args.first_position[g]; j < args.first_position[g + 1]; ++j) {
                    const double at = field(row[l], j, symbol(strings[g], j - args.first_position[g]));
                    shift[l] += at;
                    for (int64_t b = 0; b < args.vocab_size; ++b)
                        fields[j * args.vocab_size + b][l] =
                            possible[l] ? static_cast<T>(field(row[l], j, b) - at) : T(-HUGE_VAL);
                }
            settled[l] = !possible[l] || (best[l] > T(-4096) && best[l] < T(4096));
            all &= settled[l];
        }
        return all;
    }
    template <int Tail> void weigh() {
        for (int l = 0; l < N; ++l)
            if (!fast[l])
                for (int64_t e = 0; e < args.n_strings; ++e) cells[e].weight[l] = 0;
        bound_tail();
        const V low = V{} + Format<T>::exp_lowest;
        for (int64_t r = 0; r < args.n_runs; ++r) {
            const int64_t begin = args.runs[r], end = args.runs[r + 1];
            const int32_t* strings = args.strings + begin * args.n_groups;
            const int32_t* const own = strings;
            const V head = head_sum(strings);
            if (!any_above(bound_of<Tail>(head), low)) continue; // every weight is zero
            V all{};
            for (int64_t m = begin; m < end; ++m, strings += args.n_groups) {
                const V total = add_tail<Tail>(head, strings);
                if (!any_above(total, low)) continue;
                const V w = weight_of<P>(total);
                all = all + w;
                for (int t = 0; t < Tail; ++t) {
                    V& sum = cells[strings[args.n_head + t]].weight;
                    sum = sum + w;
                }
            }
            for (int32_t g = 0; g < args.n_head; ++g) cells[own[g]].weight = cells[own[g]].weight + all;
        }
    }
    // Products of the strings' weights; whether every lane has enough of them, and they are precise.
    template <int Tail> bool multiply() {
        const FlushSubnormals flush; // what is so small no longer counts, and is slow
        V worst{};
        for (int32_t g = 0; g < args.n_groups; ++g) {
            V best = V{} + T(-HUGE_VAL);
            for (int64_t e = args.first_string[g]; e < args.first_string[g + 1]; ++e) best = larger(cells[e].sum, best);
            best = best > T(-HUGE_VAL) ? best : V{};
            for (int64_t e = args.first_string[g]; e < args.first_string[g + 1]; ++e)
                cells[e] = {weight_of<P>(cells[e].sum - best), V{}};
            for (int l = 0; l < N; ++l) shift[l] += static_cast<double>(best[l]);
            worst = smaller(worst, best);
        }
        V mass{};
        for (int64_t r = 0; r < args.n_runs; ++r) {
            const int64_t begin = args.runs[r], end = args.runs[r + 1];
            const int32_t* strings = args.strings + begin * args.n_groups;
            const int32_t* const own = strings;
            V head = V{} + T(1);
            for (int32_t g = 0; g < args.n_head; ++g) head = head * cells[own[g]].sum;
            if (!any_above(head, V{})) continue;
            V all{};
            for (int64_t m = begin; m < end; ++m, strings += args.n_groups) {
                V w = head;
                for (int t = 0; t < Tail; ++t) w = w * cells[strings[args.n_head + t]].sum;
                all = all + w;
                for (int t = 0; t < Tail; ++t) {
                    V& sum = cells[strings[args.n_head + t]].weight;
                    sum = sum + w;
                }
            }
            mass = mass + all;
            for (int32_t g = 0; g < args.n_head; ++g) cells[own[g]].weight = cells[own[g]].weight + all;
        }
        bool every = true;
        for (int l = 0; l < N; ++l) {
            fast[l] = possible[l] = settled[l] = mass[l] > kEnough && worst[l] > kPrecise;
            every &= fast[l];
        }
        return every;
    }

    template <int Tail> void run() {
        for (int l = 0; l < N; ++l) {
            shift[l] = 0;
            for (int64_t j = 0; j < args.length; ++j) {
                double high = -HUGE_VAL; // of the symbols that some row has there
                for (int64_t b = 0; b < args.vocab_size; ++b)
                    if (occurs(j, b) && field(row[l], j, b) > high) high = field(row[l], j, b);
                const bool any = high > -HUGE_VAL;
                if (any) shift[l] += high;
                for (int64_t b = 0; b < args.vocab_size; ++b)
                    fields[j * args.vocab_size + b][l] =
                        any ? static_cast<T>(field(row[l], j, b) - high) : T(-HUGE_VAL);
            }
        }
        add_up<V>(T(0));
        if (multiply<Tail>()) return;
        // Relative to the best row, sums are small where they count. A best row that is far below its best fields was
        // found in sums too large to tell it from others: it is looked for again, relative to the one found.
        V best;
        I where;
        for (int round = 0; round < 4; ++round) {
            add_up<D>(T(0));
            find_best<Tail>(best, where);
            if (centre_on(best, where)) break;
        }
        for (int l = 0; l < N; ++l) // what is there already stays
            for (int64_t p = 0; fast[l] && p < args.length * args.vocab_size; ++p) fields[p][l] = T(-HUGE_VAL);
        add_up<D>(T(-1)); // room for what rounding has left above the best
        weigh<Tail>();
        for (int l = 0; l < N; ++l)
            if (!fast[l] && possible[l]) shift[l] += 1;
    }
    // Marginals and masses of the first `count` lanes: strings taken apart, in double precision.
    void answer(int count, D* totals) const {
        const int64_t q = args.vocab_size;
        for (int32_t g = 0; g < args.n_groups; ++g) {
            const int64_t first = args.first_position[g], n = args.first_position[g + 1] - first;
            for (int64_t p = 0; p < n * q; ++p) totals[p] = D{};
            D mass{};
            for (int64_t e = args.first_string[g]; e < args.first_string[g + 1]; ++e) {
                const D w = convert_lanes<D, N>(cells[e].weight);
                mass = mass + w;
                for (int64_t p = 0; p < n; ++p) totals[p * q + symbol(e, p)] = totals[p * q + symbol(e, p)] + w;
            }
            for (int l = 0; l < count; ++l) {
                const int64_t at = (row[l] * args.length + first) * q;
                for (int64_t p = 0; p < n * q; ++p) {
                    const double x = possible[l] ? totals[p][l] / mass[l] : NAN;
                    if (args.value_bytes == 4) static_cast<float*>(args.marginals)[at + p] = static_cast<float>(x);
                    else static_cast<double*>(args.marginals)[at + p] = x;
                }
                if (g > 0) continue;
                args.mass[row[l]] = possible[l] ? mass[l] : 0;
                args.shift[row[l]] = possible[l] ? shift[l] : 0;
            }
        }
    }
};

template <class P> size_t empirical_bytes(const hf_empirical_args& args) {
    using D = typename LaneType<double, P::lanes>::type;
    return EmpiricalLayout<P>(args).bytes + static_cast<size_t>(args.width * args.vocab_size + 1) * sizeof(D) +
           static_cast<size_t>(args.length * args.vocab_size);
}

template <class P> void empirical_rows(const hf_empirical_args& args, int64_t begin, int64_t end, void* scratch) {
    using V = typename P::V;
    using D = typename Empirical<P>::D;
    const EmpiricalLayout<P> layout(args);
    V* const at = static_cast<V*>(scratch);
    // Scratch begins with a cache line, which is half of the widest pack.
    const uintptr_t end_of_packs = reinterpret_cast<uintptr_t>(scratch) + layout.bytes;
    D* const totals = reinterpret_cast<D*>((end_of_packs + sizeof(D) - 1) / sizeof(D) * sizeof(D));
    uint8_t* const there = reinterpret_cast<uint8_t*>(totals + args.width * args.vocab_size);
    Empirical<P> block(args, at + layout.fields, at + layout.strings, there);
    for (int64_t first = begin; first < end; first += P::lanes) {
        const int count = end - first < P::lanes ? static_cast<int>(end - first) : P::lanes;
        for (int l = 0; l < P::lanes; ++l) block.row[l] = first + (l < count ? l : 0);
        if (args.n_groups - args.n_head == 1) block.template run<1>();
        else block.template run<2>();
        block.answer(count, totals);
    }
}

} // namespace
} // namespace HF_NAMESPACE
