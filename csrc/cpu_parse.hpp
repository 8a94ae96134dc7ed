// Leave-one-out predictions of fully seen rows under an unambiguous binary grammar. There every upward message is one
// symbol and one number, and a downward message is the parent's, permuted and weighed by the sibling's symbol: no sums
// over rules. Going up a lane is a row, as everywhere; going down a register holds the message of one node of one row.
// The text of tree_messages.hpp multiplies in the same order and adds zeros: the answers are its own to the last bit.
#pragma once

#include "cpu_parse_root.hpp"

namespace HF_NAMESPACE {
namespace {

// Parsing goes level by level: trees that take more packs than these are left to the passes, which do them in parts.
constexpr int64_t kMostPacks = int64_t(1) << 20;

// Scratch in packs: symbols of all nodes, their numbers, two downward levels of some rows, and results; 0, if the model
// is not parsed.
template <class P> int64_t parse_packs(const hf_model& m) {
    constexpr int N = P::lanes;
    const ParseShape shape(m);
    const int64_t leaves = n_nodes(m, m.depth), down = larger<int64_t>(leaves * shape.width, 2048) / N;
    const int64_t packs = 4 * leaves + 2 * down + shape.width + 1;
    return shape.width == 0 || packs > kMostPacks ? 0 : packs;
}

// Whether this instruction set permutes messages of `width` entries in a register.
template <class P> constexpr bool parses(int width) {
    return sizeof(typename P::Scalar) == 4 && (P::lanes == 16 || (P::lanes == 8 && width <= 8));
}

// W numbers from memory, twice.
template <int W> HF_INLINE typename LaneType<float, 2 * W>::type load_twice(const float* from) {
    using Both = typename LaneType<float, 2 * W>::type;
#if defined(__AVX2__) && !defined(__CUDACC__)
    if constexpr (W == 4) return (Both)_mm256_broadcast_ps(reinterpret_cast<const __m128*>(from));
#endif
#if defined(__AVX512F__) && !defined(__CUDACC__)
    if constexpr (W == 8) return (Both)_mm512_broadcast_f32x8(_mm256_loadu_ps(from));
#endif
    Both both;
    for (int i = 0; i < 2; ++i) __builtin_memcpy(reinterpret_cast<float*>(&both) + i * W, from, W * sizeof(float));
    return both;
}

// One pack of rows.
template <class P, int W> struct Parse {
    using V = typename P::V;
    using I = typename P::I;
    using U = typename LaneType<uint32_t, P::lanes>::type;
    using Message = typename LaneType<float, W>::type; // of one node of one row
    using Entries = typename LaneType<int32_t, W>::type;
    static constexpr int N = P::lanes;
    const hf_model& m;
    const hf_infer_args& args;
    const ParseTable& table;
    int64_t leaves, together; // of a row; rows that go down together
    U* symbols[64];
    U* pairs[64]; // where the row of a pair of children is
    V* numbers[64];
    float* down[2];
    float* results;
    Message prior;
    struct Squeeze { // of messages with room left: where a pack of results comes from
        int first, third;
        I two, three;
    } squeeze[W];

    // Enough to keep the pipes full and the blocks of N nodes whole, few enough for the first cache.
    static int64_t rows_together(int64_t leaves) {
        const int64_t fit = 2048 / (leaves * W);
        return fit >= N ? N : larger<int64_t>(larger<int64_t>(fit, 1), N / leaves);
    }

    Parse(const hf_model& model, const hf_infer_args& call, const ParseTable& t, void* scratch)
        : m(model), args(call), table(t), leaves(n_nodes(m, m.depth)), together(rows_together(leaves)), prior{} {
        V* at = static_cast<V*>(scratch);
        for (int d = 1; d <= m.depth; ++d) {
            numbers[d] = at; // not used of the leaves
            if (d < m.depth) at += n_nodes(m, d);
            symbols[d] = reinterpret_cast<U*>(at);
            at += n_nodes(m, d);
            pairs[d - 1] = reinterpret_cast<U*>(at);
            at += n_nodes(m, d - 1);
        }
        down[0] = reinterpret_cast<float*>(at);
        down[1] = down[0] + together * leaves * W;
        results = down[1] + together * leaves * W;
        for (int a = 0; a < m.alphabets[0]; ++a) prior[a] = m.prior32[a];
        const int q = m.alphabets[m.depth];
        for (int j = 0; j < q && q < W; ++j) {
            const auto from = [&](int l) { return (j * N + l) / q * W + (j * N + l) % q; };
            Squeeze& s = squeeze[j];
            s.first = smaller(from(0) / N, W - 2);
            s.third = smaller(s.first + 2, W - 1);
            for (int l = 0; l < N; ++l) {
                const int at = from(l) - s.first * N;
                s.two[l] = at < 2 * N ? at : 0;
                s.three[l] = at < 2 * N ? l : at - N;
            }
        }
    }

    // The symbols and numbers of all nodes but the root, from the leaves.
    HF_NOINLINE void up(const Rows& rows) const {
        load_symbols<P::lanes>(m, args, rows, {0, leaves}, symbols[m.depth]);
        for (int d = m.depth - 1; d >= 0; --d) {
            if (ParseShape::pairs(m, d) <= kHeldPairs<N>) level_up<true>(d);
            else level_up<false>(d);
        }
    }

    template <bool Small> HF_INLINE void level_up(int d) const {
        const ParseLevel& level = table.level[d];
        const uint32_t base = static_cast<uint32_t>(level.base);
        const int64_t n = ParseShape::pairs(m, d), nodes = int64_t(1) << d;
        const PairTable<N, Small> parents(level.parents, n), prob(level.prob, n);
        const U* below = symbols[d + 1];
        const V* carried = d + 1 < m.depth ? numbers[d + 1] : nullptr;
        for (int64_t i = 0; i < nodes; ++i) {
            const U pair = below[2 * i] * base + below[2 * i + 1];
            pairs[d][i] = pair * (4 * W);
            if (d == 0) return;
            symbols[d][i] = parents.at(pair);
            V x = (V)prob.at(pair);
            if (carried) x = x * carried[2 * i + 1] * carried[2 * i];
            constexpr int32_t mantissa = (1 << Format<float>::mantissa_bits) - 1;
            constexpr int32_t one = Format<float>::bias << Format<float>::mantissa_bits;
            numbers[d][i] = from_bits<P>((bits_of<P>(x) & mantissa) | one); // an impossible node weighs nothing below
        }
    }

    // One level of the rows in lanes first …. Children of leaves' parents carry the number 1. A function of its own,
    // for its loop wants the registers to itself.
    template <bool Last> HF_NOINLINE void down_level(int d, int64_t first, const float* mu, float* mu_below) const {
        const float *const to_left = table.level[d].left, *const to_right = table.level[d].right;
        const auto* const first_pair = reinterpret_cast<const uint32_t*>(pairs[d]) + first;
        const auto* const first_symbol = reinterpret_cast<const uint32_t*>(symbols[d + 1]) + first;
        const auto* const first_number = reinterpret_cast<const float*>(numbers[d + 1]) + first;
        // The inner loop is the longer one of those over rows and over nodes.
        const int64_t nodes = int64_t(1) << d;
        const bool by_node = nodes < together;
        const int64_t outer = by_node ? nodes : together, inner = by_node ? together : nodes;
        const int64_t lanes = by_node ? 1 : N, wide = by_node ? nodes * W : W;
        for (int64_t o = 0; o < outer; ++o) {
            const int64_t twice = o * (by_node ? 2 * N : 1);
            const uint32_t *pair = first_pair + o * (by_node ? N : 1), *symbol = first_symbol + twice;
            const float* number = first_number + twice;
            const float* from = mu + o * (by_node ? W : nodes * W);
            float* out = mu_below + o * 2 * (by_node ? W : nodes * W);
            const int64_t step = by_node ? 1 : 2 * N;
            for (int64_t i = 0; i < inner;
                 ++i, pair += lanes, symbol += step, number += step, from += wide, out += 2 * wide)
                if constexpr (W <= 8) both_down<Last>(to_left + *pair, number, from, out);
                else {
                    one_down<Last, false>(to_left + symbol[N] * size_t(2 * W), number[N], from, out);
                    one_down<Last, true>(to_right + symbol[0] * size_t(2 * W), number[0], from, out + W);
                }
        }
    }
    // To the left child goes mu * (p * nu), to the right one (mu * nu) * p.
    template <bool Last, bool Right>
    static HF_INLINE void one_down(const float* row, float sibling, const float* mu, float* out) {
        Message from = __builtin_shuffle(load_lanes<Message>(mu), load_lanes<Entries>(row));
        Message weight = load_lanes<Message>(row + W);
        if constexpr (!Last && Right) from = from * sibling;
        if constexpr (!Last && !Right) weight = weight * sibling;
        const Message x = from * weight;
        __builtin_memcpy(out, &x, sizeof(x));
    }
    template <bool Last>
    static HF_INLINE void both_down(const float* row, const float* number, const float* mu, float* out) {
        using Both = typename LaneType<float, 2 * W>::type;
        using Entries2 = typename LaneType<int32_t, 2 * W>::type;
        Both from = __builtin_shuffle(load_twice<W>(mu), load_lanes<Entries2>(row));
        Both weight = load_lanes<Both>(row + 2 * W);
        if constexpr (!Last) {
            Entries2 is_left{};
            for (int x = 0; x < W; ++x) is_left[x] = -1;
            weight = is_left ? weight * number[N] : weight;
            from = is_left ? from : from * number[0];
        }
        const Both x = from * weight;
        __builtin_memcpy(out, &x, sizeof(x));
    }

    // N nodes' messages at `mu`, normalised, q numbers each, to `out`; of the last rows but `count` numbers. Where a
    // message has room left it is zero, which changes no sum.
    HF_INLINE void store(const float* mu, int q, float* out, int64_t count, bool stream) const {
        V x[W];
        __builtin_memcpy(x, mu, sizeof(x));
        transpose<N, W>(x);
        normalise<P>(x, W, x);
        transpose<N, W>(x);
        const bool whole = count >= N * q;
        for (int j = 0; j < W && j < q; ++j) {
            V block = x[j];
            if (q < W) { // N numbers of up to three packs
                block = __builtin_shuffle(x[squeeze[j].first], x[squeeze[j].first + 1], squeeze[j].two);
                block = __builtin_shuffle(block, x[squeeze[j].third], squeeze[j].three);
            }
            if (!whole) __builtin_memcpy(results + j * N, &block, sizeof(V));
            else if (stream) stream_store(out + j * N, block);
            else __builtin_memcpy(out + j * N, &block, sizeof(V));
        }
        if (!whole) __builtin_memcpy(out, results, static_cast<size_t>(count) * sizeof(float));
    }

    // Results of this size would push everything else out of the caches, and be gone from them when they are read.
    static constexpr int64_t kStreamBytes = int64_t(4) << 20;

    HF_INLINE void down_rows(const Rows& rows) const {
        const int q = m.alphabets[m.depth];
        float* out = static_cast<float*>(args.leave_one_out) + rows.first * leaves * q;
        const bool stream = rows.n * leaves * q * static_cast<int64_t>(sizeof(float)) >= kStreamBytes &&
                            reinterpret_cast<uintptr_t>(out) % sizeof(V) == 0;
        for (int64_t first = 0; first < rows.count; first += together) {
            float* const last = down[m.depth & 1];
            for (int64_t r = 0; r < together; ++r) __builtin_memcpy(down[0] + r * W, &prior, sizeof(prior));
            for (int d = 0; d < m.depth - 1; ++d) down_level<false>(d, first, down[d & 1], down[(d + 1) & 1]);
            down_level<true>(m.depth - 1, first, down[(m.depth - 1) & 1], last);
            const int64_t valid = (smaller<int64_t>(rows.count - first, together)) * leaves;
            store_nodes(last, valid, out + first * leaves * q, stream);
        }
    }
    HF_NOINLINE void store_nodes(const float* mu, int64_t n, float* out, bool stream) const {
        const int q = m.alphabets[m.depth];
        for (int64_t j = 0; j < n; j += N) store(mu + j * W, q, out + j * q, (n - j) * q, stream);
    }
};

// Whether the call asks for nothing but leave-one-out predictions from tokens, by all other leaves.
inline bool asks_one_out_alone(const hf_model& m, const hf_infer_args& args) {
    return args.leave_one_out && !args.root && asks_no_more_of_tokens(m, args);
}

template <class P, int W> HF_NOINLINE void parse_rows(const hf_model& m, const hf_infer_args& args,
                                                      const ParseTable& table, int64_t begin, int64_t end,
                                                      void* scratch) {
    const Parse<P, W> parse(m, args, table, KeptPlan<P>::room(scratch));
    over_seen_rows<P>(m, args, begin, end, scratch, [&](const Rows& rows) {
        parse.up(rows);
        parse.down_rows(rows);
    });
    stream_fence();
}

// As infer_rows, for float; what can be parsed is.
template <class P>
void parse_or_infer_rows(const hf_model& m, const hf_infer_args& args, int64_t begin, int64_t end, void* scratch) {
    const auto with_width = [&](const ParseTable& table, auto width) {
        if constexpr (parses<P>(width)) parse_rows<P, width>(m, args, table, begin, end, scratch);
        return parses<P>(width);
    };
    const bool root = asks_root_alone(m, args);
    if (root || (asks_one_out_alone(m, args) && parse_packs<P>(m) > 0)) {
        const TableShape below(m);
        const ParseTable table(m, args.table_values ? args.table_values + below.values() : nullptr);
        if (root && table.up) return parse_roots<P>(m, args, table, begin, end, scratch);
        const int w = table.serves && !root ? table.shape.width : 0;
        if (w == 4 && with_width(table, std::integral_constant<int, 4>())) return;
        if (w == 8 && with_width(table, std::integral_constant<int, 8>())) return;
        if (w == 16 && with_width(table, std::integral_constant<int, 16>())) return;
    }
    infer_rows<P>(m, args, begin, end, scratch);
}

} // namespace
} // namespace HF_NAMESPACE
