// Half precision.
#include <cuda_fp16.h>

// y = a (rows by 2 * pairs) * x, in pairs of halves, summed in single precision
// across pairs of 8; one warp per row.
extern "C" __global__ void gemv_half(float *y, const __half2 *a, const __half2 *x, unsigned pairs)
{
    const __half2 *row = a + (size_t)blockIdx.x * pairs;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < pairs; i += 32) {
        __half2 product = __hmul2(row[i], x[i]);
        product = __hfma2(row[i], x[i], __hneg2(product));
        __half2 again = __hfma2(row[i], x[i], product);
        sum += __low2float(again) + __high2float(again);
    }
    for (int distance = 16; distance > 0; distance /= 2) {
        sum += __shfl_down_sync(0xffffffffu, sum, distance);
    }
    if (threadIdx.x == 0) {
        y[blockIdx.x] = sum;
    }
}

// Element-wise: out = max(a + b, a - b * c), or 0 where a is not less than b.
extern "C" __global__ void half_select(__half *out, const __half *a, const __half *b,
                                       const __half *c, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        __half value = __hmax(__hadd(a[i], b[i]), __hfma(__hneg(b[i]), c[i], a[i]));
        out[i] = __hlt(a[i], b[i]) ? value : __float2half(0.0f);
    }
}
