// out[i] = a[i] + b[i]
extern "C" __global__ void vector_add(float *out, const float *a, const float *b, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        out[i] = a[i] + b[i];
    }
}
