// Noise into rows, alone, over leaves, or in a step of a process: blocks of four numbers go through lanes in the order
// of memory.
#pragma once

#include "hfilter.h"
#include "noise.hpp"
#include "transpose.hpp"

#include <string.h>

namespace HF_NAMESPACE {
namespace { // templates that are not inlined stay in their object

// Walks the blocks of four numbers of rows, N of them at a time, in the order of memory.
//
// Lane 4 g + j holds block j N / 4 + g of the N: then transposing every four lanes puts the numbers in order.
template <int N> struct NoiseStream {
    using U = typename LaneType<uint32_t, N>::type;
    using V = typename Pack<float, N>::V;
    static constexpr uint32_t quarters = N / 4;
    U block{}, row{}; // of every lane; rows are counted from `first`
    uint64_t first;
    uint32_t blocks, tag, key0, key1;

    HF_INLINE NoiseStream(const hf_noise_args& args, int64_t begin)
        : first(args.start + static_cast<uint64_t>(begin)), blocks(static_cast<uint32_t>((args.size + 3) / 4)),
          tag(args.tag), key0(static_cast<uint32_t>(args.seed)), key1(static_cast<uint32_t>(args.seed >> 32)) {
        for (uint32_t l = 0; l < N; ++l) {
            const uint32_t at = l % 4 * quarters + l / 4;
            block[l] = at % blocks;
            row[l] = at / blocks;
        }
    }

    // Numbers 4 N i … 4 N i + 4 N - 1, whole blocks, counted from the first row; `scale` is a factor for every lane.
    HF_INLINE void next(V* z) {
        const uint32_t low = static_cast<uint32_t>(first);
        const U lo = row + low;
        const U carry = (U)(lo < low) & 1u;
        const Words<U> w = philox4x32<U>(lo, carry + static_cast<uint32_t>(first >> 32), block, U{} + tag, key0, key1);
        box_muller<N>(w.w[0], w.w[1], z[0], z[1]);
        box_muller<N>(w.w[2], w.w[3], z[2], z[3]);
    }
    HF_INLINE void advance() {
        block += N % blocks;
        row += N / blocks;
        const auto over = block >= blocks;
        block -= (U)over & blocks;
        row += (U)over & 1u;
    }
};

// Calls work(position, count, z) for every 4 N numbers of rows begin … end: `count` of them, at `position` in memory.
template <int N, class Scale, class Work>
HF_INLINE void over_noise(const hf_noise_args& args, int64_t begin, int64_t end, const Scale& scale, const Work& work) {
    using V = typename Pack<float, N>::V;
    // The index of a row within the stream must fit a word.
    constexpr int64_t kRows = int64_t(1) << 30;
    for (; begin < end; begin += kRows) {
        const int64_t rows = end - begin < kRows ? end - begin : kRows;
        NoiseStream<N> stream(args, begin);
        const int64_t blocks = stream.blocks, total = rows * blocks, size = args.size;
        const bool whole = size == 4 * blocks;
        for (int64_t done = 0; done < total; done += N) {
            V z[4];
            stream.next(z);
            scale(z, stream.row, begin, rows);
            transpose<N, 4>(z);
            stream.advance();
            if (whole) {
                const int64_t left = 4 * (total - done);
                work(begin * size + 4 * done, left < 4 * N ? static_cast<int>(left) : 4 * N, z);
                continue;
            }
            // Rows end within a block: its numbers go out one by one.
            const int64_t last = done + N < total ? done + N : total;
            for (int64_t b = done; b < last;) {
                const int64_t row = b / blocks, from = b - row * blocks;
                const int64_t stop = row * blocks + blocks < last ? row * blocks + blocks : last;
                int64_t count = 4 * (stop - b);
                if (4 * from + count > size) count = size - 4 * from;
                V part[4] = {};
                memcpy(part, reinterpret_cast<const float*>(z) + 4 * (b - done), static_cast<size_t>(count) * 4);
                work((begin + row) * size + 4 * from, static_cast<int>(count), part);
                b = stop;
            }
        }
    }
}

template <int N, class V> HF_INLINE void store_numbers(float* to, int count, const V* z) {
    if (count == 4 * N) memcpy(to, z, 4 * sizeof(V));
    else memcpy(to, z, static_cast<size_t>(count) * sizeof(float));
}

template <int N> void fill_noise(const hf_noise_args& args, int64_t begin, int64_t end) {
    using V = typename Pack<float, N>::V;
    const auto none = [](V*, const auto&, int64_t, int64_t) {};
    over_noise<N>(args, begin, end, none,
                  [&](int64_t at, int count, const V* z) { store_numbers<N>(args.out + at, count, z); });
}

// out = sigma * noise, and the signal added at the symbol of every leaf.
template <int N, class Token> void noise_tokens(const hf_noise_args& args, int64_t begin, int64_t end) {
    using V = typename Pack<float, N>::V;
    const auto scale = [&](V* z, const auto& row, int64_t first, int64_t rows) {
        V s;
        for (int l = 0; l < N; ++l) {
            const int64_t i = row[l];
            s[l] = args.sigma[first + (i < rows ? i : rows - 1)];
        }
        for (int i = 0; i < 4; ++i) z[i] = s * z[i];
    };
    const V same = V{} + args.sigma[begin];
    const auto scale_all = [&](V* z, const auto&, int64_t, int64_t) {
        for (int i = 0; i < 4; ++i) z[i] = same * z[i];
    };
    const auto store = [&](int64_t at, int count, const V* z) { store_numbers<N>(args.out + at, count, z); };
    bool alike = true;
    for (int64_t i = begin; i < end; ++i) alike &= args.sigma[i] == args.sigma[begin];
    if (alike) over_noise<N>(args, begin, end, scale_all, store);
    else over_noise<N>(args, begin, end, scale, store);
    const Token* tokens = static_cast<const Token*>(args.tokens);
    const int64_t leaves = args.size / args.vocab_size;
    for (int64_t i = begin; i < end; ++i)
        for (int64_t j = 0; j < leaves; ++j) {
            const int32_t symbol = tokens[i * leaves + j];
            if (symbol < args.vocab_size) args.out[i * args.size + j * args.vocab_size + symbol] += args.signal[i];
        }
}

// out = (a * x0 + b * out) + s * noise, with s = 0 nothing drawn and nothing added.
template <int N> void step_back(const hf_noise_args& args, int64_t begin, int64_t end) {
    using V = typename Pack<float, N>::V;
    const float a = args.a, b = args.b, s = args.s;
    float* const x = args.out;
    const float* const x0 = args.x0;
    if (s == 0) {
        for (int64_t i = begin * args.size; i < end * args.size; ++i) x[i] = a * x0[i] + b * x[i];
        return;
    }
    const auto none = [](V*, const auto&, int64_t, int64_t) {};
    over_noise<N>(args, begin, end, none, [&](int64_t at, int count, const V* z) {
        V from[4], to[4];
        if (count == 4 * N) {
            memcpy(from, x0 + at, sizeof(from));
            memcpy(to, x + at, sizeof(to));
            for (int i = 0; i < 4; ++i) to[i] = (a * from[i] + b * to[i]) + s * z[i];
            memcpy(x + at, to, sizeof(to));
        } else {
            for (int i = 0; i < count; ++i)
                x[at + i] = (a * x0[at + i] + b * x[at + i]) + s * reinterpret_cast<const float*>(z)[i];
        }
    });
}

template <int N> void make_noise(const hf_noise_args* args, int64_t begin, int64_t end) {
    if (begin >= end || args->size == 0) return;
    if (args->kind == HF_NOISE_FILL) fill_noise<N>(*args, begin, end);
    else if (args->kind == HF_NOISE_STEP) step_back<N>(*args, begin, end);
    else if (args->token_bytes == 1) noise_tokens<N, uint8_t>(*args, begin, end);
    else noise_tokens<N, uint16_t>(*args, begin, end);
}

} // namespace
} // namespace HF_NAMESPACE
