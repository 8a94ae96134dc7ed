// Sampling: a thread takes a run of W = arity^height leaves of one row. What stands above the run it
// draws again by itself, along the path from the root: every draw is a function of (seed, row, node), so
// threads of one row need not speak to each other, and a deep tree is as parallel as a large batch.
//
// Where a tree is binary, its tables fit in shared memory and the height is known at compile time, the
// symbols of a run stay in registers and leave as vectors of up to 16 bytes.
#pragma once

#include "cuda_launch.hpp"

namespace HF_NAMESPACE {

constexpr int kMaxRun = 64;                  // leaves of a run, without compile-time height
constexpr int64_t kSharedTables = 24 * 1024; // larger tables stay in global memory

// Cut points and children of every level, as offsets in bytes into one block of memory.
struct SampleTables {
    const unsigned char* bytes;
    int64_t size;
    int64_t prior, star;
    int64_t cuts[kMaxLevels], picks[kMaxLevels]; // picks: arity tokens per entry
    int32_t bits[kMaxLevels];
    int32_t prior_bits, star_bits, n_classes;
};

template <class Token> struct SampleArgs {
    int64_t n;
    uint64_t seed, start;
    const int32_t* roots;
    Token* levels[kMaxLevels];
    SampleTables tables;
    int32_t arity, depth, filter_level;
    int32_t height;    // of a run
    int32_t in_shared; // the tables are copied to shared memory first
};

// The word t & 3 of a block; an index would move the block to memory.
HF_INLINE uint32_t words_at(const Words<uint32_t>& words, int t) {
    const uint32_t low = t & 1 ? words.w[1] : words.w[0], high = t & 1 ? words.w[3] : words.w[2];
    return t & 2 ? high : low;
}

// The words of a row, one block of four at a time, in any order.
struct RowWords {
    uint32_t index_lo, index_hi, purpose, key0, key1;
    int64_t held = -1;
    Words<uint32_t> words{};

    HF_INLINE RowWords(uint64_t index, uint32_t what, uint64_t seed)
        : index_lo(static_cast<uint32_t>(index)), index_hi(static_cast<uint32_t>(index >> 32)), purpose(what),
          key0(static_cast<uint32_t>(seed)), key1(static_cast<uint32_t>(seed >> 32)) {}
    HF_INLINE Words<uint32_t> block(int64_t b) const {
        return philox4x32<uint32_t>(index_lo, index_hi, static_cast<uint32_t>(b), purpose, key0, key1);
    }
    HF_INLINE uint32_t operator[](int64_t t) {
        if ((t >> 2) != held) {
            held = t >> 2;
            words = block(held);
        }
        return words_at(words, static_cast<int>(t));
    }
};

// How many cut points of a padded row are <= the word (tree_kernels.hpp: choose).
HF_INLINE uint32_t search(const uint32_t* cuts, int bits, uint32_t word) {
    const uint32_t w = word < 0xFFFFFFFEu ? word : 0xFFFFFFFEu;
    uint32_t position = 0;
    if (bits == 2) { // four entries in one load; the last is padding that no word passes
        const Line row = *reinterpret_cast<const Line*>(cuts);
        return (row.word[0] <= w) + (row.word[1] <= w) + (row.word[2] <= w);
    }
    HF_NO_UNROLL
    for (int b = bits - 1; b >= 0; --b) {
        const uint32_t next = position + (1u << b);
        position = cuts[next - 1] <= w ? next : position;
    }
    return position;
}

template <class Token> struct Draw {
    using Args = SampleArgs<Token>;
    const Args& args;
    const unsigned char* tables;

    HF_INLINE const uint32_t* cuts(int64_t offset, uint32_t row, int bits) const {
        return reinterpret_cast<const uint32_t*>(tables + offset) + (static_cast<size_t>(row) << bits);
    }
    // The entry of `picks` that a word chooses for a parent.
    HF_INLINE size_t rule(int d, uint32_t parent, uint32_t word) const {
        const int bits = args.tables.bits[d];
        return (static_cast<size_t>(parent) << bits) + search(cuts(args.tables.cuts[d], parent, bits), bits, word);
    }
    HF_INLINE const Token* picks(int d) const { return reinterpret_cast<const Token*>(tables + args.tables.picks[d]); }

    HF_INLINE uint32_t root(RowWords& tree, int64_t row) const {
        if (!args.roots) return search(cuts(args.tables.prior, 0, 0), args.tables.prior_bits, tree[0]);
        const uint32_t given = static_cast<uint32_t>(args.roots[row]), last = args.tables.n_classes - 1;
        return given < last ? given : last;
    }
    HF_INLINE uint32_t star(RowWords& words, uint32_t root, int64_t node) const {
        const int bits = args.tables.star_bits;
        const uint32_t* of_node = cuts(args.tables.star, 0, 0) + ((node * args.tables.n_classes) << bits);
        return search(of_node + (static_cast<size_t>(root) << bits), bits, words[node]);
    }
    HF_INLINE void keep(int d, int64_t row, int64_t node, uint32_t symbol) const {
        if (args.levels[d]) args.levels[d][row * power(args.arity, d) + node] = static_cast<Token>(symbol);
    }
};

// ------------------------------------------------------------------------- symbols in registers

// N tokens to consecutive memory, aligned as N tokens are.
template <class Token, int N> HF_INLINE void store_run(Token* out, const uint32_t* symbols) {
    constexpr int per_word = 4 / sizeof(Token), bits = 8 * sizeof(Token);
    if constexpr (N < per_word) {
        for (int i = 0; i < N; ++i) out[i] = static_cast<Token>(symbols[i]);
    } else {
        constexpr int n_words = N / per_word;
        uint32_t word[n_words];
        for (int w = 0; w < n_words; ++w) {
            word[w] = symbols[w * per_word];
            for (int i = 1; i < per_word; ++i) word[w] |= symbols[w * per_word + i] << (bits * i);
        }
        if constexpr (n_words >= 4) {
            for (int w = 0; w < n_words; w += 4)
                reinterpret_cast<Line*>(out)[w / 4] = Line{{word[w], word[w + 1], word[w + 2], word[w + 3]}};
        } else {
            for (int w = 0; w < n_words; ++w) reinterpret_cast<uint32_t*>(out)[w] = word[w];
        }
    }
}

template <class Token> struct TwoTokens;
template <> struct TwoTokens<uint8_t> {
    using type = uint16_t;
};
template <> struct TwoTokens<uint16_t> {
    using type = uint32_t;
};

// One level of a binary subtree of known shape; the recursion unrolls it into registers.
template <class Token, int H, int R, bool Whole> struct Grow {
    using Pair = typename TwoTokens<Token>::type;

    static HF_INLINE void level(const Draw<Token>& draw, RowWords& tree, int top, int64_t node, int64_t row,
                                uint32_t* symbols) {
        constexpr int n = 1 << R;
        const int d = top + R;
        const int64_t first = int64_t(n) * ((int64_t(1) << top) + node);  // the word of the leftmost node
        const Pair* picks = reinterpret_cast<const Pair*>(draw.picks(d)); // both children in one load
        Words<uint32_t> words{};
        if constexpr (R < 2) words = Whole ? tree.words : tree.block(first >> 2);
        HF_UNROLL
        for (int i = n - 1; i >= 0; --i) {
            uint32_t word;
            if constexpr (R >= 2) {
                if (i % 4 == 3) words = tree.block((first + i) >> 2);
                word = words.w[i % 4];
            } else if constexpr (Whole) {
                word = words.w[n + i];
            } else {
                word = words_at(words, static_cast<int>(first + i));
            }
            const Pair pair = picks[draw.rule(d, symbols[i], word)];
            symbols[2 * i + 1] = pair >> (8 * sizeof(Token));
            symbols[2 * i] = static_cast<Token>(pair);
        }
        if (Token* out = draw.args.levels[d + 1])
            store_run<Token, 2 * n>(out + ((row << (d + 1)) + (node << (R + 1))), symbols);
        if constexpr (R + 1 < H) Grow<Token, H, R + 1, Whole>::level(draw, tree, top, node, row, symbols);
    }
};

// --------------------------------------------------------------------------------- the kernel

// H > 0: binary, runs of 2^H leaves in registers; Whole: the run is the row. H = 0: any tree.
template <class Token, int H, bool Whole> struct Sample {
    using Args = SampleArgs<Token>;
    static constexpr int kMaxThreads = 256;

    static HF_INLINE int64_t phases(const Args& args, const Launch&) { return args.in_shared ? 2 : 1; }

    static HF_INLINE void phase(int64_t p, const Args& args, const Launch& l) {
        if (args.in_shared && p == 0) {
            const Line* from = reinterpret_cast<const Line*>(args.tables.bytes);
            for (int64_t i = l.thread; i < args.tables.size / 16; i += l.threads)
                reinterpret_cast<Line*>(l.shared)[i] = from[i];
            return;
        }
        const int64_t runs = Whole ? 1 : power(args.arity, args.depth - args.height);
        const int64_t items = args.n * runs;
        for (int64_t item = l.block * l.threads + l.thread; item < items; item += l.grid * l.threads) {
            const int64_t row = Whole ? item : item / runs;
            const int64_t run = Whole ? 0 : item - row * runs;
            if constexpr (H > 0) in_registers({args, l.shared}, row, run);
            else in_memory({args, args.in_shared ? l.shared : args.tables.bytes}, row, run);
        }
    }

  private:
    static HF_INLINE void in_registers(const Draw<Token>& draw, int64_t row, int64_t run) {
        const Args& args = draw.args;
        RowWords tree(args.start + static_cast<uint64_t>(row), kPurposeTree, args.seed);
        uint32_t symbols[1 << H];
        if constexpr (Whole) {
            tree.words = tree.block(0);
            tree.held = 0;
            symbols[0] = draw.root(tree, row);
            if (args.levels[0]) args.levels[0][row] = static_cast<Token>(symbols[0]);
            Grow<Token, H, 0, true>::level(draw, tree, 0, 0, row, symbols);
        } else {
            const int top = args.depth - H;
            symbols[0] = descend(draw, tree, row, top, run, run << H);
            Grow<Token, H, 0, false>::level(draw, tree, top, run, row, symbols);
        }
    }

    // The symbol of node (top, node), drawn along its path. Of the nodes passed, those whose first leaf is
    // also the run's first leaf are stored here; the others by the run that begins with them.
    static HF_INLINE uint32_t descend(const Draw<Token>& draw, RowWords& tree, int64_t row, int top, int64_t node,
                                      int64_t first_leaf) {
        const Args& args = draw.args;
        const int64_t s = args.arity;
        uint32_t symbol = draw.root(tree, row);
        if (first_leaf == 0) draw.keep(0, row, 0, symbol);
        int d = args.filter_level;
        int64_t below = power(s, top - d),
                leaves = power(s, args.depth - d); // nodes of `top`, leaves, under a node of d
        if (d > 0) {
            RowWords star(args.start + static_cast<uint64_t>(row), kPurposeStar, args.seed);
            symbol = draw.star(star, symbol, node / below);
            if (node / below * leaves == first_leaf) draw.keep(d, row, node / below, symbol);
        }
        int64_t heap = (power(s, d) - 1) / (s - 1);
        for (; d < top; ++d) {
            const size_t rule = draw.rule(d, symbol, tree[1 + heap + node / below]);
            heap = heap * s + 1;
            below /= s;
            leaves /= s;
            symbol = draw.picks(d)[rule * s + (node / below) % s];
            if (node / below * leaves == first_leaf) draw.keep(d + 1, row, node / below, symbol);
        }
        return symbol;
    }

    // Runs of any tree, symbols level by level in place as in cpu_sample.hpp.
    static HF_INLINE void in_memory(const Draw<Token>& draw, int64_t row, int64_t run) {
        const Args& args = draw.args;
        const int64_t s = args.arity;
        const int top = larger<int>(args.depth - args.height, args.filter_level);
        const int64_t tops = power(s, args.height - (args.depth - top));
        RowWords tree(args.start + static_cast<uint64_t>(row), kPurposeTree, args.seed);
        for (int64_t node = run * tops; node < (run + 1) * tops; ++node) {
            Token symbols[kMaxRun];
            symbols[0] = static_cast<Token>(descend(draw, tree, row, top, node, node * power(s, args.depth - top)));
            int64_t n = 1, first = node, heap = (power(s, top) - 1) / (s - 1);
            for (int d = top; d < args.depth; ++d) {
                for (int64_t i = n - 1; i >= 0; --i) {
                    const Token* children = draw.picks(d) + draw.rule(d, symbols[i], tree[1 + heap + first + i]) * s;
                    for (int64_t r = s - 1; r >= 0; --r) symbols[i * s + r] = children[r];
                }
                heap = heap * s + 1;
                n *= s;
                first *= s;
                if (Token* out = args.levels[d + 1])
                    for (int64_t i = 0; i < n; ++i) out[row * power(s, d + 1) + first + i] = symbols[i];
            }
        }
    }
};

} // namespace HF_NAMESPACE
