// Normalisations of the rows of a matrix.

__device__ float block_sum(float value, float *scratch)
{
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        scratch[threadIdx.x / 32] = value;
    }
    __syncthreads();
    value = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) {
        value += scratch[warp];
    }
    return value;
}

// One block per row; block a multiple of 32.
extern "C" __global__ void layer_norm(float *out, const float *in, const float *gain,
                                      const float *bias, unsigned columns, float epsilon)
{
    __shared__ float scratch[32];
    const float *row = in + (size_t)blockIdx.x * columns;
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) {
        sum += row[i];
    }
    float mean = block_sum(sum, scratch) / columns;
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) {
        squares += (row[i] - mean) * (row[i] - mean);
    }
    float scale = rsqrtf(block_sum(squares, scratch) / columns + epsilon);
    for (unsigned i = threadIdx.x; i < columns; i += blockDim.x) {
        out[(size_t)blockIdx.x * columns + i] = (row[i] - mean) * scale * gain[i] + bias[i];
    }
}

// Softmax of each row in one pass over it; one warp per row.
extern "C" __global__ void softmax_online(float *out, const float *in, unsigned columns)
{
    const float *row = in + (size_t)blockIdx.x * columns;
    float most = -__int_as_float(0x7f800000), sum = 0.0f;
    for (unsigned i = threadIdx.x; i < columns; i += 32) {
        float value = row[i], higher = fmaxf(most, value);
        sum = sum * __expf(most - higher) + __expf(value - higher);
        most = higher;
    }
    for (int distance = 16; distance > 0; distance /= 2) {
        float other_most = __shfl_xor_sync(0xffffffffu, most, distance);
        float other_sum = __shfl_xor_sync(0xffffffffu, sum, distance);
        float higher = fmaxf(most, other_most);
        if (higher != most || higher != other_most) {
            sum = sum * __expf(most - higher) + other_sum * __expf(other_most - higher);
        } else {
            sum += other_sum;
        }
        most = higher;
    }
    for (unsigned i = threadIdx.x; i < columns; i += 32) {
        out[(size_t)blockIdx.x * columns + i] = __fdividef(__expf(row[i] - most), sum);
    }
}
