// Workspaces and huge pages.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fusedlstm::cpu {

// Asks for huge pages behind a buffer that is about to be written for the first time: on 4 KiB pages the
// page faults of the saved activations alone cost as much as a tenth of the arithmetic.
void use_huge_pages(void* p, size_t bytes);

// One allocation, cut into 64-byte aligned pieces; contents are undefined.
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
