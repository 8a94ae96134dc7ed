// Every backend table on what no caller should pass, over threads, in an odd floating-point
// environment, and on a deep tree.
#include "calls.hpp"

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace {

void test_roots_outside_the_alphabet() {
    const Tree t = random_tree(2, 0, {2, 4, 3, 5}, 3);
    const std::vector<int32_t> roots = {
        0, 1, 2, -1, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()};
    for (const hf_backend* b : usable_backends()) {
        const auto drawn = draw<uint8_t>(b, t, static_cast<int64_t>(roots.size()), 0, 1, roots.data());
        CHECK(drawn.levels[0][0] == 0 && drawn.levels[0][1] == 1, "given roots are kept");
        for (size_t i = 0; i < roots.size(); ++i) CHECK(drawn.levels[0][i] < 2, "root %zu", i);
    }
}

// Any bits at all as tokens and fields: nothing is promised about the answer but that there is one.
void test_garbage() {
    std::mt19937 random(13);
    for (const Shape& shape : shapes()) {
        const Tree t = random_tree(shape.arity, shape.filter_level, shape.alphabets, 17);
        const int64_t n = 37;
        for (const int bytes : {1, 2, 4, 8}) {
            const size_t size = static_cast<size_t>(n * t.leaves()) * (bytes <= 2 ? 1 : t.alphabets[t.depth]) * bytes;
            const std::unique_ptr<unsigned char[]> noise(new unsigned char[size]);
            for (size_t i = 0; i < size; ++i) noise[i] = static_cast<unsigned char>(random());
            hf_infer_args args{};
            args.n = n;
            (bytes <= 2 ? args.tokens : args.log_fields) = noise.get();
            args.token_bytes = args.field_bytes = bytes;
            for (const hf_backend* b : usable_backends()) {
                infer<float>(b, t, args, 2);
                infer<double>(b, t, args, 2);
            }
        }
    }
}

void test_bad_arguments() {
    const Tree t = random_tree(2, 0, {3, 3}, 1);
    const hf_backend* b = hf_backend_at(hf_backend_count() - 1);
    CHECK(!hf_backend_at(-1) && !hf_backend_at(hf_backend_count()), "no table outside the list");
    CHECK(!hf_backend_supported(-1) && !hf_backend_supported(hf_backend_count()),
          "nothing outside the list is supported");
    CHECK(hf_backend_supported(hf_backend_count() - 1) && std::string(b->name) == "portable",
          "the last one runs everywhere");

    std::vector<void*> none(2, nullptr);
    hf_sample_args draw_nothing{};
    draw_nothing.n = 3;
    draw_nothing.levels = none.data();
    draw_nothing.token_bytes = 1;
    CHECK(hf_sample(b, &t.model, &draw_nothing, 1) == HF_OK, "no output wanted is no error");
    CHECK(hf_sample(nullptr, &t.model, &draw_nothing, 1) == HF_BAD_ARGUMENT, "no backend");
    CHECK(hf_sample(b, nullptr, &draw_nothing, 1) == HF_BAD_ARGUMENT, "no model");
    CHECK(hf_sample(b, &t.model, nullptr, 1) == HF_BAD_ARGUMENT, "no arguments");
    hf_sample_args wide = draw_nothing;
    wide.token_bytes = 4;
    CHECK(hf_sample(b, &t.model, &wide, 1) == HF_BAD_ARGUMENT, "tokens of four bytes");
    hf_model other = t.model;
    other.abi_version = HF_ABI_VERSION + 1;
    CHECK(hf_sample(b, &other, &draw_nothing, 1) == HF_BAD_ARGUMENT, "another ABI");

    const uint8_t tokens[2] = {0, 1};
    uint8_t status[1];
    hf_infer_args ask{};
    ask.n = 1;
    ask.token_bytes = 1;
    ask.value_bytes = 4;
    ask.status = status;
    CHECK(hf_infer(b, &t.model, &ask, 1) == HF_BAD_ARGUMENT, "neither tokens nor fields");
    ask.tokens = tokens;
    CHECK(hf_infer(b, &t.model, &ask, 1) == HF_OK, "no output wanted is no error");
    ask.value_bytes = 2;
    CHECK(hf_infer(b, &t.model, &ask, 1) == HF_BAD_ARGUMENT, "values of two bytes");
    ask.value_bytes = 4;
    ask.status = nullptr;
    CHECK(hf_infer(b, &t.model, &ask, 1) == HF_BAD_ARGUMENT, "no status");
}

// ------------------------------------------------------------------- threads and the calling thread's state

bool same_bits(const Posterior<float>& x, const Posterior<float>& y, const Tree& t, int64_t n) {
    return std::memcmp(x.log_evidence.data(), y.log_evidence.data(), n * sizeof(double)) == 0 &&
           std::memcmp(x.root.get(), y.root.get(), n * t.alphabets[0] * sizeof(float)) == 0 &&
           std::memcmp(x.leave_one_out.get(), y.leave_one_out.get(),
                       n * t.leaves() * t.alphabets[t.depth] * sizeof(float)) == 0;
}

// Many rows, so that blocks are shared out; two callers at once, as from two Python threads without the GIL.
void test_threads() {
    const Tree t = random_tree(2, 1, {3, 4, 3, 4, 3}, 19);
    const int64_t n = 20001;
    for (const hf_backend* b : usable_backends()) {
        const auto one = draw<uint8_t>(b, t, n, 0, 1);
        hf_infer_args args{};
        args.n = n;
        args.tokens = one.levels[t.depth].get();
        args.token_bytes = 1;
        const auto alone = infer<float>(b, t, args, 1);
        const auto caller = [&] {
            check_same(t, one, draw<uint8_t>(b, t, n, 0, 4), n, 0);
            CHECK(same_bits(alone, infer<float>(b, t, args, 3), t, n), "%s", describe(b, t).c_str());
        };
        std::thread first(caller), second(caller);
        first.join();
        second.join();
    }
}

void test_floating_point_environment() {
    const Tree t = random_tree(2, 0, {2, 4, 3, 5}, 23);
    for (const hf_backend* b : usable_backends()) {
        const auto drawn = draw<uint8_t>(b, t, 17, 0, 1);
        hf_infer_args args{};
        args.n = 17;
        args.tokens = drawn.levels[t.depth].get();
        args.token_bytes = 1;
        const auto usual = infer<float>(b, t, args, 1);
        std::fesetround(FE_UPWARD);
#if defined(__SSE2__)
        _MM_SET_FLUSH_ZERO_MODE(_MM_FLUSH_ZERO_ON);
#endif
        const auto odd = infer<float>(b, t, args, 1);
        const int rounding = std::fegetround();
        std::fesetround(FE_TONEAREST);
#if defined(__SSE2__)
        CHECK(_MM_GET_FLUSH_ZERO_MODE() == _MM_FLUSH_ZERO_ON, "%s: flushing was not restored", b->name);
        _MM_SET_FLUSH_ZERO_MODE(_MM_FLUSH_ZERO_OFF);
#endif
        CHECK(rounding == FE_UPWARD, "%s: rounding was not restored", b->name);
        CHECK(same_bits(usual, odd, t, 17), "%s: the caller's rounding changed a result", b->name);
    }
}

// Rows side by side take more than a cache and are passed subtree by subtree, a row alone is passed whole: neither the
// bits nor what rows know of each other may show it.
void test_trees_in_parts() {
    const int64_t n = 3;
    for (const int filter_level : {0, 2}) {
        const Tree t = random_tree(2, filter_level, std::vector<int32_t>(16, 4), 31);
        for (const hf_backend* b : usable_backends()) {
            auto drawn = draw<uint8_t>(b, t, n, 0, 2);
            uint8_t* tokens = drawn.levels[t.depth].get();
            for (int64_t j = 0; j < n * t.leaves(); j += 3) tokens[j] = 255;
            std::vector<float> fields(static_cast<size_t>(n * t.leaves() * 4));
            for (size_t i = 0; i < fields.size(); ++i) fields[i] = static_cast<float>(i * 2654435761u % 1000) / 100;
            for (const bool soft : {false, true}) {
                const auto rows = [&](int64_t first, int64_t count) {
                    hf_infer_args args{};
                    args.n = count;
                    args.token_bytes = 1;
                    args.field_bytes = 4;
                    if (soft) args.log_fields = fields.data() + first * t.leaves() * 4;
                    else args.tokens = tokens + first * t.leaves();
                    return infer<float>(b, t, args, 1);
                };
                const auto all = rows(0, n);
                for (int64_t row = 0; row < n; ++row) {
                    const auto alone = rows(row, 1);
                    CHECK(all.log_evidence[row] == alone.log_evidence[0], "%s", describe(b, t).c_str());
                    for (int d = std::max(1, filter_level); d <= t.depth; ++d)
                        CHECK(std::memcmp(&all.levels[d][row * t.nodes(d) * 4], &alone.levels[d][0],
                                          t.nodes(d) * 4 * sizeof(float)) == 0,
                              "%s: level %d", describe(b, t).c_str(), d);
                    CHECK(std::memcmp(&all.leave_one_out[row * t.leaves() * 4], &alone.leave_one_out[0],
                                      t.leaves() * 4 * sizeof(float)) == 0,
                          "%s", describe(b, t).c_str());
                }
            }
        }
    }
}

// Seventeen levels of cancellation, in both precisions.
void test_deep_tree() {
    const Tree t = random_tree(2, 0, std::vector<int32_t>(18, 4), 29);
    for (const hf_backend* b : usable_backends()) {
        const auto drawn = draw<uint8_t>(b, t, 2, 0, 2);
        hf_infer_args args{};
        args.n = 2;
        args.tokens = drawn.levels[t.depth].get();
        args.token_bytes = 1;
        const auto p32 = infer<float>(b, t, args, 2);
        const auto p64 = infer<double>(b, t, args, 2);
        for (int row = 0; row < 2; ++row) {
            CHECK(std::isfinite(p64.log_evidence[row]) && p64.log_evidence[row] < 0, "%g", p64.log_evidence[row]);
            CHECK(std::fabs(p32.log_evidence[row] / p64.log_evidence[row] - 1) < 1e-5, "%.17g, not %.17g",
                  p32.log_evidence[row], p64.log_evidence[row]);
        }
    }
}

} // namespace

int main() {
    for (const hf_backend* b : usable_backends()) std::printf("backend %s: %d lanes of float\n", b->name, b->lanes32);
    test_roots_outside_the_alphabet();
    test_garbage();
    test_bad_arguments();
    test_threads();
    test_floating_point_environment();
    test_trees_in_parts();
    test_deep_tree();
    std::puts("all passed");
    return 0;
}
