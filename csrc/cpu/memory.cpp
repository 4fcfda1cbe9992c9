#include "memory.h"

#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fusedlstm::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

void use_huge_pages([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  if (p == nullptr || bytes < 2 * kHugePage) return;
  const auto begin = (reinterpret_cast<uintptr_t>(p) + kHugePage - 1) / kHugePage * kHugePage;
  const auto end = (reinterpret_cast<uintptr_t>(p) + bytes) / kHugePage * kHugePage;
  // Only advice: a kernel without huge pages goes on with small ones.
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void Workspace::allocate() {
  const size_t alignment = bytes_ >= 2 * kHugePage ? kHugePage : 64;
  const size_t bytes = (bytes_ + alignment - 1) / alignment * alignment;
  memory_ = static_cast<std::byte*>(std::aligned_alloc(alignment, bytes ? bytes : alignment));
  if (memory_ == nullptr) throw std::bad_alloc();
  use_huge_pages(memory_, bytes);
  for (int i = 0; i < used_; ++i) *pieces_[i].pointer = memory_ + pieces_[i].offset;
}

Workspace::~Workspace() { std::free(memory_); }

}  // namespace fusedlstm::cpu
