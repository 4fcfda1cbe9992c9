// The draw, compiled once for all instruction sets: the same logits give the same character everywhere.
#include "generator.h"

#include <algorithm>
#include <cmath>

namespace fusedlstm::cpu {
namespace {

bool likelier(const Candidate& a, const Candidate& b) {
  return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
}

bool less_likely(const Candidate& a, const Candidate& b) { return likelier(b, a); }

// The least likely of those that top_k and top_p leave; turns the candidates into a heap.
Candidate last_left(Candidate* heap, int64_t V, const Choice& choice, double total) {
  int64_t ranked = 0;
  // The n-th likeliest, from 0: the likeliest go to the end of the heap, one by one.
  const auto nth = [&](int64_t n) -> const Candidate& {
    for (; ranked <= n; ++ranked) std::pop_heap(heap, heap + V - ranked, less_likely);
    return heap[V - 1 - n];
  };
  std::make_heap(heap, heap + V, less_likely);
  const int64_t most = choice.top_k > 0 ? std::min(choice.top_k, V) : V;
  if (choice.top_k > 0) {
    total = 0;
    for (int64_t n = 0; n < most; ++n) total += nth(n).weight;
  }
  int64_t left = choice.top_p < 1 ? 0 : most;
  for (double sum = 0; left < most && sum < choice.top_p * total; ++left) sum += nth(left).weight;
  return nth(left - 1);
}

}  // namespace

Generator::~Generator() = default;

double uniform(uint64_t seed, uint64_t stream, uint64_t position) {
  const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  const auto high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
  uint32_t key[2] = {low(seed), high(seed)};
  uint32_t counter[4] = {low(stream), high(stream), low(position), high(position)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0], b = uint64_t{0xCD9E8D57} * counter[2];
    const uint32_t next[4] = {high(b) ^ counter[1] ^ key[0], low(b), high(a) ^ counter[3] ^ key[1], low(a)};
    std::copy(next, next + 4, counter);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter[0] * 0x1p-32;
}

int64_t draw(const float* logits, int64_t V, const Choice& choice, double uniform, Candidate* scratch) {
  const int64_t best = std::max_element(logits, logits + V) - logits;
  if (choice.temperature == 0) return best;
  Candidate* const end = scratch + V;
  double total = 0;
  for (int64_t id = 0; id < V; ++id) {
    // The largest logit is taken off first: dividing by a tiny temperature then gives -inf, never nan.
    const double less = static_cast<double>(logits[id]) - logits[best];
    scratch[id] = {std::exp(less / choice.temperature), id};
    total += scratch[id].weight;
  }
  const bool ranks = choice.top_k > 0 || choice.top_p < 1;
  if (ranks || choice.min_p > 0) {
    std::copy(scratch, end, end);
    const Candidate last = ranks ? last_left(end, V, choice, total) : Candidate{0, V};
    total = 0;
    for (Candidate* one = scratch; one != end; ++one) {
      if (likelier(last, *one) || one->weight < choice.min_p) one->weight = 0;  // the likeliest weighs 1
      total += one->weight;
    }
  }
  double sum = 0;
  for (const Candidate* one = scratch; one != end; ++one) {
    sum += one->weight;
    if (sum > uniform * total) return one->id;
  }
  return best;  // where the logits are no numbers
}

double surprise(const float* logits, int64_t V, int64_t id) {
  const double largest = *std::max_element(logits, logits + V);
  double total = 0;
  for (int64_t other = 0; other < V; ++other) total += std::exp(logits[other] - largest);
  return std::log(total) - (logits[id] - largest);
}

}  // namespace fusedlstm::cpu
