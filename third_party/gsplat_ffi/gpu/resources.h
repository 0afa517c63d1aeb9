// The stream and the scratch memory that XLA gives to a handler on a GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <optional>
#include <stdexcept>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace gsplat_ffi {

class Resources {
 public:
  Resources(cudaStream_t stream, xla::ffi::ScratchAllocator scratch)
      : stream_(stream), scratch_(std::move(scratch)) {}

  cudaStream_t stream() const { return stream_; }

  // XLA frees it when the handler returns, in the order of the stream: kernels that were launched
  // before then may still use it.
  void* Allocate(size_t bytes) {
    std::optional<void*> memory = scratch_.Allocate(bytes, kAlignment);
    if (!memory) throw std::runtime_error("XLA has no scratch memory left on the device");
    return *memory;
  }

  void Finish() {}

 private:
  static constexpr size_t kAlignment = 256;
  cudaStream_t stream_;
  xla::ffi::ScratchAllocator scratch_;
};

}  // namespace gsplat_ffi

template <>
struct xla::ffi::CtxDecoding<gsplat_ffi::Resources> {
  using Type = gsplat_ffi::Resources;

  static std::optional<Type> Decode(
      const XLA_FFI_Api* api, XLA_FFI_ExecutionContext* context, DiagnosticEngine& diagnostic) {
    auto stream = CtxDecoding<PlatformStream<cudaStream_t>>::Decode(api, context, diagnostic);
    auto scratch = CtxDecoding<ScratchAllocator>::Decode(api, context, diagnostic);
    if (!stream || !scratch) return std::nullopt;
    return Type(*stream, std::move(*scratch));
  }
};
