// Stands in for torch's allocator: XLA's scratch memory.
#pragma once

#include "execution.h"

namespace c10::cuda {

struct ScratchMemory {
  void* data;
  void* get() const { return data; }
};

struct CUDACachingAllocator {
  static CUDACachingAllocator* get() {
    static CUDACachingAllocator only;
    return &only;
  }

  ScratchMemory allocate(size_t bytes) { return {gsplat_ffi::Scratch<char>(bytes)}; }
};

}  // namespace c10::cuda
