// Sorting.

// Sorts a block's 2 * blockDim.x keys, in place (bitonic). Block: a power of two.
// Dynamic shared memory: 8 bytes per thread.
extern "C" __global__ void sort_bitonic(int *keys)
{
    extern __shared__ int values[];
    unsigned count = 2 * blockDim.x;
    int *own = keys + (size_t)blockIdx.x * count;
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        values[i] = own[i];
    }
    for (unsigned size = 2; size <= count; size *= 2) {
        for (unsigned stride = size / 2; stride > 0; stride /= 2) {
            __syncthreads();
            unsigned low = 2 * threadIdx.x - (threadIdx.x & (stride - 1));
            bool ascending = (low & size) == 0;
            int a = values[low], b = values[low + stride];
            if ((a > b) == ascending) {
                values[low] = b;
                values[low + stride] = a;
            }
        }
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        own[i] = values[i];
    }
}

// One stable pass of a radix sort by four bits, within one block of 256.
extern "C" __global__ void radix_pass(unsigned *out, const unsigned *in, unsigned n,
                                      unsigned shift)
{
    __shared__ unsigned counts[16][8];
    __shared__ unsigned starts[16];
    unsigned t = threadIdx.x, lane = t % 32, warp = t / 32;
    unsigned key = t < n ? in[t] : 0;
    unsigned digit = (key >> shift) & 15;
    if (t < 128) {
        counts[t / 8][t % 8] = 0;
    }
    __syncthreads();
    unsigned peers = 0;
    for (unsigned d = 0; d < 16; d++) {
        unsigned with = __ballot_sync(0xffffffffu, t < n && digit == d);
        if (digit == d) {
            peers = with;
        }
        if (lane == 0) {
            counts[d][warp] = __popc(with);
        }
    }
    __syncthreads();
    if (t == 0) {
        unsigned total = 0;
        for (unsigned d = 0; d < 16; d++) {
            starts[d] = total;
            for (unsigned w = 0; w < 8; w++) {
                total += counts[d][w];
            }
        }
    }
    __syncthreads();
    if (t < n) {
        unsigned place = starts[digit] + __popc(peers & ((1u << lane) - 1));
        for (unsigned w = 0; w < warp; w++) {
            place += counts[digit][w];
        }
        out[place] = key;
    }
}

// Keeps the words that have an odd number of bits; their order within a warp stays.
extern "C" __global__ void compact_odd(unsigned *out, unsigned *count, const unsigned *in,
                                       unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    bool keep = i < n && (__popc(in[i]) & 1);
    unsigned kept = __ballot_sync(0xffffffffu, keep);
    unsigned lane = threadIdx.x % 32, base = 0;
    if (lane == 0) {
        base = atomicAdd(count, __popc(kept));
    }
    base = __shfl_sync(0xffffffffu, base, 0);
    if (keep) {
        out[base + __popc(kept & ((1u << lane) - 1))] = in[i];
    }
}
