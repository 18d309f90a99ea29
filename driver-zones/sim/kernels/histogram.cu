// counts[b] += how many of data[0..n] are b, for 256 bins.
// Each block counts in shared memory, then adds to the global counts.
extern "C" __global__ void histogram(unsigned *counts, const unsigned char *data, unsigned n)
{
    __shared__ unsigned local_counts[256];

    for (unsigned bin = threadIdx.x; bin < 256; bin += blockDim.x) {
        local_counts[bin] = 0;
    }
    __syncthreads();
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        atomicAdd(&local_counts[data[i]], 1u);
    }
    __syncthreads();
    for (unsigned bin = threadIdx.x; bin < 256; bin += blockDim.x) {
        if (local_counts[bin] != 0) {
            atomicAdd(&counts[bin], local_counts[bin]);
        }
    }
}
