// Device functions that are really called, function pointers, jump tables.

struct Pair {
    int low;
    long long high;
};

__device__ __noinline__ int collatz(unsigned n)
{
    int steps = 0;
    while (n != 1 && steps < 1000) {
        n = n % 2 ? 3 * n + 1 : n / 2;
        steps++;
    }
    return steps;
}

__device__ __noinline__ Pair split(Pair pair, int by)
{
    Pair result;
    result.low = pair.low % by + collatz((unsigned)pair.low | 1u);
    result.high = pair.high / by;
    return result;
}

extern "C" __global__ void call_functions(long long *out, const int *in, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) {
        return;
    }
    Pair pair = {in[i], 1000ll * in[i]};
    if (in[i] % 3 != 0) {
        pair = split(pair, 7);
    }
    pair = split(pair, 3);
    out[i] = pair.low + pair.high;
}

typedef float (*Operation)(float, float);
__device__ __noinline__ float added(float a, float b) { return a + b; }
__device__ __noinline__ float taken(float a, float b) { return a - b; }
__device__ __noinline__ float scaled(float a, float b) { return a * b; }
__device__ __noinline__ float longest(float a, float b) { return sqrtf(a * a + b * b); }
__device__ Operation operations[4] = {added, taken, scaled, longest};

extern "C" __global__ void call_pointers(float *out, const float *a, const float *b,
                                         const unsigned char *which, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        out[i] = operations[which[i] & 3](a[i], b[i]);
    }
}

struct Shape {
    __device__ virtual float area() const = 0;
};
struct Square : Shape {
    float side;
    __device__ Square(float s) : side(s) {}
    __device__ float area() const override { return side * side; }
};
struct Disc : Shape {
    float radius;
    __device__ Disc(float r) : radius(r) {}
    __device__ float area() const override { return 3.0f * radius * radius; }
};

extern "C" __global__ void call_virtual(float *out, const float *sizes, unsigned n)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) {
        return;
    }
    Square square(sizes[i]);
    Disc disc(sizes[i]);
    const Shape *shapes[2] = {&square, &disc};
    out[i] = shapes[i & 1]->area();
}

// A stack machine: the program's bytes are instructions.
extern "C" __global__ void interpret(int *out, const unsigned char *program, unsigned length)
{
    int stack[16];
    int top = 0;
    unsigned i = threadIdx.x;
    stack[0] = (int)i;
    for (unsigned at = 0; at < length; at++) {
        switch (program[at] % 12) {
        case 0: stack[top + 1 < 16 ? ++top : top] = (int)at; break;
        case 1: stack[top] += 3; break;
        case 2: stack[top] *= -5; break;
        case 3: if (top > 0) { top--; stack[top] += stack[top + 1]; } break;
        case 4: if (top > 0) { top--; stack[top] ^= stack[top + 1]; } break;
        case 5: stack[top] = stack[top] >> 1; break;
        case 6: stack[top] = ~stack[top]; break;
        case 7: if (stack[top] & 1) { at++; } break;
        case 8: stack[top] -= (int)(i * i); break;
        case 9: stack[top] = stack[0] + (int)i; break;
        case 10: stack[top] <<= 2; break;
        default: stack[(i + at) % (top + 1)] += 1; break;
        }
    }
    int sum = 0;
    for (int j = 0; j <= top; j++) {
        sum = sum * 31 + stack[j];
    }
    out[i] = sum;
}
