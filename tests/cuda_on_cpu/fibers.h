// Fibers: stacks that one CPU thread switches between.
#pragma once
#include <sys/mman.h>

#include <cstddef>

#ifndef __x86_64__
#error "the fibers' switch is written for x86-64"
#endif

// Saves this stack and the registers a callee must keep, and goes on where the other stack was left.
extern "C" void shim_switch(void** from, void* to);
asm(R"(
.text
.weak shim_switch
.hidden shim_switch
shim_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");

namespace fusedlstm::gpu::shim {

constexpr size_t kStackBytes = 65536;

// Stacks of all fibers, kept from launch to launch: pages once touched need not be mapped again.
class Stacks {
 public:
  // Makes room for so many; false where memory is short.
  bool reserve(size_t count) {
    if (count <= count_) return true;
    if (memory_) munmap(memory_, count_ * kStackBytes);
    count_ = 0;
    void* memory =
        mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    memory_ = memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
    if (memory_) count_ = count;
    return memory_ != nullptr;
  }

  // A stack which, once switched to, enters `entry`, which must not return.
  void* start(size_t fiber, void (*entry)()) {
    // The colour keeps the tops of 64 KiB stacks from sharing the same sets of the cache.
    void** top = reinterpret_cast<void**>(memory_ + (fiber + 1) * kStackBytes - 64 - fiber % 32 * 64);
    *--top = nullptr;  // entry's return address, which also leaves the stack aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    return top;
  }

 private:
  char* memory_ = nullptr;
  size_t count_ = 0;
};

}  // namespace fusedlstm::gpu::shim
