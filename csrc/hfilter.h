// The C ABI of the compiled core: plain structs, status codes, one table per instruction set.
//
// Who owns what: the caller owns every array. Kernels own nothing, allocate nothing, throw nothing
// and cannot fail on data: no content of an array makes one read or write out of bounds.
// Strides are in elements, arrays are C-contiguous, rows are samples.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define HF_ABI_VERSION 4
#define HF_MAX_ARITY 32

#ifdef __cplusplus
extern "C" {
#endif

enum hf_status {
    HF_OK = 0,
    HF_OUT_OF_MEMORY = 1, // scratch for the worker threads could not be allocated
    HF_BAD_ARGUMENT = 2,  // a null pointer or a size that no caller of ours produces
};

// Per row, written by `infer`.
enum hf_row_status {
    HF_ROW_EXACT = 0,
    HF_ROW_RANGE = 1, // the evidence may have left the range of the value type: redo in a wider one
    HF_ROW_NAN = 2,   // a field of the row is NaN or +inf
};

// One level's rules, sorted by parent, then by children. Inference walks `first/children/prob`;
// sampling searches `cuts` and reads `picks`, whose rows are padded to 1 << cut_bits entries.
typedef struct hf_level {
    int32_t n_parents;
    int32_t n_symbols; // alphabet of the children
    int32_t n_rules;
    int32_t cut_bits;
    const int32_t* first;    // (n_parents + 1)
    const int32_t* children; // (n_rules, arity)
    const float* prob32;     // (n_rules)
    const double* prob64;    // (n_rules)
    const uint32_t* cuts;    // (n_parents, 1 << cut_bits), padded with 2^32 - 1
    const uint32_t* picks;   // (n_parents, 1 << cut_bits, arity)
    int32_t first_count;     // of its rules in a row of `counts`; levels with one table count together
} hf_level;

typedef struct hf_model {
    int32_t abi_version;
    int32_t arity;
    int32_t depth;
    int32_t filter_level;
    const int32_t* alphabets; // (depth + 1)
    const hf_level* levels;   // (depth); those above the filter level are not read
    int32_t prior_bits;
    int32_t star_bits;
    const float* prior32;       // (q_0)
    const double* prior64;      // (q_0)
    const uint32_t* prior_cuts; // (1 << prior_bits)
    const float* star32;        // (arity^k, q_0, q_k) when filter_level k > 0
    const double* star64;
    const uint32_t* star_cuts; // (arity^k, q_0, 1 << star_bits)
    // Messages are normalised to a maximum in [1, 2). Below `tiny` a product of them could
    // underflow; `slack` is how many bits of cancellation such a loss tolerates (tree.py derives both).
    float tiny32;
    double tiny64;
    int32_t slack32;
    int32_t slack64;
    int32_t n_counts; // entries of a row of `counts`
} hf_model;

typedef struct hf_sample_args {
    int64_t n;
    uint64_t seed;
    uint64_t start;       // stream index of row 0
    const int32_t* roots; // (n) given roots, or null: drawn from the prior
    void* const* levels;  // (depth + 1) outputs (n, arity^d) of the token type; null = not wanted
    int32_t token_bytes;  // 1 or 2
} hf_sample_args;

typedef struct hf_infer_args {
    int64_t n;
    const void* tokens;     // (n, L) of the token type, or null
    const uint8_t* mask;    // (n, L), non-zero = hidden, or null
    const void* log_fields; // (n, L, q), or null: exactly one of tokens and log_fields is given
    int32_t token_bytes;    // 1 or 2
    int32_t field_bytes;    // 4 or 8
    int32_t value_bytes;    // 4 or 8: the type of messages and of the outputs below
    double* log_evidence;   // (n), nats, or null
    void* root;             // (n, q_0), or null
    void* const* beliefs;   // (depth + 1) outputs (n, arity^d, q_d); null = not wanted; [0] unused
    void* leave_one_out;    // (n, L, q), or null
    uint8_t* status;        // (n) of hf_row_status
    // A table of the upward messages of small subtrees of tokens, and of the parses of pairs of symbols, filled by
    // hf_fill_table; null = none. Answers are the same to the last bit with it and without it.
    const float* table_values;
    const int32_t* table_powers;
    // Which leaves a prediction (leave_one_out) is made from, besides its own leaf being left out.
    int32_t causal;   // those to its left alone
    int32_t window;   // if > 0: those below its ancestor of that level alone; asks for leave_one_out only
    const void* laws; // with a window not above the filter level: (arity^window, q_window) laws of its nodes
    void* counts;     // (n, sum of n_rules over the tables below the filter level): expected uses of rules, or null
    void* star_pairs; // (n, arity^k, q_0, q_k) joint posterior of the root and each node of level k > 0, or null
} hf_infer_args;

// Whole trees given the evidence of `infer`: the most probable one, or draws.
typedef struct hf_choose_args {
    hf_infer_args evidence; // of its outputs log_evidence and status
    int64_t n_samples;      // trees per row; 0: the most probable one
    uint64_t seed;
    uint64_t start;      // stream index of the first tree of row 0
    void* const* levels; // (depth + 1) outputs (n, n_samples or 1, arity^d) of the token type; null = not wanted
    int32_t level_bytes; // 1 or 2: the token type
    double* log_weight;  // (n): ln P(tree, evidence) of the most probable one, or null
} hf_choose_args;

// Derivatives of posteriors along directions: `evidence` says what is known, and of its outputs `counts` and
// `star_pairs` receive the derivatives of what they are called (root, beliefs and the others are not used).
typedef struct hf_tangent_args {
    hf_infer_args evidence;
    // Directions, of the value type: rates of the logarithm of evidence; null = zero.
    const void* const* level_rates; // (depth + 1): for every symbol of the nodes of a level, (n, arity^d, q_d)
    const void* rule_rates;         // (n, n_counts): of every rule's probability
    const void* channel_rates;      // (n, arity^k, q_0, q_k): of the star's channels
    // Derivatives; null = not wanted.
    double* log_evidence; // (n)
    void* root;           // (n, q_0)
    void* const* levels;  // (depth + 1): of beliefs, (n, arity^d, q_d); [0] unused
} hf_tangent_args;

// How large such a table is for a model; 0 entries: it has none.
typedef struct hf_table_size {
    int64_t values;
    int64_t powers;
} hf_table_size;

enum hf_noise_kind {
    HF_NOISE_FILL = 0,   // out = noise
    HF_NOISE_LEAVES = 1, // out = sigma * noise + signal where the symbol of a leaf is
    HF_NOISE_STEP = 2,   // out = (a * x0 + b * out) + s * noise
};

// Standard normal noise: entry e of row i is made from block e / 4 of Philox at counter (start + i, e / 4, tag).
typedef struct hf_noise_args {
    int64_t n;
    int64_t size; // numbers of a row, at most 2^33
    uint64_t seed;
    uint64_t start;
    uint32_t tag;        // the last counter word, not one of those that trees are drawn with
    int32_t kind;        // of hf_noise_kind
    float* out;          // (n, size)
    const void* tokens;  // (n, size / vocab_size) of the token type; symbols outside the alphabet are left out
    int32_t token_bytes; // 1 or 2
    int32_t vocab_size;
    const float* signal; // (n)
    const float* sigma;  // (n)
    const float* x0;     // (n, size)
    float a, b, s;
} hf_noise_args;

// The nearest of stored rows in Hamming distance. The largest value of the symbol type must exceed every distance.
typedef struct hf_nearest_args {
    int64_t n;
    int64_t n_stored;
    int64_t length;
    int32_t symbol_bytes; // 1, 2 or 4
    int32_t exclude;      // row i is not compared with stored row first + i
    int64_t first;
    const void* rows;   // (n, length)
    const void* stored; // (ceil(n_stored / 64), length, 64): sixty-four rows lie together, position by position
    int32_t* distance;  // (n)
    int64_t* index;     // (n): the first at that distance
    int64_t* count;     // (n): how many are
} hf_nearest_args;

// Posterior marginals under the uniform law on stored rows. A stored row is n_groups strings by their numbers; string
// e of group g stands at positions first_position[g] …
typedef struct hf_empirical_args {
    int64_t n;
    int64_t n_stored; // below 2^31
    int64_t length;
    int64_t vocab_size;
    int64_t n_strings;
    int64_t width; // positions of the widest group
    int64_t n_runs;
    int32_t n_groups;              // at least 1
    int32_t n_head;                // groups that the rows of a run share: n_groups - 1 or - 2
    int32_t field_bytes;           // 4 or 8
    int32_t value_bytes;           // 4 or 8
    const int64_t* first_position; // (n_groups + 1)
    const int64_t* first_string;   // (n_groups + 1)
    const int32_t* strings;        // (n_stored, n_groups)
    const uint16_t* symbols;       // (n_strings, width)
    const int64_t* runs;           // (n_runs + 1): run r is stored rows runs[r] … runs[r + 1]
    const void* log_fields;        // (n, length, vocab_size)
    void* marginals;               // (n, length, vocab_size) of the value type
    // Sum of weights, and what their logarithms are relative to; zeros where every weight is zero.
    double* mass;  // (n)
    double* shift; // (n)
} hf_empirical_args;

// Kernels on rows that know no tree; rows begin <= i < end, with 64-byte aligned scratch.
typedef struct hf_row_kernels {
    int32_t abi_version;
    void (*noise)(const hf_noise_args*, int64_t begin, int64_t end);
    size_t (*nearest_scratch)(const hf_nearest_args*);
    void (*nearest)(const hf_nearest_args*, int64_t begin, int64_t end, void* scratch);
    size_t (*empirical_scratch)(const hf_empirical_args*);
    void (*empirical)(const hf_empirical_args*, int64_t begin, int64_t end, void* scratch);
    int32_t lanes32;
    int32_t lanes64;
} hf_row_kernels;

typedef struct hf_backend {
    int32_t abi_version;
    const char* name;
    // Bytes of scratch one worker needs; `narrow` asks for the one-lane version.
    size_t (*sample_scratch)(const hf_model*, int32_t narrow);
    size_t (*infer_scratch)(const hf_model*, const hf_infer_args*, int32_t narrow);
    // Rows begin <= i < end, with 64-byte aligned scratch of the size asked for above. It begins with 8 bytes of zero
    // on a thread's first block of a call; what is prepared in it then serves the others.
    void (*sample)(const hf_model*, const hf_sample_args*, int64_t begin, int64_t end, int32_t narrow, void* scratch);
    void (*infer)(const hf_model*, const hf_infer_args*, int64_t begin, int64_t end, int32_t narrow, void* scratch);
    size_t (*choose_scratch)(const hf_model*, const hf_choose_args*, int32_t narrow);
    void (*choose)(const hf_model*, const hf_choose_args*, int64_t begin, int64_t end, int32_t narrow, void* scratch);
    size_t (*tangent_scratch)(const hf_model*, const hf_tangent_args*, int32_t narrow);
    void (*tangent)(const hf_model*, const hf_tangent_args*, int64_t begin, int64_t end, int32_t narrow, void* scratch);
    int32_t lanes32;
    int32_t lanes64;
    hf_table_size (*table_size)(const hf_model*);
    // Fills a table, with 64-byte aligned scratch of fill_scratch bytes.
    size_t (*fill_scratch)(const hf_model*);
    void (*fill_table)(const hf_model*, float* values, int32_t* powers, void* scratch);
} hf_backend;

// Instruction sets of this build, best first, whether or not this machine can run them.
int32_t hf_backend_count(void);
const hf_backend* hf_backend_at(int32_t i);
int32_t hf_backend_supported(int32_t i); // 1 when this processor and operating system can run it
const hf_row_kernels* hf_row_kernels_at(int32_t i);

// The whole call: blocks of rows over `num_threads` threads, floating-point environment saved,
// set to the IEEE default, and restored. Results do not depend on `num_threads`.
int32_t hf_sample(const hf_backend*, const hf_model*, const hf_sample_args*, int32_t num_threads);
int32_t hf_infer(const hf_backend*, const hf_model*, const hf_infer_args*, int32_t num_threads);
int32_t hf_choose(const hf_backend*, const hf_model*, const hf_choose_args*, int32_t num_threads);
int32_t hf_tangent(const hf_backend*, const hf_model*, const hf_tangent_args*, int32_t num_threads);
int32_t hf_fill_table(const hf_backend*, const hf_model*, float* values, int32_t* powers);
int32_t hf_noise(const hf_row_kernels*, const hf_noise_args*, int32_t num_threads);
int32_t hf_nearest(const hf_row_kernels*, const hf_nearest_args*, int32_t num_threads);
int32_t hf_empirical(const hf_row_kernels*, const hf_empirical_args*, int32_t num_threads);

#ifdef __cplusplus
}
#endif
