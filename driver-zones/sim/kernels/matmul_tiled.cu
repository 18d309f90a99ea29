// c (m by n) = a (m by k) * b (k by n), row-major, in tiles of 16 by 16.
// Block: 16 x 16. Grid: ceil(n / 16) x ceil(m / 16).
#define TILE 16

extern "C" __global__ void matmul_tiled(float *c, const float *a, const float *b, unsigned m,
                                        unsigned n, unsigned k)
{
    __shared__ float tile_a[TILE][TILE];
    __shared__ float tile_b[TILE][TILE];

    unsigned row = blockIdx.y * TILE + threadIdx.y;
    unsigned col = blockIdx.x * TILE + threadIdx.x;
    float sum = 0.0f;

    for (unsigned start = 0; start < k; start += TILE) {
        unsigned a_col = start + threadIdx.x;
        unsigned b_row = start + threadIdx.y;
        tile_a[threadIdx.y][threadIdx.x] =
            (row < m && a_col < k) ? a[(size_t)row * k + a_col] : 0.0f;
        tile_b[threadIdx.y][threadIdx.x] =
            (b_row < k && col < n) ? b[(size_t)b_row * n + col] : 0.0f;
        __syncthreads();
        for (unsigned i = 0; i < TILE; i++) {
            sum += tile_a[threadIdx.y][i] * tile_b[i][threadIdx.x];
        }
        __syncthreads();
    }
    if (row < m && col < n) {
        c[(size_t)row * n + col] = sum;
    }
}
