// Inference for the commonest tree in single precision: binary, unfiltered, at most 4 symbols and 2^4 leaves.
//
// A thread is a sequence. Its messages lie in shared memory, four numbers to a 16-byte slot; a table of
// rules is dense and lies in the constant bank with the kernel's arguments, so that a node is 64 fused
// multiply-adds whose third operand costs nothing, and absent rules add exact zeros. Fields come in and
// answers go out through the same slots, 16 bytes a thread, neighbouring threads side by side.
//
// Estimate for an H200 (132 multiprocessors, 1.75 to 1.98 GHz, 4.8 TB/s), 16 leaves of 4 symbols, beliefs from fields.
// Memory: 256 bytes in, 281 out, 8.9e9 sequences/s at full bandwidth. Instructions counted in the machine code: 16
// leaves at 65, 15 nodes upward at 122, 7 downward at 175 and 8 above the leaves at 225, moves 400: about 6300, at 128
// a clock 4.7e9 to 5.3e9 sequences/s or 2.5 to 2.8 TB/s. So arithmetic binds, at 60 to 65 % of what a copy reaches (4.3
// TB/s) if nothing stalls; the three products in four that meet absent rules are where more is to be had. Not run on a
// device yet.
#pragma once

#include <initializer_list>

#include "cuda_infer.hpp"
#include "cuda_quad.hpp"

namespace HF_NAMESPACE {

// Causal: predictions of each leaf from those to its left alone.
template <int H, bool Causal> struct Resident {
    static constexpr int kMaxThreads = 64; // and rows of a block
    static constexpr int kLeaves = 1 << H;
    static constexpr int kPitch = kMaxThreads + 1; // slots from node to node: odd, for the banks
    static constexpr size_t kShared = (2 * kLeaves - 2) * kPitch * sizeof(Quad);

    // Eight bytes, so that the compiler reads one at a time and leaves each where an operand can name it.
    struct Rule {
        float p, unused;
    };
    struct Args {
        InferCall call;
        Rule table[H][64]; // M[a][b][c], padded with zeros to 4 symbols
        float prior[4];
        float tiny;
        int32_t slack, q;       // q symbols at the leaves
        int32_t symbols[H + 1]; // and at every level
    };

    static HF_INLINE int64_t groups(const Args& args) { return (args.call.n + kMaxThreads - 1) / kMaxThreads; }

    static HF_INLINE int64_t phases(const Args& args, const Launch& l) {
        return groups(args) <= l.block ? 0 : ((groups(args) - 1 - l.block) / l.grid + 1) * 3;
    }

    static HF_INLINE void phase(int64_t p, const Args& args, const Launch& l) {
        const int64_t round = p / 3;
        const Resident thread{args, reinterpret_cast<Quad*>(l.shared), (l.block + round * l.grid) * kMaxThreads,
                              l.thread};
        switch (static_cast<int>(p - 3 * round)) {
        case 0: return thread.fetch();
        case 1: return thread.solve();
        default: return thread.deliver();
        }
    }

    const Args& args;
    Quad* slots;
    int64_t first;
    int thread;

  private:
    HF_INLINE Quad& slot(int level, int node, int row) const { return slots[((1 << level) - 2 + node) * kPitch + row]; }
    HF_INLINE Quad& slot(int level, int node) const { return slot(level, node, thread); }
    HF_INLINE float* answer() const {
        return static_cast<float*>(args.call.beliefs[H] ? args.call.beliefs[H] : args.call.leave_one_out);
    }
    HF_INLINE int rows() const {
        const int64_t left = args.call.n - first;
        return left < kMaxThreads ? static_cast<int>(left) : kMaxThreads;
    }

    // The block's fields, consecutive in memory, to the leaves' slots of its rows.
    HF_INLINE void fetch() const {
        const float* fields = static_cast<const float*>(args.call.log_fields);
        if (!fields) return;
        fields += first * kLeaves * args.q;
        if (args.q == 4) {
            HF_UNROLL
            for (int i = 0; i < kLeaves; ++i) {
                const int j = thread + i * kMaxThreads;
                if (j < rows() * kLeaves) slot(H, j % kLeaves, j / kLeaves) = reinterpret_cast<const Quad*>(fields)[j];
            }
        } else {
            for (int j = thread; j < rows() * kLeaves * args.q; j += kMaxThreads) {
                const int leaf = j / args.q;
                slot(H, leaf % kLeaves, leaf / kLeaves).v[j % args.q] = fields[j];
            }
        }
    }

    HF_INLINE void deliver() const {
        float* out = answer();
        if (!out) return;
        out += first * kLeaves * args.q;
        if (args.q == 4) {
            HF_UNROLL
            for (int i = 0; i < kLeaves; ++i) {
                const int j = thread + i * kMaxThreads;
                if (j < rows() * kLeaves) reinterpret_cast<Quad*>(out)[j] = slot(H, j % kLeaves, j / kLeaves);
            }
        } else {
            for (int j = thread; j < rows() * kLeaves * args.q; j += kMaxThreads) {
                const int leaf = j / args.q;
                out[j] = slot(H, leaf % kLeaves, leaf / kLeaves).v[j % args.q];
            }
        }
    }

    HF_INLINE void solve() const {
        const int64_t row = first + thread;
        if (row >= args.call.n) return;
        const InferCall& call = args.call;
        Doubts doubts;
        double shift = 0;
        if (call.tokens) tokens(row);
        else shift = fields(doubts);
        Quad root = up<H - 1>(doubts);

        const int32_t taken_out = doubts.total;
        for (int a = 0; a < 4; ++a) root.v[a] *= args.prior[a];
        const float evidence = total(root);
        const bool invalid = !(evidence >= 0); // what is no number stays none, even times zero
        doubts.level = fminf(doubts.level, evidence);
        doubts.next_level();
        if (call.log_evidence) call.log_evidence[row] = log_of(evidence, taken_out) + shift;
        if (float* out = static_cast<float*>(call.root)) {
            const Quad belief = divide(root, evidence, invalid);
            if (args.symbols[0] == 4) reinterpret_cast<Quad*>(out)[row] = belief;
            else
                for (int a = 0; a < 4; ++a)
                    if (a < args.symbols[0]) out[row * args.symbols[0] + a] = belief.v[a];
        }
        if (answer()) down<0>(doubts, invalid);
        const bool doubtful = doubts.danger(args.tiny) && (doubts.spent > args.slack || doubts.empty);
        if ((doubtful && !invalid) || call.suspect_all) suspect(call, row);
    }

    HF_INLINE void tokens(int64_t row) const {
        const InferCall& call = args.call;
        const bool vector = call.token_bytes == 1 && kLeaves == 16;
        Line seen{}, covered{};
        if (vector) {
            seen = static_cast<const Line*>(call.tokens)[row];
            if (call.mask) covered = reinterpret_cast<const Line*>(call.mask)[row];
        }
        HF_UNROLL
        for (int j = 0; j < kLeaves; ++j) {
            const int64_t where = row * kLeaves + j;
            int token, hidden = 0;
            if (vector) {
                token = seen.word[j / 4] >> (8 * (j % 4)) & 0xFF;
                hidden = covered.word[j / 4] >> (8 * (j % 4)) & 0xFF;
            } else {
                token = call.token_bytes == 1 ? static_cast<const uint8_t*>(call.tokens)[where]
                                              : static_cast<const uint16_t*>(call.tokens)[where];
                if (call.mask) hidden = call.mask[where];
            }
            const float if_hidden = token == args.q || hidden ? 1.0f : 0.0f;
            Quad nu;
            for (int x = 0; x < 4; ++x) nu.v[x] = token == x ? 1.0f : if_hidden;
            if (args.q < 4)
                for (int x = 0; x < 4; ++x) nu.v[x] = x < args.q ? nu.v[x] : 0.0f;
            if (token > args.q) nu.v[0] = NAN;
            slot(H, j) = nu;
        }
    }

    // Fields become numbers relative to the largest of their leaf; returns the sum of these.
    HF_INLINE double fields(Doubts& doubts) const {
        constexpr float log2e = 1.44269504f, log2e_low = 1.92596299e-8f, ln2 = 0.693147181f;
        double shift = 0;
        HF_NO_UNROLL
        for (int j = 0; j < kLeaves; ++j) {
            Quad h = slot(H, j);
            if (args.q < 4)
                for (int x = 0; x < 4; ++x) h.v[x] = x < args.q ? h.v[x] : -INFINITY;
            float top = largest(h);
            if (!(top > -INFINITY)) top = 0;
            shift += static_cast<double>(top);
            Quad nu;
            for (int x = 0; x < 4; ++x) {
                // exp(d) = 2^t (1 + (d log2(e) - t) ln 2): a plain 2^t would lose the last places of t. What is
                // below the range of the type, and yet not impossible, becomes so small that it is noticed.
                const float d = h.v[x] - top, t = d * log2e;
                const float rest = __builtin_fmaf(d, log2e_low, __builtin_fmaf(d, log2e, -t));
                const float y = exp2_nonpositive(fmaxf(t, -126.0f));
                nu.v[x] = d == -INFINITY ? 0.0f : __builtin_fmaf(y, rest * ln2, y);
            }
            doubts.watch(nu);
            slot(H, j) = nu;
        }
        return shift;
    }

    // M[a][b][c], b and c as one index.
    template <int D> HF_INLINE float rule(int a, int bc) const { return args.table[D][16 * a + bc].p; }

    // nu(a) = sum_bc M[a][b][c] nu_left(b) nu_right(c), level D and those above it; returns the root's.
    template <int D> HF_INLINE Quad up(Doubts& doubts) const {
        Quad nu{};
        HF_NO_UNROLL
        for (int i = 0; i < 1 << D; ++i) {
            const Quad left = slot(D + 1, 2 * i), right = slot(D + 1, 2 * i + 1);
            nu = Quad{};
            HF_UNROLL
            for (int bc = 0; bc < 16; ++bc) {
                const float product = left.v[bc / 4] * right.v[bc % 4];
                for (int a = 0; a < 4; ++a) nu.v[a] = __builtin_fmaf(rule<D>(a, bc), product, nu.v[a]);
            }
            doubts.rescale(nu);
            if constexpr (D > 0) slot(D, i) = nu;
        }
        doubts.next_level();
        if constexpr (D > 0) return up<D - 1>(doubts);
        else return nu;
    }

    // Downward messages take the place of the upward ones, and answers that of the leaves.
    template <int D> HF_INLINE void down(Doubts& doubts, bool invalid) const {
        float worst_belief = 1;
        HF_NO_UNROLL
        for (int i = 0; i < 1 << D; ++i) {
            Quad mu;
            if constexpr (D > 0) mu = slot(D, i);
            else
                for (int a = 0; a < 4; ++a) mu.v[a] = args.prior[a];
            Quad& left = slot(D + 1, 2 * i);
            Quad& right = slot(D + 1, 2 * i + 1);
            const Quad nu_left = left;
            const Quad nu_right =
                Causal ? Quad{{1, 1, 1, 1}} : right; // what is to the right of the left child says nothing
            Quad to_left{}, to_right{};
            HF_UNROLL
            for (int bc = 0; bc < 16; ++bc) {
                float weight = rule<D>(0, bc) * mu.v[0];
                for (int a = 1; a < 4; ++a) weight = __builtin_fmaf(rule<D>(a, bc), mu.v[a], weight);
                to_left.v[bc / 4] = __builtin_fmaf(weight, nu_right.v[bc % 4], to_left.v[bc / 4]);
                to_right.v[bc % 4] = __builtin_fmaf(weight, nu_left.v[bc / 4], to_right.v[bc % 4]);
            }
            doubts.rescale(to_left);
            doubts.rescale(to_right);
            if constexpr (D + 1 < H) {
                left = to_left;
                right = to_right;
                if (args.call.beliefs[D + 1]) {
                    keep<D + 1>(2 * i, belief(nu_left, to_left, invalid, worst_belief));
                    keep<D + 1>(2 * i + 1, belief(nu_right, to_right, invalid, worst_belief));
                }
            } else if (args.call.beliefs[H]) {
                left = belief(nu_left, to_left, invalid, worst_belief);
                right = belief(nu_right, to_right, invalid, worst_belief);
            } else {
                left = divide(to_left, total(to_left), invalid);
                right = divide(to_right, total(to_right), invalid);
            }
        }
        doubts.next_level();
        doubts.level = worst_belief;
        doubts.next_level();
        if constexpr (D + 1 < H) down<D + 1>(doubts, invalid);
    }

    static HF_INLINE Quad belief(Quad nu, const Quad& mu, bool invalid, float& worst) {
        for (int a = 0; a < 4; ++a) nu.v[a] *= mu.v[a];
        const float sum = total(nu);
        worst = fminf(worst, sum);
        return divide(nu, sum, invalid);
    }

    // Beliefs of inner levels are rarely asked for, and stored without a detour through shared memory.
    template <int D> HF_INLINE void keep(int node, const Quad& belief) const {
        const int q = args.symbols[D];
        float* out = static_cast<float*>(args.call.beliefs[D]) + (((first + thread) << D) + node) * q;
        for (int a = 0; a < 4; ++a)
            if (a < q) out[a] = belief.v[a];
    }
};

// ------------------------------------------------------------------------------------- on the host

// Whether this kernel answers the question; addresses must suit 16-byte accesses.
inline bool is_resident(const hf_model& m, const InferCall& call) {
    if (call.window || call.counts || call.star_pairs) return false;
    if (m.arity != 2 || m.filter_level != 0 || m.depth < 2 || m.depth > 4 || call.field_bytes == 8) return false;
    for (int d = 0; d <= m.depth; ++d)
        if (m.alphabets[d] > 4) return false;
    if (call.beliefs[m.depth] && (call.leave_one_out || call.causal)) return false;
    for (int d = 1; d < m.depth; ++d)
        if (call.beliefs[d] && !call.beliefs[m.depth]) return false;
    uintptr_t together = 0;
    for (const void* p :
         {call.tokens, static_cast<const void*>(call.mask), call.log_fields, static_cast<const void*>(call.root),
          static_cast<const void*>(call.beliefs[m.depth]), static_cast<const void*>(call.leave_one_out)})
        together |= reinterpret_cast<uintptr_t>(p);
    return together % 16 == 0;
}

template <int H, bool Causal, class Machine>
void run_resident_height(const Machine& machine, const hf_model& m, const InferCall& call, bool few_blocks) {
    using Kernel = Resident<H, Causal>;
    typename Kernel::Args args{};
    args.call = call;
    for (int d = 0; d < H; ++d) {
        const hf_level& level = m.levels[d];
        for (int a = 0; a < level.n_parents; ++a)
            for (int r = level.first[a]; r < level.first[a + 1]; ++r)
                args.table[d][16 * a + 4 * level.children[2 * r] + level.children[2 * r + 1]].p += level.prob32[r];
    }
    for (int a = 0; a < m.alphabets[0]; ++a) args.prior[a] = m.prior32[a];
    args.tiny = m.tiny32;
    args.slack = m.slack32;
    args.q = m.alphabets[H];
    for (int d = 0; d <= H; ++d) args.symbols[d] = m.alphabets[d];
    const int64_t most = few_blocks ? 2 : int64_t(machine.multiprocessors()) * 28;
    const int64_t blocks = smaller(Kernel::groups(args), most);
    machine.template run<Kernel>(args, blocks, Kernel::kMaxThreads, Kernel::kShared);
}

template <bool Causal, class Machine>
void run_resident_depth(const Machine& machine, const hf_model& m, const InferCall& call, bool few_blocks) {
    if (m.depth == 2) run_resident_height<2, Causal>(machine, m, call, few_blocks);
    else if (m.depth == 3) run_resident_height<3, Causal>(machine, m, call, few_blocks);
    else run_resident_height<4, Causal>(machine, m, call, few_blocks);
}

template <class Machine>
void run_resident(const Machine& machine, const hf_model& m, const InferCall& call, bool few_blocks) {
    if (call.causal) run_resident_depth<true>(machine, m, call, few_blocks);
    else run_resident_depth<false>(machine, m, call, few_blocks);
}

} // namespace HF_NAMESPACE
