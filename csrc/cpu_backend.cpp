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

#include "cpu_rows.hpp"
#include "subtree_table.hpp"

namespace HF_NAMESPACE {
namespace {

constexpr int kLanes32 = HF_VECTOR_BYTES / 4;
constexpr int kLanes64 = HF_VECTOR_BYTES / 8;

// ------------------------------------------------------------------------------------ sampling

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
                                                 const TableShape& table, typename P::V* scratch) {
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

    int deepest = args.leave_one_out ? depth : 0; // level that an output asks the downward pass for
    for (int d = 1; d <= depth; ++d)
        if (args.beliefs && args.beliefs[d]) deepest = deepest > d ? deepest : d;

    // Upward: from the leaves, or from subtrees that a table knows.
    V* leaves = scratch + at.nu[depth];
    I total{}, invalid{};
    int level = depth;
    if (args.log_fields) {
        if (args.field_bytes == 4)
            load_fields<P, Q, float>(m, args, rows, leaves, shift, range, bounds[depth], invalid);
        else load_fields<P, Q, double>(m, args, rows, leaves, shift, range, bounds[depth], invalid);
    } else if (table.height > 0 && deepest <= depth - table.height) {
        if constexpr (sizeof(T) == sizeof(float)) {
            auto* symbols = reinterpret_cast<typename LaneType<uint32_t, P::lanes>::type*>(leaves);
            load_symbols<P>(m, args, rows, symbols);
            level = depth - table.height;
            bounds[level] = args.table_values[table.least()];
            total = look_up_level<P>(m, table, args, symbols, scratch + at.nu[level], range);
        }
    } else load_tokens<P>(m, args, rows, leaves);
    for (int d = level - 1; d >= k; --d) {
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
    const I doubt = (suspect & ~invalid & splat_int<P>(HF_ROW_RANGE)) | (invalid & splat_int<P>(HF_ROW_NAN));
    const auto status = convert_lanes<typename LaneType<int8_t, P::lanes>::type, P::lanes>(doubt);
    __builtin_memcpy(args.status + rows.first, &status, static_cast<size_t>(rows.count));
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
    TableShape table(m);
    if (!args.tokens || !args.table_values || sizeof(typename P::Scalar) != sizeof(float) ||
        !Range<P>(Numbers<typename P::Scalar>::tiny(m)).harmless(args.table_values[table.least()]))
        table.height = 0;
    bool four = m.arity == 2;
    for (int d = 0; d <= m.depth; ++d) four = four && m.alphabets[d] == 4;
    for (int64_t row = begin; row < end; row += P::lanes) {
        const Rows rows{args.n, row, end - row < P::lanes ? static_cast<int>(end - row) : P::lanes};
        if (four) infer_pack<P, 2, 4>(m, args, rows, at, smallest, table, static_cast<typename P::V*>(scratch));
        else if (m.arity == 2)
            infer_pack<P, 2, 0>(m, args, rows, at, smallest, table, static_cast<typename P::V*>(scratch));
        else infer_pack<P, 0, 0>(m, args, rows, at, smallest, table, static_cast<typename P::V*>(scratch));
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

hf_table_size table_size(const hf_model* m) {
    const TableShape shape(*m);
    if (shape.height == 0) return {0, 0};
    return {shape.least() + 1, shape.combinations};
}

using TablePack = Pack<float, kLanes32>;

size_t fill_scratch(const hf_model* m) { return static_cast<size_t>(fill_packs(*m)) * sizeof(TablePack::V); }

void fill(const hf_model* m, float* values, int32_t* powers, void* scratch) {
    const TableShape shape(*m);
    if (shape.height == 0) return;
    float least = 2;
    for (int64_t first = 0; first < shape.combinations; first += kLanes32)
        least = smaller(least,
                        fill_table<TablePack>(*m, shape, first, static_cast<TablePack::V*>(scratch), values, powers));
    values[shape.least()] = least;
}

} // namespace
} // namespace HF_NAMESPACE

extern "C" __attribute__((visibility("hidden"))) const hf_backend* HF_JOIN(hf_backend_, HF_ISA)(void) {
    using namespace HF_NAMESPACE;
    static const hf_backend table = {HF_ABI_VERSION, HF_STRING(HF_ISA), sample_scratch, infer_scratch, sample, infer,
                                     kLanes32,       kLanes64,          table_size,     fill_scratch,  fill};
    return &table;
}
