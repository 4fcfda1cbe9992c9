// Who runs next. Seed 0: round robin, and all stores arrive at once. Other seeds: at random, while a thread, a warp, a
// block, or all blocks but one lag behind; stores arrive late, and in any order.
#pragma once
#include <map>
#include <string>
#include <tuple>

#include "cluster.h"
#include "l2.h"
#include "machine.h"

namespace fusedlstm::gpu::shim {

class Schedule {
 public:
  // Until all threads have ended; throws Stopped at a fault.
  void run() {
    Machine& m = *machine;
    laziness_ = m.adversarial() ? 1 << m.random(9) : 1;
    while (m.ended < m.threads.size()) {
      bring_stores();
      if (!m.ready && !m.polling && !bring_one()) stuck();
      if (!m.ready && m.polling && idle_ > 4 * m.polling + 16) {
        if (bring_one())
          idle_ = 0;
        else if (idle_ > 1000 * m.polling)
          stuck();
      }
      if (m.ready || m.polling) run_warp(choose());
    }
    while (!m.async.empty()) deliver(m.async.size() - 1);
  }

 private:
  // A few of the stores on their way arrive.
  void bring_stores() {
    Machine& m = *machine;
    if (m.random(laziness_)) return;
    for (size_t n = m.async.empty() ? 0 : 1 + m.random(1 + m.async.size() / 4); n; --n)
      deliver(m.random(m.async.size()));
    if (m.hidden_stores) show_any();
  }

  void show_any() {
    Machine& m = *machine;
    size_t b = m.random(m.blocks.size());
    while (m.blocks[b].hidden.empty()) b = (b + 1) % m.blocks.size();
    show_one(m.blocks[b]);
  }

  // False where none is on its way.
  bool bring_one() {
    Machine& m = *machine;
    if (!m.async.empty())
      deliver(m.random(m.async.size()));
    else if (m.hidden_stores)
      show_any();
    else
      return false;
    return true;
  }

  Warp& choose() {
    Machine& m = *machine;
    if (m.adversarial() && !lag_turns_--) choose_laggards();
    cursor_ = m.adversarial() ? m.random(m.warps.size()) : cursor_ + 1;
    for (;;) {
      if (Warp* w = first_runnable(false)) return *w;
      if (!lag_behind_stores_ || !bring_one()) return *first_runnable(true);
    }
  }

  // From the cursor on; null where there is none but laggards, which were not asked for.
  Warp* first_runnable(bool laggards) {
    Machine& m = *machine;
    const size_t count = m.warps.size();
    for (size_t i = 0; i < count; ++i) {
      const size_t number = (cursor_ + i) % count;
      const bool lags = lag_thread_ < 0 && (number >= lag_begin_ && number < lag_end_) != lag_others_;
      if (!m.warps[number].runnable || (lags && m.adversarial() && !laggards)) continue;
      cursor_ = number;
      return &m.warps[number];
    }
    return nullptr;
  }

  void choose_laggards() {
    Machine& m = *machine;
    lag_turns_ = 1 + m.random(4 * m.warps.size());
    const Warp& w = m.warps[m.random(m.warps.size())];
    lag_begin_ = &w - m.warps.data();
    lag_end_ = lag_begin_ + 1;
    lag_thread_ = -1;
    lag_others_ = false;
    lag_behind_stores_ = m.random(2);
    enum { thread, warp, block, others, nobody };
    const uint64_t who = m.random(nobody + 1);
    if (who == thread) lag_thread_ = static_cast<int>(m.random(w.size));
    if (who == block || who == others) {
      lag_begin_ = w.block->warps - m.warps.data();
      lag_end_ = lag_begin_ + w.block->warp_count;
    }
    lag_others_ = who == others;
    if (who == nobody) lag_begin_ = lag_end_ = 0;
  }

  // Each lane that can run, and again while an instruction of the whole warp makes them ready; a lane that polls, once.
  void run_warp(Warp& w) {
    Machine& m = *machine;
    const bool has_laggard = m.adversarial() && lag_thread_ >= 0 && &w == &m.warps[lag_begin_];
    for (bool again = true, first = true; again; first = false) {
      again = false;
      const int start = m.adversarial() ? static_cast<int>(m.random(w.size)) : 0;
      for (int i = 0; i < w.size; ++i) {
        const int lane = start + i < w.size ? start + i : start + i - w.size;
        Thread& t = w.threads[lane];
        if (t.wait != Wait::none && !(first && t.wait == Wait::poll)) continue;
        if (has_laggard && lane == lag_thread_ && m.ready + m.polling > 1) continue;
        run_thread(t);
        again = true;
      }
      if (m.adversarial() && m.random(8) == 0) return;
    }
  }

  void run_thread(Thread& t) {
    const bool polled = t.wait == Wait::poll;
    set_wait(t, Wait::none);
    current = &t;
    shim_switch(&scheduler_stack, t.stack);
    current = nullptr;
    if (failed) throw Stopped{};
    idle_ = polled && t.wait == Wait::poll ? idle_ + 1 : 0;
  }

  // Nobody can go on: says who waits where.
  [[noreturn]] void stuck() {
    static constexpr const char* kWaits[] = {"ready at", "polling in", "at", "at", "at", "at", "ended after"};
    std::map<std::tuple<unsigned, unsigned, unsigned, std::string>, int> groups;
    size_t counts[7] = {};
    for (const Thread& t : machine->threads) {
      ++counts[static_cast<int>(t.wait)];
      if (t.block->ended == t.block->thread_count) continue;
      const uint3 b = t.block->index;
      std::string place = std::string(kWaits[static_cast<int>(t.wait)]) + " " + t.primitive;
      if (t.where.line()) place += std::string(" ") + t.where.file_name() + ":" + std::to_string(t.where.line());
      ++groups[{b.z, b.y, b.x, place}];
    }
    std::string list;
    size_t shown = 0;
    for (const auto& [key, count] : groups) {
      if (++shown > 16) {
        list += "; ...";
        break;
      }
      const auto& [z, y, x, place] = key;
      list += (shown > 1 ? "; block (" : "block (") + std::to_string(x) + "," + std::to_string(y) + "," +
              std::to_string(z) + "): " + std::to_string(count) + " threads " + place;
    }
    const auto some = [&](Wait w) { return counts[static_cast<int>(w)] > 0; };
    const char* kind = some(Wait::poll) || some(Wait::mbarrier) ? "deadlock"
                       : some(Wait::collective)                 ? "warp divergence"
                                                                : "divergent barrier";
    fault("%s: nobody can go on: %s", kind, list.c_str());
  }

  size_t cursor_ = 0, idle_ = 0;
  uint64_t laziness_ = 1;
  size_t lag_begin_ = 0, lag_end_ = 0;  // warps
  int lag_thread_ = -1;                 // of warp lag_begin_, if only one thread lags
  bool lag_others_ = false;             // all warps but these
  bool lag_behind_stores_ = false;      // and behind all that is on its way to others
  uint64_t lag_turns_ = 0;
};

}  // namespace fusedlstm::gpu::shim
