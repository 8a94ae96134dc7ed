// What is stored of messages: normalised, a row's side by side.
#pragma once

#include "cpu_rows.hpp"

namespace HF_NAMESPACE {
namespace {

// Calls with the size of an alphabet, if the compiler is to know it, or with 0.
template <class Call> HF_INLINE void with_symbols(int q, const Call& call) {
    if (q == 4) call(Fixed<4>());
    else call(Fixed<0>());
}

// Beliefs nu * mu of n nodes of a level, normalised, to rows `stride` apart; `lifted`: by how many powers of two both
// together are.
template <class P> HF_NOINLINE void store_beliefs(const Rows& rows, int64_t stride, int64_t n, int alphabet,
                                                  const typename P::V* nu, const typename P::V* mu,
                                                  typename P::Scalar* out, typename P::V* room, Range<P>& range,
                                                  typename P::Int lifted) {
    with_symbols(alphabet, [&](auto size) {
        const int q = size.size > 0 ? size.size : alphabet;
        for (int64_t i = 0; i < n; ++i) {
            typename P::V* belief = room + i * q;
            for (int a = 0; a < q; ++a) belief[a] = nu[i * q + a] * mu[i * q + a];
            range.normalised(normalise<P>(belief, q, belief));
        }
    });
    store_rows<P>(room, rows, stride, n * alphabet, out);
    range.next_level(lifted);
}

// What n nodes are expected to be by all that is not below them: their messages mu, normalised.
template <class P> HF_NOINLINE void store_predictions(const Rows& rows, int64_t stride, int64_t n, int alphabet,
                                                      const typename P::V* mu, typename P::Scalar* out,
                                                      typename P::V* room) {
    with_symbols(alphabet, [&](auto size) {
        const int q = size.size > 0 ? size.size : alphabet;
        for (int64_t i = 0; i < n; ++i) normalise<P>(mu + i * q, q, room + i * q);
    });
    store_rows<P>(room, rows, stride, n * alphabet, out);
}

} // namespace
} // namespace HF_NAMESPACE
