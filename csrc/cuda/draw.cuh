// The next character of each stream, from its logits. Every block draws all of them, in the same order of the same
// numbers, so that none need be sent. For stream b at position t:
//
//   p_v = exp((logit_v - the largest) / temperature);  at temperature 0: 1 where the logit is the largest, else 0
//   filters, one after the other, of equal p the lowest id first: the top_k largest; of these the fewest of the largest
//   whose sum is at least top_p times the sum of these; those of at least min_p times the largest of all
//   the first id whose p_0 + ... + p_id, of what is left, is above u times the sum of all that is left
//   u = the upper 24 bits of the first word of Philox4x32-10 / 2^24; its key is the seed, its counter b and t
//
// Sums are float32. Philox: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
#pragma once
#include "generate.h"
#include "primitives.cuh"

namespace fusedlstm::gpu {

FUSEDLSTM_DEVICE float uniform(uint64_t seed, uint32_t stream, uint64_t position) {
  uint32_t counter[4] = {stream, 0, static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32)};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t even = uint64_t{0xD2511F53} * counter[0], odd = uint64_t{0xCD9E8D57} * counter[2];
    counter[0] = static_cast<uint32_t>(odd >> 32) ^ counter[1] ^ key[0];
    counter[1] = static_cast<uint32_t>(odd);
    counter[2] = static_cast<uint32_t>(even >> 32) ^ counter[3] ^ key[1];
    counter[3] = static_cast<uint32_t>(even);
    key[0] += 0x9E3779B9, key[1] += 0xBB67AE85;
  }
  return static_cast<float>(counter[0] >> 8) * 0x1p-24f;
}

// Where a draw works, in shared memory.
struct Drawing {
  float* p;        // [STREAMS, row] logits at first
  float* left;     // [STREAMS, row] p, and 0 where a filter took it
  int row;         // at least V
  float* parts;    // [STREAMS, 32]
  float* uniform;  // [STREAMS]
  int* ids;        // [STREAMS], written
};

// The filters, by all threads of the block: an item for each character and stream.
FUSEDLSTM_DEVICE void filter(const Choice& choice, int B, int V, const Drawing& at) {
  const int last = choice.top_k > 0 && choice.top_k < V ? choice.top_k - 1 : V - 1;  // rank, from 0, that top_k leaves
  for (int k = threadIdx.x; k < B * V; k += blockDim.x) {
    const int b = k / V, v = k % V;
    const float *p = at.p + b * at.row, mine = p[v];
    int rank = 0;
    float above = 0.0f;
    for (int other = 0; other < V; ++other)
      if (p[other] > mine || (p[other] == mine && other < v)) ++rank, above += p[other];
    at.left[b * at.row + v] = rank <= last ? above : INFINITY;
    // Above 0, since nothing is above the largest, which stays.
    if (rank == last) at.parts[b * 32] = choice.top_p < 1.0f ? fmaxf(choice.top_p * (above + mine), 1e-30f) : INFINITY;
  }
  sync_threads();
  for (int k = threadIdx.x; k < B * V; k += blockDim.x) {
    const int b = k / V, v = k % V;
    const float p = at.p[b * at.row + v];
    float& left = at.left[b * at.row + v];
    left = left < at.parts[b * 32] && p >= choice.min_p ? p : 0.0f;
  }
  sync_threads();
}

// By all threads of the block; the warps share the streams.
FUSEDLSTM_DEVICE void draw(const Choice& choice, int B, int V, const Drawing& at) {
  const int thread = threadIdx.x, lane = thread % 32, warps = blockDim.x / 32, part = (V + 31) / 32;
  for (int b = thread / 32; b < B; b += warps) {
    float largest = -INFINITY;
    for (int v = lane; v < V; v += 32) largest = fmaxf(largest, at.p[b * at.row + v]);
    at.parts[b * 32 + lane] = largest;
  }
  sync_threads();
  for (int b = thread / 32; b < B; b += warps) {
    float largest = -INFINITY;
    for (int k = 0; k < 32; ++k) largest = fmaxf(largest, at.parts[b * 32 + k]);
    for (int v = lane; v < V; v += 32) {
      float& p = at.p[b * at.row + v];
      p = choice.temperature > 0.0f ? expf((p - largest) / choice.temperature) : p == largest ? 1.0f : 0.0f;
      at.left[b * at.row + v] = p;
    }
  }
  sync_threads();
  if (choice.top_k > 0 || choice.top_p < 1.0f || choice.min_p > 0.0f) filter(choice, B, V, at);
  for (int b = thread / 32; b < B; b += warps) {
    float sum = 0.0f;
    for (int v = lane * part; v < V && v < (lane + 1) * part; ++v) sum += at.left[b * at.row + v];
    at.parts[b * 32 + lane] = sum;
  }
  sync_threads();
  // Which part, then which of its characters; rounding must not lead beyond the last that can be.
  if (thread < B) {
    const float *parts = at.parts + thread * 32, *left = at.left + thread * at.row;
    float all = 0.0f, before = 0.0f, sum = 0.0f;
    for (int k = 0; k < 32; ++k) all += parts[k];
    const float goal = choice.temperature > 0.0f ? at.uniform[thread] * all : 0.0f;
    int chosen = 0, id = 0;
    for (int k = 0; k < 32 && sum <= goal; ++k) {
      if (parts[k] > 0.0f) chosen = k, before = sum;
      sum += parts[k];
    }
    for (int v = chosen * part; v < V && v < (chosen + 1) * part && before <= goal; ++v) {
      if (left[v] > 0.0f) id = v;
      before += left[v];
    }
    at.ids[thread] = id;
  }
  sync_threads();
}

}  // namespace fusedlstm::gpu
