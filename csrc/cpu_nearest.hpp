// The nearest of stored rows in Hamming distance: a lane is a stored row, in the narrowest type that holds its symbols
// and distances.
#pragma once

#include "hfilter.h"
#include "pack.hpp"

namespace HF_NAMESPACE {
namespace { // templates that are not inlined stay in their object

// acc + 1 where a and b differ.
template <class V> HF_INLINE V count_different(const V& acc, const V& a, const V& b) {
#if defined(__AVX512BW__)
    constexpr size_t bytes = sizeof(acc[0]);
    const __m512i ones = _mm512_set1_epi32(-1), x = (__m512i)a, y = (__m512i)b, z = (__m512i)acc;
    if constexpr (bytes == 1) return (V)_mm512_mask_sub_epi8(z, _mm512_cmpneq_epu8_mask(x, y), z, ones);
    else if constexpr (bytes == 2) return (V)_mm512_mask_sub_epi16(z, _mm512_cmpneq_epu16_mask(x, y), z, ones);
    else return (V)_mm512_mask_sub_epi32(z, _mm512_cmpneq_epu32_mask(x, y), z, ones);
#else
    return acc - (V)(a != b);
#endif
}

template <class V> HF_INLINE bool any_not_above(const V& a, const V& b) {
#if defined(__AVX512BW__)
    constexpr size_t bytes = sizeof(a[0]);
    if constexpr (bytes == 1) return _mm512_cmple_epu8_mask((__m512i)a, (__m512i)b) != 0;
    else if constexpr (bytes == 2) return _mm512_cmple_epu16_mask((__m512i)a, (__m512i)b) != 0;
    else return _mm512_cmple_epu32_mask((__m512i)a, (__m512i)b) != 0;
#else
    const auto mask = a <= b;
    uint64_t words[sizeof(V) / 8], any = 0;
    __builtin_memcpy(words, &mask, sizeof(V));
    for (const uint64_t word : words) any |= word;
    return any != 0;
#endif
}

constexpr int kTile = 4;   // rows asked about that go through the stored ones together
constexpr int kGroup = 64; // stored rows that lie together, position by position

template <class T> size_t nearest_bytes(const hf_nearest_args& args) {
    return static_cast<size_t>(kTile) * static_cast<size_t>(args.length) * HF_VECTOR_BYTES;
}

template <class T> void nearest_rows(const hf_nearest_args& args, int64_t begin, int64_t end, void* scratch) {
    constexpr int lanes = HF_VECTOR_BYTES / static_cast<int>(sizeof(T)), parts = kGroup / lanes;
    using V = typename LaneType<T, lanes>::type;
    const T most = static_cast<T>(~T(0));
    const T *rows = static_cast<const T*>(args.rows), *stored = static_cast<const T*>(args.stored);
    V* const splat_rows = static_cast<V*>(scratch);
    const int64_t length = args.length, groups = (args.n_stored + kGroup - 1) / kGroup;
    for (int64_t first = begin; first < end; first += kTile) {
        const int tile = end - first < kTile ? static_cast<int>(end - first) : kTile;
        for (int64_t j = 0; j < length; ++j)
            for (int r = 0; r < kTile; ++r)
                splat_rows[j * kTile + r] = V{} + rows[(first + (r < tile ? r : 0)) * length + j];
        T best[kTile];
        int64_t index[kTile] = {}, count[kTile] = {};
        for (int r = 0; r < kTile; ++r) best[r] = most - 1;
        V bound[kTile];
        for (int r = 0; r < kTile; ++r) bound[r] = V{} + best[r];
        for (int64_t g = 0; g < groups; ++g)
            for (int part = 0; part < parts; ++part) {
                const T* const column = stored + g * length * kGroup + part * lanes;
                V far[kTile] = {};
                for (int64_t j = 0; j < length; ++j) {
                    const V here = load_lanes<V>(column + j * kGroup);
                    for (int r = 0; r < kTile; ++r) far[r] = count_different(far[r], here, splat_rows[j * kTile + r]);
                }
                const int64_t at = g * kGroup + part * lanes;
                for (int64_t l = args.n_stored - at; l < lanes; ++l) // no rows there
                    for (int r = 0; l >= 0 && r < kTile; ++r) far[r][l] = most;
                for (int r = 0; r < tile; ++r) {
                    if (args.exclude) {
                        const int64_t own = first + r + args.first - at;
                        if (own >= 0 && own < lanes) far[r][own] = most;
                    }
                    if (!any_not_above(far[r], bound[r])) continue;
                    T lane[lanes], low = most;
                    __builtin_memcpy(lane, &far[r], sizeof(V));
                    for (int l = 0; l < lanes; ++l) low = lane[l] < low ? lane[l] : low;
                    if (low < best[r] || count[r] == 0) {
                        best[r] = low;
                        count[r] = 0;
                        bound[r] = V{} + low;
                        for (int l = lanes - 1; l >= 0; --l) index[r] = lane[l] == low ? at + l : index[r];
                    }
                    int equal = 0;
                    for (int l = 0; l < lanes; ++l) equal += lane[l] == low;
                    count[r] += equal;
                }
            }
        for (int r = 0; r < tile; ++r) {
            args.distance[first + r] = static_cast<int32_t>(best[r]);
            args.index[first + r] = index[r];
            args.count[first + r] = count[r];
        }
    }
}

} // namespace
} // namespace HF_NAMESPACE
