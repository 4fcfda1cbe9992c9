// What the kernel that writes text is told. Words as in ../recurrence.h; L layers, V characters of the vocabulary.
//
// Hidden units are cut into slices of `units`: block `slice` owns its units of every layer, a warp for each. The rows
// of a unit's four gates are a quad, and so are four rows of the decoder: quad q of these is computed by block q %
// slices. Padding units, rows and streams compute zeros, or what nobody reads.
#pragma once
#include <cstdint>

namespace fusedlstm::gpu {

struct GenerateSizes {
  int B, L, H, V;
  int slices;  // blocks
  int units;   // hidden units of a block, a multiple of 4
  int kept;    // steps along K of a warp's weights that lie in shared memory; the others come from L2 each time
};

// How a character is chosen: see draw.cuh.
struct Choice {
  uint64_t seed;
  float temperature;
  int top_k;           // 0: no such filter
  float top_p, min_p;  // 1 and 0: no such filter
};

struct GenerateArgs {
  GenerateSizes sizes;
  Choice choice;
  int64_t count;              // characters to write, at least 1
  int64_t first;              // position of the first of them
  const void* weights;        // E [slices, units, matrices, steps, 4, 32, 16 bytes]: see generate.cuh
  const float* table;         // [V, H, 4] what a character adds to the gates of layer 0
  const float* bias;          // [L - 1, H, 4] the same of the layers above
  const float* decoder_bias;  // [4 * quads]
  float* h;                   // [L, B, H], read and written
  float* c;                   // [L, B, H], read and written
  int64_t* last;              // [B] the characters before, read and written
  int64_t* ids;               // [count, B], written
  void* mail;                 // float [2, slices, piece, STREAMS, 4] through which blocks talk
  uint32_t* flags;            // [slices], zero at first: rounds in which a block has given its piece
};

}  // namespace fusedlstm::gpu
