// Symbols of lanes to memory: a row's tokens side by side. For processors; a CUDA thread writes its own row.
#pragma once

#include "transpose.hpp"
#include "tree_sampling.hpp"

#include <string.h>

namespace HF_NAMESPACE {
namespace {

template <int N> HF_INLINE uint32_t lane_of(const typename LaneType<uint32_t, N>::type& x, int l) {
    if constexpr (N == 1) return x;
    else return x[l];
}

// Rows of N lanes of 32-bit words, n of them a row, `word(i)` the i-th of every lane, to memory, `stride` bytes from
// row to row: a transposition makes whole rows where they are short and touch each other, and else 16 bytes of a row.
template <int N, class Word>
HF_INLINE void store_words(const Word& word, int64_t n, int count, char* out, int64_t stride) {
    using U = typename LaneType<uint32_t, N>::type;
    const auto whole = [&](U* w, int words) {
        if (count == N) __builtin_memcpy(out, w, sizeof(U) * static_cast<size_t>(words));
        else memcpy(out, w, static_cast<size_t>(stride) * static_cast<size_t>(count));
    };
    int64_t i = 0;
    if constexpr (N >= 4) {
        if (stride == 4 * n && n <= 4) {
            if (n == 4) {
                U w[4] = {word(0), word(1), word(2), word(3)};
                transpose<N, 4, N>(w);
                return whole(w, 4);
            }
            if (n == 2) {
                U w[2] = {word(0), word(1)};
                transpose<N, 2, N>(w);
                return whole(w, 2);
            }
            if (n == 1) {
                U w[1] = {word(0)};
                return whole(w, 1);
            }
        }
        for (; i + 4 <= n; i += 4) {
            U w[4] = {word(i), word(i + 1), word(i + 2), word(i + 3)};
            transpose<N, 4>(w);
            for (int l = 0; l < count; ++l)
                __builtin_memcpy(out + l * stride + 4 * i, reinterpret_cast<const char*>(&w[l & 3]) + 16 * (l / 4), 16);
        }
    }
    for (; i < n; ++i) {
        const U w = word(i);
        for (int l = 0; l < count; ++l) {
            const uint32_t bytes = lane_of<N>(w, l);
            __builtin_memcpy(out + l * stride + 4 * i, &bytes, 4);
        }
    }
}

// Rows of N lanes of symbols, n of them a row, `symbol(i)` the i-th of every lane, as tokens, `stride` tokens from row
// to row: four bytes or two halves of one row make a word.
template <int N, class Token, class Symbol>
HF_INLINE void store_tokens(const Symbol& symbol, int64_t n, int count, Token* out, int64_t stride) {
    using U = typename LaneType<uint32_t, N>::type;
    constexpr int per_word = 4 / sizeof(Token);
    if constexpr (N >= 4)
        if (stride == 1 && count == N) { // one token a row: the lanes are what memory wants
            using Tokens = typename LaneType<Token, N>::type;
            const Tokens narrow = __builtin_convertvector(U(symbol(0)), Tokens);
            __builtin_memcpy(out, &narrow, sizeof(narrow));
            return;
        }
    const auto word = [&](int64_t i) {
        U w = symbol(i * per_word);
        for (int b = 1; b < per_word; ++b) w |= symbol(i * per_word + b) << (8 * static_cast<int>(sizeof(Token)) * b);
        return w;
    };
    const int64_t words = N == 1 ? 0 : n / per_word, size = static_cast<int64_t>(sizeof(Token));
    store_words<N>(word, words, count, reinterpret_cast<char*>(out), stride * size);
    for (int64_t i = words * per_word; i < n; ++i) {
        const U x = symbol(i);
        for (int l = 0; l < count; ++l) out[l * stride + i] = static_cast<Token>(lane_of<N>(x, l));
    }
}

} // namespace
} // namespace HF_NAMESPACE
