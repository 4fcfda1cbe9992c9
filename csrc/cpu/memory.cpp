#include "memory.h"

#include <cstdlib>
#include <iterator>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fusedlstm::cpu {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kWorthTelling = size_t{32} << 20;  // below, the call costs more than the memory is worth
constexpr size_t kKeptBytes = size_t{1} << 30;      // what is kept at most

struct Buffer {
  void* memory;
  size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::vector<Buffer> kept;  // oldest first
  std::unordered_map<void*, size_t> lent;
  size_t kept_bytes = 0;

  Buffer remove(std::vector<Buffer>::iterator at) {
    const Buffer buffer = *at;
    kept.erase(at);
    kept_bytes -= buffer.bytes;
    return buffer;
  }
};

Pool& pool() {
  static Pool* const instance = new Pool;  // never destroyed: tensors may outlive static objects
  return *instance;
}

void* allocate(size_t alignment, size_t bytes) {
  void* memory = std::aligned_alloc(alignment, bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

void use_huge_pages([[maybe_unused]] void* p, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  const auto begin = round_up(reinterpret_cast<uintptr_t>(p), kHugePage);
  const auto end = (reinterpret_cast<uintptr_t>(p) + bytes) / kHugePage * kHugePage;
  // Only advice: a kernel without huge pages goes on with small ones.
  if (p != nullptr && end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void* take_buffer(size_t bytes) {
  if (bytes < kLargeBytes) return allocate(64, round_up(bytes + 1, 64));
  bytes = round_up(bytes, kHugePage);
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  for (auto at = p.kept.end(); at != p.kept.begin();) {
    --at;
    if (at->bytes < bytes || at->bytes > bytes + bytes / 4) continue;
    const Buffer buffer = p.remove(at);
    p.lent[buffer.memory] = buffer.bytes;
    return buffer.memory;
  }
  void* memory = allocate(kHugePage, bytes);
  use_huge_pages(memory, bytes);
  p.lent[memory] = bytes;
  return memory;
}

void give_back_buffer(void* buffer) {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  const auto lent = p.lent.find(buffer);
  if (lent == p.lent.end()) {  // a small one
    std::free(buffer);
    return;
  }
  const Buffer returned{lent->first, lent->second};
  p.lent.erase(lent);
  if (returned.bytes > kKeptBytes) {
    std::free(returned.memory);
    return;
  }
  while (p.kept_bytes + returned.bytes > kKeptBytes) std::free(p.remove(p.kept.begin()).memory);
#if defined(__linux__) && defined(MADV_FREE)
  if (returned.bytes >= kWorthTelling) madvise(returned.memory, returned.bytes, MADV_FREE);
#endif
  p.kept.push_back(returned);
  p.kept_bytes += returned.bytes;
}

void release_buffers() {
  Pool& p = pool();
  const std::lock_guard lock(p.mutex);
  while (!p.kept.empty()) std::free(p.remove(std::prev(p.kept.end())).memory);
}

void Workspace::allocate() {
  memory_ = static_cast<std::byte*>(take_buffer(bytes_ + 64));  // vectors may be read beyond the last piece
  for (int i = 0; i < used_; ++i) *pieces_[i].pointer = memory_ + pieces_[i].offset;
}

Workspace::~Workspace() {
  if (memory_ != nullptr) give_back_buffer(memory_);
}

}  // namespace fusedlstm::cpu
