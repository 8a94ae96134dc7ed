// Upward messages of small subtrees, looked up: what stands below a node near the leaves is one of a few thousand
// combinations of tokens, so its message is computed once, by the text itself, and read ever after.
#pragma once

#include "cpu_rows.hpp"

namespace HF_NAMESPACE {
namespace {

constexpr int64_t kTableBytes = int64_t(256) << 10; // what a second-level cache holds beside everything else
constexpr int kTableHeight = 2;                     // levels below the node

// Of a model's table: subtrees of `height` levels, rows of `stride` values, entry c for the tokens whose digits in
// base q + 1 are c.
struct TableShape {
    int height = 0; // 0: no table
    int64_t leaves = 1, combinations = 1, stride = 0;

    explicit TableShape(const hf_model& m) {
        const int64_t base = int64_t(m.alphabets[m.depth]) + 1;
        for (int h = 1; h <= kTableHeight && h <= m.depth - m.filter_level; ++h) {
            const int64_t below = n_nodes(m, h), wide = (m.alphabets[m.depth - h] + 3) / 4 * 4;
            int64_t count = 1;
            for (int64_t j = 0; j < below && count <= kTableBytes; ++j) count *= base;
            if (count * (wide + 1) * static_cast<int64_t>(sizeof(float)) > kTableBytes) break;
            height = h;
            leaves = below;
            combinations = count;
            stride = wide;
        }
    }
    // The messages, normalised; then the same raw, as they come. Behind them the smallest non-zero entries of both, of
    // messages on the way too: each serves where its own is in no danger.
    int64_t raw() const { return combinations * stride; }
    int64_t least() const { return 2 * raw(); }
    int64_t least_raw() const { return least() + 1; }
    int64_t values() const { return least() + 2; }
};

// On the way to the root nobody need know more of a message than itself, raw. Who does has of a normalised one in a
// word what was taken out, and how much cancelled on the levels of its subtree.
constexpr int kCancelBits = 8;
constexpr int kLeastPower = 64; // of two: with it, or more, taken out, the raw message is in danger
template <class I> HF_INLINE I pack_powers(I total, I cancelled, I cancelled_above) {
    return total << (2 * kCancelBits) | cancelled_above << kCancelBits | cancelled;
}

// Scratch of filling, in packs: symbols or messages of the subtree's levels.
inline int64_t fill_packs(const hf_model& m) {
    int64_t packs = 0;
    const TableShape shape(m);
    for (int h = 0; h <= shape.height; ++h) packs += n_nodes(m, shape.height - h) * m.alphabets[m.depth - h];
    return packs;
}

// Entries first … first + N - 1 of both kinds, and of their least ones.
template <class P> void fill_table(const hf_model& m, const TableShape& shape, int64_t first, typename P::V* scratch,
                                   float* values, int32_t* powers) {
    using I = typename P::I;
    const int q = m.alphabets[m.depth];
    Range<P> range(Numbers<float>::tiny(m));
    typename P::V* below = scratch;
    for (int l = 0; l < P::lanes; ++l) {
        int64_t rest = first + l < shape.combinations ? first + l : 0;
        for (int64_t j = shape.leaves - 1; j >= 0; --j, rest /= q + 1)
            for (int x = 0; x < q; ++x)
                set_lane<P>(below[j * q + x], l, rest % (q + 1) == x || rest % (q + 1) == q ? 1.0f : 0.0f);
    }
    I total{}, cancelled[kTableHeight + 1] = {};
    for (int h = 1; h <= shape.height; ++h) {
        const int d = m.depth - h;
        const int64_t n = n_nodes(m, shape.height - h);
        typename P::V* nu = below + n * m.arity * m.alphabets[d + 1];
        float bound = 0; // nothing is known: to be watched
        const I before = range.spent;
        // In the order of operations that the passes of the arity have.
        if (m.arity == 2) upward_level<P, 2, 0>(m.levels[d], m.arity, n, below, nu, total, range, bound);
        else upward_level<P, 0, 0>(m.levels[d], m.arity, n, below, nu, total, range, bound);
        cancelled[h] = range.spent - before;
        below = nu;
    }
    float &least = values[shape.least()], &least_raw = values[shape.least_raw()];
    least = smaller(least, lowest_lane<P>(range.smallest));
    const int qd = m.alphabets[m.depth - shape.height];
    typename P::V top = below[0];
    for (int a = 1; a < qd; ++a) top = larger(top, below[a]);
    const I power = top > 0 ? total : I{}; // of a zero message it is anything
    const typename P::V factor = power_of_two<P>(larger<I>(power, splat_int<P>(-kLeastPower)));
    for (int a = 0; a < qd; ++a) range.watch(below[a] * factor);
    least_raw = smaller(least_raw, lowest_lane<P>(range.smallest));
    const I packed = pack_powers<I>(power, cancelled[1], cancelled[2]);
    for (int l = 0; l < P::lanes && first + l < shape.combinations; ++l) {
        float *normalised = values + (first + l) * shape.stride, *raw = normalised + shape.raw();
        for (int a = 0; a < shape.stride; ++a) {
            normalised[a] = a < qd ? lane<P>(below[a], l) : 0.0f;
            raw[a] = a < qd ? lane<P>(below[a] * factor, l) : 0.0f;
        }
        powers[first + l] = lane_int<P>(packed, l);
    }
}

// The entry that lies at[l] bytes from `values` for lane l, as q packs. Addresses are made one by one: `volatile` keeps
// compilers from making them in vectors, out of which every one has to be taken again.
template <class P> HF_INLINE void look_up(const float* values, const volatile uint32_t* at, int q, typename P::V* out) {
    constexpr int N = P::lanes;
    const char* from = reinterpret_cast<const char*>(values);
    if constexpr (N < 4) {
        for (int l = 0; l < N; ++l)
            for (int a = 0; a < q; ++a) set_lane<P>(out[a], l, reinterpret_cast<const float*>(from + at[l])[a]);
    } else {
        for (int a = 0; a < q; a += 4) {
            typename P::V block[4];
            for (int l = 0; l < 4; ++l) {
                const char* quarters[N / 4];
                for (int b = 0; b < N / 4; ++b) quarters[b] = from + at[4 * b + l] + a * sizeof(float);
                block[l] = from_quarters<typename P::V, N / 4>(quarters);
            }
            transpose<N, 4>(block);
            for (int x = 0; x < 4 && a + x < q; ++x) out[a + x] = block[x];
        }
    }
}

// The entries of the nodes `height` levels above leaves, a pack a node. `out` has room for the symbols.
template <int N> HF_INLINE void find_entries(const hf_model& m, const TableShape& shape, const hf_infer_args& args,
                                             const Rows& rows, Leaves leaves,
                                             typename LaneType<uint32_t, N>::type* out) {
    using U = typename LaneType<uint32_t, N>::type;
    const uint32_t q = static_cast<uint32_t>(m.alphabets[m.depth]), base = q + 1;
#if defined(__AVX512BW__) && !defined(__CUDACC__)
    if constexpr (N == 16) // four bytes at a time: products of neighbours with the weights of their digits, added
        if (args.token_bytes == 1 && leaves.n % 16 == 0 && base < 128 && (shape.leaves == 2 || shape.leaves == 4)) {
            const __m512i hidden = _mm512_set1_epi8(static_cast<char>(q));
            const __m512i digits = _mm512_set1_epi16(static_cast<short>(base | 1 << 8));
            const __m512i halves = _mm512_set1_epi32(static_cast<int>(base * base | 1 << 16));
            const auto* tokens = static_cast<const uint8_t*>(args.tokens);
            const int64_t stride = n_nodes(m, m.depth);
            for (int64_t j = leaves.first; j < leaves.first + leaves.n; j += 16) {
                U words[4], masks[4];
                load_words<N>(tokens + j, stride, rows, words);
                if (args.mask) load_words<N>(args.mask + j, stride, rows, masks);
                for (int b = 0; b < 4; ++b) {
                    __m512i symbols = _mm512_min_epu8((__m512i)words[b], hidden);
                    if (args.mask) {
                        const __mmask64 is_hidden = _mm512_test_epi8_mask((__m512i)masks[b], (__m512i)masks[b]);
                        symbols = _mm512_mask_mov_epi8(symbols, is_hidden, hidden);
                    }
                    const __m512i pairs = _mm512_maddubs_epi16(symbols, digits);
                    if (shape.leaves == 4) *out++ = (U)_mm512_madd_epi16(pairs, halves);
                    else {
                        *out++ = (U)pairs & 0xFFFFu;
                        *out++ = (U)pairs >> 16;
                    }
                }
            }
            return;
        }
#endif
    load_symbols<N>(m, args, rows, leaves, out);
    for (int64_t i = 0; i < leaves.n / shape.leaves; ++i) {
        U index = out[i * shape.leaves];
        for (int64_t j = 1; j < shape.leaves; ++j) index = index * base + out[i * shape.leaves + j];
        out[i] = index;
    }
}

// Messages of n nodes `height` levels above the leaves, from their entries, which become where these lie: normalised,
// or raw if `lazy` and if the table has them so; `bound`: of their non-zero entries. Returns the exponents taken out,
// and what cancelled on their levels, from the lowest on.
template <class P> HF_INLINE typename P::I look_up_level(const hf_model& m, const TableShape& shape,
                                                         const hf_infer_args& args, int64_t n, bool lazy,
                                                         typename LaneType<uint32_t, P::lanes>::type* entries,
                                                         typename P::V* nu, Range<P>& range, typename P::I* spent,
                                                         typename P::Scalar& bound) {
    using U = typename LaneType<uint32_t, P::lanes>::type;
    using I = typename P::I;
    const int q = m.alphabets[m.depth - shape.height];
    const uint32_t entry_bytes = static_cast<uint32_t>(shape.stride * static_cast<int64_t>(sizeof(float)));
    constexpr int32_t cancel_mask = (1 << kCancelBits) - 1;
    const bool raw = lazy && range.harmless(args.table_values[shape.least_raw()]);
    const float* const values = args.table_values + (raw ? shape.raw() : 0);
    bound = args.table_values[raw ? shape.least_raw() : shape.least()];
    I total{}, most{}, most_above{};
    for (int64_t i = 0; i < n; ++i) {
        const U index = entries[i];
        if (raw) {
            entries[i] = index * entry_bytes;
            continue;
        }
        I powers{};
#if defined(__AVX512F__) && !defined(__CUDACC__)
        if constexpr (P::lanes == 16) powers = (I)_mm512_i32gather_epi32((__m512i)index, args.table_powers, 4);
        else
#endif
            for (int l = 0; l < P::lanes; ++l)
                reinterpret_cast<int32_t*>(&powers)[l] = args.table_powers[element(entries[i], l)];
        total += powers >> (2 * kCancelBits);
        most = larger<I>(most, powers & cancel_mask);
        most_above = larger<I>(most_above, powers >> kCancelBits & cancel_mask);
        entries[i] = index * entry_bytes;
    }
    for (int64_t i = 0; i < n; ++i) // a loop of its own: what it reads lane by lane has reached memory
        look_up<P>(values, reinterpret_cast<const uint32_t*>(entries + i), q, nu + i * q);
    spent[0] = most;
    spent[1] = most_above;
    // An impossible subtree took the whole exponent range out.
    const I empty = as_mask<P>(larger<I>(most, most_above) >= splat_int<P>(Range<P>::bias));
    range.least_top = empty != 0 ? typename P::V{} : range.least_top;
    return total;
}

} // namespace
} // namespace HF_NAMESPACE
