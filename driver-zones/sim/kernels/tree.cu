// Work that blocks and threads share.

__device__ unsigned finished = 0;

// Sums doubles: each block its part, and the last block to finish the parts.
// Block: a power of two. Dynamic shared memory: 8 bytes per thread.
extern "C" __global__ void sum_double(double *out, double *parts, const double *in, unsigned n)
{
    extern __shared__ double partial[];
    __shared__ bool last;
    double sum = 0.0;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        sum += in[i];
    }
    partial[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            partial[threadIdx.x] += partial[threadIdx.x + half];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        parts[blockIdx.x] = partial[0];
        __threadfence();
        last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        double total = 0.0;
        for (unsigned block = 0; block < gridDim.x; block++) {
            total += ((volatile double *)parts)[block];
        }
        *out = total;
    }
}

// Builds a binary tree of maxima above `leaves` (a power of two) values, in place:
// nodes[1] is the root, nodes[leaves..] are the leaves. One thread per leaf; the
// second of two siblings to come goes on to their parent.
extern "C" __global__ void max_tree(unsigned *nodes, unsigned *visits, unsigned leaves)
{
    unsigned at = leaves + blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= 2 * leaves) {
        return;
    }
    while (at > 1) {
        at /= 2;
        __threadfence();
        if (atomicExch(&visits[at], 1u) == 0) {
            return;
        }
        volatile unsigned *all = nodes;
        unsigned a = all[2 * at], b = all[2 * at + 1];
        all[at] = a > b ? a : b;
    }
}
