// Every backend table against plain sums over small trees: sampling, beliefs of every level, leave-one-out,
// log-evidence.
#include "calls.hpp"

#include <cmath>
#include <limits>

namespace {

// A row per lane of the widest pack and a few more, on both sides of every boundary.
const int kRows[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33};

void test_sampling() {
    for (const Shape& shape : shapes()) {
        const Tree t = random_tree(shape.arity, shape.filter_level, shape.alphabets, 7);
        const uint64_t start = 0xFFFFFFF0ull; // the index passes 2^32 within these rows
        const auto reference = draw<uint8_t>(hf_backend_at(hf_backend_count() - 1), t, 64, start, 1);
        for (int64_t i = 0; i < 64; ++i) { // what was drawn is possible
            Fields seen;
            for (int64_t j = 0; j < t.leaves(); ++j) {
                seen.emplace_back(t.alphabets[t.depth], 0.0);
                seen.back().at(reference.levels[t.depth][i * t.leaves() + j]) = 1;
            }
            CHECK(t.evidence(seen, {0, 0, reference.levels[0][i]}) > 0, "row %lld is impossible",
                  static_cast<long long>(i));
        }
        for (const hf_backend* b : usable_backends())
            for (int n : kRows) {
                check_same(t, reference, draw<uint8_t>(b, t, n, start, 1), n, 0);
                check_same(t, reference, draw<uint16_t>(b, t, n, start + 5, 3), n, 5);
            }
    }
}

template <class T> constexpr double tolerance() { return sizeof(T) == 4 ? 3e-6 : 1e-12; }

// One distribution of q entries against the weights it should be proportional to; NaN where all of them are zero.
template <class T>
void check_distribution(const T* got, const std::vector<double>& weights, const char* what, const std::string& where) {
    double sum = 0;
    for (double w : weights) sum += w;
    for (size_t a = 0; a < weights.size(); ++a) {
        if (sum == 0)
            CHECK(std::isnan(got[a]), "%s of impossible evidence is %g (%s)", what, static_cast<double>(got[a]),
                  where.c_str());
        else
            CHECK(std::fabs(got[a] - weights[a] / sum) < tolerance<T>(), "%s %zu: %.17g, not %.17g (%s)", what, a,
                  static_cast<double>(got[a]), weights[a] / sum, where.c_str());
    }
}

template <class T>
void check_row(const Tree& t, const Posterior<T>& p, int64_t row, const Fields& fields, const std::string& where) {
    const double z = t.evidence(fields);
    CHECK(p.status[row] == HF_ROW_EXACT, "status %d (%s)", p.status[row], where.c_str());
    if (z == 0)
        CHECK(p.log_evidence[row] == -std::numeric_limits<double>::infinity(), "%g (%s)", p.log_evidence[row],
              where.c_str());
    else
        CHECK(std::fabs(p.log_evidence[row] - std::log(z)) < tolerance<T>() * (1 + std::fabs(std::log(z))),
              "%.17g, not %.17g (%s)", p.log_evidence[row], std::log(z), where.c_str());

    const auto clamped = [&](const Fields& evidence, int level, int64_t node) {
        std::vector<double> weights;
        for (int a = 0; a < t.alphabets[level]; ++a) weights.push_back(t.evidence(evidence, {level, node, a}));
        return weights;
    };
    check_distribution(&p.root[row * t.alphabets[0]], clamped(fields, 0, 0), "root", where);
    for (int d = 1; d <= t.depth; ++d)
        for (int64_t i = 0; p.levels[d] && i < t.nodes(d); ++i)
            check_distribution(&p.levels[d][(row * t.nodes(d) + i) * t.alphabets[d]], clamped(fields, d, i), "belief",
                               where);
    for (int64_t j = 0; j < t.leaves(); ++j) {
        Fields others = fields;
        others[j].assign(others[j].size(), 1.0);
        check_distribution(&p.leave_one_out[(row * t.leaves() + j) * t.alphabets[t.depth]], clamped(others, t.depth, j),
                           "leave-one-out", where);
    }
}

template <class T, class Token> void test_tokens(const Tree& t, std::mt19937& random) {
    const int q = t.alphabets[t.depth];
    for (const hf_backend* b : usable_backends())
        for (int n : kRows) {
            const int64_t size = n * t.leaves();
            const auto drawn = draw<Token>(b, t, n, random(), 1); // possible rows, then one token in eight is anything
            const std::unique_ptr<Token[]> tokens(new Token[size]);
            const std::unique_ptr<uint8_t[]> mask(new uint8_t[size]);
            for (int64_t i = 0; i < size; ++i) {
                tokens[i] = random() % 8 ? drawn.levels[t.depth][i] : static_cast<Token>(random());
                mask[i] = random() % 3 == 0 ? static_cast<uint8_t>(1 + random() % 255) : 0;
            }
            hf_infer_args args{};
            args.n = n;
            args.tokens = tokens.get();
            args.mask = n % 2 ? mask.get() : nullptr;
            args.token_bytes = sizeof(Token);
            const Posterior<T> p = infer<T>(b, t, args, 1);
            for (int64_t row = n > 4 ? n - 4 : 0; row < n; ++row) { // the last pack is the one that is not full
                Fields fields;
                for (int64_t j = 0; j < t.leaves(); ++j) {
                    const int64_t at = row * t.leaves() + j;
                    const bool hidden = tokens[at] >= q || (args.mask && mask[at]);
                    fields.emplace_back(q, hidden ? 1.0 : 0.0);
                    if (!hidden) fields.back()[tokens[at]] = 1;
                }
                check_row(t, p, row, fields,
                          describe(b, t) + ", row " + std::to_string(row) + " of " + std::to_string(n));
            }
        }
}

template <class T, class Field> void test_fields(const Tree& t, std::mt19937& random) {
    const int q = t.alphabets[t.depth];
    std::normal_distribution<double> normal(0, 3);
    for (const hf_backend* b : usable_backends())
        for (int n : {1, 5, 17}) {
            const int64_t size = n * t.leaves() * q;
            const std::unique_ptr<Field[]> log_fields(new Field[size]);
            for (int64_t i = 0; i < size; ++i)
                log_fields[i] =
                    random() % 10 ? static_cast<Field>(normal(random)) : -std::numeric_limits<Field>::infinity();
            hf_infer_args args{};
            args.n = n;
            args.log_fields = log_fields.get();
            args.field_bytes = sizeof(Field);
            const Posterior<T> p = infer<T>(b, t, args, 1);
            for (int64_t row = n - 1; row < n; ++row) {
                Fields fields;
                for (int64_t j = 0; j < t.leaves(); ++j) {
                    fields.emplace_back();
                    for (int x = 0; x < q; ++x)
                        fields.back().push_back(
                            std::exp(static_cast<double>(log_fields[(row * t.leaves() + j) * q + x])));
                }
                check_row(t, p, row, fields, describe(b, t) + ", fields");
            }
        }
}

void test_inference() {
    std::mt19937 random(11);
    for (const Shape& shape : shapes()) {
        const Tree t = random_tree(shape.arity, shape.filter_level, shape.alphabets, 5);
        test_tokens<float, uint8_t>(t, random);
        test_tokens<double, uint16_t>(t, random);
        test_fields<float, float>(t, random);
        test_fields<double, double>(t, random);
        test_fields<double, float>(t, random);
    }
}

// A star so wide that every class falls 2^-128 behind one that was excluded by its first leaf: what is zero stays zero
// at every distance, by way of the exponents at which a power of two is infinite or wraps round.
void test_long_star() {
    const int depth = 7;
    // Class 0 has leaves of its own; classes 1 and 2 give every leaf the symbols 1 and 2 alike.
    const std::vector<Rule> copies = {
        {0, {0, 0}, 1}, {1, {1, 2}, .5}, {1, {2, 1}, .5}, {2, {1, 1}, .5}, {2, {2, 2}, .5}};
    const Tree t(2, depth, std::vector<int32_t>(depth + 1, 3), std::vector<std::vector<Rule>>(depth, copies),
                 {.5, .25, .25});
    const int n = 20; // row i hides its last i leaves
    std::vector<uint8_t> tokens(static_cast<size_t>(n * t.leaves()), 1);
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < i; ++j) tokens[(i + 1) * t.leaves() - 1 - j] = 3;
    hf_infer_args args{};
    args.n = n;
    args.tokens = tokens.data();
    args.token_bytes = 1;
    for (const hf_backend* b : usable_backends()) {
        const auto p = infer<float>(b, t, args, 1);
        for (int i = 0; i < n; ++i) {
            const float* root = &p.root[i * 3];
            CHECK(root[0] == 0 && root[1] == .5f && root[2] == .5f, "%s, %d hidden: root %g %g %g", b->name, i,
                  static_cast<double>(root[0]), static_cast<double>(root[1]), static_cast<double>(root[2]));
            const double expected = -static_cast<double>(t.leaves() - i + 1) * std::log(2.0);
            CHECK(std::fabs(p.log_evidence[i] / expected - 1) < 1e-6, "%s, %d hidden: %.17g, not %.17g", b->name, i,
                  p.log_evidence[i], expected);
        }
    }
}

} // namespace

int main() {
    for (const hf_backend* b : usable_backends()) std::printf("backend %s: %d lanes of float\n", b->name, b->lanes32);
    test_sampling();
    test_inference();
    test_long_star();
    std::puts("all passed");
    return 0;
}
