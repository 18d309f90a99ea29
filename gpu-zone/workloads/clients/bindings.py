"""Low-level calls of cuda.bindings.driver on PTX that NVRTC makes: copies, fills, streams, events,
a module's variable, and how a wrong call is answered."""

import numpy as np
from cuda.bindings import driver, nvrtc

SOURCE = rb"""
__constant__ float scale = 2.0f;
__device__ unsigned calls;
extern "C" __global__ void scaled(float *out, const float *in, float add, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = in[i] * scale + add;
    if (i == 0) atomicAdd(&calls, 1u);
}
"""


def ask(answer):
    error, *rest = answer
    if int(error) != 0:
        raise RuntimeError(f"{error!r}")
    return rest[0] if len(rest) == 1 else tuple(rest)


def compile_ptx(device):
    attributes = driver.CUdevice_attribute
    major = ask(driver.cuDeviceGetAttribute(
        attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))
    minor = ask(driver.cuDeviceGetAttribute(
        attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
    program = ask(nvrtc.nvrtcCreateProgram(SOURCE, b"scaled.cu", 0, [], []))
    ask(nvrtc.nvrtcCompileProgram(program, 1, [f"--gpu-architecture=compute_{major}{minor}".encode()]))
    ptx = b" " * ask(nvrtc.nvrtcGetPTXSize(program))
    ask(nvrtc.nvrtcGetPTX(program, ptx))
    return ptx


ask(driver.cuInit(0))
device = ask(driver.cuDeviceGet(0))
context = ask(driver.cuDevicePrimaryCtxRetain(device))
ask(driver.cuCtxSetCurrent(context))
stream = ask(driver.cuStreamCreate(driver.CUstream_flags.CU_STREAM_NON_BLOCKING))
module = ask(driver.cuModuleLoadData(np.char.array(compile_ptx(device))))
kernel = ask(driver.cuModuleGetFunction(module, b"scaled"))

n = 10_000
values = np.arange(n, dtype=np.float32)
there = ask(driver.cuMemAlloc(values.nbytes))
out = ask(driver.cuMemAlloc(values.nbytes))
start = ask(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DEFAULT))
end = ask(driver.cuEventCreate(driver.CUevent_flags.CU_EVENT_DEFAULT))
ask(driver.cuMemcpyHtoDAsync(there, values.ctypes.data, values.nbytes, stream))
ask(driver.cuEventRecord(start, stream))
import ctypes

arguments = ((out, there, 0.5, n), (None, None, ctypes.c_float, ctypes.c_uint))
for _ in range(3):
    ask(driver.cuLaunchKernel(kernel, (n + 255) // 256, 1, 1, 256, 1, 1, 0, stream, arguments, 0))
ask(driver.cuEventRecord(end, stream))
result = np.empty_like(values)
ask(driver.cuMemcpyDtoHAsync(result.ctypes.data, out, values.nbytes, stream))
ask(driver.cuStreamSynchronize(stream))
assert ask(driver.cuEventElapsedTime(start, end)) >= 0
np.testing.assert_array_equal(result, values * 2 + np.float32(0.5))

pointer, size = ask(driver.cuModuleGetGlobal(module, b"calls"))
calls = np.zeros(1, dtype=np.uint32)
ask(driver.cuMemcpyDtoH(calls.ctypes.data, pointer, size))
scale, size = ask(driver.cuModuleGetGlobal(module, b"scale"))
ask(driver.cuMemcpyHtoD(scale, np.array([4], dtype=np.float32).ctypes.data, size))
ask(driver.cuMemsetD32(out, 0, n))
ask(driver.cuLaunchKernel(kernel, (n + 255) // 256, 1, 1, 256, 1, 1, 0, stream, arguments, 0))
ask(driver.cuCtxSynchronize())
ask(driver.cuMemcpyDtoH(result.ctypes.data, out, values.nbytes))
np.testing.assert_array_equal(result, values * 4 + np.float32(0.5))

wrong, = driver.cuMemcpyDtoH(result.ctypes.data, 0xdead, 4)
print("calls", calls[0], "bytes of a wrong copy", repr(wrong))
print("checksum", result.astype(np.float64).sum())
print("registers", ask(driver.cuFuncGetAttribute(
    driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, kernel)))
ask(driver.cuMemFree(there))
ask(driver.cuMemFree(out))
ask(driver.cuModuleUnload(module))
ask(driver.cuStreamDestroy(stream))
ask(driver.cuDevicePrimaryCtxRelease(device))
