// Integers of every width.

// Counts and moves bits; eight words per input.
extern "C" __global__ void bit_tricks(unsigned *out, const unsigned long long *in, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) {
        return;
    }
    unsigned long long value = in[i];
    unsigned low = (unsigned)value, high = (unsigned)(value >> 32);
    unsigned *own = out + 8 * (size_t)i;
    own[0] = __popcll(value) + 100 * __popc(low);
    own[1] = __clzll((long long)value) + 100 * __clz((int)low);
    own[2] = __ffsll((long long)value) + 100 * __ffs((int)low);
    own[3] = __brev(low) ^ (unsigned)__brevll(value);
    own[4] = __byte_perm(low, high, high & 0x7777);
    own[5] = __funnelshift_l(low, high, high) ^ __funnelshift_rc(low, high, low & 63);
    own[6] = __sad((int)low, (int)high, 7u) + __usad(low, high, 9u) + __mul24((int)low, (int)high);
    own[7] = __umul24(low, high) ^ (unsigned)__mulhi((int)low, (int)high) ^ __vadd4(low, high)
             ^ __dp4a((int)low, (int)high, 5) ^ __hadd((int)low, (int)high) ^ __rhadd((int)low, (int)high);
}

// Products of 128 bits, quotients and shifts of 64: four words per pair.
extern "C" __global__ void wide_arithmetic(unsigned long long *out, const unsigned long long *a,
                                           const long long *b, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) {
        return;
    }
    unsigned __int128 product = (unsigned __int128)a[i] * (unsigned long long)b[i] + a[i];
    unsigned long long *own = out + 4 * (size_t)i;
    own[0] = (unsigned long long)(product >> 64);
    own[1] = (unsigned long long)product;
    own[2] = b[i] == 0 ? 7 : (unsigned long long)((long long)a[i] / b[i]) ^ (a[i] % (unsigned long long)b[i]);
    own[3] = (a[i] << (b[i] & 63)) ^ (unsigned long long)(b[i] >> (a[i] & 63)) ^ (unsigned long long)max(b[i], (long long)a[i]);
}

__constant__ unsigned short primes[54] = {
    2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89,
    97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191,
    193, 197, 199, 211, 223, 227, 229, 233, 239, 241, 251};
__device__ const int shifts[3] = {1, 5, 9};
__device__ const int *const table[2] = {shifts + 1, shifts};

// The smallest of a table's primes that divides a 16-bit number, or 0.
extern "C" __global__ void least_factor(unsigned short *out, const unsigned short *in, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) {
        return;
    }
    unsigned short found = 0;
    for (int p = 53; p >= 0; p--) {
        if (in[i] % primes[p] == 0) {
            found = primes[p];
        }
    }
    out[i] = found ? found : (unsigned short)(table[i & 1][in[i] & 1]);
}
