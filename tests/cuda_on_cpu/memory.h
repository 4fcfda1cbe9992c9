// Memory whose end lies at a page that nobody may touch, so that an index out of range stops the thread that used it.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <list>
#include <new>
#include <optional>

namespace fusedlstm::gpu::shim {

// Guard page, redzone, `bytes` of data, a redzone up to the alignment, guard page; all but the guards filled with 0xFF,
// which is a NaN in each float type. A write into a redzone is found later, one into a guard at once.
class GuardedMemory {
 public:
  GuardedMemory(size_t bytes, size_t alignment) : bytes_(bytes) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t room = (bytes + alignment - 1) / alignment * alignment;
    inner_bytes_ = (room + page - 1) / page * page;
    mapped_bytes_ = inner_bytes_ + 2 * page;
    void* memory = mmap(nullptr, mapped_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mapped_ = static_cast<unsigned char*>(memory);
    inner_ = mapped_ + page;
    data_ = inner_ + inner_bytes_ - room;
    if (inner_bytes_ && mprotect(inner_, inner_bytes_, PROT_READ | PROT_WRITE)) {
      munmap(mapped_, mapped_bytes_);
      throw std::bad_alloc();
    }
    memset(inner_, 0xFF, inner_bytes_);
  }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  ~GuardedMemory() { munmap(mapped_, mapped_bytes_); }

  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  // Whether the address lies in the mapping, guards included.
  bool holds(const void* p) const { return p >= mapped_ && p < mapped_ + mapped_bytes_; }
  // Whether all `size` bytes at p are data.
  bool has(const void* p, size_t size) const {
    const uintptr_t offset = reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(data_);
    return offset <= bytes_ && size <= bytes_ - offset;
  }
  ptrdiff_t offset(const void* p) const { return static_cast<const unsigned char*>(p) - data_; }

  // Offset from the data of the first redzone byte that was written, which is then mended.
  std::optional<ptrdiff_t> damage() {
    const auto written = [&](unsigned char* from, unsigned char* to) -> std::optional<ptrdiff_t> {
      for (; from < to; ++from)
        if (*from != 0xFF) {
          const ptrdiff_t at = offset(from);
          memset(from, 0xFF, static_cast<size_t>(to - from));
          return at;
        }
      return std::nullopt;
    };
    const auto before = written(inner_, data_);
    return before ? before : written(data_ + bytes_, inner_ + inner_bytes_);
  }

 private:
  size_t bytes_, inner_bytes_, mapped_bytes_;
  unsigned char *mapped_, *inner_, *data_;
};

// Global memory that the caller has allocated with shim_allocate.
inline std::list<GuardedMemory> global_memory;

}  // namespace fusedlstm::gpu::shim
