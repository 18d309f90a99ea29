"""numba-cuda: vector add, a matrix product in shared memory, atomics, device arrays, streams."""

import warnings

import numpy as np
from numba import cuda, float32
from numba.core.errors import NumbaPerformanceWarning

warnings.simplefilter("ignore", NumbaPerformanceWarning)
TILE = 16


@cuda.jit
def add(out, a, b):
    i = cuda.grid(1)
    if i < out.size:
        out[i] = a[i] + b[i]


@cuda.jit
def product(c, a, b):
    left = cuda.shared.array((TILE, TILE), dtype=float32)
    right = cuda.shared.array((TILE, TILE), dtype=float32)
    x, y = cuda.grid(2)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    total = float32(0)
    for tile in range((a.shape[1] + TILE - 1) // TILE):
        left[tx, ty] = 0
        right[tx, ty] = 0
        if x < a.shape[0] and ty + tile * TILE < a.shape[1]:
            left[tx, ty] = a[x, ty + tile * TILE]
        if y < b.shape[1] and tx + tile * TILE < b.shape[0]:
            right[tx, ty] = b[tx + tile * TILE, y]
        cuda.syncthreads()
        for k in range(TILE):
            total += left[tx, k] * right[k, ty]
        cuda.syncthreads()
    if x < c.shape[0] and y < c.shape[1]:
        c[x, y] = total


@cuda.jit
def histogram(counts, data):
    i = cuda.grid(1)
    if i < data.size:
        cuda.atomic.add(counts, data[i] % counts.size, 1)


@cuda.jit
def largest(out, data):
    i = cuda.grid(1)
    if i < data.size:
        cuda.atomic.max(out, 0, data[i])


random = np.random.default_rng(2)
n = 30_000
a = random.integers(-50, 50, n).astype(np.float32)
b = random.integers(-50, 50, n).astype(np.float32)

# Arrays of the host go there and back by themselves.
out = np.zeros_like(a)
add[(n + 127) // 128, 128](out, a, b)
np.testing.assert_array_equal(out, a + b)
print("sum", out.sum())

# Arrays of the device, pinned memory, two streams and an event between them.
first, second = cuda.stream(), cuda.stream()
with cuda.pinned(a, b):
    a_there, b_there = cuda.to_device(a, stream=first), cuda.to_device(b, stream=first)
    out_there = cuda.device_array(n, dtype=np.float32, stream=first)
    add[(n + 127) // 128, 128, first](out_there, a_there, b_there)
    done = cuda.event()
    done.record(first)
    done.wait(second)
    add[(n + 127) // 128, 128, second](out_there, out_there, b_there)
    again = out_there.copy_to_host(stream=second)
    second.synchronize()
np.testing.assert_array_equal(again, a + b + b)
print("again", again.sum())
part = out_there[100:200].copy_to_host()
np.testing.assert_array_equal(part, again[100:200])

left = random.integers(-5, 5, (50, 70)).astype(np.float32)
right = random.integers(-5, 5, (70, 33)).astype(np.float32)
c = np.zeros((50, 33), dtype=np.float32)
grid = ((c.shape[0] + TILE - 1) // TILE, (c.shape[1] + TILE - 1) // TILE)
product[grid, (TILE, TILE)](c, left, right)
np.testing.assert_array_equal(c, left @ right)
print("product", c.sum())

data = random.integers(0, 1 << 20, n).astype(np.int32)
counts = cuda.to_device(np.zeros(64, dtype=np.int32))
histogram[(n + 255) // 256, 256](counts, data)
np.testing.assert_array_equal(counts.copy_to_host(), np.bincount(data % 64, minlength=64))
top = cuda.to_device(np.zeros(1, dtype=np.int32))
largest[(n + 255) // 256, 256](top, data)
assert top.copy_to_host()[0] == data.max()
print("counts", counts.copy_to_host().tolist()[:8], "largest", data.max())

pinned = cuda.pinned_array(1000, dtype=np.int64)
pinned[:] = np.arange(1000)
print("pinned", cuda.to_device(pinned).copy_to_host().sum())
print("free is below total", cuda.current_context().get_memory_info().free
      < cuda.current_context().get_memory_info().total)
