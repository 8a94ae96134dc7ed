// Loads samples into lanes, calls the text, stores. Compiled once per instruction set, each time in a
// namespace of its own and exporting one symbol: nothing of it can be picked by the linker for another.
#ifndef HF_ISA
#error "HF_ISA names the instruction set, HF_VECTOR_BYTES its width"
#endif
#define HF_JOIN_(a, b) a##b
#define HF_JOIN(a, b) HF_JOIN_(a, b)
#define HF_STRING_(x) #x
#define HF_STRING(x) HF_STRING_(x)
#define HF_NAMESPACE HF_JOIN(hf_, HF_ISA)

#include "tree_kernels.hpp"

namespace HF_NAMESPACE {
namespace {

constexpr int kLanes32 = HF_VECTOR_BYTES / 4;
constexpr int kLanes64 = HF_VECTOR_BYTES / 8;

// ------------------------------------------------------------------------------------ sampling

// Rows of N lanes of 32-bit words, `n` a row, to memory as tokens: four bytes or two halves of one row make a
// word, and a transposition of words makes 16 bytes of a row.
template <int N, class Token>
void store_tokens(const typename LaneType<uint32_t, N>::type* x, int64_t n, int count, Token* out) {
    using U = typename LaneType<uint32_t, N>::type;
    constexpr int per_word = 4 / sizeof(Token);
    int64_t i = 0;
    if constexpr (N >= 4) {
        if (n == 1 && count == N) { // one token a row: the lanes are what memory wants
            using Tokens = typename LaneType<Token, N>::type;
            const Tokens narrow = __builtin_convertvector(x[0], Tokens);
            __builtin_memcpy(out, &narrow, sizeof(narrow));
            return;
        }
        const auto word = [&](int64_t at) {
            U w = x[at];
            for (int b = 1; b < per_word; ++b) w |= x[at + b] << (8 * static_cast<int>(sizeof(Token)) * b);
            return w;
        };
        for (; i + 4 * per_word <= n; i += 4 * per_word) {
            U w[4] = {word(i), word(i + per_word), word(i + 2 * per_word), word(i + 3 * per_word)};
            transpose<N, 4>(w);
            for (int l = 0; l < count; ++l)
                __builtin_memcpy(out + l * n + i, reinterpret_cast<const char*>(&w[l & 3]) + 16 * (l / 4), 16);
        }
        for (; i + per_word <= n; i += per_word) {
            const U w = word(i);
            for (int l = 0; l < count; ++l) {
                const uint32_t bytes = w[l];
                __builtin_memcpy(out + l * n + i, &bytes, 4);
            }
        }
    }
    for (; i < n; ++i)
        for (int l = 0; l < count; ++l) out[l * n + i] = static_cast<Token>(element(const_cast<U&>(x[i]), l));
}

template <int N, class Token>
void sample_rows(const hf_model& m, const hf_sample_args& args, int64_t begin, int64_t end, void* scratch) {
    using U = typename LaneType<uint32_t, N>::type;
    U* symbols = static_cast<U*>(scratch);
    auto* tables = reinterpret_cast<RegisterLevel<N>*>(symbols + n_nodes(m, m.depth));
    for (int d = m.filter_level; d < m.depth; ++d) tables[d].load(m.levels[d], m.arity);
    for (int64_t row = begin; row < end; row += N) {
        const int count = end - row < N ? static_cast<int>(end - row) : N;
        int32_t roots[N];
        if (args.roots)
            for (int l = 0; l < N; ++l) roots[l] = args.roots[row + (l < count ? l : 0)];
        const auto store = [&](int d, const U* level) {
            const int64_t n = n_nodes(m, d);
            if (args.levels[d]) store_tokens<N>(level, n, count, static_cast<Token*>(args.levels[d]) + row * n);
        };
        sample_tree<N>(m, tables, args.seed, args.start + static_cast<uint64_t>(row), args.roots ? roots : nullptr,
                       symbols, store);
    }
}

template <int N> size_t sample_bytes(const hf_model& m) {
    return static_cast<size_t>(n_nodes(m, m.depth)) * sizeof(uint32_t) * N +
           static_cast<size_t>(m.depth) * sizeof(RegisterLevel<N>);
}

size_t sample_scratch(const hf_model* m, int32_t narrow) {
    return narrow ? sample_bytes<1>(*m) : sample_bytes<kLanes32>(*m);
}

void sample(const hf_model* m, const hf_sample_args* args, int64_t begin, int64_t end, int32_t narrow, void* scratch) {
    const bool bytes = args->token_bytes == 1;
    if (narrow) {
        if (bytes) sample_rows<1, uint8_t>(*m, *args, begin, end, scratch);
        else sample_rows<1, uint16_t>(*m, *args, begin, end, scratch);
    } else {
        if (bytes) sample_rows<kLanes32, uint8_t>(*m, *args, begin, end, scratch);
        else sample_rows<kLanes32, uint16_t>(*m, *args, begin, end, scratch);
    }
}

// ----------------------------------------------------------------------------------- inference

// Rows of one pack: lanes past the last row repeat the first, and are not stored.
struct Rows {
    int64_t first;
    int count;
    int64_t operator()(int l) const { return first + (l < count ? l : 0); }
};

template <class P, class Token>
void load_tokens(const hf_model& m, const hf_infer_args& args, const Rows& rows, typename P::V* nu) {
    const int64_t n = n_nodes(m, m.depth);
    const int q = m.alphabets[m.depth];
    const Token* tokens = static_cast<const Token*>(args.tokens);
    for (int64_t j = 0; j < n; ++j) {
        typename P::V token{}, hidden{};
        for (int l = 0; l < P::lanes; ++l) {
            const int64_t at = rows(l) * n + j;
            const int t = tokens[at];
            set_lane<P>(token, l, static_cast<typename P::Scalar>(t));
            if (t >= q || (args.mask && args.mask[at])) set_lane<P>(hidden, l, 1);
        }
        for (int x = 0; x < q; ++x) {
            const typename P::V seen = token == static_cast<typename P::Scalar>(x) ? splat<P>(1) : typename P::V{};
            nu[j * q + x] = larger(seen, hidden);
        }
    }
}

// Fields become numbers relative to the largest of their leaf, which goes into the log-evidence.
template <class P, class Field> void load_fields(const hf_model& m, const hf_infer_args& args, const Rows& rows,
                                                 typename P::V* nu, double* shift, Range<P>& range) {
    using V = typename P::V;
    using T = typename P::Scalar;
    using Wide = decltype(T() + Field());
    const int64_t n = n_nodes(m, m.depth);
    const int q = m.alphabets[m.depth];
    const Field* fields = static_cast<const Field*>(args.log_fields);
    const T lowest = T(4) * Format<T>::exp_lowest;
    const Field minus_infinity = -static_cast<Field>(__builtin_inf());
    for (int64_t j = 0; j < n; ++j) {
        V* out = nu + j * q;
        for (int l = 0; l < P::lanes; ++l) {
            const Field* h = fields + (rows(l) * n + j) * q;
            Field top = h[0];
            for (int x = 1; x < q; ++x) top = larger(top, h[x]);
            if (!(top > minus_infinity)) top = 0;
            shift[l] += static_cast<double>(top);
            for (int x = 0; x < q; ++x) {
                // A finite field may be too far below for the type: it must not pass for impossible.
                const T below = static_cast<T>(Wide(h[x]) - Wide(top));
                set_lane<P>(out[x], l, h[x] > minus_infinity && !(below > lowest) ? lowest : below);
            }
        }
        for (int x = 0; x < q; ++x) {
            const V h = out[x];
            out[x] = exp_nonpositive<P>(h);
            range.watch(out[x]);
            range.lost |= as_mask<P>(out[x] == 0) & as_mask<P>(h > -static_cast<T>(__builtin_inf()));
        }
    }
}

template <class P> void store_rows(typename P::Scalar* out, const Rows& rows, int64_t row_size, int64_t at,
                                   const typename P::V* x, int q) {
    for (int l = 0; l < rows.count; ++l)
        for (int a = 0; a < q; ++a) out[(rows.first + l) * row_size + at + a] = lane<P>(x[a], l);
}

// Divides by the sum (NaN where there is nothing to normalise) and returns the sum.
template <class P> typename P::V normalise(const typename P::V* x, int q, typename P::V* out) {
    typename P::V sum = x[0];
    for (int a = 1; a < q; ++a) sum = sum + x[a];
    for (int a = 0; a < q; ++a) out[a] = x[a] / sum; // not times the inverse: certainty is exactly 1
    return sum;
}

// Beliefs nu * mu of the n nodes of a level, normalised.
template <class P> void store_beliefs(const Rows& rows, int64_t n, int q, const typename P::V* nu,
                                      const typename P::V* mu, typename P::Scalar* out, typename P::V* scratch,
                                      Range<P>& range) {
    for (int64_t i = 0; i < n; ++i) {
        for (int a = 0; a < q; ++a) scratch[a] = nu[i * q + a] * mu[i * q + a];
        const typename P::V sum = normalise<P>(scratch, q, scratch);
        range.cancelled(exponent<P>(sum));
        range.empty |= as_mask<P>(sum == 0);
        store_rows<P>(out, rows, n * q, i * q, scratch, q);
    }
    range.next_level();
}

template <class P, int S> void infer_pack(const hf_model& m, const hf_infer_args& args, const Rows& rows,
                                          const Layout<P>& at, typename P::V* scratch) {
    using V = typename P::V;
    using I = typename P::I;
    using T = typename P::Scalar;
    const int k = m.filter_level, depth = m.depth;
    const int q0 = m.alphabets[0], q = m.alphabets[depth];
    const int64_t n_leaves = n_nodes(m, depth);
    Range<P> range(Numbers<T>::tiny(m));
    double shift[P::lanes] = {};

    V* leaves = scratch + at.nu[depth];
    if (args.tokens) {
        if (args.token_bytes == 1) load_tokens<P, uint8_t>(m, args, rows, leaves);
        else load_tokens<P, uint16_t>(m, args, rows, leaves);
    } else {
        if (args.field_bytes == 4) load_fields<P, float>(m, args, rows, leaves, shift, range);
        else load_fields<P, double>(m, args, rows, leaves, shift, range);
    }

    I total{};
    for (int d = depth - 1; d >= k; --d)
        upward_level<P, S>(m.levels[d], m.arity, n_nodes(m, d), scratch + at.nu[d + 1], scratch + at.nu[d], total,
                           range);

    // The root: its message, times the prior, is the belief; the sum is the evidence.
    V* root = scratch + at.size - 2 * q0;
    V* belief = root + q0;
    const T* prior = Numbers<T>::prior(m);
    Star<P> star(m, scratch + at.star);
    if (k > 0) {
        WideNumber<P>* product = star.suffix;
        const I below = range.danger();
        const I best = star.upward(scratch + at.nu[k], product);
        for (int a = 0; a < q0; ++a) product[a].multiply(splat<P>(prior[a]));
        const I top = align<P>(product, q0, root, range);
        total += top;
        // What was lost below the star, the disagreement of its classes brings forth.
        range.spent += below & larger<I>(best - top, I{});
    } else {
        for (int a = 0; a < q0; ++a) root[a] = scratch[at.nu[0] + a] * prior[a];
    }
    const V evidence = normalise<P>(root, q0, belief);
    range.cancelled(exponent<P>(evidence));
    range.next_level();
    if (args.root) store_rows<P>(static_cast<T*>(args.root), rows, q0, 0, belief, q0);

    // Downward, as deep as an output asks for.
    int deepest = args.leave_one_out ? depth : 0;
    for (int d = 1; d <= depth; ++d)
        if (args.beliefs && args.beliefs[d]) deepest = deepest > d ? deepest : d;
    V* mu = scratch + at.mu[0];
    V* mu_below = scratch + at.mu[1];
    const auto emit = [&](int d) {
        if (args.beliefs && args.beliefs[d])
            store_beliefs<P>(rows, n_nodes(m, d), m.alphabets[d], scratch + at.nu[d], mu,
                             static_cast<T*>(args.beliefs[d]), mu_below, range);
    };
    if (deepest > 0) {
        if (k > 0) {
            star.downward(mu, root, range);
            emit(k);
        } else {
            for (int a = 0; a < q0; ++a) mu[a] = splat<P>(prior[a]);
        }
        for (int d = k; d < deepest; ++d) {
            downward_level<P, S>(m.levels[d], m.arity, n_nodes(m, d), mu, scratch + at.nu[d + 1], mu_below, range);
            V* swap = mu;
            mu = mu_below;
            mu_below = swap;
            emit(d + 1);
        }
        if (args.leave_one_out)
            for (int64_t j = 0; j < n_leaves; ++j) {
                normalise<P>(mu + j * q, q, mu_below);
                store_rows<P>(static_cast<T*>(args.leave_one_out), rows, n_leaves * q, j * q, mu_below, q);
            }
    }

    range.empty |= as_mask<P>(evidence == 0);
    const I suspect = range.danger() & (as_mask<P>(range.spent > Numbers<T>::slack(m)) | range.empty);
    for (int l = 0; l < rows.count; ++l) {
        const int64_t row = rows.first + l;
        args.status[row] = lane_int<P>(suspect, l) ? HF_ROW_RANGE : HF_ROW_EXACT;
        if (args.log_evidence) {
            const double z = static_cast<double>(lane<P>(evidence, l));
            args.log_evidence[row] =
                static_cast<double>(lane_int<P>(total, l)) * 0.693147180559945309417 + shift[l] + __builtin_log(z);
        }
    }
}

template <class P>
void infer_rows(const hf_model& m, const hf_infer_args& args, int64_t begin, int64_t end, void* scratch) {
    const Layout<P> at(m);
    for (int64_t row = begin; row < end; row += P::lanes) {
        const Rows rows{row, end - row < P::lanes ? static_cast<int>(end - row) : P::lanes};
        if (m.arity == 2) infer_pack<P, 2>(m, args, rows, at, static_cast<typename P::V*>(scratch));
        else infer_pack<P, 0>(m, args, rows, at, static_cast<typename P::V*>(scratch));
    }
}

template <class P> size_t layout_bytes(const hf_model& m) {
    return static_cast<size_t>(Layout<P>(m).size) * sizeof(typename P::V);
}

size_t infer_scratch(const hf_model* m, int32_t value_bytes, int32_t narrow) {
    if (value_bytes == 4) return narrow ? layout_bytes<Pack<float, 1>>(*m) : layout_bytes<Pack<float, kLanes32>>(*m);
    return narrow ? layout_bytes<Pack<double, 1>>(*m) : layout_bytes<Pack<double, kLanes64>>(*m);
}

void infer(const hf_model* m, const hf_infer_args* args, int64_t begin, int64_t end, int32_t narrow, void* scratch) {
    if (args->value_bytes == 4) {
        if (narrow) infer_rows<Pack<float, 1>>(*m, *args, begin, end, scratch);
        else infer_rows<Pack<float, kLanes32>>(*m, *args, begin, end, scratch);
    } else {
        if (narrow) infer_rows<Pack<double, 1>>(*m, *args, begin, end, scratch);
        else infer_rows<Pack<double, kLanes64>>(*m, *args, begin, end, scratch);
    }
}

} // namespace
} // namespace HF_NAMESPACE

extern "C" __attribute__((visibility("hidden"))) const hf_backend* HF_JOIN(hf_backend_, HF_ISA)(void) {
    using namespace HF_NAMESPACE;
    static const hf_backend table = {HF_ABI_VERSION, HF_STRING(HF_ISA), sample_scratch, infer_scratch, sample,
                                     infer,          kLanes32,          kLanes64};
    return &table;
}
