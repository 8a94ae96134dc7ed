// The other questions of the C ABI: contexts, rule counts, trees given evidence, derivatives. Buffers are of the exact
// size, so that a sanitizer sees any step beyond.
#include "calls.hpp"

namespace {

constexpr double kTolerance = 1e-9;

// Evidence that exists: rows of the stream, a third of their leaves hidden.
struct Evidence {
    std::vector<uint8_t> tokens, mask;
    hf_infer_args args{};
    std::vector<uint8_t> status;
    Evidence(const hf_backend* b, const Tree& t, int n, std::mt19937& random) : status(n) {
        const auto drawn = draw<uint8_t>(b, t, n, random(), 1);
        tokens.assign(drawn.levels[t.depth].get(), drawn.levels[t.depth].get() + n * t.leaves());
        for (size_t i = 0; i < tokens.size(); ++i) mask.push_back(random() % 3 == 0);
        args.n = n;
        args.tokens = tokens.data();
        args.mask = mask.data();
        args.token_bytes = 1;
        args.value_bytes = 8;
        args.status = status.data();
    }
    Fields fields(const Tree& t, int64_t row, int64_t first, int64_t last) const { // what leaves first … last - 1 say
        Fields fields;
        for (int64_t j = 0; j < t.leaves(); ++j) {
            const int64_t at = row * t.leaves() + j;
            const bool known = !mask[at] && j >= first && j < last;
            fields.emplace_back(t.alphabets[t.depth], known ? 0.0 : 1.0);
            if (known) fields.back()[tokens[at]] = 1;
        }
        return fields;
    }
};

void check_prediction(const Tree& t, const Fields& fields, int64_t leaf, const double* got, const std::string& where) {
    std::vector<double> want;
    double sum = 0;
    for (int x = 0; x < t.alphabets[t.depth]; ++x) sum += want.emplace_back(t.evidence(fields, {t.depth, leaf, x}));
    for (size_t x = 0; x < want.size(); ++x)
        CHECK(std::fabs(got[x] - want[x] / sum) < kTolerance, "leaf %lld: %.17g, not %.17g (%s)",
              static_cast<long long>(leaf), got[x], want[x] / sum, where.c_str());
}

void test_contexts(const hf_backend* b, const Tree& t, int n, std::mt19937& random) {
    Evidence e(b, t, n, random);
    const int q = t.alphabets[t.depth];
    std::vector<double> out(n * t.leaves() * q);
    e.args.leave_one_out = out.data();
    e.args.causal = 1;
    CHECK(hf_infer(b, &t.model, &e.args, 1) == HF_OK, "%s", describe(b, t).c_str());
    const int64_t row = n - 1;
    for (int64_t j = 0; j < t.leaves(); ++j)
        check_prediction(t, e.fields(t, row, 0, j), j, &out[(row * t.leaves() + j) * q], "causal, " + describe(b, t));
    e.args.causal = 0;
    for (int window = 1; window <= t.depth; ++window) {
        std::vector<double> laws;
        const Fields nothing(t.leaves(), std::vector<double>(q, 1.0));
        for (int64_t i = 0; window >= t.filter_level && i < t.nodes(window); ++i)
            for (int x = 0; x < t.alphabets[window]; ++x) laws.push_back(t.evidence(nothing, {window, i, x}));
        e.args.window = window;
        e.args.laws = laws.empty() ? nullptr : laws.data();
        CHECK(hf_infer(b, &t.model, &e.args, 1) == HF_OK, "%s", describe(b, t).c_str());
        const int64_t width = t.leaves() / t.nodes(window);
        for (int64_t j = 0; j < t.leaves(); ++j) {
            Fields fields = e.fields(t, row, j / width * width, (j / width + 1) * width);
            fields[j].assign(q, 1.0);
            check_prediction(t, fields, j, &out[(row * t.leaves() + j) * q], "window, " + describe(b, t));
        }
    }
    e.args.window = t.depth + 1;
    CHECK(hf_infer(b, &t.model, &e.args, 1) == HF_BAD_ARGUMENT, "%s", b->name);
}

void test_counts(const hf_backend* b, const Tree& t, int n, std::mt19937& random) {
    if (t.model.n_counts == 0) return;
    Evidence e(b, t, n, random);
    std::vector<double> counts(n * static_cast<int64_t>(t.model.n_counts));
    e.args.counts = counts.data();
    CHECK(hf_infer(b, &t.model, &e.args, 2) == HF_OK, "%s", describe(b, t).c_str());
    for (int row = 0; row < n; ++row) {
        double sum = 0, nodes = 0;
        for (int i = 0; i < t.model.n_counts; ++i) sum += counts[row * static_cast<int64_t>(t.model.n_counts) + i];
        for (int d = t.filter_level; d < t.depth; ++d) nodes += static_cast<double>(t.nodes(d));
        CHECK(std::fabs(sum - nodes) < kTolerance * nodes, "%.17g rules used at %g nodes", sum, nodes);
    }
}

// ln P(tree, evidence) of a whole tree, or -inf.
double log_weight(const Tree& t, const std::vector<std::unique_ptr<uint8_t[]>>& levels, int64_t row,
                  const Fields& fields) {
    const int root = levels[0][row], k = t.filter_level;
    double log = std::log(t.prior[root]);
    for (int64_t i = 0; k > 0 && i < t.nodes(k); ++i)
        log += std::log(t.channels[i][root * t.alphabets[k] + levels[k][row * t.nodes(k) + i]]);
    for (int d = k; d < t.depth; ++d)
        for (int64_t i = 0; i < t.nodes(d); ++i) {
            double p = 0;
            for (const Rule& rule : t.rules[d]) {
                bool same = rule.parent == levels[d][row * t.nodes(d) + i];
                for (int r = 0; r < t.arity; ++r)
                    same = same && rule.children[r] == levels[d + 1][(row * t.nodes(d) + i) * t.arity + r];
                if (same && rule.prob > p) p = rule.prob; // a tuple that stands twice is two rules
            }
            log += std::log(p);
        }
    for (int64_t j = 0; j < t.leaves(); ++j) log += std::log(fields[j][levels[t.depth][row * t.leaves() + j]]);
    return log;
}

void test_trees(const hf_backend* b, const Tree& t, int n, std::mt19937& random) {
    Evidence e(b, t, n, random);
    std::vector<double> log_evidence(n), weight(n);
    for (int64_t samples : {0, 1, 3}) {
        const int64_t trees = samples > 0 ? samples : 1;
        std::vector<std::unique_ptr<uint8_t[]>> levels;
        std::vector<void*> pointers;
        for (int d = 0; d <= t.depth; ++d) {
            levels.emplace_back(new uint8_t[n * trees * t.nodes(d)]);
            pointers.push_back(d == 0 || d >= t.filter_level ? levels.back().get() : nullptr);
        }
        hf_choose_args args{};
        args.evidence = e.args;
        args.evidence.log_evidence = log_evidence.data();
        args.n_samples = samples;
        args.seed = 5;
        args.start = ~uint64_t(0) - 1; // the index wraps round
        args.levels = pointers.data();
        args.level_bytes = 1;
        args.log_weight = samples ? nullptr : weight.data();
        CHECK(hf_choose(b, &t.model, &args, 2) == HF_OK, "%s", describe(b, t).c_str());
        for (int row = 0; row < n; ++row)
            for (int64_t j = 0; j < trees; ++j) {
                const double log = log_weight(t, levels, row * trees + j, e.fields(t, row, 0, t.leaves()));
                CHECK(log > -1e300, "a tree that cannot be, %s", describe(b, t).c_str());
                if (samples == 0)
                    CHECK(std::fabs(log - weight[row]) < 1e-9 * (1 + std::fabs(log)), "%.17g, not %.17g", weight[row],
                          log);
                else CHECK(log <= log_evidence[row] + 1e-9, "%.17g above %.17g", log, log_evidence[row]);
            }
    }
}

// Central differences of beliefs along a direction of the fields.
void test_derivatives(const hf_backend* b, const Tree& t, int n, std::mt19937& random) {
    std::normal_distribution<double> normal;
    const int q = t.alphabets[t.depth];
    const int64_t size = n * t.leaves() * q;
    std::vector<double> fields(size), direction(size), shifted(size), moved(size), root(n * t.alphabets[0]);
    for (int64_t i = 0; i < size; ++i) fields[i] = normal(random), direction[i] = normal(random);
    hf_tangent_args args{};
    std::vector<uint8_t> status(n);
    std::vector<const void*> rates(t.depth + 1);
    std::vector<void*> levels(t.depth + 1);
    rates[t.depth] = direction.data();
    levels[t.depth] = moved.data();
    args.evidence.n = n;
    args.evidence.log_fields = fields.data();
    args.evidence.field_bytes = args.evidence.value_bytes = 8;
    args.evidence.status = status.data();
    args.level_rates = rates.data();
    args.levels = levels.data();
    args.root = root.data();
    CHECK(hf_tangent(b, &t.model, &args, 2) == HF_OK, "%s", describe(b, t).c_str());
    const double eps = 1e-5;
    std::vector<Posterior<double>> sides;
    for (double sign : {1.0, -1.0}) {
        for (int64_t i = 0; i < size; ++i) shifted[i] = fields[i] + sign * eps * direction[i];
        hf_infer_args ask{};
        ask.n = n;
        ask.log_fields = shifted.data();
        ask.field_bytes = 8;
        sides.push_back(infer<double>(b, t, ask, 1));
    }
    const auto check = [&](const double* got, const double* up, const double* down, int64_t count) {
        for (int64_t i = 0; i < count; ++i)
            CHECK(std::fabs(got[i] - (up[i] - down[i]) / (2 * eps)) < 1e-8, "%.17g, not %.17g (%s)", got[i],
                  (up[i] - down[i]) / (2 * eps), describe(b, t).c_str());
    };
    check(moved.data(), sides[0].levels[t.depth].get(), sides[1].levels[t.depth].get(), size);
    check(root.data(), sides[0].root.get(), sides[1].root.get(), n * t.alphabets[0]);
}

} // namespace

int main() {
    std::mt19937 random(3);
    for (const Shape& shape : shapes()) {
        const Tree t = random_tree(shape.arity, shape.filter_level, shape.alphabets, 5);
        for (const hf_backend* b : usable_backends())
            for (int n : {1, 5, 17}) {
                test_contexts(b, t, n, random);
                test_counts(b, t, n, random);
                test_trees(b, t, n, random);
                test_derivatives(b, t, n, random);
            }
    }
    std::puts("all passed");
    return 0;
}
