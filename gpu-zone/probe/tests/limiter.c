/* A driver library with a limiter inside the tenant, like the ones that are preloaded: it counts
 * cuMemAlloc and nothing else, forgets its limit when a variable says so, and permits NVML's
 * setters. No GPU is behind it. Compiled by limiter.rs, once, under both libraries' names. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const size_t WHOLE = 8ul << 30;
static size_t used;

static size_t limit(void) {
    const char *off = getenv("CUDA_DISABLE_CONTROL");
    const char *text = getenv("CUDA_DEVICE_MEMORY_LIMIT_0");
    if ((off && !strcmp(off, "true")) || !text) return WHOLE;
    return strtoul(text, NULL, 10) << 20;
}

int cuInit(unsigned flags) {
    (void)flags;
    if (getenv("LIMITER_CRASHES")) abort();
    if (getenv("LIMITER_EXITS")) _exit(7);
    return 0;
}
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int size, int device) {
    (void)device;
    strncpy(name, "Limited", (size_t)size);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = limit(); return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = &used; return 0; }
int cuCtxSetCurrent(void *context) { return context == &used ? 0 : 201; }
int cuMemGetInfo_v2(size_t *free, size_t *total) {
    *total = limit();
    *free = *total - used;
    return 0;
}
int cuMemAlloc_v2(unsigned long long *address, size_t size) {
    if (used + size > limit()) return 2;
    used += size;
    *address = 1ul << 40;
    return 0;
}
int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t size) {
    (void)from;
    memset(to, 0, size);
    return 0;
}
/* What is asked of the structures is what cuda.h says of them. */
int cuMemCreate(unsigned long long *handle, size_t size, const void *properties, unsigned long long flags) {
    const int *words = properties;
    if (words[0] != 1 || words[1] != 0 || words[2] != 1 || words[3] != 0 || flags || size % (2u << 20))
        return 1;
    *handle = 1;
    return 0;
}
int cuMemAllocManaged(unsigned long long *address, size_t size, unsigned flags) {
    (void)size;
    *address = 1;
    return flags == 1 ? 0 : 1;
}
int cuArrayCreate_v2(void **array, const void *descriptor) {
    const size_t *sizes = descriptor;
    const unsigned *format = (const unsigned *)(sizes + 2);
    if (sizes[0] > 131072 || sizes[1] > 65536 || format[0] != 3 || format[1] != 4) return 1;
    *array = &used;
    return 0;
}
int cuDeviceCanAccessPeer(int *can, int device, int peer) { *can = device != peer; return 0; }
int cuIpcGetMemHandle(void *handle, unsigned long long address) {
    memset(handle, 1, 64);
    return address ? 0 : 1;
}

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = &used;
    return index ? 2 : 0;
}
int nvmlDeviceGetName(void *handle, char *name, unsigned size) {
    (void)handle;
    strncpy(name, "Limited", size);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
    (void)handle;
    memory[0] = WHOLE;
    memory[1] = WHOLE / 2;
    memory[2] = WHOLE / 2;
    return 0;
}
static unsigned mode = 1, changed;
int nvmlDeviceGetPersistenceMode(void *handle, unsigned *value) { (void)handle; *value = mode; return 0; }
int nvmlDeviceSetPersistenceMode(void *handle, unsigned value) {
    (void)handle;
    /* Whoever sets anything else has done harm. */
    if (value != mode) abort();
    return 0;
}
int nvmlDeviceResetGpuLockedClocks(void *handle) { (void)handle; changed = 1; return 0; }
