// The kernels on rows of the C ABI: noise, nearest rows, the posterior of stored rows. Buffers are of the exact size,
// so that a sanitizer sees any step beyond.
#include "calls.hpp"

#include <cmath>
#include <cstring>

namespace {

struct Kernels {
    const hf_row_kernels* table;
    std::string name;
};

std::vector<Kernels> usable_kernels() {
    std::vector<Kernels> found;
    for (int i = 0; i < hf_backend_count(); ++i)
        if (hf_backend_supported(i)) found.push_back({hf_row_kernels_at(i), hf_backend_at(i)->name});
    return found;
}

template <class T> std::unique_ptr<T[]> exactly(int64_t n) {
    return std::unique_ptr<T[]>(new T[static_cast<size_t>(n)]());
}

hf_noise_args noise_args(int64_t n, int64_t size, float* out) {
    hf_noise_args args{};
    args.n = n;
    args.size = size;
    args.seed = 0xFEDCBA9876543210ull;
    args.start = 0xFFFFFFFFull - 5; // the carry into the upper word falls among the first rows
    args.tag = 3u << 28 | 17;
    args.out = out;
    return args;
}

void test_noise_is_the_same_everywhere() {
    const std::vector<Kernels> kernels = usable_kernels();
    for (const int64_t size : {1, 2, 3, 4, 5, 12, 15, 16, 31, 48, 64, 65, 96, 130})
        for (const int64_t n : {1, 2, 5, 16, 33}) {
            const auto want = exactly<float>(n * size), got = exactly<float>(n * size);
            hf_noise_args args = noise_args(n, size, want.get());
            CHECK(hf_noise(kernels.back().table, &args, 1) == HF_OK, "noise");
            for (const Kernels& k : kernels) {
                args.out = got.get();
                CHECK(hf_noise(k.table, &args, 2) == HF_OK, "noise");
                CHECK(std::memcmp(want.get(), got.get(), static_cast<size_t>(n * size) * 4) == 0, "%s, %lld x %lld",
                      k.name.c_str(), static_cast<long long>(n), static_cast<long long>(size));
            }
            // The last row alone.
            args.n = 1;
            args.start += static_cast<uint64_t>(n - 1);
            CHECK(hf_noise(kernels.front().table, &args, 1) == HF_OK, "noise");
            CHECK(std::memcmp(want.get() + (n - 1) * size, got.get(), static_cast<size_t>(size) * 4) == 0, "a split");
        }
}

void test_noise_applied() {
    std::mt19937 random(5);
    for (const Kernels& k : usable_kernels())
        for (const int32_t q : {1, 3, 6, 300}) {
            const int64_t n = 21, leaves = 5, size = leaves * q;
            const auto noise = exactly<float>(n * size), x = exactly<float>(n * size), x0 = exactly<float>(n * size),
                       moved = exactly<float>(n * size);
            const auto tokens = exactly<uint16_t>(n * leaves);
            const auto signal = exactly<float>(n), sigma = exactly<float>(n);
            hf_noise_args args = noise_args(n, size, noise.get());
            CHECK(hf_noise(k.table, &args, 1) == HF_OK, "noise");
            // Some symbols are outside the alphabet: nothing is added for them.
            for (int64_t i = 0; i < n * leaves; ++i) tokens[i] = static_cast<uint16_t>(random() % (2 * q));
            for (int64_t i = 0; i < n; ++i)
                signal[i] = static_cast<float>(i), sigma[i] = 1.0f / static_cast<float>(i + 1);
            args.kind = HF_NOISE_LEAVES;
            args.out = x.get();
            args.tokens = tokens.get();
            args.token_bytes = 2;
            args.vocab_size = q;
            args.signal = signal.get();
            args.sigma = sigma.get();
            CHECK(hf_noise(k.table, &args, 2) == HF_OK, "leaves");
            for (int64_t i = 0; i < n * size; ++i) {
                float want = sigma[i / size] * noise[i];
                if (tokens[i / q] == i % q) want += signal[i / size];
                CHECK(x[i] == want, "%s, entry %lld", k.name.c_str(), static_cast<long long>(i));
            }
            for (int64_t i = 0; i < n * size; ++i) x0[i] = static_cast<float>(random() % 100), moved[i] = x[i];
            args.kind = HF_NOISE_STEP;
            args.out = moved.get();
            args.x0 = x0.get();
            args.a = 0.3f, args.b = 0.7f, args.s = 0.1f;
            CHECK(hf_noise(k.table, &args, 2) == HF_OK, "step");
            for (int64_t i = 0; i < n * size; ++i) {
                const volatile float there = args.a * x0[i], here = args.b * x[i], drawn = args.s * noise[i];
                const volatile float sum = there + here;
                CHECK(moved[i] == sum + drawn, "%s, entry %lld", k.name.c_str(), static_cast<long long>(i));
            }
        }
}

template <class T> void test_nearest(int64_t n, int64_t stored, int64_t length, uint32_t q, bool exclude) {
    std::mt19937 random(7);
    const int64_t groups = (stored + 63) / 64;
    const auto rows = exactly<T>(n * length), data = exactly<T>(stored * length),
               together = exactly<T>(groups * 64 * length);
    for (int64_t i = 0; i < n * length; ++i) rows[i] = static_cast<T>(random() % q);
    for (int64_t i = 0; i < stored * length; ++i) data[i] = static_cast<T>(random() % q);
    for (int64_t m = 0; m < stored; ++m)
        for (int64_t j = 0; j < length; ++j) together[(m / 64 * length + j) * 64 + m % 64] = data[m * length + j];
    const auto distance = exactly<int32_t>(n);
    const auto index = exactly<int64_t>(n), count = exactly<int64_t>(n);
    const hf_nearest_args args{n,          stored,         length,         sizeof(T),   exclude,    0,
                               rows.get(), together.get(), distance.get(), index.get(), count.get()};
    for (const Kernels& k : usable_kernels()) {
        CHECK(hf_nearest(k.table, &args, 2) == HF_OK, "nearest");
        for (int64_t i = 0; i < n; ++i) {
            int64_t best = length + 1, first = 0, many = 0;
            for (int64_t m = 0; m < stored; ++m) {
                if (exclude && m == i) continue;
                int64_t far = 0;
                for (int64_t j = 0; j < length; ++j) far += rows[i * length + j] != data[m * length + j];
                if (far < best) best = far, first = m, many = 0;
                many += far == best;
            }
            CHECK(distance[i] == best && index[i] == first && count[i] == many, "%s, row %lld of %lld x %lld",
                  k.name.c_str(), static_cast<long long>(i), static_cast<long long>(stored),
                  static_cast<long long>(length));
        }
    }
}

// Groups of one position each: rows are their own strings.
template <class Field, class Value> void test_empirical(int64_t n, int64_t stored, int64_t length, int32_t head) {
    std::mt19937 random(11);
    const int64_t q = 4;
    const auto positions = exactly<int64_t>(length + 1), starts = exactly<int64_t>(length + 1);
    const auto strings = exactly<int32_t>(stored * length);
    const auto symbols = exactly<uint16_t>(length * q);
    for (int64_t g = 0; g <= length; ++g) positions[g] = g, starts[g] = g * q;
    for (int64_t e = 0; e < length * q; ++e) symbols[e] = static_cast<uint16_t>(e % q);
    const auto runs = exactly<int64_t>(stored + 1); // every row is a run, which shares its head with itself
    for (int64_t m = 0; m <= stored; ++m) runs[m] = m;
    for (int64_t i = 0; i < stored * length; ++i)
        strings[i] = static_cast<int32_t>(i % length * q + static_cast<int64_t>(random() % q));
    const auto fields = exactly<Field>(n * length * q);
    for (int64_t i = 0; i < n * length * q; ++i)
        fields[i] = random() % 9 == 0 ? -INFINITY : static_cast<Field>(static_cast<double>(random() % 1000) / 200);
    const auto marginals = exactly<Value>(n * length * q);
    const auto mass = exactly<double>(n), shift = exactly<double>(n);
    hf_empirical_args args{};
    args.n = n, args.n_stored = stored, args.length = length, args.vocab_size = q;
    args.n_strings = length * q, args.width = 1, args.n_runs = stored;
    args.n_groups = static_cast<int32_t>(length), args.n_head = head;
    args.field_bytes = sizeof(Field), args.value_bytes = sizeof(Value);
    args.first_position = positions.get(), args.first_string = starts.get(), args.strings = strings.get();
    args.symbols = symbols.get(), args.runs = runs.get(), args.log_fields = fields.get();
    args.marginals = marginals.get(), args.mass = mass.get(), args.shift = shift.get();
    for (const Kernels& k : usable_kernels()) {
        CHECK(hf_empirical(k.table, &args, 2) == HF_OK, "empirical");
        for (int64_t i = 0; i < n; ++i) {
            std::vector<double> want(static_cast<size_t>(length * q));
            double all = 0;
            for (int64_t m = 0; m < stored; ++m) {
                double log = 0;
                for (int64_t j = 0; j < length; ++j)
                    log += static_cast<double>(fields[i * length * q + strings[m * length + j]]);
                for (int64_t j = 0; j < length; ++j)
                    want[static_cast<size_t>(strings[m * length + j])] += std::exp(log);
                all += std::exp(log);
            }
            const double near = sizeof(Value) == 4 ? 1e-5 : 1e-12;
            for (int64_t p = 0; p < length * q; ++p) {
                const double got = static_cast<double>(marginals[i * length * q + p]);
                if (all == 0) CHECK(std::isnan(got), "%s: no row is possible", k.name.c_str());
                else
                    CHECK(std::abs(got - want[static_cast<size_t>(p)] / all) < near, "%s: %g, wanted %g",
                          k.name.c_str(), got, want[static_cast<size_t>(p)] / all);
            }
            if (all == 0) CHECK(mass[i] == 0, "%s: no mass", k.name.c_str());
            else CHECK(std::abs(std::log(mass[i]) + shift[i] - std::log(all)) < 10 * near, "%s: mass", k.name.c_str());
        }
    }
}

void test_bad_arguments() {
    const hf_row_kernels* k = usable_kernels().back().table;
    CHECK(!hf_row_kernels_at(-1) && !hf_row_kernels_at(hf_backend_count()), "no table outside the list");
    float x[4] = {};
    hf_noise_args args = noise_args(1, 4, x);
    CHECK(hf_noise(k, &args, 1) == HF_OK, "fine");
    CHECK(hf_noise(nullptr, &args, 1) == HF_BAD_ARGUMENT && hf_noise(k, nullptr, 1) == HF_BAD_ARGUMENT, "null");
    args.kind = HF_NOISE_STEP;
    CHECK(hf_noise(k, &args, 1) == HF_BAD_ARGUMENT, "a step from nowhere");
    args.kind = HF_NOISE_LEAVES;
    CHECK(hf_noise(k, &args, 1) == HF_BAD_ARGUMENT, "no leaves");
    args.kind = 9;
    CHECK(hf_noise(k, &args, 1) == HF_BAD_ARGUMENT, "no such kind");
    args.kind = HF_NOISE_FILL;
    args.size = int64_t(1) << 40;
    CHECK(hf_noise(k, &args, 1) == HF_BAD_ARGUMENT, "rows too long");
    args.n = 0;
    args.size = 4;
    CHECK(hf_noise(k, &args, 1) == HF_OK, "no rows");
    hf_nearest_args search{};
    CHECK(hf_nearest(k, &search, 1) == HF_BAD_ARGUMENT && hf_nearest(k, nullptr, 1) == HF_BAD_ARGUMENT, "nothing");
    hf_empirical_args weigh{};
    CHECK(hf_empirical(k, &weigh, 1) == HF_BAD_ARGUMENT && hf_empirical(k, nullptr, 1) == HF_BAD_ARGUMENT, "nothing");
}

} // namespace

int main() {
    test_noise_is_the_same_everywhere();
    test_noise_applied();
    test_nearest<uint8_t>(9, 130, 16, 3, false);
    test_nearest<uint8_t>(13, 64, 3, 2, true);
    test_nearest<uint16_t>(5, 65, 7, 400, false);
    test_nearest<uint16_t>(3, 33, 300, 2, true);
    test_nearest<uint32_t>(5, 3, 4, 70000, true);
    for (const auto& [length, head] : {std::pair(1, 0), {2, 0}, {2, 1}, {3, 1}, {5, 4}, {6, 4}}) {
        test_empirical<float, float>(17, 200, length, head);
        test_empirical<float, double>(9, 50, length, head);
        test_empirical<double, double>(3, 1, length, head);
        test_empirical<double, float>(33, 7, length, head);
    }
    test_bad_arguments();
    std::puts("all passed");
    return 0;
}
