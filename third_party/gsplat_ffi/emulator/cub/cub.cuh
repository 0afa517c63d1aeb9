// cub's sort and running sum on the CPU.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <vector>

namespace cub {

template <class T>
struct DoubleBuffer {
  T* d_buffers[2];
  int selector = 0;
  DoubleBuffer(T* first, T* second) : d_buffers{first, second} {}
  T* Current() { return d_buffers[selector]; }
  T* Alternate() { return d_buffers[selector ^ 1]; }
};

struct DeviceRadixSort {
  template <class Key, class Value>
  static cudaError_t SortPairs(void* memory, size_t& bytes, DoubleBuffer<Key>& keys,
                               DoubleBuffer<Value>& values, int64_t count, int first_bit,
                               int end_bit, cudaStream_t) {
    if (memory == nullptr) {
      bytes = 1;
      return cudaSuccess;
    }
    const uint64_t below = end_bit < 64 ? (uint64_t{1} << end_bit) - 1 : ~uint64_t{0};
    const uint64_t mask = below & ~((uint64_t{1} << first_bit) - 1);
    std::vector<int64_t> order(count);
    std::iota(order.begin(), order.end(), 0);
    const Key* from = keys.Current();
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return (static_cast<uint64_t>(from[a]) & mask) < (static_cast<uint64_t>(from[b]) & mask);
    });
    for (int64_t i = 0; i < count; ++i) {
      keys.Alternate()[i] = from[order[i]];
      values.Alternate()[i] = values.Current()[order[i]];
    }
    keys.selector ^= 1;
    values.selector ^= 1;
    return cudaSuccess;
  }
};

// gsplat can sort view by view; this bridge does not ask for it.
struct DeviceSegmentedRadixSort {
  template <class... Arguments>
  static cudaError_t SortPairs(Arguments&&...) {
    throw std::logic_error("the emulator has no segmented sort");
  }
};

struct DeviceScan {
  // Adds in the type of the input, as cub does.
  template <class In, class Out>
  static cudaError_t InclusiveSum(void* memory, size_t& bytes, const In* in, Out* out,
                                  int64_t count, cudaStream_t) {
    if (memory == nullptr) {
      bytes = 1;
      return cudaSuccess;
    }
    In sum = 0;
    for (int64_t i = 0; i < count; ++i) out[i] = sum += in[i];
    return cudaSuccess;
  }
};

}  // namespace cub
