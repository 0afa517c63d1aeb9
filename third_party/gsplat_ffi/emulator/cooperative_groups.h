// Cooperative groups on the emulator: groups of threads are masks over the lanes of a warp.
#pragma once

#include <cuda_runtime.h>

namespace cooperative_groups {

struct grid_group {
  unsigned long long thread_rank() const {
    const emulator::Position& at = emulator::current;
    const unsigned long long block =
        at.block.x +
        static_cast<unsigned long long>(at.grid_size.x) *
            (at.block.y + static_cast<unsigned long long>(at.grid_size.y) * at.block.z);
    return block * (at.block_size.x * at.block_size.y * at.block_size.z) + at.rank;
  }
};

struct thread_block {
  dim3 group_index() const { return emulator::current.block; }
  dim3 thread_index() const { return emulator::current.thread; }
  unsigned thread_rank() const { return emulator::current.rank; }
  unsigned size() const {
    const dim3& size = emulator::current.block_size;
    return size.x * size.y * size.z;
  }
  void sync() const { emulator::BlockBarrier(false); }
};

inline grid_group this_grid() { return {}; }
inline thread_block this_thread_block() { return {}; }

struct lanes {
  uint32_t mask;

  static unsigned lane() { return emulator::current.rank % 32; }
  unsigned thread_rank() const { return __builtin_popcount(mask & ((1u << lane()) - 1)); }
  unsigned size() const { return __builtin_popcount(mask); }

  template <class T>
  static void show(T value) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    std::memcpy(&emulator::CurrentWarp().values[lane()], &value, sizeof(T));
    emulator::WarpBarrier();
  }

  template <class T>
  static T seen(unsigned lane) {
    T value;
    std::memcpy(&value, &emulator::CurrentWarp().values[lane], sizeof(T));
    return value;
  }
};

template <unsigned Size>
struct thread_block_tile : lanes {
  static_assert(Size == 32);

  bool any(bool vote) const {
    show(vote);
    bool found = false;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (mask >> lane & 1) found |= seen<bool>(lane);
    }
    emulator::WarpBarrier();
    return found;
  }
};

struct coalesced_group : lanes {};

template <unsigned Size, class Block>
thread_block_tile<Size> tiled_partition(const Block&) {
  thread_block_tile<Size> tile;
  tile.mask = emulator::LivingLanes();
  return tile;
}

// The lanes that are still running and have the same label.
template <class Tile, class Label>
coalesced_group labeled_partition(const Tile&, Label label) {
  lanes::show(label);
  const uint32_t living = emulator::LivingLanes();
  coalesced_group group;
  group.mask = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((living >> lane & 1) && lanes::seen<Label>(lane) == label) group.mask |= 1u << lane;
  }
  emulator::WarpBarrier();
  return group;
}

template <class T>
struct plus {
  T operator()(T a, T b) const { return a + b; }
};

template <class T>
struct greater {
  T operator()(T a, T b) const { return a > b ? a : b; }
};

template <class Group, class T, class Operation>
T reduce(const Group& group, T value, Operation operation) {
  lanes::show(value);
  T result{};
  bool first = true;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(group.mask >> lane & 1)) continue;
    result = first ? lanes::seen<T>(lane) : operation(result, lanes::seen<T>(lane));
    first = false;
  }
  emulator::WarpBarrier();
  return result;
}

}  // namespace cooperative_groups
