// Structures as arguments, and threads that leave early.
struct Particle {
    float3 position;
    float3 velocity;
    unsigned char alive;
    short charge;
    double mass;
};

struct Settings {
    float step;
    unsigned count;
    float3 gravity;
    int bounds[4];
};

// Moves particles; those that are dead, or that leave the bounds, stay as they are.
extern "C" __global__ void move_particles(Particle *particles, const __grid_constant__ Settings settings,
                                          unsigned *left)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= settings.count) {
        return;
    }
    Particle p = particles[i];
    if (!p.alive) {
        return;
    }
    p.velocity.x += settings.gravity.x * settings.step * p.charge;
    p.velocity.y += settings.gravity.y * settings.step * p.charge;
    p.velocity.z += settings.gravity.z * settings.step * p.charge;
    p.position.x += p.velocity.x * settings.step;
    p.position.y += p.velocity.y * settings.step;
    p.position.z += p.velocity.z * settings.step;
    if (p.position.x < settings.bounds[p.charge & 1] || p.position.x > settings.bounds[2 + (p.charge & 1)]) {
        atomicAdd(left, 1u);
        return;
    }
    p.mass *= 0.5;
    particles[i] = p;
}

// Where `needle` begins in `text`, for each place; 0 or 1 per byte.
extern "C" __global__ void string_search(unsigned char *found, const char *text, unsigned length,
                                         const char *needle, unsigned needle_length)
{
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= length) {
        return;
    }
    unsigned matched = 0;
    while (matched < needle_length && i + matched < length && text[i + matched] == needle[matched]) {
        matched++;
    }
    found[i] = matched == needle_length;
}
