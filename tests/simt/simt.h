// simt.h: runs CUDA kernels on the CPU, exactly, so that they can be tested where there is no GPU.
//
// A kernel is compiled by g++ as it stands. Each of its threads is a fiber; blocks run one after another. A collective
// (barrier, shuffle, ballot, mma, ...) waits until all its threads have come. What the emulator refuses, and a GPU may
// forgive or hang at: a collective that some lane never reaches, lanes that meet in different collectives, a launch
// beyond the limits of the chip. Shared memory begins as NaN; an asynchronous copy arrives at its wait and not earlier.
//
// With -DSIMT_THREADS each CUDA thread is an operating-system thread instead, so that ThreadSanitizer can watch.
// Not modelled: time, caches, the order of memory between blocks (they never run at once), clusters.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace simt {

constexpr unsigned warp_size = 32;
constexpr size_t max_shared = 227 * 1024, stack_size = 128 * 1024;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "simt: %s\n", what);
  std::abort();
}

// Where threads of one mask meet. The last to come may act for all; what they left is read by parity of the meeting's
// number, so nobody overwrites what another has not read.
struct Meeting {
  std::atomic<uint32_t> mask{0}, arrived{0}, generation{0};
  const void* kind[2] = {};  // which collective the first to come called
  alignas(16) unsigned char in[2][warp_size][64], out[2][warp_size][16];
  Meeting() {}  // `in` and `out` stay as they are: most kernels use one meeting of four
};

struct Warp {
  Meeting meetings[4];  // by mask: a kernel uses the full one, rarely halves
  Meeting& of(uint32_t mask) {
    for (Meeting& m : meetings) {
      uint32_t free = 0;
      if (m.mask.load() == mask || m.mask.compare_exchange_strong(free, mask) || free == mask) return m;
    }
    fail("more than four different masks in one warp");
  }
};

struct Copy {
  void* to;
  const void* from;
  bool present;
};

struct Block;
struct Thread {
  dim3 index;
  unsigned rank = 0;
  Block* block = nullptr;
  std::vector<std::vector<Copy>> copies{1};  // asynchronous copies by group; the last group is open
  void* stack_pointer = nullptr;
  bool done = false;
  unsigned lane() const { return rank % warp_size; }
};

struct Block {
  dim3 index, dimensions, grid;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::atomic<unsigned> alive{0}, arrived{0}, generation{0}, votes[2] = {};
  unsigned char* shared = nullptr;
  std::atomic<bool> progress{false};
};

inline thread_local Thread* current = nullptr;

#ifdef SIMT_THREADS
inline void yield() { std::this_thread::yield(); }
#else
inline thread_local void* scheduler = nullptr;
extern "C" void simt_switch(void** save, void* load);
#if defined(__x86_64__)
// Callee-saved registers go on the old stack; the new one gives its own back.
asm(R"(
.weak simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#else
#error "the fibers of simt.h are written for x86-64; define SIMT_THREADS elsewhere"
#endif
inline void yield() { simt_switch(&current->stack_pointer, scheduler); }
#endif

template <typename Condition>
void wait(Condition condition) {
  while (!condition()) yield();
}

inline void barrier_release(Block& block) {
  block.arrived = 0;
  block.progress = true;
  ++block.generation;
}

// A barrier of the block; returns how many of its threads came with a vote.
inline unsigned barrier(bool vote = false) {
  Block& block = *current->block;
  const unsigned generation = block.generation;
  std::atomic<unsigned>& votes = block.votes[generation & 1];
  votes += vote;
  if (++block.arrived == block.alive) {
    block.votes[(generation + 1) & 1] = 0;
    barrier_release(block);
  } else {
    wait([&] { return block.generation != generation; });
  }
  return votes;
}

// All lanes of `mask` bring `value`; the last to come runs act(in, out), arrays by lane; returns out of this lane.
template <typename Out, typename In, typename Act>
Out meet(uint32_t mask, const In& value, [[maybe_unused]] const void* kind, Act act) {
  static_assert(sizeof(In) <= 64 && sizeof(Out) <= 16);
  const unsigned lane = current->lane();
  if (!(mask >> lane & 1u)) fail("a lane is not in the mask of the collective it calls");
  Meeting& m = current->block->warps[current->rank / warp_size].of(mask);
  const uint32_t generation = m.generation;
  const unsigned side = generation & 1;
  std::memcpy(m.in[side][lane], &value, sizeof value);
  const uint32_t before = m.arrived.fetch_add(1);
#ifndef SIMT_THREADS  // fibers meet in a known order
  if (before == 0) m.kind[side] = kind;
  if (m.kind[side] != kind) fail("lanes of a warp met in different collectives");
#endif
  if (before + 1 == uint32_t(__builtin_popcount(mask))) {
    In in[warp_size];
    Out out[warp_size];
    std::memset(static_cast<void*>(in), 0, sizeof in);
    for (unsigned l = 0; l < warp_size; ++l)
      if (mask >> l & 1u) std::memcpy(static_cast<void*>(&in[l]), m.in[side][l], sizeof(In));
    act(in, out);
    for (unsigned l = 0; l < warp_size; ++l)
      if (mask >> l & 1u) std::memcpy(m.out[side][l], &out[l], sizeof(Out));
    m.arrived = 0;
    current->block->progress = true;
    ++m.generation;
  } else {
    wait([&] { return m.generation != generation; });
  }
  Out mine;
  std::memcpy(static_cast<void*>(&mine), m.out[side][lane], sizeof mine);
  return mine;
}

inline void leave(Thread& thread) {
  Block& block = *thread.block;
  thread.done = true;
  block.progress = true;
  if (--block.alive > 0 && block.arrived == block.alive) barrier_release(block);
}

inline const std::function<void()>* kernel_body = nullptr;

#ifdef SIMT_THREADS
inline void run_block(Block& block) {
  std::vector<std::thread> members;
  for (Thread& thread : block.threads)
    members.emplace_back([&thread] {
      current = &thread;
      (*kernel_body)();
      leave(thread);
    });
  for (auto& member : members) member.join();
}
#else
inline void fiber_main() {
  (*kernel_body)();
  leave(*current);
  yield();  // and never again
}

inline void run_block(Block& block) {
  static std::vector<std::unique_ptr<unsigned char[]>> stacks;
  while (stacks.size() < block.threads.size()) stacks.emplace_back(new unsigned char[stack_size]);
  for (Thread& thread : block.threads) {
    // Where a function begins the stack is 8 bytes off a multiple of 16, as a call leaves it.
    auto top = reinterpret_cast<uintptr_t>(stacks[thread.rank].get() + stack_size) / 16 * 16 - 64;
    void** frame = reinterpret_cast<void**>(top) - 6;
    for (int i = 0; i < 6; ++i) frame[i] = nullptr;
    frame[6] = reinterpret_cast<void*>(&fiber_main);
    thread.stack_pointer = frame;
  }
  while (block.alive > 0) {
    block.progress = false;
    for (Thread& thread : block.threads) {
      if (thread.done) continue;
      current = &thread;
      simt_switch(&scheduler, thread.stack_pointer);
    }
    if (!block.progress) fail("deadlock: some threads wait in a collective that the others never reach");
  }
  current = nullptr;
}
#endif

inline std::mutex& one_at_a_time() {
  static std::mutex mutex;
  return mutex;
}

// Runs body() once per thread of the grid. Returns the CUDA error of a launch that the chip would refuse.
inline int run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  const size_t threads = size_t(block.x) * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0 || threads > 1024 || grid.x > 0x7fffffffu ||
      grid.y > 65535 || grid.z > 65535 || shared_bytes > max_shared)
    return 9;  // cudaErrorInvalidConfiguration
  const std::lock_guard<std::mutex> lock(one_at_a_time());
  std::unique_ptr<unsigned char[]> shared(new unsigned char[shared_bytes + 16]);
  const size_t off = reinterpret_cast<uintptr_t>(shared.get()) % 16;
  kernel_body = &body;
  Block here;
  here.dimensions = block, here.grid = grid;
  here.shared = shared.get() + (off ? 16 - off : 0);
  here.threads = std::vector<Thread>(threads);
  here.warps = std::vector<Warp>((threads + warp_size - 1) / warp_size);
  for (unsigned t = 0; t < threads; ++t) {
    here.threads[t].rank = t;
    here.threads[t].block = &here;
    here.threads[t].index = dim3(t % block.x, t / block.x % block.y, t / block.x / block.y);
  }
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        here.index = dim3(x, y, z);
        std::memset(here.shared, 0xff, shared_bytes);
        here.alive = unsigned(threads);
        for (Thread& thread : here.threads) {
          thread.done = false;
          thread.copies.assign(1, {});
        }
        run_block(here);
      }
  kernel_body = nullptr;
  return 0;
}

}  // namespace simt
