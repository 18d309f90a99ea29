// A grid whose blocks wait for each other: launched cooperatively, or not at all.

#include <cooperative_groups.h>

namespace cg = cooperative_groups;

// The sum of `in`. Each block sums its part; then the blocks add their sums in pairs, pairs of
// pairs and so on, and meet after each step. Block: a power of two. Dynamic shared memory: 8 bytes
// per thread.
extern "C" __global__ void tree_sum(double *out, double *parts, const double *in, unsigned n)
{
    cg::grid_group grid = cg::this_grid();
    extern __shared__ double partial[];
    double sum = 0.0;
    for (unsigned i = grid.thread_rank(); i < n; i += grid.size()) {
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
    unsigned block = blockIdx.x;
    if (threadIdx.x == 0) {
        parts[block] = partial[0];
    }
    for (unsigned width = 1; width < gridDim.x; width *= 2) {
        grid.sync();
        if (threadIdx.x == 0 && block % (2 * width) == 0 && block + width < gridDim.x) {
            parts[block] += parts[block + width];
        }
    }
    if (grid.thread_rank() == 0) {
        *out = parts[0];
    }
}

// `rounds` times, every element becomes the sum of its neighbours, round the ring: no block goes on
// before all have read, and none before all have written.
extern "C" __global__ void ring_steps(unsigned *ring, unsigned n, unsigned rounds)
{
    cg::grid_group grid = cg::this_grid();
    unsigned i = grid.thread_rank();
    for (unsigned round = 0; round < rounds; round++) {
        unsigned sum = i < n ? ring[(i + 1) % n] + ring[(i + n - 1) % n] : 0;
        grid.sync();
        if (i < n) {
            ring[i] = sum;
        }
        grid.sync();
    }
}
