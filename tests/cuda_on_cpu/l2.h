// Global memory shared between blocks. A store is in memory at once, for its own block and for plain accesses; other
// blocks that ask L2 are given what was there before, until the store is shown to all.
#pragma once
#include "machine.h"

namespace fusedlstm::gpu::shim {

constexpr size_t kMaxHiddenStores = 64;  // of a block

// Shows a store to all blocks, and those before it to the same 16 bytes.
inline void show(const HiddenStore& store) {
  const auto found = machine->versions.find(store.granule);
  if (found == machine->versions.end()) return;
  std::erase_if(found->second, [&](const Version& v) { return v.order <= store.order; });
  if (found->second.empty()) machine->versions.erase(found);
}

inline void show_one(Block& block) {
  const size_t chosen = machine->random(block.hidden.size());
  const HiddenStore store = block.hidden[chosen];
  block.hidden[chosen] = block.hidden.back();
  block.hidden.pop_back();
  --machine->hidden_stores;
  show(store);
}

// Shows what the block has stored and `which` selects.
template <class Which>
void show_all(Block& block, Which which) {
  machine->hidden_stores -= std::erase_if(block.hidden, [&](const HiddenStore& s) {
    if (!which(s)) return false;
    show(s);
    return true;
  });
}

inline void store(void* p, const void* value, int size) {
  Thread& t = *current;
  check_aligned(p, size);
  const uintptr_t address = reinterpret_cast<uintptr_t>(p), granule = address / 16;
  Version version = {++machine->store_order, t.block, static_cast<int>(address % 16), size, {}};
  memcpy(version.old, p, size);
  memcpy(p, value, size);
  if (!machine->adversarial()) return;
  machine->versions[granule].push_back(version);
  t.block->hidden.push_back({granule, version.order, &t});
  ++machine->hidden_stores;
  if (t.block->hidden.size() > kMaxHiddenStores) show_one(*t.block);
  interleave(Wait::none);
}

// As the current thread's block sees it.
inline void load(void* value, const void* p, int size) {
  check_aligned(p, size);
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  memcpy(value, p, size);
  const auto found = machine->versions.find(address / 16);
  if (found == machine->versions.end()) return;
  unsigned char bytes[16];
  const int offset = static_cast<int>(address % 16);
  memcpy(bytes + offset, value, size);
  for (auto v = found->second.rbegin(); v != found->second.rend(); ++v) {
    if (v->by == current->block) break;
    memcpy(bytes + v->offset, v->old, v->size);
  }
  memcpy(value, bytes + offset, size);
}

// Shows what is ordered before a release by this thread: its own stores, and those of threads that it has met since.
inline void show_released() {
  const Thread& t = *current;
  show_all(*t.block, [&](const HiddenStore& s) { return s.by == &t || s.order <= t.warp->met[s.by->warp->number]; });
}

}  // namespace fusedlstm::gpu::shim
