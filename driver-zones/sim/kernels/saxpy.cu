// y[i] = alpha * x[i] + y[i]
extern "C" __global__ void saxpy(float *y, const float *x, float alpha, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        y[i] = alpha * x[i] + y[i];
    }
}
