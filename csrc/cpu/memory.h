// Large buffers, kept between calls.
//
// A fresh buffer costs its page faults and the kernel's zeroing: for the activations of one training step
// a tenth of the arithmetic. So large buffers are backed by huge pages, and when they are given back they
// are kept for the next step, marked as free for the kernel to take whenever it needs the memory.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fusedlstm::cpu {

// From here on buffers are kept; below, malloc does well.
constexpr size_t kLargeBytes = size_t{1} << 18;

// At least `bytes` of memory, 64-byte aligned, undefined contents; throws std::bad_alloc.
void* take_buffer(size_t bytes);
void give_back_buffer(void* buffer);

// Gives every kept buffer back to the system.
void release_buffers();

// Asks for huge pages behind memory that is about to be written for the first time.
void use_huge_pages(void* p, size_t bytes);

// One buffer, cut into 64-byte aligned pieces.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

  // First every piece is asked for, then all are allocated at once.
  template <class T>
  void reserve(T*& piece, int64_t count) {
    pieces_[used_++] = {reinterpret_cast<void**>(&piece), bytes_};
    bytes_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
  }
  void allocate();

 private:
  struct Piece {
    void** pointer;
    size_t offset;
  };
  Piece pieces_[32];
  int used_ = 0;
  size_t bytes_ = 0;
  std::byte* memory_ = nullptr;
};

}  // namespace fusedlstm::cpu
