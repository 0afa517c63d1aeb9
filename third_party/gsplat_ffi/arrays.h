// XLA's buffers as what gsplat takes, and checks of their shapes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ATen/core/Tensor.h"
#include "execution.h"

namespace gsplat_ffi {

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using Flags = ffi::Buffer<ffi::PRED>;
using FloatsOut = ffi::Result<Floats>;
using IntsOut = ffi::Result<Ints>;

using Shape = std::vector<int64_t>;

// The shape of a buffer, letter by letter as in the Python signatures.
template <class Buffer>
Shape ShapeOf(const Buffer& buffer) {
  return Shape(buffer.dimensions().begin(), buffer.dimensions().end());
}

template <class Buffer>
void ExpectShape(const char* name, const Buffer& buffer, const Shape& shape) {
  if (ShapeOf(buffer) == shape) return;
  std::string text = std::string(name) + " to have shape [";
  for (int64_t size : shape) text += " " + std::to_string(size);
  Expect(false, (text + " ]").c_str());
}

template <class Buffer>
at::Tensor AsTensor(Buffer& buffer) {
  return at::Tensor(buffer.untyped_data(), ShapeOf(buffer));
}

template <class Buffer>
at::Tensor AsTensor(ffi::Result<Buffer>& buffer) {
  return AsTensor(*buffer);
}

// gsplat writes only the rows of what is seen, and adds to its gradients.
inline at::Tensor Cleared(FloatsOut& buffer) {
  Clear(buffer->untyped_data(), buffer->size_bytes());
  return AsTensor(buffer);
}

inline at::Tensor Cleared(IntsOut& buffer) {
  Clear(buffer->untyped_data(), buffer->size_bytes());
  return AsTensor(buffer);
}

}  // namespace gsplat_ffi
