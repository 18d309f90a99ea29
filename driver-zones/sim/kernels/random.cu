// Random numbers: Philox 4x32 with 10 rounds; four words per thread.
__device__ __forceinline__ uint4 round_of(uint4 c, uint2 key)
{
    unsigned high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
    unsigned high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
    return make_uint4(high1 ^ c.y ^ key.x, low1, high0 ^ c.w ^ key.y, low0);
}

extern "C" __global__ void philox(uint4 *out, unsigned long long seed, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) {
        return;
    }
    uint2 key = make_uint2((unsigned)seed, (unsigned)(seed >> 32));
    uint4 counter = make_uint4(i, 0, 0, 0);
    for (int round = 0; round < 10; round++) {
        counter = round_of(counter, key);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    out[i] = counter;
}

// Pairs of normal numbers from pairs of words (Box and Muller).
extern "C" __global__ void normal_pairs(float2 *out, const uint2 *words, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        float u = ((float)words[i].x + 1.0f) * 2.3283064e-10f;
        float angle = (float)words[i].y * 1.4629180792671596e-9f;
        float radius = sqrtf(-2.0f * __logf(u));
        out[i] = make_float2(radius * __cosf(angle), radius * __sinf(angle));
    }
}
