// The contract of a generator: a stack of layers with its decoder, which reads characters and writes them.
//
// Words as in recurrence.h; V distinct characters, L layers. A stream's h and c are those after all of its
// characters but the last one; a step takes that one in, and what follows from it is the next.
#pragma once
#include <cstdint>

namespace fusedlstm::cpu {

// How weights are kept: E is float, bfloat16, or int8 with a scale for each row.
enum class Precision : int { float32 = 0, bfloat16 = 1, int8 = 2 };

// Read while a generator is made, and not after.
struct Stack {
  int64_t L, V, H;
  const float* table;           // [V, 4H], what an id adds to the gates of layer 0: W_ih's column and the biases
  const void* weights;          // E [2L-1, 4H, H]: W_hh of layer 0, then W_ih and W_hh of every other layer
  const float* scales;          // [2L-1, 4H]; null unless int8
  const float* biases;          // [L-1, 4H], of the other layers
  const void* decoder;          // E [V, H]
  const float* decoder_scales;  // [V]; null unless int8
  const float* decoder_bias;    // [V]
};

// How a character is drawn from its logits; the filters come one after the other, each on what is left.
struct Choice {
  uint64_t seed;
  double temperature;  // 0: the likeliest
  int64_t top_k;       // so many of the likeliest; 0: all
  double top_p;        // the fewest of the likeliest with this share of the probability; 1: all
  double min_p;        // those at least so many times as likely as the likeliest; 0: all
};

// What one call goes through.
struct Passage {
  int64_t B, steps, position;  // position: of the first character that is drawn
  const Choice* choice;        // null: the characters are given
  int64_t* ids;                // [steps, B], written when they are drawn, else read
  int64_t* last;               // [B], the characters before them; leaves as the last of them
  float* h;                    // [L, B, H], in and out; within -1 and 1, where an LSTM keeps it: int8 cuts it there
  float* c;                    // [L, B, H], in and out
  float* nats;                 // [steps, B], -log of each character's probability, written; null: not wanted
};

class Generator {
 public:
  virtual ~Generator();
  virtual void run(const Passage& passage, int threads) const = 0;
};

struct Candidate {
  double weight;
  int64_t id;
};

// In [0, 1): the first word of Philox4x32-10 over 2^32; its key is the seed, its counter stream and position.
double uniform(uint64_t seed, uint64_t stream, uint64_t position);

// The id whose part of the filtered softmax, in the order of ids, holds `uniform`; equals count as likelier
// the lower their id. Sums are double. Scratch is [2V].
int64_t draw(const float* logits, int64_t V, const Choice& choice, double uniform, Candidate* scratch);

// -log of an id's probability.
double surprise(const float* logits, int64_t V, int64_t id);

}  // namespace fusedlstm::cpu
