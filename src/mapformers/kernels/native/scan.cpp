// Causal sums of outer products of features and values, one row (a head of a sequence) in one thread.
//
//   y[i] = sum_{j <= i} exp(mark[j] - top[i]) (a[i] . b[j]) values[j],   top[i] = max(level, mark[0 .. i])
//
// A chunk is ROWS tokens. What was before a chunk is a matrix of sums, which stays in the cache of the thread. So do
// the features exp(exponents x - height): they are made for a chunk at a time and never lie in memory as a whole.
//
// The backward goes through a stretch of chunks twice: on the way there with the sums, for the gradients of a; on the
// way back with the gradients of the sums, for those of b and the values. The forward keeps the sums before every
// stretch. kernels/scan.py has the same in torch, and says what marks and levels are.

#include "vectors.hpp"

// The Python side fills this structure (call.py). Everything is contiguous.
struct Scan {
    const void *a, *b;                       // [P, N, F], or [P, N, D] where there are exponents
    const void *values, *sums, *exponents;   // [P, N, E], [P, F, E], [F, D] or null
    const void *mark, *faded, *level;        // [P, N], [P, N], [P]; all null: every key counts 1
    void *y, *top, *after, *level_after;     // [P, N, E], [P, N], [P, F, E], [P]
    void *carried, *levels;                  // [P, stretches, F, E], [P, stretches]
    const void *grad, *grad_after, *grad_level;               // as y, after, level_after
    void *grad_a, *grad_b, *grad_values, *grad_sums;          // as a, b, values, sums
    void *grad_mark, *grad_faded, *grad_of_level;             // as mark, faded, level
    int64_t rows, length, features, dim, value_dim, stretch, threads;
};

namespace {

enum Part { ALL, UP_TO, FROM };  // of the summed rows: all, those up to the row, those from it on

// Sums of one thread: to[i] += sum_j w[i si + j sj] x[j].
template <class T>
class Products {
    using L = Lanes<T>;
    std::vector<const T *> at;
    static constexpr int W = L::W, WIDE = OUT_VECTORS * W;

    template <int NV>
    void columns(T *to, int to_size, int rows, int column, const T *w, int si, int sj, int count, Part part) {
        for (int i = 0; i < rows; i += OUT_ROWS) {
            T *to_rows[OUT_ROWS];
            for (int r = 0; r < OUT_ROWS; r++) to_rows[r] = to + (i + r) * to_size;
            const int first = part == FROM ? i : 0, last = part == UP_TO ? std::min(count, i + OUT_ROWS) : count;
            accumulate<T, T, OUT_ROWS, NV>(to_rows, column, w + i * si, si, sj, at.data(), first, last);
        }
    }

   public:
    // `rows` is a multiple of OUT_ROWS, `size` of W. Columns outermost: what they read of x stays near.
    void add(T *to, int to_size, int rows, int size, const T *w, int si, int sj, const T *x, int x_size, int count,
             Part part = ALL) {
        constexpr int NEAR = 128;  // rows of x
        for (int near = 0; near < count; near += part == ALL ? NEAR : count) {
            const int now = part == ALL ? std::min(NEAR, count - near) : count;
            at.resize(size_t(now));
            for (int j = 0; j < now; j++) at[size_t(j)] = x + (near + j) * x_size;
            int column = 0;
            for (; column + WIDE <= size; column += WIDE)
                columns<OUT_VECTORS>(to, to_size, rows, column, w + near * sj, si, sj, now, part);
            for (; column < size; column += W) columns<1>(to, to_size, rows, column, w + near * sj, si, sj, now, part);
        }
    }
};

inline int up_to(int64_t size, int step) { return int((size + step - 1) / step * step); }

template <class T>
class Row {
    using L = Lanes<T>;
    using vec = typename L::vec;
    using ivec = typename L::ivec;
    static constexpr int W = L::W, C = L::ROWS, STEP = W > OUT_ROWS ? W : OUT_ROWS;

    struct Weights {  // of the keys of one chunk
        T mark[C], top[C];
        T read[C], kept[C];  // of what was before, for a query; of a key, in the sums behind
        T step;              // of what was before, in the sums behind
    };

    const Scan &call;
    const int F, D, E, FP, DP, EP, EV, ER;  // sizes, padded to vectors; whole vectors of E; E up to whole rows
    Room<T> room;
    Products<T> products;
    std::vector<Weights> weights;
    T *rows, *turned_rows;          // [FP, DP] exponents and [D, FP] theirs in base 2
    T *state, *turned_state;        // [ER, FP] sums by value, [FP, EV]
    T *a, *b, *turned, *slope;      // [C, FP]; [FP, C]; [C, FP]
    T *v, *kept_v, *g, *read_g;     // [C, EP]
    T *turned_g, *y, *pairs, *out;  // [EP, C], [C, EP], [C + KEYS_AT_ONCE, C], [C, DP]
    T *zero, *all_a, *all_b;        // [FP + EP]; of a stretch
    int64_t p = 0;
    T level = 0;

   public:
    Row(const Scan &call, bool back)
        : call(call), F(int(call.features)), D(int(call.dim)), E(int(call.value_dim)), FP(up_to(F, W)),
          DP(up_to(D, W)), EP(up_to(E, STEP)), EV(E / W * W), ER(up_to(E, OUT_ROWS)),
          room(size_t(FP) * (2 * DP + EP + EV + 4 * C + 1) + size_t(EP) * (6 * C + 1) + size_t(C) * (C + 8 + DP) +
               size_t(back ? 2 * up_to(call.stretch, C) * FP : 0) + 64),
          weights(size_t(up_to(call.stretch, C) / C)) {
        T *next = room.at(0);
        auto take = [&](size_t count) { return std::exchange(next, next + (count + W - 1) / W * W); };
        rows = take(FP * DP), turned_rows = take(D * FP), state = take(EP * FP), turned_state = take(FP * EV);
        a = take(C * FP), b = take(C * FP), turned = take(C * FP), slope = take(C * FP);
        v = take(C * EP), kept_v = take(C * EP), g = take(C * EP), read_g = take(C * EP), y = take(C * EP);
        turned_g = take(C * EP), pairs = take((C + KEYS_AT_ONCE) * C), out = take(C * DP), zero = take(FP + EP);
        if (back) all_a = take(up_to(call.stretch, C) * FP), all_b = take(up_to(call.stretch, C) * FP);
        if (call.exponents) read_exponents();
    }

    void forward(int64_t row) {
        p = row, level = call.level ? of(call.level, 1)[0] : T(0);
        load_state(of(call.sums, F * E));
        for (int64_t start = 0; start < call.length; start += call.stretch) {
            store_state(stretch_of(call.carried, start, F * E));
            stretch_of(call.levels, start, 1)[0] = level;
            const int64_t stop = std::min(call.length, start + call.stretch);
            for (int64_t i = start; i < stop; i += C) forward_chunk(i, int(std::min<int64_t>(C, stop - i)));
            if (call.faded) level += of(call.faded, call.length)[stop - 1];
        }
        store_state(of(call.after, F * E));
        if (call.level_after) of(call.level_after, 1)[0] = level;
    }

    void backward(int64_t row) {
        p = row;
        std::vector<T> grad_state(size_t(ER) * FP, T(0));
        load_state(of(call.grad_after, F * E));
        T of_level = call.grad_level ? of(call.grad_level, 1)[0] : T(0);
        for (int64_t start = (call.length - 1) / call.stretch * call.stretch; start >= 0; start -= call.stretch) {
            const int64_t stop = std::min(call.length, start + call.stretch);
            const T *carried = stretch_of(call.carried, start, F * E);
            if (call.grad_faded) of(call.grad_faded, call.length)[stop - 1] = of_level;
            std::copy_n(state, grad_state.size(), grad_state.data());
            load_state(carried);
            level = stretch_of(call.levels, start, 1)[0];
            for (int64_t i = start; i < stop; i += C) there(i, int(i - start), int(std::min<int64_t>(C, stop - i)));
            std::copy_n(grad_state.data(), grad_state.size(), state);
            for (int64_t i = start + (stop - start - 1) / C * C; i >= start; i -= C)
                back(i, int(i - start), int(std::min<int64_t>(C, stop - i)));
            of_level = 0;
            for (int f = 0; f < F; f++)
                for (int e = 0; e < E; e++) of_level += carried[f * E + e] * state[e * FP + f];
        }
        store_state(of(call.grad_sums, F * E));
        if (call.grad_of_level) of(call.grad_of_level, 1)[0] = of_level;
    }

   private:
    T *of(const void *base, int64_t size) const { return static_cast<T *>(const_cast<void *>(base)) + p * size; }
    T *stretch_of(const void *base, int64_t start, int64_t size) const {
        const int64_t stretches = (call.length + call.stretch - 1) / call.stretch;
        return of(base, stretches * size) + start / call.stretch * size;
    }

    void read_exponents() {
        const T *from = static_cast<const T *>(call.exponents);
        for (int f = 0; f < F; f++)
            for (int d = 0; d < D; d++) {
                rows[f * DP + d] = from[f * D + d];
                turned_rows[d * FP + f] = from[f * D + d] * T(LOG2_E);
            }
    }

    void load_state(const T *from) {
        for (int f = 0; f < F; f++)
            for (int e = 0; e < E; e++) state[e * FP + f] = from[f * E + e];
    }
    void store_state(T *to) const {
        for (int f = 0; f < F; f++)
            for (int e = 0; e < E; e++) to[f * E + e] = state[e * FP + f];
    }

    static void turn(const T *x, int rows, int size, T *to, int to_size) {
        for (int r = 0; r < rows; r += W) {
            const T *row[W];
            for (int i = 0; i < W; i++) row[i] = x + (r + i) * size;
            for (int d = 0; d < size; d += W) transpose_square<T>(row, d, to + d * to_size + r, to_size);
        }
    }

    // n rows of `size` numbers to C rows of `padded`, times a factor for each row; zeros behind.
    static void read(const T *from, int n, int size, int padded, T *to) {
        for (int i = 0; i < n; i++) std::copy_n(from + i * size, size, to + i * padded);
        std::fill(to + n * padded, to + C * padded, T(0));
    }
    static void scale(const T *x, const T *factor, int padded, T *to) {
        for (int i = 0; i < C; i++)
            for (int e = 0; e < padded; e++) to[i * padded + e] = x[i * padded + e] * factor[i];
    }

    // Features of n tokens, and what they are divided by, as a logarithm.
    void features(const void *base, int64_t first, int n, T *to, T *height) {
        if (!call.exponents) {
            std::fill_n(height, C, T(0));
            return read(of(base, call.length * F) + first * F, n, F, FP, to);
        }
        const T *x = of(base, call.length * D) + first * D;
        if (n < C) {
            read(x, n, D, DP, out);
            std::fill_n(to, C * FP, T(0));
            products.add(to, FP, C, FP, out, DP, 1, turned_rows, FP, D);
        } else {
            std::fill_n(to, C * FP, T(0));
            products.add(to, FP, C, FP, x, D, 1, turned_rows, FP, D);
        }
        for (int i = 0; i < C; i++) {
            T *row = to + i * FP;
            std::fill(row + F, row + FP, row[0]);  // no more than the largest
            vec most = L::load(row);
            for (int f = W; f < FP; f += W) {
                const vec x_f = L::load(row + f);
                most = x_f > most ? x_f : most;
            }
            T top = most[0];
            for (int l = 1; l < W; l++) top = std::max(top, most[l]);
            for (int f = 0; f < FP; f += W) L::store(row + f, i < n ? exp2_of<T>(L::load(row + f) - top) : vec{});
            std::fill(row + F, row + FP, T(0));
            height[i] = top / T(LOG2_E);
        }
    }

    // From marks and heights; moves the level on to that of the sums behind the chunk.
    void weigh(int64_t first, int n, const T *height, Weights &w) {
        const T *mark = call.mark ? of(call.mark, call.length) + first : nullptr;
        const T before = level;
        for (int i = 0; i < C; i++) {
            w.mark[i] = i < n ? (mark ? mark[i] : T(0)) + height[i] : -std::numeric_limits<T>::infinity();
            w.top[i] = level = std::max(level, w.mark[i]);
        }
        for (int i = 0; i < C; i += W) {
            L::store(w.read + i, exp2_of<T>((before - L::load(w.top + i)) * T(LOG2_E)));
            L::store(w.kept + i, exp2_of<T>((L::load(w.mark + i) - level) * T(LOG2_E)));
        }
        w.step = w.read[C - 1];
    }

    // pairs[j][i] = share of key j for query i, times x[j] . (what is turned)[i]; 0 where i < j.
    void products_of_pairs(const T *x, int x_size, const T *turned_queries, int dim, const Weights &w) {
        for (int j = 0; j < C; j += KEYS_AT_ONCE) {
            const T *keys[KEYS_AT_ONCE];
            for (int i = 0; i < KEYS_AT_ONCE; i++) keys[i] = j + i < C ? x + (j + i) * x_size : zero;
            if (j < W)
                scores<T, T, KEYS_AT_ONCE, ROW_VECTORS>(keys, turned_queries, dim, T(1), pairs + j * C);
            else
                scores<T, T, KEYS_AT_ONCE, 1>(keys, turned_queries + W, dim, T(1), pairs + j * C + W);
        }
        ivec place[ROW_VECTORS];
        for (int l = 0; l < C; l++) place[l / W][l % W] = typename L::Int(l);
        for (int j = 0; j < C; j++)
            for (int n = 0; n < ROW_VECTORS; n++) {
                T *at = pairs + j * C + n * W;
                const vec share = exp2_of<T>((w.mark[j] - L::load(w.top + n * W)) * T(LOG2_E));
                const ivec later = place[n] >= typename L::Int(j);
                L::store(at, later ? L::load(at) * share : vec{});
            }
    }

    // state = step state + x^T y, for x [C, EP] and y [C, FP].
    void move_state(T step, const T *x, const T *y_rows) {
        if (step != T(1))
            for (int i = 0; i < ER * FP; i += W) L::store(state + i, L::load(state + i) * step);
        products.add(state, FP, ER, FP, x, 1, EP, y_rows, FP, C);
    }

    // to [C, EP] = x [C, FP] times the state.
    void times_state(const T *x, T *to) {
        std::fill_n(to, C * EP, T(0));
        if (EV) {
            turn(state, EV, FP, turned_state, EV);
            products.add(to, EP, C, EV, x, FP, 1, turned_state, EV, FP);
        }
        for (int i = 0; i < C; i++)
            for (int e = EV; e < E; e++) {
                vec sum = {};
                for (int f = 0; f < FP; f += W) sum += L::load(x + i * FP + f) * L::load(state + e * FP + f);
                for (int l = 0; l < W; l++) to[i * EP + e] += sum[l];
            }
    }

    void forward_chunk(int64_t first, int n) {
        Weights &w = weights[0];
        T height[C];
        features(call.a, first, n, a, height);  // a query's own divisor cancels
        features(call.b, first, n, b, height);
        weigh(first, n, height, w);
        read(of(call.values, call.length * E) + first * E, n, E, EP, v);
        times_state(a, y);
        scale(y, w.read, EP, y);
        turn(a, C, FP, turned, C);
        products_of_pairs(b, FP, turned, FP, w);
        products.add(y, EP, C, EP, pairs, 1, C, v, EP, C, UP_TO);
        scale(v, w.kept, EP, kept_v);
        move_state(w.step, kept_v, b);
        T *to = of(call.y, call.length * E) + first * E;
        for (int i = 0; i < n; i++) std::copy_n(y + i * EP, E, to + i * E);
        if (call.top) std::copy_n(w.top, n, of(call.top, call.length) + first);
    }

    // The rest of a gradient of features [C, FP], through the exponentials, to n rows of memory.
    void write_slope(const T *features_of, void *base, int64_t first, int n) {
        if (!call.exponents) {
            T *to = of(base, call.length * F) + first * F;
            for (int i = 0; i < n; i++) std::copy_n(slope + i * FP, F, to + i * F);
            return;
        }
        for (int i = 0; i < C * FP; i += W) L::store(slope + i, L::load(slope + i) * L::load(features_of + i));
        std::fill_n(out, C * DP, T(0));
        products.add(out, DP, C, DP, slope, FP, 1, rows, DP, FP);
        T *to = of(base, call.length * D) + first * D;
        for (int i = 0; i < n; i++) std::copy_n(out + i * DP, D, to + i * D);
    }

    void read_values_and_gradients(int64_t first, int n, const Weights &w) {
        read(of(call.values, call.length * E) + first * E, n, E, EP, v);
        read(of(call.grad, call.length * E) + first * E, n, E, EP, g);
        scale(v, w.kept, EP, kept_v), scale(g, w.read, EP, read_g);
        turn(g, C, EP, turned_g, C);
    }

    // With the sums before the chunk: the gradient of a.
    void there(int64_t first, int place, int n) {
        Weights &w = weights[size_t(place / C)];
        T *chunk_a = all_a + place * FP, *chunk_b = all_b + place * FP, height[C];
        features(call.a, first, n, chunk_a, height);
        features(call.b, first, n, chunk_b, height);
        weigh(first, n, height, w);
        read_values_and_gradients(first, n, w);
        std::fill_n(slope, C * FP, T(0));
        products.add(slope, FP, C, FP, read_g, EP, 1, state, FP, E);
        products_of_pairs(v, EP, turned_g, EP, w);
        products.add(slope, FP, C, FP, pairs, 1, C, chunk_b, FP, C, UP_TO);
        write_slope(chunk_a, call.grad_a, first, n);
        move_state(w.step, kept_v, chunk_b);
    }

    // With the gradients of the sums behind the chunk: those of b, the values and the marks.
    void back(int64_t first, int place, int n) {
        const Weights &w = weights[size_t(place / C)];
        const T *chunk_a = all_a + place * FP, *chunk_b = all_b + place * FP;
        read_values_and_gradients(first, n, w);
        std::fill_n(slope, C * FP, T(0));
        products.add(slope, FP, C, FP, kept_v, EP, 1, state, FP, E);
        products_of_pairs(v, EP, turned_g, EP, w);
        products.add(slope, FP, C, FP, pairs, C, 1, chunk_a, FP, C, FROM);
        write_slope(chunk_b, call.grad_b, first, n);
        times_state(chunk_b, y);
        scale(y, w.kept, EP, y);
        turn(chunk_a, C, FP, turned, C);
        products_of_pairs(chunk_b, FP, turned, FP, w);
        products.add(y, EP, C, EP, pairs, C, 1, g, EP, C, FROM);
        T *to = of(call.grad_values, call.length * E) + first * E;
        for (int i = 0; i < n; i++) std::copy_n(y + i * EP, E, to + i * E);
        if (call.grad_mark)
            for (int i = 0; i < n; i++) {
                T sum = 0;
                for (int e = 0; e < E; e++) sum += y[i * EP + e] * v[i * EP + e];
                of(call.grad_mark, call.length)[first + i] = sum;
            }
        move_state(w.step, read_g, chunk_a);
    }
};

template <class T>
void run(const Scan &call, bool back) {
#pragma omp parallel num_threads(call.threads) if (call.threads > 1 && call.rows > 1)
    {
        Row<T> row(call, back);
#pragma omp for schedule(dynamic, 1)
        for (int64_t p = 0; p < call.rows; p++)
            if (back)
                row.backward(p);
            else
                row.forward(p);
    }
}

void run_in(const Scan &call, int stored, bool back) {
    if (stored == FLOAT32) run<float>(call, back);
    if (stored == FLOAT64) run<double>(call, back);
}

}  // namespace

extern "C" {

int64_t mapformers_scan_size() { return sizeof(Scan); }

void mapformers_scan_forward(const Scan *call, int stored) { run_in(*call, stored, false); }

void mapformers_scan_backward(const Scan *call, int stored) { run_in(*call, stored, true); }
}
