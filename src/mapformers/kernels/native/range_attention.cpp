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
// Compiled for float and double (the same code, so that it can be proven in float64) and for bfloat16 inputs: products
// over pairs where the processor has them, rows widened to float elsewhere; sums are float either way.

#include "vectors.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

// Everything by its place in memory; strides count elements. The Python side fills this structure (call.py).
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

// One tile of ordered queries of one head and one round, its rows and its ranges. S is how inputs are stored.
template <class T, class S>
struct Tile {
    using L = Lanes<T>;
    using vec = typename L::vec;
    using ivec = typename L::ivec;
    using U = typename UnitOf<T, S>::type;  // products run over numbers, or over pairs of bfloat16
    static constexpr int W = L::W, ROWS = L::ROWS, PACK = std::is_same_v<T, U> ? 1 : 2;

    const Call &call;
    const int D, E;
    Room<T> room;
    T *p, *ds, *o, *zero, *widened_q, *widened_k, *widened_v;
    U *qt, *gt, *packed, *zipped_q, *zipped_g, *zipped_k, *narrow_g;
    const T *g[ROWS];
    const U *q_units[ROWS], *g_units[ROWS], *k[BLOCK], *v[BLOCK];  // rows of units along the head size
    const U *q_down[ROWS], *g_down[ROWS], *k_down[BLOCK], *v_down[BLOCK];  // units across rows
    int64_t b = 0, h = 0, kv = 0, round = 0;
    int rows = 0, low = 0, high = 0, from = 0, to = 0, query[ROWS], key[BLOCK];
    int vector_low[ROW_VECTORS], vector_high[ROW_VECTORS], group_low[ROWS / OUT_ROWS], group_high[ROWS / OUT_ROWS];
    int inner_low = 0, inner_high = 0;  // keys that every row of the tile sees
    int64_t query_place[ROWS], key_place[BLOCK];  // their difference is a place in the table
    bool in_step = false;                         // rows of the tile lie one after another in the table
    ivec first[ROW_VECTORS], last[ROW_VECTORS];

    explicit Tile(const Call &call)
        : call(call), D(call.key_dim), E(call.value_dim), room(3 * ROWS * BLOCK + (5 * ROWS + 3 * BLOCK + 1) * (D + E)) {
        T *next = room.at(0);
        auto take = [&](size_t count) { return std::exchange(next, next + count); };
        auto units = [&](size_t count) { return reinterpret_cast<U *>(take(count)); };
        p = take(ROWS * BLOCK), ds = take(ROWS * BLOCK), packed = units(ROWS * BLOCK);
        o = take(ROWS * (D + E)), zero = take(D + E);
        qt = units(ROWS * D), gt = units(ROWS * E), widened_q = take(ROWS * D), narrow_g = units(ROWS * E);
        widened_k = take(BLOCK * D), widened_v = take(BLOCK * E);
        zipped_q = units(ROWS * D), zipped_g = units(ROWS * E), zipped_k = units(BLOCK * (D + E));
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
        if (call.table) place_queries();
        return low < high;
    }

    void place_queries() {
        in_step = true;
        for (int r = 0; r < rows; r++) {
            query_place[r] = int64_t(call.query_position[b * call.query_position_stride + query[r]]) + call.table_zero;
            in_step = in_step && query_place[r] == query_place[0] + r;
        }
    }

    // A row of the input as units along the head size.
    static const U *units(const S *row, int size, T *room) {
        if constexpr (PACK == 2)
            return reinterpret_cast<const U *>(row);
        else
            return widened(row, size, room);
    }

    // Rows of units along the head size to rows of units across them: the same rows, or pairs of rows zipped.
    static void stack(const U *const *row, int count, int size, U *room, const U **down) {
        for (int i = 0; i < count; i += PACK) {
            if constexpr (PACK == 2) {
                zip_rows(row[i], row[i + 1], size, room + i / 2 * size);
                down[i / 2] = room + i / 2 * size;
            } else
                down[i] = row[i];
        }
    }

    static void turn(const U *const *row, int size, U *turned) {
        for (int r = 0; r < ROWS; r += W)
            for (int d = 0; d < size / PACK; d += W) transpose_square<T>(row + r, d, turned + d * ROWS + r, ROWS);
    }

    const U *nothing() const { return reinterpret_cast<const U *>(zero); }

    void read_queries() {
        for (int r = 0; r < ROWS; r++)
            q_units[r] =
                r < rows ? units(row_of<S>(call.q, call.q_stride, b, h, query[r]), D, widened_q + r * D) : nothing();
        turn(q_units, D, qt);
    }

    void read_gradients() {
        for (int r = 0; r < ROWS; r++) {
            g[r] = r < rows ? row_of<T>(call.grad, call.grad_stride, b, h, query[r]) : zero;
            if constexpr (PACK == 2) {
                narrow(g[r], E, narrow_g + r * E);
                g_units[r] = narrow_g + r * E;
            } else
                g_units[r] = g[r];
        }
        turn(g_units, E, gt);
    }

    // Keys and values of ordered places [at, at + BLOCK) below `high`; zero rows fill the last micro-tile.
    void read_block(int at) {
        from = at, to = std::min(at + BLOCK, high);
        const int32_t *order =
            call.key_order ? call.key_order + b * call.key_order_stride[0] + h * call.key_order_stride[1] : nullptr;
        for (int j = 0; j < BLOCK; j++) {
            if (from + j >= to) {
                k[j] = v[j] = nothing();
                continue;
            }
            key[j] = order ? order[from + j] : from + j;
            k[j] = units(row_of<S>(call.k, call.k_stride, b, kv, key[j]), D, widened_k + j * D);
            v[j] = units(row_of<S>(call.v, call.v_stride, b, kv, key[j]), E, widened_v + j * E);
            if (call.table) key_place[j] = call.key_position[b * call.key_position_stride + key[j]];
        }
    }

    // Weights [key][query] as units across keys, [key unit][query], or across queries, [key][query unit].
    const U *across_keys(const T *weight) {
        if constexpr (PACK == 2) {
            for (int j = 0; from + j < to; j += 2)
                zip_floats(weight + j * ROWS, from + j + 1 < to ? weight + (j + 1) * ROWS : nullptr, ROWS,
                           packed + j / 2 * ROWS);
            return packed;
        } else
            return weight;
    }
    const U *across_queries(const T *weight) {
        if constexpr (PACK == 2) {
            for (int j = 0; from + j < to; j++) narrow(weight + j * ROWS, ROWS, packed + j * (ROWS / 2));
            return packed;
        } else
            return weight;
    }

    bool sees(int n, int j) const {  // whether any row of vector n sees a key of the micro-tile at j
        return from + j < vector_high[n] && from + j + KEYS_AT_ONCE > vector_low[n];
    }

    // product[j][r] for the block, micro-tile by micro-tile, only where a range reaches.
    void block_scores(const U *const *x, const U *turned, int size, T factor, T *product) {
        for (int j = 0; from + j < to; j += KEYS_AT_ONCE) {
            const bool one = sees(0, j), two = sees(1, j);
            if (one && two)
                scores<T, U, KEYS_AT_ONCE, 2>(x + j, turned, size / PACK, factor, product + j * ROWS);
            else if (one)
                scores<T, U, KEYS_AT_ONCE, 1>(x + j, turned, size / PACK, factor, product + j * ROWS);
            else if (two)
                scores<T, U, KEYS_AT_ONCE, 1>(x + j, turned + W, size / PACK, factor, product + j * ROWS + W);
        }
    }

    // Lanes of vector n that see the key at j.
    ivec seen(int n, int j) const {
        const typename L::Int place = from + j;
        return (first[n] <= place) & (last[n] > place);
    }

    int64_t table_place(int r, int j) const {
        return std::clamp<int64_t>(query_place[r] - key_place[j], 0, call.table_length - 1);
    }

    // Whether the rows of the tile and the key at j meet a whole stretch of the table, from its first row on.
    bool on_stretch(int j) const {
        const int64_t place = query_place[0] - key_place[j];
        return in_step && place >= 0 && place + ROWS <= call.table_length;
    }

    void add_table() {
        const T *table = static_cast<const T *>(call.table) + h * call.table_stride;
        for (int j = 0; from + j < to; j++) {
            T *at = p + j * ROWS;
            if (on_stretch(j)) {
                const T *stretch = table + table_place(0, j);
                for (int r = 0; r < ROWS; r += W)
                    L::store(at + r, L::load(at + r) + L::load(stretch + r) * T(LOG2_E));
            } else
                for (int r = 0; r < rows; r++) at[r] += T(LOG2_E) * table[table_place(r, j)];
        }
    }

    // Sums over the pairs of each place of the table. Where keys follow each other, the stretch of the next key begins
    // one place lower: the sums move up by one row in registers, and only the topmost leaves them.
    void into_table(T *dtable) const {
        const T factor = 1 / T(call.scale);
        ivec up;
        for (int l = 0; l < W; l++) up[l] = l ? l - 1 : 2 * W - 1;
        vec sum[ROW_VECTORS] = {};
        for (int j = 0; from + j < to; j++) {
            if (!on_stretch(j)) {
                for (int r = 0; r < rows; r++) dtable[table_place(r, j)] += ds[j * ROWS + r] * factor;
                continue;
            }
            for (int n = 0; n < ROW_VECTORS; n++) sum[n] += L::load(ds + j * ROWS + n * W);
            T *stretch = dtable + table_place(0, j);
            if (from + j + 1 < to && key_place[j + 1] == key_place[j] + 1 && on_stretch(j + 1)) {
                stretch[ROWS - 1] += sum[ROW_VECTORS - 1][W - 1] * factor;
                for (int n = ROW_VECTORS - 1; n >= 0; n--)
                    sum[n] = __builtin_shuffle(sum[n], n ? sum[n - 1] : vec{}, up);
                continue;
            }
            for (int n = 0; n < ROW_VECTORS; n++) {
                L::store(stretch + n * W, L::load(stretch + n * W) + sum[n] * factor);
                sum[n] = vec{};
            }
        }
    }

    // Ordered places [first, last) of the block, counted inside it, that a group of OUT_ROWS rows sees.
    std::pair<int, int> group_keys(int r) const {
        const int group = r / OUT_ROWS;
        return {std::max(group_low[group], from) - from, std::min(group_high[group], to) - from};
    }

    // to[r] += sum_j weight[j][r] x[j]
    void into_rows(const U *weight, const U *const *x, int size) {
        for (int r = 0; r < rows; r += OUT_ROWS) {
            const auto [begin, stop] = group_keys(r);
            if (begin >= stop) continue;
            T *to_rows[OUT_ROWS];
            for (int i = 0; i < OUT_ROWS; i++) to_rows[i] = o + (r + i) * size;
            accumulate_rows<T, U, OUT_ROWS>(to_rows, size, weight + r, 1, ROWS, x, begin / PACK,
                                            (stop + PACK - 1) / PACK);
        }
    }

    // to[key[j]] += sum_r weight[j][r] x[r], for the rows that see one of the keys taken together.
    void into_keys(const U *weight, const U *const *x, int size, void *base, const int64_t *stride) {
        constexpr int line = ROWS / PACK;
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
                accumulate_rows<T, U, OUT_ROWS>(to_rows, size, weight + j * line, line, 1, x, begin / PACK,
                                                stop / PACK);
            else
                for (int i = 0; i < count; i++)
                    accumulate_rows<T, U, 1>(to_rows + i, size, weight + (j + i) * line, line, 1, x, begin / PACK,
                                             stop / PACK);
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
            block_scores(k, qt, D, T(call.scale * LOG2_E), p);
            if (call.table) add_table();
            for (int n = 0; n < ROW_VECTORS; n++) softmax(n, top[n], total[n]);
            stack(v, to - from, E, zipped_k, v_down);
            into_rows(across_keys(p), v_down, E);
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
        read_gradients();
        stack(q_units, ROWS, D, zipped_q, q_down);
        stack(g_units, ROWS, E, zipped_g, g_down);
        vec lse[ROW_VECTORS] = {}, delta[ROW_VECTORS] = {};
        for (int r = 0; r < rows; r++) {
            const T sum = at_row(call.lse, r);  // -inf where the table hides every key that the range shows
            lse[r / W][r % W] = std::isfinite(sum) ? sum * T(LOG2_E) : std::numeric_limits<T>::infinity();
            if (round == 0) at_row(call.delta, r) = delta_of(r);
            delta[r / W][r % W] = at_row(call.delta, r);
        }
        std::memset(o, 0, ROWS * D * sizeof(T));
        for (int at = low; at < high; at += BLOCK) {
            read_block(at);
            block_scores(k, qt, D, T(call.scale * LOG2_E), p);
            block_scores(v, gt, E, T(1), ds);
            if (call.table) add_table();
            for (int n = 0; n < ROW_VECTORS; n++) weights(n, lse[n], delta[n]);
            if (dtable) into_table(dtable);
            stack(k, to - from, D, zipped_k, k_down);
            into_rows(across_keys(ds), k_down, D);
            into_keys(across_queries(ds), q_down, D, call.dk, call.dk_stride);
            into_keys(across_queries(p), g_down, E, call.dv, call.dv_stride);
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

extern "C" {

int64_t mapformers_call_size() { return sizeof(Call); }

// What head sizes must be multiples of.
int mapformers_lanes(int stored) {
    if (stored == FLOAT64) return Lanes<double>::W;
    return stored == BFLOAT16 ? Lanes<float>::W * Tile<float, bfloat16>::PACK : Lanes<float>::W;
}

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

// Ask for large pages under fresh memory: results of many MB then cost hundreds of times fewer page faults.
void mapformers_large_pages(void *memory, int64_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const uintptr_t page = 4096, begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + uintptr_t(size)) / page * page;
    if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#else
    (void)memory, (void)size;
#endif
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
