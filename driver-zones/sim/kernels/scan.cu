// Prefix sums.

// Inclusive sum over each block's 2 * blockDim.x words, in place (Blelloch).
// Block: a power of two. Dynamic shared memory: 8 bytes per thread.
extern "C" __global__ void scan_block(unsigned *words, unsigned n)
{
    extern __shared__ unsigned tree[];
    unsigned count = 2 * blockDim.x, base = blockIdx.x * count, t = threadIdx.x;
    unsigned first = base + t < n ? words[base + t] : 0;
    unsigned second = base + t + blockDim.x < n ? words[base + t + blockDim.x] : 0;
    tree[t] = first;
    tree[t + blockDim.x] = second;
    unsigned step = 1;
    for (unsigned half = blockDim.x; half > 0; half /= 2, step *= 2) {
        __syncthreads();
        if (t < half) {
            tree[step * (2 * t + 2) - 1] += tree[step * (2 * t + 1) - 1];
        }
    }
    if (t == 0) {
        tree[count - 1] = 0;
    }
    for (unsigned half = 1; half < count; half *= 2) {
        step /= 2;
        __syncthreads();
        if (t < half) {
            unsigned left = step * (2 * t + 1) - 1, right = step * (2 * t + 2) - 1;
            unsigned kept = tree[left];
            tree[left] = tree[right];
            tree[right] += kept;
        }
    }
    __syncthreads();
    if (base + t < n) {
        words[base + t] = tree[t] + first;
    }
    if (base + t + blockDim.x < n) {
        words[base + t + blockDim.x] = tree[t + blockDim.x] + second;
    }
}

// Inclusive sum over each block's elements, in place: shuffles within warps, then
// the warps' sums. Block: a multiple of 32.
extern "C" __global__ void scan_warps(long long *values, unsigned n)
{
    __shared__ long long sums[32];
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    long long value = i < n ? values[i] : 0;
    for (unsigned distance = 1; distance < 32; distance *= 2) {
        long long other = __shfl_up_sync(0xffffffffu, value, distance);
        if (lane >= distance) {
            value += other;
        }
    }
    if (lane == 31) {
        sums[warp] = value;
    }
    __syncthreads();
    for (unsigned before = 0; before < warp; before++) {
        value += sums[before];
    }
    if (i < n) {
        values[i] = value;
    }
}
