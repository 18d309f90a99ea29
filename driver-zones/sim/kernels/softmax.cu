// out[row] = softmax(in[row]) for a rows by columns matrix, row-major.
// Grid: one block per row. Block: a power of two, at most 1024 threads.
// Dynamic shared memory: one float per thread.
extern "C" __global__ void softmax(float *out, const float *in, unsigned columns)
{
    extern __shared__ float partial[];

    const float *row = in + (size_t)blockIdx.x * columns;
    float *result = out + (size_t)blockIdx.x * columns;

    float largest = -__int_as_float(0x7f800000);
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) {
        largest = fmaxf(largest, row[i]);
    }
    partial[threadIdx.x] = largest;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            partial[threadIdx.x] = fmaxf(partial[threadIdx.x], partial[threadIdx.x + half]);
        }
        __syncthreads();
    }
    largest = partial[0];
    __syncthreads();

    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) {
        float value = expf(row[i] - largest);
        result[i] = value;
        sum += value;
    }
    partial[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            partial[threadIdx.x] += partial[threadIdx.x + half];
        }
        __syncthreads();
    }
    sum = partial[0];
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) {
        result[i] /= sum;
    }
}
