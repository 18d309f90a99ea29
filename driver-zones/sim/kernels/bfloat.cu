// nvcc: -arch compute_90
// The brain float format.
#include <cuda_bf16.h>

// y = alpha * x + y
extern "C" __global__ void axpy_bf16(__nv_bfloat16 *y, const __nv_bfloat16 *x,
                                     __nv_bfloat16 alpha, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        y[i] = __hfma(alpha, x[i], y[i]);
    }
}

// Pairs: out = (a + b) * a, rounded after each.
extern "C" __global__ void pairs_bf16(__nv_bfloat162 *out, const __nv_bfloat162 *a,
                                      const __nv_bfloat162 *b, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        out[i] = __hmul2(__hadd2(a[i], b[i]), a[i]);
    }
}

// Copies through shared memory without registers, then sums each block's part.
extern "C" __global__ void staged_sum(unsigned *sum, const unsigned *words)
{
    __shared__ __align__(16) unsigned stage[128];
    unsigned target = (unsigned)__cvta_generic_to_shared(stage + 4 * (threadIdx.x % 32));
    if (threadIdx.x < 32) {
        const unsigned *source = words + blockIdx.x * 128 + 4 * threadIdx.x;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(source));
        asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_group 0;");
    }
    __syncthreads();
    unsigned part = __reduce_add_sync(0xffffffffu, stage[threadIdx.x]);
    if (threadIdx.x % 32 == 0) {
        atomicAdd(sum, part);
    }
}
