"""cuda.core: NVRTC compiles a SAXPY and a reduction, which run on streams between events."""

import numpy as np
from cuda.core import Device, LaunchConfig, Program, ProgramOptions, launch

SOURCE = r"""
extern "C" __global__ void saxpy(float *y, const float *x, float alpha, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += alpha * x[i];
}

template <typename T> __global__ void reduce(T *out, const T *in, unsigned n) {
    __shared__ T sums[256];
    T sum = 0;
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        sum += in[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = sums[0];
}
"""

device = Device()
device.set_current()
stream = device.create_stream()
options = ProgramOptions(std="c++17", arch=f"sm_{device.arch}")
program = Program(SOURCE, code_type="c++", options=options)
code = program.compile("ptx", name_expressions=("reduce<float>", "reduce<double>"))
saxpy, reduce_f, reduce_d = (
    code.get_kernel(name) for name in ("saxpy", "reduce<float>", "reduce<double>"))

n = 50_000
random = np.random.default_rng(1)
x = random.integers(-100, 100, n).astype(np.float32)
y = random.integers(-100, 100, n).astype(np.float32)
wide = x.astype(np.float64)


def to_device(array):
    from cuda.bindings import driver
    buffer = device.allocate(array.nbytes, stream=stream)
    (error,) = driver.cuMemcpyHtoDAsync(
        int(buffer.handle), array.ctypes.data, array.nbytes, int(stream.handle))
    assert int(error) == 0, error
    return buffer


def to_host(buffer, count, kind):
    from cuda.bindings import driver
    array = np.empty(count, dtype=kind)
    (error,) = driver.cuMemcpyDtoHAsync(
        array.ctypes.data, int(buffer.handle), array.nbytes, int(stream.handle))
    assert int(error) == 0, error
    stream.sync()
    return array


x_there, y_there, wide_there = to_device(x), to_device(y), to_device(wide)
blocks = 16
part_f, part_d = device.allocate(blocks * 4, stream=stream), device.allocate(blocks * 8, stream=stream)
copy = device.allocate(y.nbytes, stream=stream)
timed = {"timing_enabled": True}
start = stream.record(options=timed)
launch(stream, LaunchConfig(grid=(n + 255) // 256, block=256), saxpy,
       y_there, x_there, np.float32(3), np.uint32(n))
launch(stream, LaunchConfig(grid=blocks, block=256), reduce_f, part_f, y_there, np.uint32(n))
launch(stream, LaunchConfig(grid=blocks, block=256), reduce_d, part_d, wide_there, np.uint32(n))
end = stream.record(options=timed)
copy.copy_from(y_there, stream=stream)
other = device.create_stream()
other.wait(end)
end.sync()
assert end - start >= 0

expected = y + 3 * x
result = to_host(copy, n, np.float32)
np.testing.assert_array_equal(result, expected)
sum_f, sum_d = to_host(part_f, blocks, np.float32).sum(), to_host(part_d, blocks, np.float64).sum()
assert sum_f == expected.sum() and sum_d == wide.sum(), (sum_f, sum_d)
other.sync()
print("device", device.name, device.arch, device.uuid)
print("threads", saxpy.attributes.max_threads_per_block, "arguments", saxpy.num_arguments)
print("sums", sum_f, sum_d)
occupancy = saxpy.occupancy.max_active_blocks_per_multiprocessor(256, 0)
print("occupancy", occupancy)
for buffer in (x_there, y_there, wide_there, part_f, part_d, copy):
    buffer.close(stream)
stream.close()
