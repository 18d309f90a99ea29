// y = a * x for a matrix in compressed rows; one warp per row.
extern "C" __global__ void spmv(float *y, const unsigned *starts, const unsigned *columns,
                                const float *values, const float *x, unsigned rows)
{
    unsigned row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= rows) {
        return;
    }
    float sum = 0.0f;
    for (unsigned i = starts[row] + lane; i < starts[row + 1]; i += 32) {
        sum += values[i] * __ldg(x + columns[i]);
    }
    for (int distance = 16; distance > 0; distance /= 2) {
        sum += __shfl_down_sync(0xffffffffu, sum, distance);
    }
    if (lane == 0) {
        y[row] = sum;
    }
}

// Assigns each point to its nearest centre and adds it to that centre's sums.
// Points have 3 coordinates; sums are of doubles so that their order is of no account
// for numbers of few bits.
extern "C" __global__ void kmeans_step(unsigned *nearest, double *sums, unsigned *counts,
                                       const float *points, const float *centres, unsigned n,
                                       unsigned k)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) {
        return;
    }
    float x = points[3 * i], y = points[3 * i + 1], z = points[3 * i + 2];
    float least = 3.0e38f;
    unsigned best = 0;
    for (unsigned c = 0; c < k; c++) {
        float dx = x - centres[3 * c], dy = y - centres[3 * c + 1], dz = z - centres[3 * c + 2];
        float distance = dx * dx + dy * dy + dz * dz;
        if (distance < least) {
            least = distance;
            best = c;
        }
    }
    nearest[i] = best;
    atomicAdd(&counts[best], 1u);
    atomicAdd(&sums[3 * best], (double)x);
    atomicAdd(&sums[3 * best + 1], (double)y);
    atomicAdd(&sums[3 * best + 2], (double)z);
}
