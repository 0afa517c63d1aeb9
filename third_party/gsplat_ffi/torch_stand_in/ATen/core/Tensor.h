// Stands in for the small part of torch's Tensor that gsplat's launchers touch: a pointer and a
// shape. With it they compile as they are, and without torch.
#pragma once

#include <cassert>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "execution.h"

namespace c10 {

enum class ScalarType { kUnused };
using std::nullopt;

}  // namespace c10

namespace at {

template <class T>
using optional = std::optional<T>;

class Tensor {
 public:
  Tensor() = default;
  Tensor(void* data, std::vector<int64_t> shape) : data_(data), shape_(std::move(shape)) {}

  int64_t dim() const { return static_cast<int64_t>(shape_.size()); }
  int64_t size(int64_t axis) const { return shape_.at(axis < 0 ? axis + dim() : axis); }

  int64_t numel() const {
    int64_t product = 1;
    for (int64_t size : shape_) product *= size;
    return product;
  }

  template <class T>
  T* data_ptr() const {
    return static_cast<T*>(data_);
  }

  // AT_DISPATCH_FLOATING_TYPES of ATen/Dispatch.h knows one type.
  c10::ScalarType scalar_type() const { return c10::ScalarType::kUnused; }

  // gsplat calls these two in branches that this bridge does not reach.
  void set_(const Tensor& other) { *this = other; }
  void fill_(int) { throw std::logic_error("Tensor::fill_ has no stand-in"); }

 private:
  void* data_ = nullptr;
  std::vector<int64_t> shape_;
};

namespace cuda {

inline cudaStream_t getCurrentCUDAStream() { return gsplat_ffi::Current().stream(); }

}  // namespace cuda

}  // namespace at

#define AT_ERROR(...) throw std::runtime_error("gsplat needs more shared memory than there is")
