// Range attention for the CPU: every ordered query sees one contiguous range of ordered keys.
//
//   out[i] = sum_j exp(s_ij - lse_i) v_j,   s_ij = scale q_i.k_j + table[clip(pos_i - pos_j)],   start_i <= j < end_i
//
// One tile is ROWS ordered queries. Its scores are kept transposed, [key][query]: queries lie in the lanes of the
// vectors, so the maximum, the sum and the mask of a query are plain lane-wise operations, only the tile of queries is
// ever transposed, and keys and values are read where they lie, through the order arrays, without a copy.
// Micro-tiles that no range touches are not computed. Scores live in base 2: exp(x) = exp2(x log2 e).
//
// The backward recomputes the weights from the log-sum-exp. Given the *merged* output and log-sum-exp of several
// parts with disjoint keys, it returns this part's exact share of the gradients (FlashAttention-2, Dao 2023, alg. 2).
// A row of dk or dv is written by one task at a time and in a fixed order: no atomics, the same result every time.
//
// Compiled for float and double (the same code, so that it can be proven in float64) and for bfloat16 inputs, which
// are widened row by row and accumulated in float.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__AVX512F__)
constexpr int BYTES = 64, KEYS_AT_ONCE = 8, OUT_ROWS = 4;  // 32 registers
#elif defined(__AVX__)
constexpr int BYTES = 32, KEYS_AT_ONCE = 4, OUT_ROWS = 2;  // 16 registers
#else
constexpr int BYTES = 16, KEYS_AT_ONCE = 8, OUT_ROWS = 4;  // NEON has 32, SSE 16
#endif
constexpr int ROW_VECTORS = 2;  // of queries in a tile
constexpr int OUT_VECTORS = 4;  // of an output row that are accumulated at once
constexpr int BLOCK = 64;       // ordered keys whose scores are alive at once

struct bfloat16 {
    uint16_t bits;
};

// Everything by its place in memory; strides count elements. The Python side fills this structure (op.py).
struct Call {
    const void *q, *k, *v;          // [B, H, N, D], [B, G, M, D], [B, G, M, E]; rows contiguous
    void *out, *lse;                // [B, H, N, E], [B, H, N]
    const void *mass;               // [B, H, N] log-weight of further keys of value zero, or null
    const void *grad, *grad_lse;    // [B, H, N, E], [B, H, N] or null
    void *delta, *dq, *dk, *dv;     // [B, H, N], and as q, k, v; dk and dv are added to
    const int32_t *query_order;     // [B, H, rounds, N] row of q, or null: its own place
    const int32_t *key_order;       // [B, H, places] row of k, or null
    const int32_t *start, *end;     // [B, H, rounds, N] places of ordered keys
    const int32_t *query_position;  // [B, N], for the table
    const int32_t *key_position;    // [B, M]
    const void *table;              // [H, table_length] added to the scores, or null
    void *dtable;                   // [tasks, table_length], or null
    int64_t q_stride[3], k_stride[3], v_stride[3], out_stride[3], grad_stride[3], dq_stride[3], dk_stride[3],
        dv_stride[3];                                         // of B, H (or G), N (or M)
    int64_t query_order_stride[3], key_order_stride[2], range_stride[3];  // of B, H, (round); 0 where all agree
    int64_t query_position_stride, key_position_stride, table_stride;
    int64_t batch, heads, kv_heads, queries, keys, places, key_dim, value_dim, rounds, table_length, table_zero;
    int64_t threads, chunks, shared_keys;  // shared_keys: a key may lie at several places
    double scale;
};

namespace {

template <class T>
struct Lanes {
    static constexpr int W = BYTES / sizeof(T);
    static constexpr int ROWS = ROW_VECTORS * W;
    typedef std::conditional_t<sizeof(T) == 8, int64_t, int32_t> Int;
    typedef T vec __attribute__((vector_size(BYTES)));
    typedef Int ivec __attribute__((vector_size(BYTES)));
    typedef T loose __attribute__((vector_size(BYTES), aligned(alignof(T)), may_alias));
    static vec load(const T *p) { return *reinterpret_cast<const loose *>(p); }
    static void store(T *p, vec x) { *reinterpret_cast<loose *>(p) = x; }
    static vec all(T x) { return vec{} + x; }
};

constexpr double LOG2_E = 1.4426950408889634074, LN_2 = 0.6931471805599453094;
template <class T>
constexpr T NOTHING = std::is_same_v<T, float> ? T(-1e30) : T(-1e300);  // a score below every other

// 2^x lane by lane; 0 below the smallest normal number. Taylor series of 2^r on |r| <= 1/2, to the last bit or two.
template <class T>
inline typename Lanes<T>::vec exp2_of(typename Lanes<T>::vec x) {
    using L = Lanes<T>;
    using vec = typename L::vec;
    using ivec = typename L::ivec;
    constexpr bool narrow = sizeof(T) == 4;
    constexpr int mantissa = narrow ? 23 : 52, terms = narrow ? 7 : 13;
    constexpr T lowest = narrow ? T(-126) : T(-1022);
    constexpr T magic = narrow ? T(12582912.0) : T(6755399441055744.0);  // 1.5 * 2^mantissa: adding it rounds
    const vec clamped = x < lowest ? L::all(lowest) : x;
    const vec shifted = clamped + magic;
    const vec r = clamped - (shifted - magic);
    T coefficient[terms + 1];
    coefficient[0] = 1;
    for (int i = 1; i <= terms; i++) coefficient[i] = T(double(coefficient[i - 1]) * LN_2 / i);
    vec p = L::all(coefficient[terms]);
#pragma GCC unroll 16
    for (int i = terms - 1; i >= 0; i--) p = p * r + coefficient[i];
    const ivec exponent = (ivec)shifted << mantissa;  // the low bits of `shifted` hold the rounded integer
    const vec result = (vec)((ivec)p + exponent);
    return x < lowest ? vec{} : result;
}

template <class T>
inline const T *widened(const T *row, int, T *) {
    return row;
}
inline const float *widened(const bfloat16 *row, int size, float *room) {
    for (int d = 0; d < size; d++) {
        const uint32_t bits = uint32_t(row[d].bits) << 16;
        std::memcpy(room + d, &bits, 4);
    }
    return room;
}

// W rows of W numbers to their transpose, at distance `stride`. Each step swaps blocks of half the size.
template <class T>
inline void transpose_square(const T *const *rows, int column, T factor, T *to, int stride) {
    using L = Lanes<T>;
    using vec = typename L::vec;
    using ivec = typename L::ivec;
    vec x[L::W];
    for (int i = 0; i < L::W; i++) x[i] = L::load(rows[i] + column) * factor;
#pragma GCC unroll 4
    for (int s = L::W / 2; s; s /= 2) {
        ivec low, high;
        for (int l = 0; l < L::W; l++) {
            low[l] = l & s ? L::W + l - s : l;
            high[l] = l & s ? L::W + l : l + s;
        }
#pragma GCC unroll 16
        for (int i = 0; i < L::W; i++) {
            if (i & s) continue;
            const vec a = x[i], b = x[i + s];
            x[i] = __builtin_shuffle(a, b, low);
            x[i + s] = __builtin_shuffle(a, b, high);
        }
    }
    for (int i = 0; i < L::W; i++) L::store(to + i * stride, x[i]);
}

// to[key][query] = sum_d k[key][d] qt[d][query] for NK keys and NV vectors of queries.
template <class T, int NK, int NV>
inline void scores(const T *const *k, const T *qt, int dim, T *to) {
    using L = Lanes<T>;
    typename L::vec sum[NK][NV] = {};
    for (int d = 0; d < dim; d++) {
        typename L::vec x[NV];
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++) x[n] = L::load(qt + d * L::ROWS + n * L::W);
#pragma GCC unroll 16
        for (int j = 0; j < NK; j++) {
            const T y = k[j][d];
#pragma GCC unroll 4
            for (int n = 0; n < NV; n++) sum[j][n] += x[n] * y;
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < NK; j++)
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++) L::store(to + j * L::ROWS + n * L::W, sum[j][n]);
}

// to[i] += sum_{first <= j < last} weight(i, j) x[j] for NR rows and NV vectors; weight(i, j) = w[i si + j sj].
template <class T, int NR, int NV>
inline void accumulate(T *const *to, int column, const T *w, int si, int sj, const T *const *x, int first, int last) {
    using L = Lanes<T>;
    typename L::vec sum[NR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < NR; i++)
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++) sum[i][n] = L::load(to[i] + column + n * L::W);
    for (int j = first; j < last; j++) {
        const T *row = x[j] + column;
        typename L::vec y[NV];
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++) y[n] = L::load(row + n * L::W);
#pragma GCC unroll 16
        for (int i = 0; i < NR; i++) {
            const T weight = w[i * si + j * sj];
#pragma GCC unroll 4
            for (int n = 0; n < NV; n++) sum[i][n] += y[n] * weight;
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < NR; i++)
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++) L::store(to[i] + column + n * L::W, sum[i][n]);
}

template <class T, int NR>
inline void accumulate_rows(T *const *to, int size, const T *w, int si, int sj, const T *const *x, int first,
                            int last) {
    constexpr int W = Lanes<T>::W;
    int column = 0;
    for (; column + OUT_VECTORS * W <= size; column += OUT_VECTORS * W)
        accumulate<T, NR, OUT_VECTORS>(to, column, w, si, sj, x, first, last);
    for (; column < size; column += W) accumulate<T, NR, 1>(to, column, w, si, sj, x, first, last);
}

template <class T>
struct Room {  // aligned scratch of one thread
    std::unique_ptr<T, void (*)(void *)> memory;
    explicit Room(size_t count)
        : memory(static_cast<T *>(std::aligned_alloc(BYTES, (count * sizeof(T) + BYTES - 1) / BYTES * BYTES)),
                 std::free) {
        std::memset(memory.get(), 0, count * sizeof(T));
    }
    T *at(size_t place) { return memory.get() + place; }
};

template <class T>
inline T *row_of(const void *base, const int64_t *stride, int64_t b, int64_t h, int64_t row) {
    return static_cast<T *>(const_cast<void *>(base)) + b * stride[0] + h * stride[1] + row * stride[2];
}

// One tile of ordered queries of one head and one round, its rows and its ranges. S is how inputs are stored.
template <class T, class S>
struct Tile {
    using L = Lanes<T>;
    using vec = typename L::vec;
    using ivec = typename L::ivec;
    static constexpr int W = L::W, ROWS = L::ROWS;

    const Call &call;
    const int D, E;
    Room<T> room;
    T *qt, *gt, *q_rows, *g_rows, *k_rows, *v_rows, *p, *ds, *o, *zero;
    const T *q[ROWS], *g[ROWS], *k[BLOCK], *v[BLOCK];
    int64_t b = 0, h = 0, kv = 0, round = 0;
    int rows = 0, low = 0, high = 0, from = 0, to = 0, query[ROWS], key[BLOCK];
    int vector_low[ROW_VECTORS], vector_high[ROW_VECTORS], group_low[ROWS / OUT_ROWS], group_high[ROWS / OUT_ROWS];
    int inner_low = 0, inner_high = 0;  // keys that every row of the tile sees
    ivec first[ROW_VECTORS], last[ROW_VECTORS];

    explicit Tile(const Call &call)
        : call(call),
          D(call.key_dim),
          E(call.value_dim),
          room(size_t(2 * ROWS + BLOCK + 1) * (D + E) + size_t(ROWS) * (2 * BLOCK + D + E)) {
        T *next = room.at(0);
        auto take = [&](size_t count) { return std::exchange(next, next + count); };
        p = take(ROWS * BLOCK), ds = take(ROWS * BLOCK), qt = take(ROWS * D), gt = take(ROWS * E);
        q_rows = take(ROWS * D), g_rows = take(ROWS * E), o = take(ROWS * std::max(D, E));
        k_rows = take(BLOCK * D), v_rows = take(BLOCK * E), zero = take(std::max(D, E));
    }

    // Which rows and ranges; whether there is anything to see.
    bool locate(int64_t task_b, int64_t task_h, int64_t task_round, int64_t first_row) {
        b = task_b, h = task_h, kv = h / (call.heads / call.kv_heads), round = task_round;
        rows = int(std::min<int64_t>(ROWS, call.queries - first_row));
        const int64_t *os = call.query_order_stride, *rs = call.range_stride;
        const int32_t *order =
            call.query_order ? call.query_order + b * os[0] + h * os[1] + round * os[2] : nullptr;
        const int32_t *start = call.start + b * rs[0] + h * rs[1] + round * rs[2];
        const int32_t *end = call.end + b * rs[0] + h * rs[1] + round * rs[2];
        low = inner_high = std::numeric_limits<int>::max(), high = inner_low = 0;
        std::fill_n(vector_low, ROW_VECTORS, low), std::fill_n(vector_high, ROW_VECTORS, 0);
        std::fill_n(group_low, ROWS / OUT_ROWS, low), std::fill_n(group_high, ROWS / OUT_ROWS, 0);
        for (int r = 0; r < ROWS; r++) {
            int a = 0, z = 0;
            query[r] = -1;
            if (r < rows) {
                query[r] = order ? order[first_row + r] : int(first_row + r);
                a = start[first_row + r], z = end[first_row + r];
            }
            first[r / W][r % W] = a, last[r / W][r % W] = z;
            inner_low = std::max(inner_low, a), inner_high = std::min(inner_high, z);
            if (a >= z) continue;
            for (auto [at_low, at_high] : {std::pair{&low, &high},
                                           {&vector_low[r / W], &vector_high[r / W]},
                                           {&group_low[r / OUT_ROWS], &group_high[r / OUT_ROWS]}})
                *at_low = std::min(*at_low, a), *at_high = std::max(*at_high, z);
        }
        return low < high;
    }

    // Rows of `size` numbers of the tile's queries, as they are (`to`) and transposed and scaled (`turned`).
    template <class X>
    void read_rows(const void *base, const int64_t *stride, int size, T factor, T *widen, T *turned, const T **to) {
        for (int r = 0; r < ROWS; r++)
            to[r] = r < rows ? widened(row_of<X>(base, stride, b, h, query[r]), size, widen + r * size) : zero;
        for (int r = 0; r < ROWS; r += W)
            for (int d = 0; d < size; d += W) transpose_square(to + r, d, factor, turned + d * ROWS + r, ROWS);
    }

    void read_queries() { read_rows<S>(call.q, call.q_stride, D, T(call.scale * LOG2_E), q_rows, qt, q); }

    // Keys and values of ordered places [at, at + BLOCK) below `high`; zero rows fill the last micro-tile.
    void read_block(int at) {
        from = at, to = std::min(at + BLOCK, high);
        const int32_t *order =
            call.key_order ? call.key_order + b * call.key_order_stride[0] + h * call.key_order_stride[1] : nullptr;
        for (int j = 0; j < BLOCK; j++) {
            if (from + j >= to) {
                k[j] = v[j] = zero;
                continue;
            }
            key[j] = order ? order[from + j] : from + j;
            k[j] = widened(row_of<S>(call.k, call.k_stride, b, kv, key[j]), D, k_rows + j * D);
            v[j] = widened(row_of<S>(call.v, call.v_stride, b, kv, key[j]), E, v_rows + j * E);
        }
    }

    bool sees(int n, int j) const {  // whether any row of vector n sees a key of the micro-tile at j
        return from + j < vector_high[n] && from + j + KEYS_AT_ONCE > vector_low[n];
    }

    // product[j][r] for the block, micro-tile by micro-tile, only where a range reaches.
    void block_scores(const T *const *x, const T *turned, int size, T *product) {
        for (int j = 0; from + j < to; j += KEYS_AT_ONCE) {
            const bool one = sees(0, j), two = sees(1, j);
            if (one && two)
                scores<T, KEYS_AT_ONCE, 2>(x + j, turned, size, product + j * ROWS);
            else if (one)
                scores<T, KEYS_AT_ONCE, 1>(x + j, turned, size, product + j * ROWS);
            else if (two)
                scores<T, KEYS_AT_ONCE, 1>(x + j, turned + W, size, product + j * ROWS + W);
        }
    }

    // Lanes of vector n that see the key at j.
    ivec seen(int n, int j) const {
        const typename L::Int place = from + j;
        return (first[n] <= place) & (last[n] > place);
    }

    int64_t table_place(int r, int j) const {
        const int64_t distance = int64_t(call.query_position[b * call.query_position_stride + query[r]]) -
                                 call.key_position[b * call.key_position_stride + key[j]] + call.table_zero;
        return std::clamp<int64_t>(distance, 0, call.table_length - 1);
    }

    void add_table() {
        const T *table = static_cast<const T *>(call.table) + h * call.table_stride;
        for (int j = 0; from + j < to; j++)
            for (int r = 0; r < rows; r++) p[j * ROWS + r] += T(LOG2_E) * table[table_place(r, j)];
    }

    // Ordered places [first, last) of the block, counted inside it, that a group of OUT_ROWS rows sees.
    std::pair<int, int> group_keys(int r) const {
        const int group = r / OUT_ROWS;
        return {std::max(group_low[group], from) - from, std::min(group_high[group], to) - from};
    }

    // to[r] += sum_j weight[j][r] x[j]
    void into_rows(const T *weight, const T *const *x, int size) {
        for (int r = 0; r < rows; r += OUT_ROWS) {
            const auto [begin, stop] = group_keys(r);
            if (begin >= stop) continue;
            T *to_rows[OUT_ROWS];
            for (int i = 0; i < OUT_ROWS; i++) to_rows[i] = o + (r + i) * size;
            accumulate_rows<T, OUT_ROWS>(to_rows, size, weight + r, 1, ROWS, x, begin, stop);
        }
    }

    // to[key[j]] += sum_r weight[j][r] x[r], for the rows that see one of the keys taken together.
    void into_keys(const T *weight, const T *const *x, int size, void *base, const int64_t *stride) {
        for (int j = 0; from + j < to; j += OUT_ROWS) {
            int begin = ROWS, stop = 0;
            for (int r = 0; r < rows; r += OUT_ROWS) {
                const auto [first_key, last_key] = group_keys(r);
                if (std::max(first_key, j) >= std::min(last_key, j + OUT_ROWS)) continue;
                begin = std::min(begin, r), stop = std::max(stop, r + OUT_ROWS);
            }
            if (begin >= stop) continue;
            T *to_rows[OUT_ROWS];
            const int count = std::min(OUT_ROWS, to - from - j);
            for (int i = 0; i < count; i++) to_rows[i] = row_of<T>(base, stride, b, kv, key[j + i]);
            if (count == OUT_ROWS && !call.shared_keys)
                accumulate_rows<T, OUT_ROWS>(to_rows, size, weight + j * ROWS, ROWS, 1, x, begin, stop);
            else
                for (int i = 0; i < count; i++)
                    accumulate_rows<T, 1>(to_rows + i, size, weight + (j + i) * ROWS, ROWS, 1, x, begin, stop);
        }
    }

    void forward() {
        read_queries();
        vec top[ROW_VECTORS], total[ROW_VECTORS];
        for (int r = 0; r < ROWS; r++) {  // go on from what earlier rounds left
            T lse = -std::numeric_limits<T>::infinity();
            if (r < rows && (round || call.mass)) lse = at_row(round ? call.lse : call.mass, r);
            const bool started = std::isfinite(lse);
            top[r / W][r % W] = started ? lse * T(LOG2_E) : NOTHING<T>;
            total[r / W][r % W] = started;
            if (started && round)
                std::memcpy(o + r * E, row_of<T>(call.out, call.out_stride, b, h, query[r]), E * sizeof(T));
            else
                std::memset(o + r * E, 0, E * sizeof(T));
        }
        for (int at = low; at < high; at += BLOCK) {
            read_block(at);
            block_scores(k, qt, D, p);
            if (call.table) add_table();
            for (int n = 0; n < ROW_VECTORS; n++) softmax(n, top[n], total[n]);
            into_rows(p, v, E);
        }
        for (int r = 0; r < rows; r++) {
            const T sum = total[r / W][r % W], inverse = sum > 0 ? 1 / sum : 0;
            T *out = row_of<T>(call.out, call.out_stride, b, h, query[r]);
            for (int e = 0; e < E; e += W) L::store(out + e, L::load(o + r * E + e) * inverse);
            const T lse = T(LN_2) * (top[r / W][r % W] + std::log2(sum));
            at_row(call.lse, r) = sum > 0 ? lse : -std::numeric_limits<T>::infinity();
        }
    }

    // Scores of one vector of rows to weights under the running maximum; rescales what was summed before.
    void softmax(int n, vec &top, vec &total) {
        T *column = p + n * W;
        vec highest = top;
        for (int j = 0; from + j < to; j += KEYS_AT_ONCE) {
            if (!sees(n, j)) continue;
            const int stop = std::min(j + KEYS_AT_ONCE, to - from);
            if (from + j >= inner_low && from + stop <= inner_high) {
                for (int i = j; i < stop; i++) {
                    const vec s = L::load(column + i * ROWS);
                    highest = s > highest ? s : highest;
                }
            } else {
                for (int i = j; i < stop; i++) {
                    const vec s = seen(n, i) ? L::load(column + i * ROWS) : L::all(NOTHING<T>);
                    L::store(column + i * ROWS, s);
                    highest = s > highest ? s : highest;
                }
            }
        }
        const vec shrink = exp2_of<T>(top - highest);
        vec sum = {};
        for (int j = 0; from + j < to; j += KEYS_AT_ONCE) {
            const int stop = std::min(j + KEYS_AT_ONCE, to - from);
            if (!sees(n, j)) {
                for (int i = j; i < stop; i++) L::store(column + i * ROWS, vec{});
                continue;
            }
            for (int i = j; i < stop; i++) {
                const vec s = L::load(column + i * ROWS);
                const vec weight = s > NOTHING<T> ? exp2_of<T>(s - highest) : vec{};
                sum += weight;
                L::store(column + i * ROWS, weight);
            }
        }
        total = total * shrink + sum;
        top = highest;
        for (int r = n * W; r < (n + 1) * W; r++) {
            const T factor = shrink[r % W];
            if (factor == 1) continue;
            for (int e = 0; e < E; e += W) L::store(o + r * E + e, L::load(o + r * E + e) * factor);
        }
    }

    void backward(T *dtable) {
        read_queries();
        read_rows<T>(call.grad, call.grad_stride, E, T(1), g_rows, gt, g);
        vec lse[ROW_VECTORS] = {}, delta[ROW_VECTORS] = {};
        for (int r = 0; r < rows; r++) {
            lse[r / W][r % W] = at_row(call.lse, r) * T(LOG2_E);
            if (round == 0) at_row(call.delta, r) = delta_of(r);
            delta[r / W][r % W] = at_row(call.delta, r);
        }
        std::memset(o, 0, ROWS * D * sizeof(T));
        for (int at = low; at < high; at += BLOCK) {
            read_block(at);
            block_scores(k, qt, D, p);
            block_scores(v, gt, E, ds);
            if (call.table) add_table();
            for (int n = 0; n < ROW_VECTORS; n++) weights(n, lse[n], delta[n]);
            if (dtable)
                for (int j = 0; from + j < to; j++)
                    for (int r = 0; r < rows; r++) dtable[table_place(r, j)] += ds[j * ROWS + r] / T(call.scale);
            into_rows(ds, k, D);
            into_keys(ds, q, D, call.dk, call.dk_stride);
            into_keys(p, g, E, call.dv, call.dv_stride);
        }
        for (int r = 0; r < rows; r++) {
            T *dq = row_of<T>(call.dq, call.dq_stride, b, h, query[r]);
            for (int d = 0; d < D; d += W) {
                const vec part = L::load(o + r * D + d);
                L::store(dq + d, round ? L::load(dq + d) + part : part);
            }
        }
    }

    // grad . out - grad_lse: what every gradient of a score of the row is reduced by.
    T delta_of(int r) const {
        const T *out = row_of<T>(call.out, call.out_stride, b, h, query[r]);
        vec product = {};
        for (int e = 0; e < E; e += W) product += L::load(out + e) * L::load(g[r] + e);
        T sum = call.grad_lse ? -at_row(call.grad_lse, r) : T(0);
        for (int l = 0; l < W; l++) sum += product[l];
        return sum;
    }

    // p: scores to weights; ds: gradients of the weights to those of the scaled products.
    void weights(int n, vec lse, vec delta) {
        const T scale = T(call.scale);
        for (int j = 0; from + j < to; j += KEYS_AT_ONCE) {
            const int stop = std::min(j + KEYS_AT_ONCE, to - from);
            const bool any = sees(n, j), inner = from + j >= inner_low && from + stop <= inner_high;
            for (int i = j; i < stop; i++) {
                T *at_p = p + i * ROWS + n * W, *at_ds = ds + i * ROWS + n * W;
                vec weight = {}, slope = {};
                if (any) {
                    weight = exp2_of<T>(L::load(at_p) - lse);
                    slope = weight * (L::load(at_ds) - delta) * scale;
                    if (!inner) {
                        const ivec mask = seen(n, i);
                        weight = mask ? weight : vec{};
                        slope = mask ? slope : vec{};
                    }
                }
                L::store(at_p, weight), L::store(at_ds, slope);
            }
        }
    }

    T &at_row(const void *base, int r) const {
        return static_cast<T *>(const_cast<void *>(base))[(b * call.heads + h) * call.queries + query[r]];
    }
};

template <class T, class S>
void forward(const Call &call) {
    const int64_t tiles = (call.queries + Lanes<T>::ROWS - 1) / Lanes<T>::ROWS, all = call.batch * call.heads * tiles;
#pragma omp parallel num_threads(call.threads) if (call.threads > 1 && all > 1)
    {
        Tile<T, S> tile(call);
        for (int64_t round = 0; round < call.rounds; round++) {
#pragma omp for schedule(dynamic, 8)
            for (int64_t i = 0; i < all; i++)
                if (tile.locate(i / tiles / call.heads, i / tiles % call.heads, round, i % tiles * Lanes<T>::ROWS) ||
                    round == 0)
                    tile.forward();
        }
    }
}

struct Chunk {
    int64_t b, h, first, last;  // tiles
    int low, high, colour;      // ordered keys that it writes
};

// Chunks of tiles of every g-th head of a key/value head. Chunks of one colour write different rows of dk and dv.
template <class T>
std::vector<Chunk> chunks_of(const Call &call, int64_t member, int64_t round) {
    const int64_t group = call.heads / call.kv_heads, rows = Lanes<T>::ROWS;
    const int64_t tiles = (call.queries + rows - 1) / rows, count = std::clamp<int64_t>(call.chunks, 1, tiles);
    std::vector<Chunk> chunks;
    for (int64_t b = 0; b < call.batch; b++)
        for (int64_t kv = 0; kv < call.kv_heads; kv++)
            for (int64_t c = 0; c < count; c++) {
                Chunk chunk{b, kv * group + member, c * tiles / count, (c + 1) * tiles / count, 1 << 30, 0, 0};
                const int64_t at = b * call.range_stride[0] + chunk.h * call.range_stride[1] +
                                   round * call.range_stride[2];
                for (int64_t i = chunk.first * rows; i < std::min(chunk.last * rows, call.queries); i++)
                    if (call.start[at + i] < call.end[at + i]) {
                        chunk.low = std::min(chunk.low, int(call.start[at + i]));
                        chunk.high = std::max(chunk.high, int(call.end[at + i]));
                    }
                bool free = false;
                while (!free) {
                    free = true;
                    for (size_t before = chunks.size() - size_t(c); before < chunks.size(); before++)
                        if (chunks[before].colour == chunk.colour && chunks[before].low < chunk.high &&
                            chunk.low < chunks[before].high)
                            free = false;
                    if (!free) chunk.colour++;
                }
                chunks.push_back(chunk);
            }
    return chunks;
}

template <class T, class S>
void backward(const Call &call) {
    const int64_t members = call.heads / call.kv_heads;
    for (int64_t round = 0; round < call.rounds; round++)
        for (int64_t member = 0; member < members; member++) {
            const std::vector<Chunk> chunks = chunks_of<T>(call, member, round);
            int colours = 0;
            for (const Chunk &chunk : chunks) colours = std::max(colours, chunk.colour + 1);
#pragma omp parallel num_threads(call.threads) if (call.threads > 1 && chunks.size() > 1)
            {
                Tile<T, S> tile(call);
                for (int colour = 0; colour < colours; colour++) {
#pragma omp for schedule(dynamic, 1)
                    for (size_t c = 0; c < chunks.size(); c++) {
                        if (chunks[c].colour != colour) continue;
                        const int64_t place = int64_t(c % size_t(call.chunks)) * call.batch * call.heads +
                                              chunks[c].b * call.heads + chunks[c].h;
                        T *dtable =
                            call.dtable ? static_cast<T *>(call.dtable) + place * call.table_length : nullptr;
                        for (int64_t t = chunks[c].first; t < chunks[c].last; t++)
                            if (tile.locate(chunks[c].b, chunks[c].h, round, t * Lanes<T>::ROWS) || round == 0)
                                tile.backward(dtable);
                    }
                }
            }
        }
}

}  // namespace

// Whether every row of an order names each of `size` rows once (or, if `shared`, rows below `size` at all).
static bool is_order(const int32_t *order, int64_t length, int64_t size, bool shared) {
    if (!shared && length != size) return false;
    std::vector<bool> named(size_t(size), false);
    for (int64_t i = 0; i < length; i++) {
        if (order[i] < 0 || order[i] >= size || (named[size_t(order[i])] && !shared)) return false;
        named[size_t(order[i])] = true;
    }
    return true;
}

enum Stored { FLOAT32 = 0, FLOAT64 = 1, BFLOAT16 = 2 };

extern "C" {

int64_t mapformers_call_size() { return sizeof(Call); }

int mapformers_lanes(int stored) { return stored == FLOAT64 ? Lanes<double>::W : Lanes<float>::W; }

// 0, or what is wrong with the pattern: 1 query_order, 2 key_order, 3 start or end.
int mapformers_range_check(const Call *call) {
    const int64_t *os = call->query_order_stride, *ks = call->key_order_stride, *rs = call->range_stride;
    for (int64_t b = 0; b < call->batch; b++)
        for (int64_t h = 0; h < call->heads; h++) {
            const bool repeats_orders = (b && !os[0] && !ks[0]) || (h && !os[1] && !ks[1]);
            if (call->key_order && !repeats_orders &&
                !is_order(call->key_order + b * ks[0] + h * ks[1], call->places, call->keys, call->shared_keys))
                return 2;
            for (int64_t r = 0; r < call->rounds; r++) {
                const int64_t at = b * rs[0] + h * rs[1] + r * rs[2];
                if (call->query_order && !repeats_orders &&
                    !is_order(call->query_order + b * os[0] + h * os[1] + r * os[2], call->queries, call->queries,
                              false))
                    return 1;
                if ((b && !rs[0]) || (h && !rs[1])) continue;
                for (int64_t i = 0; i < call->queries; i++)
                    if (call->start[at + i] < 0 || call->end[at + i] > call->places) return 3;
            }
        }
    return 0;
}

void mapformers_range_forward(const Call *call, int stored) {
    if (stored == FLOAT32) forward<float, float>(*call);
    if (stored == FLOAT64) forward<double, double>(*call);
    if (stored == BFLOAT16) forward<float, bfloat16>(*call);
}

void mapformers_range_backward(const Call *call, int stored) {
    if (stored == FLOAT32) backward<float, float>(*call);
    if (stored == FLOAT64) backward<double, double>(*call);
    if (stored == BFLOAT16) backward<float, bfloat16>(*call);
}
}
