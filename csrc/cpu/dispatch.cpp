#include "dispatch.h"

#include <atomic>
#include <stdexcept>

namespace fusedlstm::cpu {
namespace {

// Widest first.
constexpr const Engine* kEngines[] = {
#if defined(FUSEDLSTM_X86)
    &avx512bf16_engine, &avx512_engine, &avx2_engine,
#endif
    &portable_engine};

const Engine* widest() {
  for (const Engine* candidate : kEngines)
    if (candidate->available()) return candidate;
  return &portable_engine;
}

std::atomic<const Engine*>& current() {
  static std::atomic<const Engine*> engine{widest()};
  return engine;
}

}  // namespace

const Engine& engine() { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> available_engines() {
  std::vector<std::string> names;
  for (const Engine* candidate : kEngines)
    if (candidate->available()) names.emplace_back(candidate->name);
  return names;
}

void select(const std::string& name) {
  std::string names;
  for (const Engine* candidate : kEngines) {
    if (!candidate->available()) continue;
    if (candidate->name == name) {
      current().store(candidate, std::memory_order_relaxed);
      return;
    }
    names += (names.empty() ? "" : ", ") + std::string(candidate->name);
  }
  throw std::invalid_argument("engine must be one of [" + names + "] on this processor, got '" + name + "'");
}

}  // namespace fusedlstm::cpu
