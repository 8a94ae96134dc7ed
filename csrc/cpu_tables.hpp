// What nodes draw from: cut points and picks in memory as the model has them, or laid out for look-ups in registers.
#pragma once

#include "tree_sampling.hpp"

#include <string.h>

namespace HF_NAMESPACE {
namespace {

// Entry i of a table in memory, for every lane. (AVX2 has the instruction too, but lane by lane is not slower.)
template <int N, class U> HF_INLINE U gather(const uint32_t* table, U i) {
#if defined(__AVX512F__)
    constexpr uint32_t half = 1u << 31; // the instruction's indices have a sign
    if constexpr (N == 16) return (U)_mm512_i32gather_epi32((__m512i)(i ^ half), table + half, 4);
#endif
    U x{};
    for (int l = 0; l < N; ++l) element(x, l) = table[element(i, l)];
    return x;
}

// A word as the search sees it: the largest counts as its neighbour, so a padded cut point is never passed.
template <class U> HF_INLINE U clipped(U word) { return smaller<U>(word, U{} + 0xFFFFFFFEu); }

// Where in the model's table of cut points, rows of 1 << bits, the word falls in its row: the row's start plus how many
// cut points are <= the word, by binary search.
template <int N, class U> HF_INLINE U search(const uint32_t* cuts, int bits, U row, U word) {
    const U w = clipped(word);
    U position = row << bits;
    for (int b = bits - 1; b >= 0; --b) {
        const uint32_t step = 1u << b;
        position += gather<N, U>(cuts + (step - 1), position) <= w ? U{} + step : U{};
    }
    return position;
}

// Up to how many registers a table is looked up in without touching memory: 0 where there is no permutation.
template <int N> constexpr int kRegisters = N == 16 ? 8 : N == 8 ? 4 : 0;

// A table of the model laid out step by step. The search of a node begins at its symbol a and adds parents << j where
// the j-th cut point is passed: after j steps it stands at a + parents * (which way each step went, the first in the
// last bit), so step j needs parents << j cut points, side by side, and the first steps few registers.
//
// A pick is the rule's children, the bytes (or halves) of a word; or, if these do not fit, its place in the model's
// table.
template <int N, class Token> struct StepTable {
    using U = typename LaneType<uint32_t, N>::type;
    static constexpr int child_bits = 8 * sizeof(Token);
    const U* tables; // the steps' and the picks; null: the model's own table serves
    int bits;
    uint32_t parents;

    // Registers (or packs of memory) of a table; where registers serve, a power of two.
    static constexpr int64_t width(int64_t entries) {
        const int64_t packs = (entries + N - 1) / N;
        return packs <= 2 ? packs : packs <= 4 ? 4 : packs <= kRegisters<N> ? kRegisters<N> : packs;
    }
    static int64_t size(int64_t n_parents, int n_bits) {
        int64_t packs = 0;
        for (int j = 0; j <= n_bits; ++j) packs += width(n_parents << j);
        return packs;
    }
    HF_INLINE int64_t width_of_picks() const { return width(static_cast<int64_t>(parents) << bits); }
    static bool packs_children(int arity) { return arity * child_bits <= 32; }

    // Lays out rows of cut points, and of picks of `arity` symbols; null: a pick is the place in its row.
    void fill(const uint32_t* cuts, const uint32_t* picks, int n_parents, int n_bits, int arity, U* memory) {
        tables = memory;
        bits = n_bits;
        parents = static_cast<uint32_t>(n_parents);
        for (int j = 0; j <= bits; ++j) {
            const int64_t packs = width(int64_t(n_parents) << j);
            memset(memory, 0, static_cast<size_t>(packs) * sizeof(U));
            uint32_t* to = reinterpret_cast<uint32_t*>(memory);
            for (int path = 0; path < 1 << j; ++path, to += n_parents) {
                int place = 0; // where in a row the search stands after steps that went these ways
                for (int i = 0; i < j; ++i) place |= (path >> i & 1) << (bits - 1 - i);
                for (int a = 0; a < n_parents; ++a) {
                    const uint32_t* row = cuts + (size_t(a) << bits);
                    if (j < bits) to[a] = last_below(row[place + (1 << (bits - 1 - j)) - 1]);
                    else to[a] = pick(picks, row, a << bits, place, arity);
                }
            }
            memory += packs;
        }
    }

    // What nodes pick, for tables of any size.
    HF_INLINE U operator()(U symbol, U word) const {
        const U* table = tables;
        U at = symbol;
        for (int j = 0; j < bits; ++j) {
            const int64_t packs = width(static_cast<int64_t>(parents) << j);
            at = word > entry_of(table, packs, at) ? at + (parents << j) : at;
            table += packs;
        }
        return entry_of(table, width_of_picks(), at);
    }

  private:
    static HF_INLINE U entry_of(const U* table, int64_t packs, U i) {
        if constexpr (kRegisters<N> > 0) {
            if (packs == 1) return table_entry<N, 1>(table, i);
            if (packs == 2) return table_entry<N, 2>(table, i);
            if (packs == 4) return table_entry<N, 4>(table, i);
            if (packs == kRegisters<N>) return table_entry<N, kRegisters<N>>(table, i);
        }
        return gather<N, U>(reinterpret_cast<const uint32_t*>(table), i);
    }
    // A cut is passed by what is larger than its predecessor. That of 0, which every word passes, has none: then the
    // row's first entry stands for the first that can be chosen.
    static uint32_t last_below(uint32_t cut) { return cut == 0 || cut == 0xFFFFFFFFu ? cut : cut - 1; }
    uint32_t pick(const uint32_t* picks, const uint32_t* row, int first, int place, int arity) const {
        if (place == 0)
            while (place < (1 << bits) - 1 && row[place] == 0) ++place;
        if (!picks) return static_cast<uint32_t>(place);
        if (!packs_children(arity)) return static_cast<uint32_t>(first + place);
        uint32_t word = 0;
        for (int r = 0; r < arity; ++r)
            word |= picks[static_cast<size_t>(first + place) * static_cast<size_t>(arity) + r] << (r * child_bits);
        return word;
    }
};

// A small table of known shape as local values.
template <int N, int Bits, int Packs> struct ShapedTable {
    using U = typename LaneType<uint32_t, N>::type;
    static constexpr int width(int step) { return Packs >> (Bits - step) > 1 ? Packs >> (Bits - step) : 1; }
    static constexpr int first(int step) { return step == 0 ? 0 : first(step - 1) + width(step - 1); }
    U cuts[first(Bits)], picks[Packs], steps[Bits];

    template <class Table> HF_INLINE explicit ShapedTable(const Table& table) : ShapedTable(table.tables) {
        for (int i = 0; i < Bits; ++i) steps[i] = U{} + (table.parents << i);
    }
    HF_INLINE ShapedTable(const U* tables, const U* held_steps) : ShapedTable(tables) {
        for (int i = 0; i < Bits; ++i) steps[i] = held_steps[i];
    }
    HF_INLINE U operator()(U symbol, U word) const { return table_entry<N, Packs>(picks, place<0>(symbol, word)); }

  private:
    HF_INLINE explicit ShapedTable(const U* tables) {
        for (int i = 0; i < first(Bits); ++i) cuts[i] = tables[i];
        for (int i = 0; i < Packs; ++i) picks[i] = tables[first(Bits) + i];
    }
    template <int Step> HF_INLINE U place(U at, U word) const {
        if constexpr (Step == Bits) return at;
        else {
            const U cut = table_entry<N, width(Step)>(cuts + first(Step), at);
            return place<Step + 1>(word > cut ? at + steps[Step] : at, word);
        }
    }
};

// Calls work(pick), where pick(symbols, words) is what nodes pick.
template <int N, int Bits, class Table, class Work> HF_INLINE bool with_bits(const Table& table, const Work& work) {
    switch (table.width_of_picks()) {
    case 1: return work(ShapedTable<N, Bits, 1>(table)), true;
    case 2: return work(ShapedTable<N, Bits, 2>(table)), true;
    case 4: return work(ShapedTable<N, Bits, 4>(table)), true;
    case 8:
        if constexpr (kRegisters<N> == 8) return work(ShapedTable<N, Bits, 8>(table)), true;
    }
    return false;
}
template <int N, class Table, class Work> HF_INLINE void with_shape(const Table& table, const Work& work) {
    if constexpr (kRegisters<N> > 0) {
        const bool done = table.bits == 1   ? with_bits<N, 1>(table, work)
                          : table.bits == 2 ? with_bits<N, 2>(table, work)
                          : table.bits == 3 ? with_bits<N, 3>(table, work)
                          : table.bits == 4 ? with_bits<N, 4>(table, work)
                                            : false;
        if (done) return;
    }
    work(table);
}

} // namespace
} // namespace HF_NAMESPACE
