// Rows of memory into lanes, and back: tokens, fields, messages. For processors; a CUDA thread reads its own row.
#pragma once

#include "cpu_store.hpp"
#include "tree_kernels.hpp"

namespace HF_NAMESPACE {
namespace {

// Rows of one pack: lanes past the last row repeat the first, and are not stored.
struct Rows {
    int64_t n; // of the whole call
    int64_t first;
    int count;
    int64_t operator()(int l) const { return first + (l < count ? l : 0); }
};

// Neighbouring leaves of a tree: all there are, or those of a part.
struct Leaves {
    int64_t first, n;
};

// Four packs of words of which every row has its sixteen bytes: word i of row l is lane l of w[i].
template <int N> HF_INLINE void load_words(const void* bytes, int64_t stride, const Rows& rows,
                                           typename LaneType<uint32_t, N>::type* w) {
    const char* from = static_cast<const char*>(bytes);
    if constexpr (N >= 4) {
        for (int l = 0; l < 4; ++l) {
            const char* quarters[N / 4];
            if (rows.count == N)
                for (int b = 0; b < N / 4; ++b) quarters[b] = from + (rows.first + 4 * b + l) * stride;
            else
                for (int b = 0; b < N / 4; ++b) quarters[b] = from + rows(4 * b + l) * stride;
            w[l] = from_quarters<typename LaneType<uint32_t, N>::type, N / 4>(quarters);
        }
        transpose<N, 4>(w);
    }
}

// The symbols of leaves as words, one pack a leaf: q stands for a hidden one, and for any larger token.
template <int N, class Token> HF_INLINE void load_symbols_of(const hf_model& m, const hf_infer_args& args,
                                                             const Rows& rows, Leaves leaves,
                                                             typename LaneType<uint32_t, N>::type* out) {
    using U = typename LaneType<uint32_t, N>::type;
    const int64_t n = leaves.n, stride = n_nodes(m, m.depth);
    const U q = U{} + static_cast<uint32_t>(m.alphabets[m.depth]);
    const Token* tokens = static_cast<const Token*>(args.tokens) + leaves.first;
    const uint8_t* mask = args.mask ? args.mask + leaves.first : nullptr;
    int64_t j = 0;
    if constexpr (N >= 4 && sizeof(Token) == 1)
        for (; j + 16 <= n; j += 16) {
            U words[4], hidden[4] = {};
            load_words<N>(tokens + j, stride, rows, words);
            if (mask) load_words<N>(mask + j, stride, rows, hidden);
            for (int b = 0; b < 16; ++b) {
                const U token = words[b / 4] >> (b % 4 * 8) & 255u;
                out[j + b] = (hidden[b / 4] >> (b % 4 * 8) & 255u) != 0 ? q : smaller(token, q);
            }
        }
    for (; j < n; ++j) {
        U token{};
        for (int l = 0; l < N; ++l) {
            const int64_t at = rows(l) * stride + j;
            element(token, l) = mask && mask[at] ? 0xFFFFFFFFu : tokens[at];
        }
        out[j] = smaller(token, q);
    }
}

template <int N> HF_INLINE void load_symbols(const hf_model& m, const hf_infer_args& args, const Rows& rows,
                                             Leaves leaves, typename LaneType<uint32_t, N>::type* out) {
    if (args.token_bytes == 1) load_symbols_of<N, uint8_t>(m, args, rows, leaves, out);
    else load_symbols_of<N, uint16_t>(m, args, rows, leaves, out);
}

// Tokens become 0, or 1 for what they allow. The symbols lie where the messages will, and make room from the last on.
template <class P>
void load_tokens(const hf_model& m, const hf_infer_args& args, const Rows& rows, Leaves leaves, typename P::V* nu) {
    using V = typename P::V;
    using U = typename LaneType<uint32_t, P::lanes>::type;
    const int q = m.alphabets[m.depth];
    U* symbols = reinterpret_cast<U*>(nu);
    load_symbols<P::lanes>(m, args, rows, leaves, symbols);
    for (int64_t j = leaves.n - 1; j >= 0; --j) {
        const V symbol = convert_lanes<V, P::lanes>(convert_lanes<typename P::I, P::lanes>(load_lanes<U>(symbols + j)));
        const V hidden = symbol == static_cast<typename P::Scalar>(q) ? splat<P>(1) : V{};
        for (int x = 0; x < q; ++x) nu[j * q + x] = symbol == static_cast<typename P::Scalar>(x) ? splat<P>(1) : hidden;
    }
}

// Asks for memory that will be read, or written, soon.
template <bool Write = false, class T> HF_INLINE void prefetch(const T* from, int64_t size) {
    for (int64_t at = 0; at < size * static_cast<int64_t>(sizeof(T)); at += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(from) + at, Write, 3);
}

// Reads `size` values of every row, from `values` on with rows `stride` apart, into as many packs.
template <class P> HF_INLINE void load_rows(const typename P::Scalar* values, int64_t stride, const Rows& rows,
                                            int64_t size, typename P::V* out) {
    constexpr int N = P::lanes;
    if constexpr (N == 1) {
        __builtin_memcpy(out, values + rows.first * stride, static_cast<size_t>(size) * sizeof(*out));
        return;
    } else {
        for (int64_t done = 0; size >= N && done < size; done += N) {
            const int64_t at = done < size - N ? done : size - N; // the last block may overlap the one before
            const typename P::Scalar* from = values + rows.first * stride + at;
            typename P::V block[N];
            if (rows.count == N)
                for (int l = 0; l < N; ++l, from += stride) __builtin_memcpy(&block[l], from, sizeof(*out));
            else
                for (int l = 0; l < N; ++l)
                    __builtin_memcpy(&block[l], from + (l < rows.count ? l : 0) * stride, sizeof(*out));
            transpose<N, N>(block);
            for (int i = 0; i < N; ++i) out[at + i] = block[i];
        }
        for (int64_t i = 0; size < N && i < size; ++i)
            for (int l = 0; l < N; ++l) set_lane<P>(out[i], l, values[rows(l) * stride + i]);
    }
}

// The reverse, to rows `stride` apart.
template <class P> HF_INLINE void store_rows(const typename P::V* x, const Rows& rows, int64_t stride, int64_t size,
                                             typename P::Scalar* out) {
    constexpr int N = P::lanes;
    if constexpr (N == 1) {
        __builtin_memcpy(out + rows.first * stride, x, static_cast<size_t>(size) * sizeof(*x));
        return;
    } else {
        for (int64_t done = 0; size >= N && done < size; done += N) {
            const int64_t at = done < size - N ? done : size - N;
            typename P::V block[N];
            for (int i = 0; i < N; ++i) block[i] = x[at + i];
            transpose<N, N>(block);
            typename P::Scalar* to = out + rows.first * stride + at;
            if (rows.count == N)
                for (int l = 0; l < N; ++l, to += stride) __builtin_memcpy(to, &block[l], sizeof(*x));
            else
                for (int l = 0; l < rows.count; ++l, to += stride) __builtin_memcpy(to, &block[l], sizeof(*x));
        }
        if (size >= N) return;
        if constexpr (sizeof(*out) == 4) // short rows
            store_words<N>([&](int64_t i) { return (typename LaneType<uint32_t, N>::type)(x[i]); }, size, rows.count,
                           reinterpret_cast<char*>(out + rows.first * stride), stride * 4);
        else
            for (int64_t i = 0; i < size; ++i)
                for (int l = 0; l < rows.count; ++l) out[(rows.first + l) * stride + i] = lane<P>(x[i], l);
    }
}

// Rows that follow one another.
template <class P>
HF_INLINE void store_rows(const typename P::V* x, const Rows& rows, int64_t size, typename P::Scalar* out) {
    store_rows<P>(x, rows, size, size, out);
}

} // namespace
} // namespace HF_NAMESPACE
