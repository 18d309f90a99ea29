// nvcc: -arch compute_90
// Atomic operations of all kinds, in shared and in global memory.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

struct Totals {
    unsigned add, least, most, all, any, odd, turns, back, swapped;
    int signed_least, signed_most;
    float sum;
    double total;
    unsigned long long wide_add, wide_least, wide_most, wide_all, wide_any, wide_odd, wide_swap;
    long long signed_wide;
    __half2 halves;
    __nv_bfloat162 brains;
    unsigned short narrow;
};

__device__ void take(Totals *t, unsigned value)
{
    unsigned long long wide = ((unsigned long long)value << 32) | (value * 2654435761u);
    atomicAdd(&t->add, value);
    atomicSub(&t->add, 1u);
    atomicMin(&t->least, value);
    atomicMax(&t->most, value);
    atomicAnd(&t->all, value | 0xff00u);
    atomicOr(&t->any, value);
    atomicXor(&t->odd, value);
    atomicInc(&t->turns, 41);
    atomicDec(&t->back, 41);
    atomicMin(&t->signed_least, (int)value - 5000);
    atomicMax(&t->signed_most, (int)value - 5000);
    atomicAdd(&t->sum, (float)(value & 63));
    atomicAdd(&t->total, (double)value);
    atomicAdd(&t->wide_add, wide);
    atomicMin(&t->wide_least, wide);
    atomicMax(&t->wide_most, wide);
    atomicAnd(&t->wide_all, wide | 0xff0000ffull);
    atomicOr(&t->wide_any, wide);
    atomicXor(&t->wide_odd, wide);
    atomicMin(&t->signed_wide, (long long)wide);
    atomicAdd(&t->halves, __floats2half2_rn(1.0f, 0.5f));
    atomicAdd(&t->brains, __floats2bfloat162_rn(0.25f, 1.0f));
    unsigned seen = t->swapped, old;
    do {
        old = seen;
        seen = atomicCAS(&t->swapped, old, old + value % 7);
    } while (seen != old);
    unsigned long long wide_seen = t->wide_swap, wide_old;
    do {
        wide_old = wide_seen;
        wide_seen = atomicCAS(&t->wide_swap, wide_old, wide_old * 2 + 0);
    } while (wide_seen != wide_old);
    unsigned short short_seen = t->narrow, short_old;
    do {
        short_old = short_seen;
        short_seen = atomicCAS(&t->narrow, short_old, (unsigned short)(short_old + 3));
    } while (short_seen != short_old);
}

// Every thread adds its value to both; shared totals go out at the end.
extern "C" __global__ void all_atomics(Totals *global, Totals *shared_out, const unsigned *values,
                                       const Totals *start)
{
    __shared__ Totals shared;
    if (threadIdx.x == 0) {
        shared = *start;
    }
    __syncthreads();
    take(global, values[threadIdx.x]);
    take(&shared, values[threadIdx.x]);
    __syncthreads();
    if (threadIdx.x == 0) {
        *shared_out = shared;
    }
}
