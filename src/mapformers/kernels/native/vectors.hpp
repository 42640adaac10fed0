// Vectors of the machine through compiler extensions, and the few products that the kernels are made of.
#pragma once

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

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#include <immintrin.h>
#define BFLOAT16_PRODUCTS 1
#endif

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

enum Stored { FLOAT32 = 0, FLOAT64 = 1, BFLOAT16 = 2 };  // how inputs lie in memory

namespace {

template <class T>
struct Lanes {
    static constexpr int W = BYTES / sizeof(T);
    static constexpr int ROWS = ROW_VECTORS * W;
    typedef std::conditional_t<sizeof(T) == 8, int64_t, int32_t> Int;
    typedef T vec __attribute__((vector_size(BYTES)));
    typedef Int ivec __attribute__((vector_size(BYTES)));
    // Pairs of bfloat16 are read as floats from rows that may begin at any even address.
    typedef T loose __attribute__((vector_size(BYTES), aligned(alignof(bfloat16)), may_alias));
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

// What products run over. Plain: numbers. With bfloat16 products in the processor: pairs of numbers that are neighbours
// along the summed dimension; one instruction multiplies and adds both, in float.
template <class T, class U>
struct Product {
    using L = Lanes<T>;
    static typename L::vec load(const T *p) { return L::load(p); }
    static T one(const T *p) { return *p; }
    static typename L::vec add(typename L::vec sum, typename L::vec x, T y) { return sum + x * y; }
};
template <class T, class S>
struct UnitOf {
    using type = T;
};

#ifdef BFLOAT16_PRODUCTS
using Pair = int32_t;
template <>
struct Product<float, Pair> {
    using L = Lanes<float>;
    static L::ivec load(const Pair *p) { return (L::ivec)L::load(reinterpret_cast<const float *>(p)); }
    static Pair one(const Pair *p) {  // whose address need only be even
        Pair pair;
        std::memcpy(&pair, p, sizeof pair);
        return pair;
    }
    static L::vec add(L::vec sum, L::ivec x, Pair y) {
        return (L::vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)_mm512_set1_epi32(y));
    }
};
template <>
struct UnitOf<float, bfloat16> {
    using type = Pair;
};

// [low, high] of 16 bfloat16 each to the pairs (low[i], high[i]).
inline __m512i zipped(__m512i halves) {
    alignas(64) static constexpr uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8,  24, 9,  25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return _mm512_permutexvar_epi16(_mm512_load_si512(order), halves);
}

// Rows of bfloat16 to one row of pairs (above[i], below[i]).
inline void zip_rows(const Pair *above, const Pair *below, int size, Pair *to) {
    const auto *a = reinterpret_cast<const char *>(above), *b = reinterpret_cast<const char *>(below);
    for (int i = 0; i < size; i += 16) {
        const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(a + 2 * i));
        const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b + 2 * i));
        _mm512_storeu_si512(to + i, zipped(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)));
    }
}

// Rows of float to one row of pairs; null counts as zeros.
inline void zip_floats(const float *above, const float *below, int size, Pair *to) {
    for (int i = 0; i < size; i += 16) {
        const __m512 low = _mm512_loadu_ps(above + i);
        const __m512 high = below ? _mm512_loadu_ps(below + i) : _mm512_setzero_ps();
        _mm512_storeu_si512(to + i, zipped((__m512i)_mm512_cvtne2ps_pbh(high, low)));
    }
}

// A row of float to bfloat16, neighbours in pairs; size a multiple of 32.
inline void narrow(const float *row, int size, Pair *to) {
    for (int i = 0; i < size; i += 32) {
        const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(row + i + 16), _mm512_loadu_ps(row + i));
        _mm512_storeu_si512(to + i / 2, (__m512i)both);
    }
}
#endif

// W rows of W units to their transpose, at distance `stride`. Each step swaps blocks of half the size.
template <class T, class U>
inline void transpose_square(const U *const *rows, int column, U *to, int stride) {
    static_assert(sizeof(U) == sizeof(T));
    using L = Lanes<T>;
    using vec = typename L::vec;
    using ivec = typename L::ivec;
    vec x[L::W];
    for (int i = 0; i < L::W; i++) x[i] = L::load(reinterpret_cast<const T *>(rows[i] + column));
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
    for (int i = 0; i < L::W; i++) L::store(reinterpret_cast<T *>(to + i * stride), x[i]);
}

// to[key][query] = factor sum_d k[key][d] qt[d][query] for NK keys and NV vectors of queries; d counts units.
template <class T, class U, int NK, int NV>
inline void scores(const U *const *k, const U *qt, int dim, T factor, T *to) {
    using L = Lanes<T>;
    using P = Product<T, U>;
    typename L::vec sum[NK][NV] = {};
    for (int d = 0; d < dim; d++) {
        decltype(P::load(qt)) x[NV];
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++) x[n] = P::load(qt + d * L::ROWS + n * L::W);
#pragma GCC unroll 16
        for (int j = 0; j < NK; j++) {
            const U y = P::one(k[j] + d);
#pragma GCC unroll 4
            for (int n = 0; n < NV; n++) sum[j][n] = P::add(sum[j][n], x[n], y);
        }
    }
#pragma GCC unroll 16
    for (int j = 0; j < NK; j++)
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++) L::store(to + j * L::ROWS + n * L::W, sum[j][n] * factor);
}

// to[i] += sum_{first <= j < last} w[i si + j sj] x[j] for NR rows and NV vectors; j counts units.
template <class T, class U, int NR, int NV>
inline void accumulate(T *const *to, int column, const U *w, int si, int sj, const U *const *x, int first, int last) {
    using L = Lanes<T>;
    using P = Product<T, U>;
    typename L::vec sum[NR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < NR; i++)
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++) sum[i][n] = L::load(to[i] + column + n * L::W);
    for (int j = first; j < last; j++) {
        const U *row = x[j] + column;
        decltype(P::load(row)) y[NV];
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++) y[n] = P::load(row + n * L::W);
#pragma GCC unroll 16
        for (int i = 0; i < NR; i++) {
            const U weight = w[i * si + j * sj];
#pragma GCC unroll 4
            for (int n = 0; n < NV; n++) sum[i][n] = P::add(sum[i][n], y[n], weight);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < NR; i++)
#pragma GCC unroll 4
        for (int n = 0; n < NV; n++) L::store(to[i] + column + n * L::W, sum[i][n]);
}

template <class T, class U, int NR>
inline void accumulate_rows(T *const *to, int size, const U *w, int si, int sj, const U *const *x, int first,
                            int last) {
    constexpr int W = Lanes<T>::W;
    int column = 0;
    for (; column + OUT_VECTORS * W <= size; column += OUT_VECTORS * W)
        accumulate<T, U, NR, OUT_VECTORS>(to, column, w, si, sj, x, first, last);
    for (; column < size; column += W) accumulate<T, U, NR, 1>(to, column, w, si, sj, x, first, last);
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

}  // namespace
