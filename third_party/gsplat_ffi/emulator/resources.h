// Scratch memory for handlers on the emulator, and their turn: it runs one handler at a time.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace gsplat_ffi {

class Resources {
 public:
  Resources() : turn_(EmulatorMutex()) {}

  cudaStream_t stream() const { return nullptr; }

  // Memory that reads as NaN, between guards.
  void* Allocate(size_t bytes) {
    auto memory = std::make_unique<unsigned char[]>(bytes + 2 * kGuard);
    std::memset(memory.get(), kGuardByte, bytes + 2 * kGuard);
    std::memset(memory.get() + kGuard, 0xff, bytes);
    blocks_.emplace_back(std::move(memory), bytes);
    return blocks_.back().first.get() + kGuard;
  }

  // Throws if a kernel wrote beside its scratch memory.
  void Finish() {
    for (const auto& [memory, bytes] : blocks_) {
      for (size_t i = 0; i < kGuard; ++i) {
        if (memory[i] != kGuardByte || memory[kGuard + bytes + i] != kGuardByte) {
          throw std::logic_error("a kernel wrote beside its scratch memory");
        }
      }
    }
  }

 private:
  static std::mutex& EmulatorMutex() {
    static std::mutex mutex;
    return mutex;
  }

  static constexpr size_t kGuard = 256;
  static constexpr unsigned char kGuardByte = 0xa5;
  std::unique_lock<std::mutex> turn_;
  std::vector<std::pair<std::unique_ptr<unsigned char[]>, size_t>> blocks_;
};

}  // namespace gsplat_ffi

template <>
struct xla::ffi::CtxDecoding<gsplat_ffi::Resources> {
  using Type = gsplat_ffi::Resources;

  static std::optional<Type> Decode(
      const XLA_FFI_Api*, XLA_FFI_ExecutionContext*, DiagnosticEngine&) {
    return std::make_optional<Type>();
  }
};
