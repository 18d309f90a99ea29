// One head of attention: out = softmax(q * k^T / sqrt(WIDTH), causal) * v.
// One block of WIDTH threads per query; dynamic shared memory: 4 bytes per key.
#define WIDTH 64

extern "C" __global__ void attention(float *out, const float *q, const float *k, const float *v,
                                     unsigned length)
{
    extern __shared__ float scores[];
    __shared__ float scratch[WIDTH];
    unsigned query = blockIdx.x, t = threadIdx.x, keys = query + 1;
    float most = -1.0e30f;
    for (unsigned key = t; key < keys; key += WIDTH) {
        float dot = 0.0f;
        for (unsigned i = 0; i < WIDTH; i += 4) {
            float4 a = *(const float4 *)(q + query * WIDTH + i);
            float4 b = *(const float4 *)(k + key * WIDTH + i);
            dot += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
        }
        scores[key] = dot * 0.125f;
        most = fmaxf(most, scores[key]);
    }
    scratch[t] = most;
    __syncthreads();
    for (unsigned half = WIDTH / 2; half > 0; half /= 2) {
        if (t < half) {
            scratch[t] = fmaxf(scratch[t], scratch[t + half]);
        }
        __syncthreads();
    }
    most = scratch[0];
    float sum = 0.0f, result = 0.0f;
    for (unsigned key = 0; key < keys; key++) {
        float weight = expf(scores[key] - most);
        sum += weight;
        result += weight * v[key * WIDTH + t];
    }
    out[query * WIDTH + t] = result / sum;
}
