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
    int64_t n; // of the whole call
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

// Asks for the next rows while the present ones are computed: part `part` of `parts` of their `bytes` bytes each.
HF_INLINE void prefetch_rows(const void* rows, int64_t bytes, int64_t part, int64_t parts) {
    const char* from = static_cast<const char*>(rows);
    for (int64_t at = bytes * part / parts & ~int64_t(63); at < bytes * (part + 1) / parts; at += 64)
        __builtin_prefetch(from + at, 0, 3);
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
            for (int l = 0; l < N; ++l) __builtin_memcpy(out + at + l, values + rows(l) * stride + at, sizeof(*out));
            transpose<N, N>(out + at);
        }
        for (int64_t i = 0; size < N && i < size; ++i)
            for (int l = 0; l < N; ++l) set_lane<P>(out[i], l, values[rows(l) * stride + i]);
    }
}

// Results of this size would push everything else out of the caches, and be gone from them when they are read.
constexpr int64_t kStreamBytes = int64_t(4) << 20;

// The reverse.
template <class P>
HF_INLINE void store_rows(const typename P::V* x, const Rows& rows, int64_t size, typename P::Scalar* out) {
    constexpr int N = P::lanes;
    const bool stream = rows.n * size * static_cast<int64_t>(sizeof(*out)) >= kStreamBytes && size % N == 0 &&
                        reinterpret_cast<uintptr_t>(out) % sizeof(*x) == 0;
    if constexpr (N == 1) {
        __builtin_memcpy(out + rows.first * size, x, static_cast<size_t>(size) * sizeof(*x));
        return;
    } else {
        for (int64_t done = 0; size >= N && done < size; done += N) {
            const int64_t at = done < size - N ? done : size - N;
            typename P::V block[N];
            for (int i = 0; i < N; ++i) block[i] = x[at + i];
            transpose<N, N>(block);
            typename P::Scalar* to = out + rows.first * size + at;
            if (stream)
                for (int l = 0; l < rows.count; ++l, to += size) stream_store(to, block[l]);
            else
                for (int l = 0; l < rows.count; ++l, to += size) __builtin_memcpy(to, &block[l], sizeof(*x));
        }
        for (int64_t i = 0; size < N && i < size; ++i)
            for (int l = 0; l < rows.count; ++l) out[(rows.first + l) * size + i] = lane<P>(x[i], l);
    }
}

struct True {
    constexpr operator bool() const { return true; }
};
struct False {
    constexpr operator bool() const { return false; }
};

// Fields become numbers relative to the largest of their leaf, which goes into the log-evidence.
template <class P, int Q, class Field>
void load_fields(const hf_model& m, const hf_infer_args& args, const Rows& rows, typename P::V* nu,
                 typename LaneType<double, P::lanes>::type& shift, Range<P>& range, typename P::Scalar& bound) {
    using V = typename P::V;
    using T = typename P::Scalar;
    constexpr int N = P::lanes;
    using Given = typename LaneType<Field, N>::type; // a field in every lane
    using Wide = typename LaneType<decltype(T() + Field()), N>::type;
    const int64_t n = n_nodes(m, m.depth);
    const int q = Q > 0 ? Q : m.alphabets[m.depth];
    const Field* fields = static_cast<const Field*>(args.log_fields);
    const Field minus_infinity = -static_cast<Field>(__builtin_inf());
    const auto field = [&](int64_t at) {
        if constexpr (sizeof(Field) == sizeof(T)) return nu[at];
        else {
            Given h{};
            for (int l = 0; l < N; ++l) reinterpret_cast<Field*>(&h)[l] = fields[rows(l) * n * q + at];
            return h;
        }
    };
    const auto convert = [](auto from, auto like) {
        if constexpr (N == 1) return static_cast<decltype(like)>(from);
        else return __builtin_convertvector(from, decltype(like));
    };
    const int64_t pack_bytes = n * q * N * static_cast<int64_t>(sizeof(Field));
    const Field* next = rows.first + 2 * N <= args.n ? fields + (rows.first + N) * n * q : nullptr;
    V lowest{}; // relative to the largest field of the leaf: of all fields, or of the finite ones if `careful`
    const auto all_leaves = [&](auto careful) {
        if constexpr (sizeof(Field) == sizeof(T)) load_rows<P>(fields, n * q, rows, n * q, nu);
        shift = typename LaneType<double, N>::type{};
        lowest = V{};
        for (int64_t j = 0; j < n; ++j) {
            if (!careful && next) prefetch_rows(next, pack_bytes, j, n);
            V* out = nu + j * q;
            Given top = field(j * q);
            for (int x = 1; x < q; ++x) top = larger(top, field(j * q + x));
            top = top > minus_infinity ? top : Given{};
            shift += convert(top, typename LaneType<double, N>::type{});
            const Wide origin = convert(top, Wide{});
            V least{};
            for (int x = 0; x < q; ++x) {
                const Given h = field(j * q + x);
                const V below = convert(convert(h, Wide{}) - origin, V{});
                if constexpr (careful) {
                    const V excluded = convert(h > minus_infinity ? Given{} : Given{} + 1, V{});
                    least = smaller(least, excluded == 0 ? below : V{});
                } else {
                    least = smaller(least, below);
                }
                out[x] = exp_nonpositive<P>(below);
            }
            lowest = smaller(lowest, least);
        }
    };
    all_leaves(False{});
    // Something became zero? If it was finite, only too far below for the type, it must not pass for impossible.
    if (lowest_lane<P>(lowest) < Format<T>::exp_lowest) all_leaves(True{});
    range.lost |= as_mask<P>(lowest < splat<P>(Format<T>::exp_lowest));
    const V least = exp_nonpositive<P>(lowest);
    range.watch(least);
    bound = lowest_lane<P>(least > 0 ? least : splat<P>(1)); // what was lost needs no bound
}

// Divides by the sum (NaN where there is nothing to normalise) and returns the sum. One division serves all entries;
// certainty is exactly 1 all the same. A sum below the normal range has no inverse: `range` has to know of it.
template <class P> HF_INLINE typename P::V normalise(const typename P::V* x, int q, typename P::V* out) {
    typename P::V sum = x[0];
    for (int a = 1; a < q; ++a) sum = sum + x[a];
    const typename P::V inverse = splat<P>(1) / sum;
    const typename P::V certain = sum > 0 ? splat<P>(1) : inverse * 0;
    for (int a = 0; a < q; ++a) out[a] = x[a] == sum ? certain : x[a] * inverse;
    return sum;
}

// Beliefs nu * mu of the n nodes of a level, normalised.
template <class P, int Q> void store_beliefs(const Rows& rows, int64_t n, int alphabet, const typename P::V* nu,
                                             const typename P::V* mu, typename P::Scalar* out, typename P::V* scratch,
                                             Range<P>& range) {
    const int q = Q > 0 ? Q : alphabet;
    for (int64_t i = 0; i < n; ++i) {
        typename P::V* belief = scratch + i * q;
        for (int a = 0; a < q; ++a) belief[a] = nu[i * q + a] * mu[i * q + a];
        range.normalised(normalise<P>(belief, q, belief));
    }
    store_rows<P>(scratch, rows, n * q, out);
    range.next_level();
}

template <class T> T smallest_positive(const T* x, int n) {
    T smallest = T(1);
    for (int i = 0; i < n; ++i) smallest = x[i] < smallest ? x[i] : smallest;
    return smallest;
}

template <class P, int S, int Q> void infer_pack(const hf_model& m, const hf_infer_args& args, const Rows& rows,
                                                 const Layout<P>& at, const typename P::Scalar* smallest,
                                                 typename P::V* scratch) {
    using V = typename P::V;
    using I = typename P::I;
    using T = typename P::Scalar;
    const int k = m.filter_level, depth = m.depth;
    const int q0 = Q > 0 ? Q : m.alphabets[0], q = Q > 0 ? Q : m.alphabets[depth];
    const int64_t n_leaves = n_nodes(m, depth);
    Range<P> range(Numbers<T>::tiny(m));
    typename LaneType<double, P::lanes>::type shift{};
    T bounds[64]; // of the non-zero entries of the upward messages, by level
    bounds[depth] = T(1);

    V* leaves = scratch + at.nu[depth];
    if (args.tokens) {
        if (args.token_bytes == 1) load_tokens<P, uint8_t>(m, args, rows, leaves);
        else load_tokens<P, uint16_t>(m, args, rows, leaves);
    } else {
        if (args.field_bytes == 4) load_fields<P, Q, float>(m, args, rows, leaves, shift, range, bounds[depth]);
        else load_fields<P, Q, double>(m, args, rows, leaves, shift, range, bounds[depth]);
    }

    I total{};
    for (int d = depth - 1; d >= k; --d) {
        bounds[d] = next_bound(smallest[d], T(1), bounds[d + 1], m.arity, 1);
        upward_level<P, S, Q>(m.levels[d], m.arity, n_nodes(m, d), scratch + at.nu[d + 1], scratch + at.nu[d], total,
                              range, bounds[d]);
    }

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
    range.normalised(evidence);
    range.next_level();
    if (args.root) store_rows<P>(belief, rows, q0, static_cast<T*>(args.root));

    // Downward, as deep as an output asks for.
    int deepest = args.leave_one_out ? depth : 0;
    for (int d = 1; d <= depth; ++d)
        if (args.beliefs && args.beliefs[d]) deepest = deepest > d ? deepest : d;
    V* mu = scratch + at.mu[0];
    V* mu_below = scratch + at.mu[1];
    const auto emit = [&](int d) {
        if (args.beliefs && args.beliefs[d])
            store_beliefs<P, Q>(rows, n_nodes(m, d), m.alphabets[d], scratch + at.nu[d], mu,
                                static_cast<T*>(args.beliefs[d]), mu_below, range);
    };
    if (deepest > 0) {
        T bound = T(0); // not known: to be watched
        if (k > 0) {
            star.downward(mu, root, range);
            emit(k);
        } else {
            for (int a = 0; a < q0; ++a) mu[a] = splat<P>(prior[a]);
            bound = smallest_positive(prior, q0);
        }
        for (int d = k; d < deepest; ++d) {
            bound = next_bound(smallest[d], bound, bounds[d + 1], m.arity - 1, Q > 0 ? Q : m.alphabets[d]);
            downward_level<P, S, Q>(m.levels[d], m.arity, n_nodes(m, d), mu, scratch + at.nu[d + 1], mu_below, range,
                                    bound);
            V* swap = mu;
            mu = mu_below;
            mu_below = swap;
            emit(d + 1);
        }
        if (args.leave_one_out) {
            for (int64_t j = 0; j < n_leaves; ++j) normalise<P>(mu + j * q, q, mu_below + j * q);
            store_rows<P>(mu_below, rows, n_leaves * q, static_cast<T*>(args.leave_one_out));
        }
    }

    const I suspect = range.danger() & (as_mask<P>(range.spent > Numbers<T>::slack(m)) | range.empty());
    for (int l = 0; l < rows.count; ++l)
        args.status[rows.first + l] = lane_int<P>(suspect, l) ? HF_ROW_RANGE : HF_ROW_EXACT;
    if (args.log_evidence) {
        const auto log = log_scaled<P>(evidence, total) + shift;
        __builtin_memcpy(args.log_evidence + rows.first, &log, static_cast<size_t>(rows.count) * sizeof(double));
    }
}

template <class P>
void infer_rows(const hf_model& m, const hf_infer_args& args, int64_t begin, int64_t end, void* scratch) {
    const Layout<P> at(m);
    typename P::Scalar smallest[64]; // probability of a level
    for (int d = m.filter_level; d < m.depth; ++d)
        smallest[d] = smallest_positive(Numbers<typename P::Scalar>::prob(m.levels[d]), m.levels[d].n_rules);
    bool four = m.arity == 2;
    for (int d = 0; d <= m.depth; ++d) four = four && m.alphabets[d] == 4;
    for (int64_t row = begin; row < end; row += P::lanes) {
        const Rows rows{args.n, row, end - row < P::lanes ? static_cast<int>(end - row) : P::lanes};
        if (four) infer_pack<P, 2, 4>(m, args, rows, at, smallest, static_cast<typename P::V*>(scratch));
        else if (m.arity == 2) infer_pack<P, 2, 0>(m, args, rows, at, smallest, static_cast<typename P::V*>(scratch));
        else infer_pack<P, 0, 0>(m, args, rows, at, smallest, static_cast<typename P::V*>(scratch));
    }
    stream_fence();
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
