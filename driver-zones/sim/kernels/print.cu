// Kernels that talk.
#include <cassert>
#include <cstdio>

extern "C" __global__ void greet(const char *name, int count, double value)
{
    if (threadIdx.x == 0) {
        printf("block %u of %s: %5d|%-4x|%08.3f|%c|%lld|%%\n", blockIdx.x, name, count, count, value,
               'A' + blockIdx.x, 1ll << 40);
    }
}

extern "C" __global__ void check(const int *values, int limit)
{
    assert(values[threadIdx.x] < limit);
}
