// Rotation of the pairs (d, d + D / 2) of every row by angles of its token, in one pass.

#include "vectors.hpp"

// The Python side fills this structure (call.py). Strides count elements.
struct Rotate {
    const void *x;          // [B, H, N, D]; rows contiguous
    void *out;              // as x, in the same dtype
    const void *cos, *sin;  // [B, N, D / 2], in the dtype of the sums; rows contiguous
    int64_t x_stride[3], out_stride[3];     // of B, H, N
    int64_t cos_stride[2], sin_stride[2];   // of B, N; 0 where all rows of the batch agree
    int64_t batch, heads, length, half, threads, back;  // back: the other way round
};

namespace {

template <class T>
inline T read(T x) {
    return x;
}
inline float read(bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
template <class T>
inline void write(T *to, T x) {
    *to = x;
}
inline void write(bfloat16 *to, float x) {  // to the nearest, ties to even; a NaN stays one
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    to->bits = uint16_t(x != x ? 0x7fc0 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T, class S>
void rotate(const Rotate &call) {
    const T sign = call.back ? T(-1) : T(1);
    const int64_t half = call.half;
#pragma omp parallel for collapse(2) schedule(static) num_threads(call.threads) if (call.threads > 1)
    for (int64_t b = 0; b < call.batch; b++)
        for (int64_t i = 0; i < call.length; i++) {
            const T *cos = static_cast<const T *>(call.cos) + b * call.cos_stride[0] + i * call.cos_stride[1];
            const T *sin = static_cast<const T *>(call.sin) + b * call.sin_stride[0] + i * call.sin_stride[1];
            for (int64_t h = 0; h < call.heads; h++) {
                const S *x = row_of<const S>(call.x, call.x_stride, b, h, i);
                S *out = row_of<S>(call.out, call.out_stride, b, h, i);
#pragma GCC ivdep
                for (int64_t d = 0; d < half; d++) {
                    const T left = read(x[d]), right = read(x[d + half]), s = sign * sin[d];
                    write(out + d, left * cos[d] - right * s);
                    write(out + d + half, right * cos[d] + left * s);
                }
            }
        }
}

}  // namespace

extern "C" {

int64_t mapformers_rotate_size() { return sizeof(Rotate); }

void mapformers_rotate(const Rotate *call, int stored) {
    if (stored == FLOAT32) rotate<float, float>(*call);
    if (stored == FLOAT64) rotate<double, double>(*call);
    if (stored == BFLOAT16) rotate<float, bfloat16>(*call);
}
}
