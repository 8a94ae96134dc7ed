// What bindings.cpp offers of the kernels on rows: buffers in, sizes checked, GIL released.
#pragma once

#include "hfilter.h"
#include "views.hpp"

#include <new>

namespace {

void check(int32_t status) {
    if (status == HF_OUT_OF_MEMORY) throw std::bad_alloc();
    if (status != HF_OK)
        throw std::runtime_error("kernel refused its arguments (status " + std::to_string(status) + ")");
}

const hf_row_kernels* find_rows(const std::string& name) {
    for (int32_t i = 0; i < hf_backend_count(); ++i)
        if (name == hf_backend_at(i)->name && hf_backend_supported(i)) return hf_row_kernels_at(i);
    throw std::invalid_argument("no instruction set '" + name + "' here");
}

// `given` is () to fill, (tokens, vocab_size, signal, sigma) for leaves, (x0, a, b, s) for a step.
void noise(const std::string& isa, uint64_t seed, uint32_t tag, uint64_t start, int64_t n, int64_t size,
           const py::object& out, const std::string& kind, const py::tuple& given, int32_t num_threads) {
    const hf_row_kernels* kernels = find_rows(isa);
    if (n < 0 || size < 0 || (size > 0 && n > INT64_MAX / size)) throw std::invalid_argument("out: too large");
    const View target = view(out, "f", true, n * size, "out");
    const bool leaves = kind == "leaves", step = kind == "step";
    if (!leaves && !step && kind != "fill") throw std::invalid_argument("kind: fill, leaves or step");
    const View tokens = leaves ? View(given[0], "BH", false, "tokens") : View();
    const View signal = leaves ? view(given[2], "f", false, n, "signal") : View();
    const View sigma = leaves ? view(given[3], "f", false, n, "sigma") : View();
    const View x0 = step ? view(given[0], "f", false, n * size, "x0") : View();
    hf_noise_args args{};
    args.n = n;
    args.size = size;
    args.seed = seed;
    args.start = start;
    args.tag = tag;
    args.out = target.data<float>();
    if (leaves) {
        args.kind = HF_NOISE_LEAVES;
        args.vocab_size = given[1].cast<int32_t>();
        if (args.vocab_size <= 0 || size % args.vocab_size) throw std::invalid_argument("vocab_size: no part of size");
        if (tokens.size() != n * (size / args.vocab_size)) throw std::invalid_argument("tokens: wrong size");
        args.tokens = tokens.data<const void>();
        args.token_bytes = tokens.itemsize();
        args.signal = signal.data<const float>();
        args.sigma = sigma.data<const float>();
    } else if (step) {
        args.kind = HF_NOISE_STEP;
        args.x0 = x0.data<const float>();
        args.a = given[1].cast<float>();
        args.b = given[2].cast<float>();
        args.s = given[3].cast<float>();
    }
    if (n == 0 || size == 0) return;
    int32_t result;
    {
        const py::gil_scoped_release release;
        result = hf_noise(kernels, &args, num_threads);
    }
    check(result);
}

void nearest(const std::string& isa, const py::object& rows, const py::object& stored, int64_t n, int64_t n_stored,
             int64_t length, int64_t exclude_from, const py::object& distance, const py::object& index,
             const py::object& count, int32_t num_threads) {
    const hf_row_kernels* kernels = find_rows(isa);
    if (n < 0 || n_stored < 1 || length < 1) throw std::invalid_argument("sizes: nothing to search");
    const View asked = view(rows, "BHI", false, n * length, "rows");
    const View held = view(stored, "BHI", false, (n_stored + 63) / 64 * 64 * length, "stored");
    const View distances = view(distance, "i", true, n, "distance"), indices = view(index, "ql", true, n, "index"),
               counts = view(count, "ql", true, n, "count");
    if (asked.itemsize() != held.itemsize()) throw std::invalid_argument("rows and stored: of one type");
    if (indices.itemsize() != 8 || counts.itemsize() != 8) throw std::invalid_argument("index and count: int64");
    if (n == 0) return;
    const hf_nearest_args args{n,
                               n_stored,
                               length,
                               asked.itemsize(),
                               exclude_from >= 0,
                               exclude_from,
                               asked.data<const void>(),
                               held.data<const void>(),
                               distances.data<int32_t>(),
                               indices.data<int64_t>(),
                               counts.data<int64_t>()};
    int32_t result;
    {
        const py::gil_scoped_release release;
        result = hf_nearest(kernels, &args, num_threads);
    }
    check(result);
}

// `strings` is (first_position, first_string, strings, symbols, runs, n_head): see hf_empirical_args.
void empirical(const std::string& isa, int64_t n, int64_t length, int64_t vocab_size, const py::tuple& strings,
               const py::object& log_fields, const py::object& marginals, const py::object& mass,
               const py::object& shift, int32_t num_threads) {
    const hf_row_kernels* kernels = find_rows(isa);
    const View positions(strings[0], "ql", false, "first_position"), starts(strings[1], "ql", false, "first_string");
    const View numbers(strings[2], "i", false, "strings"), symbols(strings[3], "H", false, "symbols");
    const int64_t groups = positions.size() - 1;
    if (groups < 1 || starts.size() != groups + 1 || n < 0 || length < 1 || vocab_size < 1)
        throw std::invalid_argument("strings: no groups");
    if (positions.itemsize() != 8 || starts.itemsize() != 8) throw std::invalid_argument("strings: int64");
    hf_empirical_args args{};
    args.first_position = positions.data<const int64_t>();
    args.first_string = starts.data<const int64_t>();
    args.n_strings = args.first_string[groups];
    if (args.n_strings < 1 || symbols.size() % args.n_strings || numbers.size() % groups || numbers.size() == 0)
        throw std::invalid_argument("strings: sizes do not fit");
    args.width = symbols.size() / args.n_strings;
    const View runs(strings[4], "ql", false, "runs");
    args.n_head = strings[5].cast<int32_t>();
    args.n_runs = runs.size() - 1;
    args.runs = runs.data<const int64_t>();
    if (runs.itemsize() != 8 || args.n_runs < 1 || args.n_head < 0 || args.n_head >= groups || groups > args.n_head + 2)
        throw std::invalid_argument("runs: no run");
    bool fits = args.first_position[0] == 0 && args.first_string[0] == 0 && args.first_position[groups] == length;
    for (int64_t g = 0; g < groups; ++g) {
        const int64_t wide = args.first_position[g + 1] - args.first_position[g];
        fits = fits && wide > 0 && wide <= args.width && args.first_string[g + 1] > args.first_string[g];
    }
    const int32_t* number = numbers.data<const int32_t>();
    for (int64_t m = 0; m < numbers.size() / groups; ++m)
        for (int64_t g = 0; g < groups; ++g, ++number)
            fits &= *number >= args.first_string[g] && *number < args.first_string[g + 1];
    fits = fits && args.runs[0] == 0 && args.runs[args.n_runs] == numbers.size() / groups;
    for (int64_t r = 0; r < args.n_runs; ++r) fits &= args.runs[r] <= args.runs[r + 1];
    for (int64_t i = 0; i < symbols.size(); ++i) fits &= symbols.data<const uint16_t>()[i] < vocab_size;
    if (!fits) throw std::invalid_argument("strings: numbers out of range");
    const View fields = view(log_fields, "fd", false, n * length * vocab_size, "log_fields");
    const View out = view(marginals, "fd", true, n * length * vocab_size, "marginals");
    const View masses = view(mass, "d", true, n, "mass"), shifts = view(shift, "d", true, n, "shift");
    if (n == 0) return;
    args.n = n;
    args.n_stored = numbers.size() / groups;
    args.length = length;
    args.vocab_size = vocab_size;
    args.n_groups = static_cast<int32_t>(groups);
    args.field_bytes = fields.itemsize();
    args.value_bytes = out.itemsize();
    args.strings = numbers.data<const int32_t>();
    args.symbols = symbols.data<const uint16_t>();
    args.log_fields = fields.data<const void>();
    args.marginals = out.data<void>();
    args.mass = masses.data<double>();
    args.shift = shifts.data<double>();
    int32_t result;
    {
        const py::gil_scoped_release release;
        result = hf_empirical(kernels, &args, num_threads);
    }
    check(result);
}

} // namespace
