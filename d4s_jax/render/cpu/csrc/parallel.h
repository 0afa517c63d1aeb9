// How work is spread over threads.
#pragma once

#include <cstdint>
#include <functional>

namespace d4s {

// Calls body(0) to body(count - 1), each once, in any order and on any thread, and waits.
using Parallel = std::function<void(int64_t count, const std::function<void(int64_t)>& body)>;

inline void one_after_the_other(int64_t count, const std::function<void(int64_t)>& body) {
  for (int64_t i = 0; i < count; i++) body(i);
}

}  // namespace d4s
