// Noise on a device: a thread makes one block of four numbers, and what the call wants of them. The bits are those of
// cpu_noise.hpp.
#pragma once

#include "cuda_api.h"
#include "cuda_launch.hpp"
#include "noise.hpp"

#include <string.h>

namespace HF_NAMESPACE {

struct NoiseKernel {
    static constexpr int kMaxThreads = 256;
    struct Args {
        hf_noise_args call;
        int64_t blocks; // of a row
        int32_t lines;  // rows begin and end with sixteen bytes, which move together
    };

    static HF_INLINE int64_t phases(const Args&, const Launch&) { return 1; }

    // Entry e of a row, whose noise is z.
    static HF_INLINE float value(const hf_noise_args& call, int64_t row, int64_t e, float z, float x0, float x) {
        if (call.kind == HF_NOISE_FILL) return z;
        if (call.kind == HF_NOISE_STEP) {
            const float moved = call.a * x0 + call.b * x;
            return call.s == 0 ? moved : moved + call.s * z;
        }
        const int64_t q = call.vocab_size, place = row * (call.size / q) + e / q;
        const int32_t symbol = call.token_bytes == 1 ? static_cast<const uint8_t*>(call.tokens)[place]
                                                     : static_cast<const uint16_t*>(call.tokens)[place];
        const float noise = call.sigma[row] * z;
        return symbol == e % q ? noise + call.signal[row] : noise;
    }

    static HF_INLINE void phase(int64_t, const Args& args, const Launch& launch) {
        const hf_noise_args& call = args.call;
        const int64_t total = call.n * args.blocks, step = launch.grid * launch.threads;
        const bool draws = call.kind != HF_NOISE_STEP || call.s != 0, reads = call.kind == HF_NOISE_STEP;
        for (int64_t i = launch.block * launch.threads + launch.thread; i < total; i += step) {
            // Most calls have fewer blocks than a word counts, which divides several times faster.
            const int64_t row =
                total >> 32 ? i / args.blocks : static_cast<uint32_t>(i) / static_cast<uint32_t>(args.blocks);
            const int64_t first = 4 * (i - row * args.blocks), left = call.size - first;
            const uint64_t sample = call.start + static_cast<uint64_t>(row);
            float z[4] = {}, x[4] = {}, x0[4] = {};
            if (draws) {
                const Words<uint32_t> w =
                    philox4x32<uint32_t>(static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32),
                                         static_cast<uint32_t>(first / 4), call.tag, static_cast<uint32_t>(call.seed),
                                         static_cast<uint32_t>(call.seed >> 32));
                box_muller<1>(w.w[0], w.w[1], z[0], z[1]);
                box_muller<1>(w.w[2], w.w[3], z[2], z[3]);
            }
            float* const out = call.out + row * call.size + first;
            const float* const from = call.x0 + (reads ? row * call.size + first : 0);
            const int count = left < 4 ? static_cast<int>(left) : 4;
            if (args.lines) {
                Line line;
                if (reads) {
                    line = *reinterpret_cast<const Line*>(from);
                    memcpy(x0, &line, sizeof(line));
                    line = *reinterpret_cast<const Line*>(out);
                    memcpy(x, &line, sizeof(line));
                }
                HF_UNROLL
                for (int k = 0; k < 4; ++k) z[k] = value(call, row, first + k, z[k], x0[k], x[k]);
                memcpy(&line, z, sizeof(line));
                *reinterpret_cast<Line*>(out) = line;
            } else {
                HF_UNROLL
                for (int k = 0; k < 4; ++k) // a fixed count: what is indexed stays in registers
                    if (k < count)
                        out[k] = value(call, row, first + k, z[k], reads ? from[k] : 0.0f, reads ? out[k] : 0.0f);
            }
        }
    }
};

template <class Machine> void make_noise(const Machine& machine, const hf_noise_args& call, int32_t force) {
    if (call.n <= 0 || call.size <= 0) return;
    const auto in_lines = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % sizeof(Line) == 0; };
    const int64_t blocks = (call.size + 3) / 4;
    const bool lines = call.size % 4 == 0 && in_lines(call.out) && in_lines(call.x0);
    const int64_t wanted = (call.n * blocks + NoiseKernel::kMaxThreads - 1) / NoiseKernel::kMaxThreads;
    const int64_t most = force & HF_FORCE_FEW_BLOCKS ? 2 : int64_t(machine.multiprocessors()) * 32;
    machine.template run<NoiseKernel>({call, blocks, lines}, wanted < most ? wanted : most, NoiseKernel::kMaxThreads,
                                      0);
}

} // namespace HF_NAMESPACE
