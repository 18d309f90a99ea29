// Kernels over two-dimensional grids.

// One step of heat conduction; edges stay.
extern "C" __global__ void stencil(float *out, const float *in, unsigned width, unsigned height)
{
    unsigned x = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) {
        return;
    }
    size_t at = (size_t)y * width + x;
    if (x == 0 || y == 0 || x == width - 1 || y == height - 1) {
        out[at] = in[at];
        return;
    }
    out[at] = 0.2f * (in[at] + in[at - 1] + in[at + 1] + in[at - width] + in[at + width]);
}

// out (columns by rows) = transpose of in (rows by columns). Block: 32 by 8.
template <typename T, unsigned PAD>
__device__ void transposed(T *out, const T *in, unsigned rows, unsigned columns)
{
    __shared__ T tile[32][32 + PAD];
    unsigned x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
    for (unsigned j = 0; j < 32; j += 8) {
        if (x < columns && y + j < rows) {
            tile[threadIdx.y + j][threadIdx.x] = in[(size_t)(y + j) * columns + x];
        }
    }
    __syncthreads();
    x = blockIdx.y * 32 + threadIdx.x;
    y = blockIdx.x * 32 + threadIdx.y;
    for (unsigned j = 0; j < 32; j += 8) {
        if (x < rows && y + j < columns) {
            out[(size_t)(y + j) * rows + x] = tile[threadIdx.x][threadIdx.y + j];
        }
    }
}

extern "C" __global__ void transpose(float *out, const float *in, unsigned rows, unsigned columns)
{
    transposed<float, 0>(out, in, rows, columns);
}

extern "C" __global__ void transpose_padded(double *out, const double *in, unsigned rows,
                                            unsigned columns)
{
    transposed<double, 1>(out, in, rows, columns);
}

// Rounds until |z| > 2, at most `limit`.
extern "C" __global__ void mandelbrot(unsigned short *out, unsigned width, unsigned height,
                                      float scale, unsigned limit)
{
    unsigned x = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) {
        return;
    }
    float cr = x * scale - 2.0f, ci = y * scale - 1.2f, zr = 0.0f, zi = 0.0f;
    unsigned rounds = 0;
    while (rounds < limit && zr * zr + zi * zi <= 4.0f) {
        float next = zr * zr - zi * zi + cr;
        zi = 2.0f * zr * zi + ci;
        zr = next;
        rounds++;
    }
    out[(size_t)y * width + x] = (unsigned short)rounds;
}

__constant__ float window[25] = {1, 4,  6,  4,  1,  4, 16, 24, 16, 4, 6, 24, 36,
                                 24, 6, 4, 16, 24, 16, 4, 1, 4,  6,  4, 1};

// 5 by 5 blur of bytes; pixels beyond the edge are black.
extern "C" __global__ void convolution(unsigned char *out, const unsigned char *in, int width,
                                       int height)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= height) {
        return;
    }
    float sum = 0.0f;
    for (int dy = -2; dy <= 2; dy++) {
        for (int dx = -2; dx <= 2; dx++) {
            int from_x = x + dx, from_y = y + dy;
            if (from_x >= 0 && from_x < width && from_y >= 0 && from_y < height) {
                sum += window[(dy + 2) * 5 + dx + 2] * in[from_y * width + from_x];
            }
        }
    }
    out[y * width + x] = (unsigned char)(int)rintf(sum / 256.0f);
}
