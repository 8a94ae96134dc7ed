// Sampling: trees of the stream for the rows of a block, level by level.
//
// The floor, for 16 rows of 4 symbols and 4 levels with AVX-512, in vector instructions of which a core does two a
// cycle: 4 blocks of Philox, 103 each; 15 choices of 8 or 9 (of which 5 fit one port alone); 8 to bring 16 bytes of a
// row together. About 270 cycles in all; 400 to 430 are reached, for the choices come after the words. Small trees of
// common shapes have them beside the words (cpu_beside.hpp).
#pragma once

#include "cpu_beside.hpp"
#include "cpu_draws.hpp"
#include "cpu_store.hpp"
#include "cpu_tables.hpp"

namespace HF_NAMESPACE {
namespace {

constexpr int64_t kNodesAtOnce = 32;
// Leaves that are drawn together at most: those of one rule, if more. (The tests have a core of smallest parts.)
#ifndef HF_SMALLEST_PARTS
constexpr int64_t kPartLeaves = 512;
#else
constexpr int64_t kPartLeaves = 0;
#endif
// Tables of how many entries are laid out anew: always; and at most, where a call draws that often for every entry.
constexpr int64_t kSmallTable = 128, kLargestTable = 1 << 14, kDrawsPerEntry = 4;
constexpr int64_t kDrawsPerStarEntry = 16; // of one node's table

// How many packs are drawn together: their words, and their symbols, are to stay in the nearest cache.
template <int N> HF_INLINE int packs_together(const hf_model& m) {
    const int64_t together = Draws<N>::capacity / ((n_nodes(m, m.depth) + 3) / 4 * 4);
    return static_cast<int>(larger<int64_t>(1, smaller<int64_t>(together, kMaxPacks)));
}

// A large tree is drawn in parts, so that symbols stay in a near cache: down to level `cut` at once, and from there
// some neighbouring nodes after others, with all below them. Nodes of the filter level are not drawn before their part
// is.
struct SampleParts {
    int cut; // 0 and one part: the tree
    int64_t nodes = 1, parts, top;

    HF_INLINE explicit SampleParts(const hf_model& m) : cut(m.filter_level) {
        const int64_t most = larger<int64_t>(kPartLeaves, m.arity);
        while (n_nodes(m, m.depth - cut) > most) ++cut;
        const int64_t all = n_nodes(m, cut), below = n_nodes(m, m.depth - cut);
        if (cut == m.filter_level)
            while (nodes < all && nodes * m.arity * below <= most) nodes *= m.arity;
        parts = all / nodes;
        top = cut > m.filter_level ? all : 1;
    }
    // Symbols of the top (none if there is one part, which has it), and of a part.
    HF_INLINE int64_t kept() const { return parts > 1 ? top : 0; }
    HF_INLINE int64_t symbols(const hf_model& m) const { return kept() + nodes * n_nodes(m, m.depth - cut); }
};

// Where a thread keeps tables, words and symbols.
template <int N, class Token> struct SampleRoom {
    using U = typename LaneType<uint32_t, N>::type;
    using Table = StepTable<N, Token>;
    uint64_t ready; // are keys and tables those of the call?
    PhiloxKeys<U> keys;
    Draws<N> tree, star;
    Table root;

    // Behind it: a table for every level, then for every node of the filter level if these are few, then symbols, then
    // what tables hold.
    static int64_t star_nodes(const hf_model& m) {
        if (m.filter_level == 0) return 0;
        const int64_t n = n_nodes(m, m.filter_level);
        return n <= kLargestTable && n * (int64_t(m.alphabets[0]) << m.star_bits) <= kLargestTable ? n : 0;
    }
    // Whether level d draws from the table of the level above.
    static bool shares(const hf_model& m, int d) {
        return d > m.filter_level && m.levels[d].cuts == m.levels[d - 1].cuts &&
               m.levels[d].picks == m.levels[d - 1].picks && m.levels[d].n_parents == m.levels[d - 1].n_parents;
    }
    // Calls work(table, cuts, picks, parents, bits, arity, entries, draws) for every table of a model that can be laid
    // out; `draws`: how often a row asks it.
    template <class Work> static void over_tables(const hf_model& m, SampleRoom* room, const Work& work) {
        Table* tables = room ? room->levels() : nullptr;
        work(room ? &room->root : nullptr, m.prior_cuts, nullptr, 1, m.prior_bits, 1, int64_t(1) << m.prior_bits, 1);
        for (int d = m.filter_level, next = d; d < m.depth; d = next) {
            int64_t draws = 0;
            do draws += n_nodes(m, next);
            while (++next < m.depth && shares(m, next));
            const hf_level& l = m.levels[d];
            work(tables + d, l.cuts, l.picks, l.n_parents, l.cut_bits, m.arity, int64_t(l.n_parents) << l.cut_bits,
                 draws);
            for (int e = d + 1; room && e < next; ++e) tables[e] = tables[d];
        }
        const int64_t n = star_nodes(m), entries = int64_t(m.alphabets[0]) << m.star_bits;
        for (int64_t i = 0; i < n; ++i)
            work(tables + m.depth + i, m.star_cuts + i * entries, nullptr, m.alphabets[0], m.star_bits, 1, n * entries,
                 1);
    }
    static size_t bytes(const hf_model& m) {
        int64_t packs = SampleParts(m).symbols(m) * packs_together<N>(m);
        if (kRegisters<N> > 0)
            over_tables(m, nullptr,
                        [&](const Table*, auto, auto, int parents, int bits, int, int64_t entries, int64_t) {
                            if (entries <= kLargestTable) packs += Table::size(parents, bits);
                        });
        return sizeof(SampleRoom) + static_cast<size_t>(packs) * sizeof(U) + table_bytes(m);
    }
    static size_t table_bytes(const hf_model& m) {
        return (static_cast<size_t>(m.depth + star_nodes(m)) * sizeof(Table) + sizeof(U) - 1) / sizeof(U) * sizeof(U);
    }
    Table* levels() { return reinterpret_cast<Table*>(this + 1); }

    // Returns the symbols.
    U* prepare(const hf_model& m, const hf_sample_args& args) {
        U* memory = reinterpret_cast<U*>(reinterpret_cast<char*>(this + 1) + table_bytes(m));
        U* const symbols = memory;
        if (ready) return symbols;
        ready = 1;
        keys.set(static_cast<uint32_t>(args.seed), static_cast<uint32_t>(args.seed >> 32));
        tree.purpose = kPurposeTree;
        star.purpose = kPurposeStar;
        memory += SampleParts(m).symbols(m) * packs_together<N>(m);
        const auto lay_out = [&](Table* table, const uint32_t* cuts, const uint32_t* picks, int parents, int bits,
                                 int arity, int64_t entries, int64_t draws) {
            table->tables = nullptr;
            if (kRegisters<N> == 0 || entries > kLargestTable) return;
            const int64_t own = int64_t(parents) << bits; // of a star's tables `entries` are those of all
            const int64_t least = own < entries ? kDrawsPerStarEntry : kDrawsPerEntry;
            if (entries > kSmallTable && args.n < (least * own + draws - 1) / draws) return;
            table->fill(cuts, picks, parents, bits, arity, memory);
            memory += Table::size(parents, bits);
        };
        over_tables(m, this, lay_out);
        return symbols;
    }
};

// A level of `packs` packs of rows: node i's symbols are symbols[i * packs + p], and words come in the same order.
template <int N> struct Nodes {
    using U = typename LaneType<uint32_t, N>::type;
    const PhiloxKeys<U>& keys;
    Draws<N>& draws;
    U* symbols;
    int s, packs;
};

// Nodes of a level, one after the other: the first one's word, and how many they are.
struct LevelNodes {
    int64_t first_word, n;
};

// These draw their rules and become n * s: from the last node to the first, in place.
template <int N, class Token> HF_NOINLINE void expand_level(const hf_level& level, const StepTable<N, Token>& table,
                                                            LevelNodes own, const Nodes<N>& at) {
    using U = typename LaneType<uint32_t, N>::type;
    constexpr int child_bits = 8 * sizeof(Token);
    constexpr uint32_t child_mask = (1u << child_bits) - 1;
    const int s = at.s, packs = at.packs;
    U* const symbols = at.symbols;
    for (int64_t end = own.n; end > 0; end -= kNodesAtOnce) {
        const int64_t begin = larger<int64_t>(end - kNodesAtOnce, 0);
        const U* words = at.draws(at.keys, own.first_word + begin, own.first_word + end);
        // Calls expand(x, word, out) for all; out[r * packs] is child r.
        const auto over_nodes = [=](const auto& expand) {
            for (int64_t i = end - 1; i >= begin; --i)
                for (int p = packs - 1; p >= 0; --p)
                    expand(symbols[i * packs + p], words[(i - begin) * packs + p], symbols + (i * s * packs + p));
        };
        const auto gathered = [=](U entry, U* out) {
            for (int r = 0; r < s; ++r)
                out[r * packs] = gather<N, U>(level.picks + r, entry * static_cast<uint32_t>(s));
        };
        if (!table.tables)
            over_nodes([=](U x, U word, U* out) { gathered(search<N>(level.cuts, level.cut_bits, x, word), out); });
        else if (!table.packs_children(s)) over_nodes([=](U x, U word, U* out) { gathered(table(x, word), out); });
        else
            with_shape<N>(table, [=](const auto& shape) {
                const auto pick = shape;
                if (s == 2)
                    over_nodes([=](U x, U word, U* out) {
                        const U children = pick(x, word);
                        out[0] = children & child_mask;
                        out[packs] = children >> child_bits;
                    });
                else
                    over_nodes([=](U x, U word, U* out) {
                        const U children = pick(x, word);
                        for (int r = 0; r < s; ++r) out[r * packs] = children >> (r * child_bits) & child_mask;
                    });
            });
    }
}

// At the last level, where a rule's children make half a word or a whole one: they become n * s tokens, four or two to
// a word, from the first node to the last, in place.
template <int N, class Token>
HF_INLINE void expand_words(const StepTable<N, Token>& table, LevelNodes own, const Nodes<N>& at) {
    using U = typename LaneType<uint32_t, N>::type;
    const int packs = at.packs;
    U* const symbols = at.symbols;
    const bool whole = at.s * static_cast<int>(sizeof(Token)) == 4;
    for (int64_t begin = 0; begin < own.n; begin += kNodesAtOnce) {
        const int64_t end = smaller<int64_t>(begin + kNodesAtOnce, own.n);
        const U* words = at.draws(at.keys, own.first_word + begin, own.first_word + end);
        with_shape<N>(table, [=](const auto& shape) {
            const auto pick = shape;
            if (whole) {
                for (int64_t i = begin * packs; i < end * packs; ++i)
                    symbols[i] = pick(symbols[i], words[i - begin * packs]);
                return;
            }
            for (int64_t i = begin; i < end; i += 2) {
                const U* x = symbols + i * packs;
                U* out = symbols + i / 2 * packs;
                const U* word = words + (i - begin) * packs;
                for (int p = 0; p < packs; ++p) {
                    const U left = pick(x[p], word[p]);
                    out[p] = left | pick(x[p + packs], word[p + packs]) << 16;
                }
            }
        });
    }
}

template <int N, class Token> HF_INLINE void draw_roots(const hf_model& m, const StepTable<N, Token>& table,
                                                        const int32_t* roots, int64_t count, const Nodes<N>& at) {
    using U = typename LaneType<uint32_t, N>::type;
    const int packs = at.packs;
    U* const symbols = at.symbols;
    if (roots) {
        const uint32_t last = static_cast<uint32_t>(m.alphabets[0] - 1);
        for (int i = 0; i < N * packs; ++i) {
            const uint32_t r = static_cast<uint32_t>(roots[i < count ? i : 0]);
            element(symbols[i / N], i % N) = r < last ? r : last;
        }
        return;
    }
    const U* words = at.draws(at.keys, 0, 1);
    if (table.tables)
        with_shape<N>(table, [=](const auto& pick) {
            for (int p = 0; p < packs; ++p) symbols[p] = pick(U{}, words[p]);
        });
    else
        for (int p = 0; p < packs; ++p) symbols[p] = search<N>(m.prior_cuts, m.prior_bits, U{}, words[p]);
}

// n nodes of the filter level from `first` on, given the root alone.
template <int N, class Token> HF_INLINE void draw_star(const hf_model& m, const StepTable<N, Token>* tables, bool held,
                                                       const typename LaneType<uint32_t, N>::type* root, int64_t first,
                                                       int64_t n, Draws<N>& star, const Nodes<N>& at) {
    using U = typename LaneType<uint32_t, N>::type;
    const int64_t entries = static_cast<int64_t>(m.alphabets[0]) << m.star_bits;
    const int packs = at.packs;
    for (int64_t begin = first; begin < first + n; begin += kNodesAtOnce) {
        const int64_t end = smaller<int64_t>(begin + kNodesAtOnce, first + n);
        const U* words = star(at.keys, begin, end);
        for (int64_t i = begin; i < end; ++i, words += packs) {
            U* const out = at.symbols + (i - first) * packs;
            if (held && tables[i].tables)
                with_shape<N>(tables[i], [=](const auto& pick) {
                    for (int p = 0; p < packs; ++p) out[p] = pick(root[p], words[p]);
                });
            else
                for (int p = 0; p < packs; ++p)
                    out[p] =
                        search<N>(m.star_cuts + i * entries, m.star_bits, root[p], words[p]) - (root[p] << m.star_bits);
        }
    }
}

// The trees of one block of rows, and where they go.
template <int N, class Token> struct Drawing {
    using U = typename LaneType<uint32_t, N>::type;
    using Room = SampleRoom<N, Token>;
    const hf_model& m;
    const hf_sample_args& args;
    Room& room;
    const SampleParts parts;
    const StepTable<N, Token>* const tables;
    U *const top, *const part;
    const bool held; // tables of the filter level's nodes
    bool packed;     // the last level is made four or two tokens a word
    int64_t row = 0, count = 0;
    int packs = 1;

    HF_INLINE Drawing(const hf_model& model, const hf_sample_args& call, Room& r, U* symbols)
        : m(model), args(call), room(r), parts(model), tables(r.levels()), top(symbols),
          part(symbols + parts.kept() * packs_together<N>(model)), held(Room::star_nodes(model) > 0) {
        const int tokens_per_word = 4 / static_cast<int>(sizeof(Token)), s = m.arity;
        packed = m.filter_level < m.depth && tables[m.depth - 1].tables &&
                 (s == tokens_per_word || (2 * s == tokens_per_word && own(m.depth - 1, 0).n % 2 == 0));
    }

    HF_INLINE void draw(int64_t first, int64_t rows) {
        row = first;
        count = rows;
        packs = static_cast<int>((rows + N - 1) / N);
        const uint64_t index = args.start + static_cast<uint64_t>(row);
        const int k = m.filter_level;
        room.tree.start(index, packs);
        room.star.start(index, packs);
        if (k == 0) {
            const int64_t words = 1 + (n_nodes(m, m.depth) - 1) / (m.arity - 1);
            room.tree.fill(room.keys, 0, smaller<int64_t>(words, Draws<N>::capacity / packs_together<N>(m)));
        }
        const Nodes<N> above = at(top), inside = at(part);
        draw_roots<N>(m, room.root, args.roots ? args.roots + row : nullptr, count, above);
        store(0, 0, 1, top);
        U roots[kMaxPacks]; // a tree in one part is drawn where its root lies
        for (int p = 0; p < packs; ++p) roots[p] = top[p];
        const auto star = [&](int64_t i, int64_t n, const Nodes<N>& to) {
            if (k == 0) return;
            draw_star<N>(m, tables + m.depth, held, roots, i, n, room.star, to);
            store(k, i, n, to.symbols);
        };
        if (parts.cut > k) star(0, n_nodes(m, k), above);
        for (int d = k; d < parts.cut; ++d) {
            const int64_t n = n_nodes(m, d);
            expand_level<N>(m.levels[d], tables[d], {first_word(d), n}, above);
            store(d + 1, 0, n * m.arity, top);
        }
        for (int64_t i = 0; i < parts.parts; ++i) {
            if (parts.cut == k && k > 0) star(i * parts.nodes, parts.nodes, inside);
            else if (parts.parts > 1)
                for (int p = 0; p < packs; ++p) part[p] = top[i * packs + p];
            expand(i, inside);
        }
    }

  private:
    HF_INLINE Nodes<N> at(U* symbols) const { return {room.keys, room.tree, symbols, m.arity, packs}; }
    // The word of a level's first node, in heap order; and a part's nodes of it.
    HF_INLINE int64_t first_word(int d) const { return 1 + (n_nodes(m, d) - 1) / (m.arity - 1); }
    HF_INLINE LevelNodes own(int d, int64_t i) const {
        const int64_t n = parts.nodes * n_nodes(m, d - parts.cut);
        return {first_word(d) + i * n, n};
    }

    HF_INLINE void expand(int64_t i, const Nodes<N>& inside) {
        for (int d = parts.cut; d < m.depth - packed; ++d) {
            const LevelNodes nodes = own(d, i);
            expand_level<N>(m.levels[d], tables[d], nodes, inside);
            store(d + 1, i * nodes.n * m.arity, nodes.n * m.arity, part);
        }
        if (!packed || !args.levels[m.depth]) return;
        const LevelNodes parents = own(m.depth - 1, i);
        expand_words<N>(tables[m.depth - 1], parents, inside);
        constexpr int64_t size = sizeof(Token);
        const int64_t bytes = n_nodes(m, m.depth) * size, mine = parents.n * m.arity * size;
        char* const out = static_cast<char*>(args.levels[m.depth]) + i * mine;
        over_packs([&](int p, int64_t first, int rows) {
            store_words<N>([&](int64_t w) { return part[w * packs + p]; }, mine / 4, rows, out + first * bytes, bytes);
        });
    }

    // n nodes of level d from `first` on, if these are wanted.
    HF_INLINE void store(int d, int64_t first_node, int64_t n, const U* symbols) {
        if (!args.levels[d]) return;
        const int64_t stride = n_nodes(m, d);
        Token* const out = static_cast<Token*>(args.levels[d]) + first_node;
        over_packs([&](int p, int64_t first, int rows) {
            store_tokens<N>([&](int64_t i) { return symbols[i * packs + p]; }, n, rows, out + first * stride, stride);
        });
    }
    template <class Store> HF_INLINE void over_packs(const Store& store) const {
        for (int p = 0; p < packs; ++p) store(p, row + p * N, static_cast<int>(smaller<int64_t>(count - p * N, N)));
    }
};

template <int N, class Token>
void sample_rows(const hf_model& m, const hf_sample_args& args, int64_t begin, int64_t end, void* scratch) {
    auto& room = *static_cast<SampleRoom<N, Token>*>(scratch);
    auto* const symbols = room.prepare(m, args);
    Drawing<N, Token> drawing(m, args, room, symbols);
    const bool whole = drawing.parts.parts == 1;
    if (whole && drawn_beside<N>(m, args, begin, end, room.keys, room.root, room.levels(), symbols)) return;
    const int64_t most = N * packs_together<N>(m);
    for (int64_t row = begin; row < end; row += most) drawing.draw(row, smaller<int64_t>(end - row, most));
}

} // namespace
} // namespace HF_NAMESPACE
