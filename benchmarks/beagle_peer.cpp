// BEAGLE's upward pass ("pruning") on a tree whose children are independent given the parent.
//
//   beagle_peer SPEC STATES DIRECTORY
//
// SPEC: text: states q, depth, patterns n, block; then q*q left, q*q right transition probabilities,
// q root frequencies. STATES: n * 2^depth bytes, q = hidden. Patterns are resident, as in a
// phylogenetic run that evaluates the same data over and over; with block < n only the first block
// of them is kept, so that partials stay in the cache. Writes DIRECTORY/log_likelihoods.f64, prints
// the implementation, then answers lines "partials K" and "likelihood K" by seconds per evaluation.
#include <libhmsbeagle/beagle.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

namespace {

int fail(const char* what, int code) {
    std::fprintf(stderr, "beagle_peer: %s (%d)\n", what, code);
    return 1;
}

std::vector<double> numbers(std::ifstream& file, size_t n) {
    std::vector<double> x(n);
    for (double& v : x) file >> v;
    return x;
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 4) return fail("usage: beagle_peer SPEC STATES DIRECTORY", argc);
    std::ifstream spec(argv[1]);
    int q = 0, depth = 0, n = 0, block = 0;
    std::string precision;
    spec >> q >> depth >> n >> block >> precision;
    const auto left = numbers(spec, size_t(q) * q), right = numbers(spec, size_t(q) * q), prior = numbers(spec, q);
    if (!spec) return fail("SPEC cannot be read", 0);
    const int leaves = 1 << depth, inner = leaves - 1;
    std::vector<unsigned char> states(size_t(n) * leaves);
    std::ifstream(argv[2], std::ios::binary).read(reinterpret_cast<char*>(states.data()), long(states.size()));
    n = std::min(n, block);

    const long wanted = precision == "double" ? BEAGLE_FLAG_PRECISION_DOUBLE : BEAGLE_FLAG_PRECISION_SINGLE;
    const long required = wanted | BEAGLE_FLAG_PROCESSOR_CPU | BEAGLE_FLAG_THREADING_NONE;
    BeagleInstanceDetails details;
    int instance = -1; // the widest vectors that this build of the library has
    for (long vector : {long(BEAGLE_FLAG_VECTOR_AVX), long(BEAGLE_FLAG_VECTOR_SSE), long(BEAGLE_FLAG_VECTOR_NONE)}) {
        instance =
            beagleCreateInstance(leaves, inner, leaves, q, n, 1, 2, 1, 0, nullptr, 0, 0, required | vector, &details);
        if (instance >= 0) break;
    }
    if (instance < 0) return fail("no instance", instance);

    std::vector<int> tip(n);
    for (int j = 0; j < leaves; ++j) {
        for (int i = 0; i < n; ++i) tip[i] = states[size_t(i) * leaves + j];
        beagleSetTipStates(instance, j, tip.data());
    }
    const std::vector<double> ones(std::max(n, q), 1.0);
    beagleSetPatternWeights(instance, ones.data());
    beagleSetCategoryRates(instance, ones.data());
    beagleSetCategoryWeights(instance, 0, ones.data());
    beagleSetStateFrequencies(instance, 0, prior.data());
    beagleSetTransitionMatrix(instance, 0, left.data(), 1.0);
    beagleSetTransitionMatrix(instance, 1, right.data(), 1.0);

    // Levels from the leaves up; buffers 0 … leaves - 1 are the tips.
    std::vector<BeagleOperation> steps;
    for (int below = 0, width = leaves / 2, next = leaves; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i)
            steps.push_back({next + i, BEAGLE_OP_NONE, BEAGLE_OP_NONE, below + 2 * i, 0, below + 2 * i + 1, 1});
        below = next;
        next += width;
    }
    const int root = leaves + inner - 1, zero = 0, none = BEAGLE_OP_NONE;
    double total = 0;
    const auto partials = [&] { return beagleUpdatePartials(instance, steps.data(), inner, BEAGLE_OP_NONE); };
    const auto likelihood = [&] {
        const int code = partials();
        return code ? code : beagleCalculateRootLogLikelihoods(instance, &root, &zero, &zero, &none, 1, &total);
    };
    if (int code = likelihood()) return fail("evaluation", code);
    std::vector<double> found(n);
    if (int code = beagleGetSiteLogLikelihoods(instance, found.data())) return fail("log-likelihoods", code);
    std::ofstream(std::string(argv[3]) + "/log_likelihoods.f64", std::ios::binary)
        .write(reinterpret_cast<const char*>(found.data()), long(found.size() * sizeof(double)));
    std::printf("%s %s, %s precision\n", beagleGetVersion(), details.implName, precision.c_str());
    std::fflush(stdout);

    char what[16];
    for (int repeat = 0; std::scanf("%15s %d", what, &repeat) == 2;) {
        const bool all = std::strcmp(what, "likelihood") == 0;
        const auto began = std::chrono::steady_clock::now();
        for (int k = 0; k < repeat; ++k)
            if (int code = all ? likelihood() : partials()) return fail("evaluation", code);
        const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - began;
        std::printf("%.9g\n", wall.count() / repeat);
        std::fflush(stdout);
    }
    return beagleFinalizeInstance(instance);
}
