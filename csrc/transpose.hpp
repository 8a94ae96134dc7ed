// Packs transposed, so that what lay along a row of memory comes to lie in a lane, and back.
#pragma once

#include "pack.hpp"

namespace HF_NAMESPACE {

// Sixteen packs of sixteen words: first four packs at a time within quarters of sixteen bytes, then the quarters. The
// shuffles are those that need no register for what goes where.
template <class V> HF_INLINE void transpose_16(V* x) {
    using I = LaneType<int32_t, 16>::type;
    const auto quarters = [](int a, int b, int c, int d) { // words of a quarter, 16 and up: of the second pack
        I of{};
        for (int l = 0; l < 16; ++l) {
            const int word = l % 4 == 0 ? a : l % 4 == 1 ? b : l % 4 == 2 ? c : d;
            of[l] = l / 4 * 4 + word;
        }
        return of;
    };
    const I words_low = quarters(0, 16, 1, 17), words_high = quarters(2, 18, 3, 19);
    const I pairs_low = quarters(0, 1, 16, 17), pairs_high = quarters(2, 3, 18, 19);
    I even{}, odd{}; // quarters of two packs
    for (int l = 0; l < 16; ++l) {
        even[l] = l / 4 * 8 + l % 4;
        odd[l] = even[l] + 4;
    }
    V y[16];
    for (int g = 0; g < 16; g += 4) {
        const V low0 = __builtin_shuffle(x[g], x[g + 1], words_low),
                low1 = __builtin_shuffle(x[g + 2], x[g + 3], words_low);
        const V high0 = __builtin_shuffle(x[g], x[g + 1], words_high),
                high1 = __builtin_shuffle(x[g + 2], x[g + 3], words_high);
        y[g] = __builtin_shuffle(low0, low1, pairs_low);
        y[g + 1] = __builtin_shuffle(low0, low1, pairs_high);
        y[g + 2] = __builtin_shuffle(high0, high1, pairs_low);
        y[g + 3] = __builtin_shuffle(high0, high1, pairs_high);
    }
    for (int c = 0; c < 4; ++c) {
        const V a = __builtin_shuffle(y[c], y[4 + c], even), b = __builtin_shuffle(y[8 + c], y[12 + c], even);
        x[c] = __builtin_shuffle(a, b, even);
        x[8 + c] = __builtin_shuffle(a, b, odd);
        const V d = __builtin_shuffle(y[c], y[4 + c], odd), e = __builtin_shuffle(y[8 + c], y[12 + c], odd);
        x[4 + c] = __builtin_shuffle(d, e, even);
        x[12 + c] = __builtin_shuffle(d, e, odd);
    }
}

// Transposes B packs in place, within every block of Block of their N lanes: with B lanes to a block, x[i] of a block's
// lane j and x[j] of its lane i change places; with more, the B words of a lane come to stand together, lane after
// lane.
template <int N, int B, int Block = B, class V> HF_INLINE void transpose(V* x) {
    using I = typename LaneType<typename LaneIndex<sizeof(V) / N>::type, N>::type;
    if constexpr (N == 16 && B == 16 && sizeof(V) == 64) return transpose_16(x);
    I low{}, high{};
    for (int l = 0; l < N; ++l) {
        low[l] = l / Block * Block + l % Block / 2 + (l & 1 ? N : 0);
        high[l] = low[l] + Block / 2;
    }
    // A riffle of the packs half of B apart, log2 B times over, is a transposition.
    V other[B];
    V *from = x, *to = other;
    for (int width = B; width > 1; width /= 2) {
        for (int i = 0; i < B / 2; ++i) {
            to[2 * i] = __builtin_shuffle(from[i], from[i + B / 2], low);
            to[2 * i + 1] = __builtin_shuffle(from[i], from[i + B / 2], high);
        }
        V* const swap = from;
        from = to;
        to = swap;
    }
    if (from != x)
        for (int i = 0; i < B; ++i) x[i] = from[i];
}

} // namespace HF_NAMESPACE
