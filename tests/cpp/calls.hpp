// The calls of csrc/hfilter.h over vectors and exact-size arrays, and the macro that ends a test.
//
// Arrays are allocated at their exact size, so that under AddressSanitizer one element too far ends the run.
#pragma once

#include "tree.hpp"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            std::fprintf(stderr, "%s:%d: %s\n    ", __FILE__, __LINE__, #condition);                                   \
            std::fprintf(stderr, __VA_ARGS__);                                                                         \
            std::fputc('\n', stderr);                                                                                  \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (0)

inline std::vector<const hf_backend*> usable_backends() {
    std::vector<const hf_backend*> found;
    for (int i = 0; i < hf_backend_count(); ++i)
        if (hf_backend_supported(i)) found.push_back(hf_backend_at(i));
    return found;
}

struct Shape {
    int arity, filter_level;
    std::vector<int32_t> alphabets;
};

inline std::vector<Shape> shapes() {
    std::vector<Shape> list;
    const std::vector<std::pair<int, std::vector<int32_t>>> trees = {
        {2, {3, 3}}, {2, {2, 4, 3, 5}}, {3, {3, 2, 4}}, {5, {2, 3}}, {2, {1, 1, 1}}};
    for (const auto& [arity, alphabets] : trees)
        for (int k = 0; k < static_cast<int>(alphabets.size()); ++k) list.push_back({arity, k, alphabets});
    return list;
}

inline std::string describe(const hf_backend* b, const Tree& t) {
    return std::string(b->name) + ", arity " + std::to_string(t.arity) + ", depth " + std::to_string(t.depth) + ", k " +
           std::to_string(t.filter_level);
}

template <class Token> struct Drawn {
    std::vector<std::unique_ptr<Token[]>> levels; // null where the level does not exist
};

template <class Token> Drawn<Token> draw(const hf_backend* b, const Tree& t, int64_t n, uint64_t start, int threads,
                                         const int32_t* roots = nullptr) {
    Drawn<Token> drawn;
    std::vector<void*> pointers;
    for (int d = 0; d <= t.depth; ++d) {
        const bool exists = d == 0 || d >= t.filter_level;
        drawn.levels.emplace_back(exists ? new Token[n * t.nodes(d)] : nullptr);
        pointers.push_back(drawn.levels.back().get());
    }
    hf_sample_args args{};
    args.n = n;
    args.seed = 0x123456789ABCDEFull;
    args.start = start;
    args.roots = roots;
    args.levels = pointers.data();
    args.token_bytes = sizeof(Token);
    CHECK(hf_sample(b, &t.model, &args, threads) == HF_OK, "%s", describe(b, t).c_str());
    return drawn;
}

template <class A, class B>
void check_same(const Tree& t, const Drawn<A>& x, const Drawn<B>& y, int64_t n, int64_t skip) {
    for (int d = 0; d <= t.depth; ++d)
        for (int64_t i = 0; x.levels[d] && i < n * t.nodes(d); ++i)
            CHECK(x.levels[d][i + skip * t.nodes(d)] == y.levels[d][i], "level %d, entry %lld", d,
                  static_cast<long long>(i));
}

template <class T> struct Posterior {
    std::vector<double> log_evidence;
    std::unique_ptr<T[]> root, leave_one_out;
    std::vector<std::unique_ptr<T[]>> levels; // [0] unused
    std::vector<uint8_t> status;
};

template <class T> Posterior<T> infer(const hf_backend* b, const Tree& t, hf_infer_args args, int threads) {
    const int64_t n = args.n;
    Posterior<T> p;
    p.log_evidence.resize(n);
    p.status.assign(n, 255);
    p.root.reset(new T[n * t.alphabets[0]]);
    p.leave_one_out.reset(new T[n * t.leaves() * t.alphabets[t.depth]]);
    std::vector<void*> pointers;
    for (int d = 0; d <= t.depth; ++d) {
        const bool exists = d > 0 && d >= t.filter_level;
        p.levels.emplace_back(exists ? new T[n * t.nodes(d) * t.alphabets[d]] : nullptr);
        pointers.push_back(p.levels.back().get());
    }
    uint8_t nothing = 0;
    args.value_bytes = sizeof(T);
    args.log_evidence = p.log_evidence.data();
    args.root = p.root.get();
    args.beliefs = pointers.data();
    args.leave_one_out = p.leave_one_out.get();
    args.status = n > 0 ? p.status.data() : &nothing;
    CHECK(hf_infer(b, &t.model, &args, threads) == HF_OK, "%s", describe(b, t).c_str());
    return p;
}
