// Runs CUDA kernels on the CPU: each thread of a block is a fibre, and fibres take turns at
// barriers. Blocks run one after another, so that shared memory is one array and atomics are plain.
//
// Fibres start with makecontext and then switch with _setjmp and _longjmp, which is portable and,
// unlike swapcontext, makes no system call.
#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <exception>
#include <memory>
#include <stdexcept>

namespace gsplat {

constexpr size_t kSharedBytes = 1 << 20;
int s[kSharedBytes / sizeof(int)];

}  // namespace gsplat

namespace emulator {

Position current;
bool failed = false;

namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned kLanes = 32;
constexpr unsigned kMostThreads = 1024;

enum class State { kReady, kAtWarpBarrier, kAtBlockBarrier, kDone };

struct Fibre {
  jmp_buf place;
  ucontext_t beginning;
  std::unique_ptr<char[]> stack;
  State state = State::kDone;
  bool vote = false;
  dim3 index;
};

// A deque keeps fibres where they are while more are made; they are used again by later launches.
std::deque<Fibre> fibres;
unsigned threads;  // of the block that runs
Warp warps[kMostThreads / kLanes];
unsigned votes;
jmp_buf scheduler;
const std::function<void()>* body;
std::exception_ptr error;

void Pause(State state) {
  Fibre& fibre = fibres[current.rank];
  fibre.state = state;
  if (_setjmp(fibre.place) == 0) _longjmp(scheduler, 1);
}

void FibreMain() {
  for (;;) {
    try {
      (*body)();
    } catch (...) {
      error = std::current_exception();
    }
    Pause(State::kDone);
  }
}

void Resume(unsigned rank) {
  Fibre& fibre = fibres[rank];
  current.rank = rank;
  current.thread = fibre.index;
  if (_setjmp(scheduler) != 0) return;
  if (fibre.stack) _longjmp(fibre.place, 1);
  fibre.stack.reset(new char[kStackBytes]);
  getcontext(&fibre.beginning);
  fibre.beginning.uc_stack.ss_sp = fibre.stack.get();
  fibre.beginning.uc_stack.ss_size = kStackBytes;
  fibre.beginning.uc_link = nullptr;
  makecontext(&fibre.beginning, FibreMain, 0);
  setcontext(&fibre.beginning);
}

// Runs the threads of a warp until all of them are done or wait for the block.
void RunWarp(unsigned first, unsigned end) {
  const auto count = [&](State state) {
    return std::count_if(fibres.begin() + first, fibres.begin() + end,
                         [&](const Fibre& fibre) { return fibre.state == state; });
  };
  for (;;) {
    for (unsigned rank = first; rank < end; ++rank) {
      if (fibres[rank].state == State::kReady) Resume(rank);
      if (error) std::rethrow_exception(error);
    }
    const auto waiting = count(State::kAtWarpBarrier);
    if (waiting == 0) return;
    if (waiting + count(State::kDone) < end - first) {
      throw std::logic_error("emulator: half a warp waits for the warp, half for the block");
    }
    for (unsigned rank = first; rank < end; ++rank) {
      if (fibres[rank].state == State::kAtWarpBarrier) fibres[rank].state = State::kReady;
    }
  }
}

void RunBlock(size_t shared_bytes) {
  // Reads as NaN until it is written.
  std::memset(gsplat::s, 0xff, shared_bytes);
  const dim3& size = current.block_size;
  for (unsigned rank = 0; rank < threads; ++rank) {
    fibres[rank].state = State::kReady;
    fibres[rank].index = dim3(rank % size.x, rank / size.x % size.y, rank / (size.x * size.y));
  }
  for (bool waiting = true; waiting;) {
    for (unsigned first = 0; first < threads; first += kLanes) {
      RunWarp(first, std::min(first + kLanes, threads));
    }
    waiting = false;
    votes = 0;
    for (unsigned rank = 0; rank < threads; ++rank) {
      if (fibres[rank].state != State::kAtBlockBarrier) continue;
      waiting = true;
      votes += fibres[rank].vote;
      fibres[rank].state = State::kReady;
    }
  }
}

}  // namespace

Warp& CurrentWarp() { return warps[current.rank / kLanes]; }

uint32_t LivingLanes() {
  const unsigned first = current.rank / kLanes * kLanes;
  uint32_t mask = 0;
  for (unsigned lane = 0; lane < kLanes && first + lane < threads; ++lane) {
    if (fibres[first + lane].state != State::kDone) mask |= 1u << lane;
  }
  return mask;
}

unsigned BlockBarrier(bool vote) {
  fibres[current.rank].vote = vote;
  Pause(State::kAtBlockBarrier);
  return votes;
}

void WarpBarrier() { Pause(State::kAtWarpBarrier); }

void RunBlocks(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  threads = block.x * block.y * block.z;
  // What a GPU refuses.
  if (threads == 0 || threads > kMostThreads || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      shared_bytes > gsplat::kSharedBytes) {
    failed = true;
    return;
  }
  while (fibres.size() < threads) fibres.emplace_back();
  body = &thread;
  error = nullptr;
  current.block_size = block;
  current.grid_size = grid;
  try {
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          current.block = dim3(x, y, z);
          RunBlock(shared_bytes);
        }
      }
    }
  } catch (...) {
    // Fibres that stopped half way can't be used again.
    fibres.clear();
    throw;
  }
}

}  // namespace emulator
