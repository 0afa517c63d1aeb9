// What every handler needs while it runs: a stream, scratch memory, and checked errors.
//
// Resources (gpu/resources.h, or emulator/resources.h in the test build) are what XLA hands to a
// handler. Run() makes them current on this thread, because gsplat's launchers ask for the current
// stream instead of taking one, and turns whatever goes wrong into an XLA error.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <exception>
#include <stdexcept>
#include <string>

#include "resources.h"
#include "xla/ffi/api/ffi.h"

namespace gsplat_ffi {

namespace ffi = xla::ffi;

// The resources of the handler that runs on this thread; null outside handlers.
inline thread_local Resources* current_resources = nullptr;

inline Resources& Current() {
  if (current_resources == nullptr) throw std::logic_error("no handler is running");
  return *current_resources;
}

inline void Check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
  }
}

inline void Expect(bool condition, const char* expectation) {
  if (!condition) throw std::invalid_argument(std::string("expected ") + expectation);
}

// Device memory that lives until the handler's work on the stream is done. Its contents are
// arbitrary.
template <class T>
T* Scratch(size_t count) {
  // Never empty: to cub a null pointer is a question about sizes.
  return static_cast<T*>(Current().Allocate((count > 0 ? count : 1) * sizeof(T)));
}

inline void Clear(void* data, size_t bytes) {
  if (bytes > 0) Check(cudaMemsetAsync(data, 0, bytes, Current().stream()), "clear an output");
}

// Runs the body of a handler.
template <class Body>
ffi::Error Run(const char* handler, Resources& resources, Body body) {
  current_resources = &resources;
  ffi::Error result = ffi::Error::Success();
  try {
    body();
    Check(cudaGetLastError(), "kernel launch");
    resources.Finish();
  } catch (const std::exception& error) {
    result = ffi::Error::Internal(std::string(handler) + ": " + error.what());
  }
  current_resources = nullptr;
  return result;
}

}  // namespace gsplat_ffi
