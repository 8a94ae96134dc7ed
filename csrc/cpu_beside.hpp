// Small trees of two children a rule: choices beside words.
//
// A choice is a chain of look-ups, most of them for one port of the processor; words take two and wait for nothing. So
// a choice stands behind every round of two blocks of Philox: the eight rounds that make eight words see the choices of
// the eight words before. For 16 rows of 4 symbols and 4 levels that is 540 vector instructions, two a cycle, and 25 to
// bring rows together: about 280 cycles, of which 310 to 315 are reached.
#pragma once

#include "cpu_store.hpp"
#include "cpu_tables.hpp"

namespace HF_NAMESPACE {
namespace {

constexpr int64_t kLeastBeside = 8, kMostBeside = 256; // leaves, which are as many as words

// The stream's rows first to first + count - 1, for tables that all have one shape, the root's of one register.
// `picked[w]` is what word w decides: the root; then two children, as bytes.
template <int N, class Token, int RootBits, int Bits, int Packs>
HF_INLINE void draw_beside(const hf_model& m, const PhiloxKeys<typename LaneType<uint32_t, N>::type>& keys,
                           const StepTable<N, Token>& root, const StepTable<N, Token>* tables, uint64_t first,
                           int64_t count, Token* roots, Token* leaves, typename LaneType<uint32_t, N>::type* picked) {
    using U = typename LaneType<uint32_t, N>::type;
    const int64_t n = n_nodes(m, m.depth);
    PhiloxBlock<U> blocks[kMostBeside / 4];
    for (int64_t b = 0; b < n / 4; ++b)
        blocks[b] = PhiloxBlock<U>(keys, static_cast<uint32_t>(first >> 32), static_cast<uint32_t>(b));
    U lane{}, root_steps[RootBits], steps[Bits], words[8];
    for (int l = 0; l < N; ++l) element(lane, l) = static_cast<uint32_t>(l);
    for (int i = 0; i < RootBits; ++i) root_steps[i] = U{} + (1u << i);
    for (int i = 0; i < Bits; ++i) steps[i] = U{} + (tables[0].parents << i);
    PhiloxLanes<U> lanes(keys, lane + static_cast<uint32_t>(first), kPurposeTree);
    const auto make = [&](int64_t pair, const auto& beside) __attribute__((always_inline)) {
        Words<U> made[2];
        PhiloxBlock<U>::template of<2>(blocks + 2 * pair, lanes, keys, made, beside);
        for (int i = 0; i < 8; ++i) words[i] = made[i / 4].w[i % 4];
    };
    // A node's symbol is half of what its parent picked, with what stands above it: of an index no more counts.
    const auto pick = [&](const U* table, int64_t w) __attribute__((always_inline)) {
        const U x = w & 1 ? picked[w / 2] >> 8 : picked[w / 2];
        picked[w] = ShapedTable<N, Bits, Packs>(table, steps)(x, words[w % 8]);
    };
    make(0, [](int) {});
    for (int64_t row = 0; row < count; row += N) {
        const auto next = [&](int64_t pair, const auto& beside) __attribute__((always_inline)) {
            if (8 * pair == n)
                lanes = PhiloxLanes<U>(keys, lane + static_cast<uint32_t>(first + row + N), kPurposeTree);
            make(8 * pair == n ? 0 : pair, beside);
        };
        next(1, [&](int i) __attribute__((always_inline)) {
            if (i == 0) picked[0] = ShapedTable<N, RootBits, 1>(root.tables, root_steps)(U{}, words[0]);
            else if (i == 1) picked[1] = ShapedTable<N, Bits, Packs>(tables[0].tables, steps)(picked[0], words[1]);
            else pick(tables[i < 4 ? 1 : 2].tables, i);
        });
        int64_t w = 8;
        for (int d = 3; d < m.depth; ++d)
            for (const U* const table = tables[d].tables; w < 2 << d; w += 8)
                next(w / 8 + 1, [&](int i) __attribute__((always_inline)) { pick(table, w + i); });
        const int rows = static_cast<int>(smaller<int64_t>(count - row, N));
        if (roots) store_tokens<N>([&](int64_t) { return picked[0]; }, 1, rows, roots + row, 1);
        const U* const last = picked + n / 2;
        store_words<N>([&](int64_t i) { return last[2 * i] | last[2 * i + 1] << 16; }, n / 4, rows,
                       reinterpret_cast<char*>(leaves + row * n), n);
    }
}

// Draws the rows and says so, if model and call are of the kind: whole trees, of which roots and leaves are wanted.
template <int N, class Token>
HF_INLINE bool drawn_beside(const hf_model& m, const hf_sample_args& args, int64_t begin, int64_t end,
                            const PhiloxKeys<typename LaneType<uint32_t, N>::type>& keys,
                            const StepTable<N, Token>& root, const StepTable<N, Token>* tables,
                            typename LaneType<uint32_t, N>::type* picked) {
    if constexpr (N == 16 && sizeof(Token) == 1 && kRegisters<N> == 8) {
        const int64_t n = n_nodes(m, m.depth);
        const uint64_t first = args.start + static_cast<uint64_t>(begin);
        if (m.arity != 2 || m.filter_level != 0 || n < kLeastBeside || n > kMostBeside || args.roots ||
            !args.levels[m.depth] || static_cast<uint32_t>(first) > 0xFFFFFFFFu - static_cast<uint32_t>(end - begin))
            return false;
        for (int d = 0; d < m.depth; ++d) {
            if ((d > 0 && args.levels[d]) || !tables[d].tables || tables[d].bits != tables[0].bits ||
                tables[d].parents != tables[0].parents)
                return false;
        }
        const auto draw = [&](auto root_bits, auto bits, auto packs) {
            constexpr int r = decltype(root_bits)::value, b = decltype(bits)::value, p = decltype(packs)::value;
            if (!root.tables || root.bits != r || tables[0].bits != b || tables[0].width_of_picks() != p) return false;
            draw_beside<N, Token, r, b, p>(m, keys, root, tables, first, end - begin,
                                           args.levels[0] ? static_cast<Token*>(args.levels[0]) + begin : nullptr,
                                           static_cast<Token*>(args.levels[m.depth]) + begin * n, picked);
            return true;
        };
        std::integral_constant<int, 1> one;
        std::integral_constant<int, 2> two;
        std::integral_constant<int, 3> three;
        std::integral_constant<int, 4> four;
        return draw(two, two, one) || draw(three, two, two) || draw(three, three, four) || draw(four, two, four);
    } else return false;
}

} // namespace
} // namespace HF_NAMESPACE
