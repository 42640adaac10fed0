// The nearest centroids of every vector, for a tile of vectors at a time: similarities are never written to memory.

#include "vectors.hpp"

constexpr int MOST_NEAREST = 8;  // centroids that a vector may name

// The Python side fills this structure (call.py). Strides count elements.
struct Nearest {
    const void *x;          // [B, H, N, D]; rows contiguous
    const void *centroids;  // [G, C, D] contiguous, in the dtype of the sums
    const void *bias;       // [G, C]
    int64_t *best;          // [B, H, N, count] out
    int64_t stride[3];      // of B, H, N
    int64_t batch, heads, groups, length, dim, clusters, count, threads;
    double shortest;  // a vector counts as having at least this length
};

namespace {

// For each lane: best[i] = the index of the i-th largest of cosine + bias; ties go to the lowest index.
template <class T, class S>
struct Search {
    using L = Lanes<T>;
    using vec = typename L::vec;
    using ivec = typename L::ivec;
    static constexpr int ROWS = L::ROWS, W = L::W;

    const Nearest &call;
    Room<T> room;
    T *turned, *product, *rows, *zero;

    explicit Search(const Nearest &call)
        : call(call), room(size_t(2 * ROWS + 1) * call.dim + size_t(ROWS) * padded(call.clusters)) {
        turned = room.at(0), rows = turned + ROWS * call.dim, zero = rows + ROWS * call.dim;
        product = zero + call.dim;
    }

    static size_t padded(int64_t clusters) { return size_t(clusters + KEYS_AT_ONCE - 1) / KEYS_AT_ONCE * KEYS_AT_ONCE; }

    void tile(int64_t b, int64_t h, int64_t first) {
        const int dim = int(call.dim), count = int(std::min<int64_t>(ROWS, call.length - first));
        const int64_t group = h / (call.heads / call.groups);
        const T *x[ROWS];
        for (int r = 0; r < ROWS; r++)
            x[r] = r < count ? widened(row_of<S>(call.x, call.stride, b, h, first + r), dim, rows + r * dim) : zero;
        for (int r = 0; r < ROWS; r += W)
            for (int d = 0; d < dim; d += W) transpose_square<T>(x + r, d, turned + d * ROWS + r, ROWS);
        vec scale[ROW_VECTORS];
        for (int n = 0; n < ROW_VECTORS; n++) scale[n] = centre(turned + n * W, dim);
        const T *mu = static_cast<const T *>(call.centroids) + group * call.clusters * dim;
        for (int64_t c = 0; c < call.clusters; c += KEYS_AT_ONCE) {
            const T *keys[KEYS_AT_ONCE];
            for (int i = 0; i < KEYS_AT_ONCE; i++) keys[i] = c + i < call.clusters ? mu + (c + i) * dim : zero;
            scores<T, T, KEYS_AT_ONCE, ROW_VECTORS>(keys, turned, dim, T(1), product + c * ROWS);
        }
        const T *bias = static_cast<const T *>(call.bias) + group * call.clusters;
        int64_t *best = call.best + ((b * call.heads + h) * call.length + first) * call.count;
        for (int n = 0; n < ROW_VECTORS; n++) choose(product + n * W, scale[n], bias, best + n * W * call.count, count - n * W);
    }

    // Take the mean from W vectors, [dim][lane]; returns one over their lengths.
    vec centre(T *column, int dim) const {
        vec mean = {}, square = {};
        for (int d = 0; d < dim; d++) mean += L::load(column + d * ROWS);
        mean /= T(dim);
        for (int d = 0; d < dim; d++) {
            const vec x = L::load(column + d * ROWS) - mean;
            L::store(column + d * ROWS, x);
            square += x * x;
        }
        vec scale;
        for (int l = 0; l < W; l++) scale[l] = 1 / std::max(std::sqrt(square[l]), T(call.shortest));
        return scale;
    }

    void choose(const T *column, vec scale, const T *bias, int64_t *best, int rows_left) const {
        using Int = typename L::Int;
        ivec chosen[MOST_NEAREST];
        for (int64_t i = 0; i < call.count; i++) {
            vec top = L::all(-std::numeric_limits<T>::infinity());
            ivec at = ivec{} - 1;
            for (Int c = 0; c < call.clusters; c++) {
                vec s = L::load(column + c * ROWS) * scale + bias[c];
                ivec taken = at != at;
                for (int64_t j = 0; j < i; j++) taken |= chosen[j] == c;
                const ivec better = ((s > top) | (at < 0)) & ~taken;
                top = better ? s : top;
                at = better ? ivec{} + c : at;
            }
            chosen[i] = at;
            for (int l = 0; l < std::min(W, rows_left); l++) best[l * call.count + i] = at[l];
        }
    }
};

template <class T, class S>
void search(const Nearest &call) {
    const int64_t rows = Lanes<T>::ROWS, tiles = (call.length + rows - 1) / rows;
#pragma omp parallel num_threads(call.threads) if (call.threads > 1 && call.batch * call.heads * tiles > 1)
    {
        Search<T, S> one(call);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < call.batch * call.heads * tiles; i++)
            one.tile(i / tiles / call.heads, i / tiles % call.heads, i % tiles * rows);
    }
}

}  // namespace

extern "C" {

int64_t mapformers_nearest_size() { return sizeof(Nearest); }

void mapformers_nearest(const Nearest *call, int stored) {
    if (stored == FLOAT32) search<float, float>(*call);
    if (stored == FLOAT64) search<double, double>(*call);
    if (stored == BFLOAT16) search<float, bfloat16>(*call);
}
}
