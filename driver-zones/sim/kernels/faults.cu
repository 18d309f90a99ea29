// Kernels that misbehave on purpose, and plain ones to check memory with.

// Writes far beyond the allocation that `base` points to.
extern "C" __global__ void write_out_of_bounds(unsigned *base, unsigned long long distance)
{
    *(unsigned *)((char *)base + distance) = 0xdeadbeefu;
}

// Busy for `iterations` rounds per thread; writes a value that depends on each
// round so that no compiler removes the loop.
extern "C" __global__ void spin(unsigned *out, unsigned long long iterations)
{
    unsigned state = threadIdx.x + 1;
    for (unsigned long long i = 0; i < iterations; i++) {
        state = state * 1664525u + 1013904223u;
    }
    if (out != nullptr) {
        out[blockIdx.x * blockDim.x + threadIdx.x] = state;
    }
}

// words[i] = value
extern "C" __global__ void fill(unsigned *words, unsigned value, unsigned long long n)
{
    unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += stride) {
        words[i] = value;
    }
}

// Adds to *sum each word multiplied by its index plus one, modulo 2^64.
extern "C" __global__ void read_checksum(unsigned long long *sum, const unsigned *words,
                                         unsigned long long n)
{
    unsigned long long stride = (unsigned long long)gridDim.x * blockDim.x;
    unsigned long long part = 0;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += stride) {
        part += words[i] * (i + 1);
    }
    atomicAdd(sum, part);
}
