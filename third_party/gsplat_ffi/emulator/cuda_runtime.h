// The part of CUDA that gsplat's kernels and this bridge use, on the CPU.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
// Shared memory is one array, gsplat::s below: blocks run one after another.
#define __shared__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct uint2 {
  unsigned x, y;
};

struct EmulatedStream;
using cudaStream_t = EmulatedStream*;

enum cudaError_t { cudaSuccess = 0, cudaErrorUnknown = 1 };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline const char* cudaGetErrorString(cudaError_t) { return "error of the emulator"; }

namespace emulator {

// Where the running thread is, for cooperative_groups.
struct Position {
  dim3 thread, block, block_size, grid_size;
  unsigned rank;  // of the thread in its block
};
extern Position current;

// What the lanes of a warp show each other.
struct Warp {
  uint64_t values[32];
};
Warp& CurrentWarp();
uint32_t LivingLanes();

// Wait for the other threads of the block, or of the warp. The first returns how many of them
// voted yes.
unsigned BlockBarrier(bool vote);
void WarpBarrier();

// The last failed launch, for cudaGetLastError.
extern bool failed;

void RunBlocks(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

// What kernel<<<grid, block, shared_bytes, stream>>>(arguments...) is translated to.
template <class... Parameters, class... Arguments>
void Launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, void (*kernel)(Parameters...),
            Arguments&&... arguments) {
  const std::tuple<Parameters...> values(arguments...);
  RunBlocks(grid, block, shared_bytes, [&] { std::apply(kernel, values); });
}

// Conversions from float to unsigned saturate on a GPU and wrap on some CPUs; floor and ceil
// return this, because gsplat converts what they return.
template <class T>
struct Saturating {
  T value;
  operator T() const { return value; }
  explicit operator uint32_t() const {
    if (!(value > 0)) return 0;
    return value >= T(4294967295.0) ? 4294967295u : static_cast<uint32_t>(value);
  }
};

}  // namespace emulator

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = emulator::failed ? cudaErrorUnknown : cudaSuccess;
  emulator::failed = false;
  return error;
}

inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int64_t) {
  return cudaSuccess;
}

// Blocks run one after another, and a block's threads take turns.
inline void atomicAdd(float* target, float value) { *target += value; }

inline unsigned __syncthreads_count(int vote) { return emulator::BlockBarrier(vote != 0); }

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }

inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
inline unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
inline unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }

namespace gsplat {

inline emulator::Saturating<float> floor(float x) { return {std::floor(x)}; }
inline emulator::Saturating<double> floor(double x) { return {std::floor(x)}; }
inline emulator::Saturating<float> ceil(float x) { return {std::ceil(x)}; }
inline emulator::Saturating<double> ceil(double x) { return {std::ceil(x)}; }

// `extern __shared__ int s[]` inside gsplat's kernels declares this.
extern int s[];

}  // namespace gsplat
