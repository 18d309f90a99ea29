// nvcc: -arch compute_90
// Atomic operations on more than a register's worth: one number of 128 bits, and vectors.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

struct __align__(16) wide {
    unsigned long long count, sum;
};

struct totals {
    wide pair, last;
    float4 four;
    float2 two;
    __half2 halves;
    __nv_bfloat162 brain;
};

// Each thread counts its element and adds it, both at once in one number; then four sums, two and
// two pairs of halves. `last` is whatever one of the threads left there.
extern "C" __global__ void wide_atomics(totals *out, const unsigned *in, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) {
        return;
    }
    wide seen = {0, 0}, next, old;
    do {
        old = seen;
        next = {old.count + 1, old.sum + in[i]};
        seen = atomicCAS(&out->pair, old, next);
    } while (seen.count != old.count || seen.sum != old.sum);
    atomicExch(&out->last, next);
    float value = (float)(in[i] & 15);
    atomicAdd(&out->four, make_float4(value, 1.0f, -value, 0.5f));
    atomicAdd(&out->two, make_float2(value, 2.0f));
    atomicAdd(&out->halves, __floats2half2_rn(0.5f, 1.0f));
    atomicAdd(&out->brain, __floats2bfloat162_rn(0.25f, 1.0f));
}
