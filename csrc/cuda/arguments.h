// What the kernels of one layer's recurrence are told. Words as in ../recurrence.h; E is the storage type.
//
// Hidden units are cut into slices of `units`, sequences into tiles of TILE: block (slice, tile, d) owns the cells of
// its units and sequences in direction d. Padding units and sequences compute zeros.
#pragma once
#include <cstdint>

namespace fusedlstm::gpu {

constexpr int TILE = 16;  // sequences of a block: two columns of matrix tiles

struct Sizes {
  int64_t T, B, N;
  int H, D;
  int slices;              // blocks that share a tile's hidden units
  int units;               // hidden units of a block, a multiple of 8
  int first_tile;          // of this launch
  const int64_t* offsets;  // [T + 1] first row of each step and the end, or null: B rows at every step
  const bool* fresh;       // [D, N] the states before this row's step are zero, or null: they never are
};

// Memory through which blocks of a cooperative grid talk; null elsewhere.
struct Mail {
  void* data;  // forward: E [2, D, tiles, TILE, slices * units]; backward: float [2, D, tiles, slices, slices, ...]
  uint32_t* flags;  // [D, tiles, slices], zero at first: steps that a block has given to the others
};

struct ForwardArgs {
  Sizes sizes;
  Mail mail;
  const void* gx;      // E [D, N, 4H] x W_ih^T, or with ids [D, I, 4H] W_ih^T
  int64_t gx_stride;   // of D
  const int64_t* ids;  // [N], or null
  const float* bias;   // [D, 4H], or null
  const void* w_hh;    // E [D, 4H, H]
  const void* h0;      // E [D, B, H]
  const void* c0;      // E [D, B, H]
  void* y;             // E [N, D * H], written
  void* h_n;           // E [D, B, H], written
  void* c_n;           // E [D, B, H], written
  float* c;            // [D, N, H], written; or null: nothing is saved
  void* gates;         // E [D, N, 4H], written activated unless c is null; may be gx
};

struct BackwardArgs {
  Sizes sizes;
  Mail mail;
  int k_splits;       // of the product among warps
  const void* dy;     // E [N, D * H], or null for zeros
  const void* dh_n;   // E [D, B, H], or null for zeros
  const void* dc_n;   // E [D, B, H], or null for zeros
  const void* c0;     // E [D, B, H]
  const void* w_hh;   // E [D, 4H, H]
  const float* c;     // [D, N, H]
  const void* gates;  // E [D, N, 4H]
  void* dgates;       // E [D, N, 4H], written
  void* dh0;          // E [D, B, H], written
  void* dc0;          // E [D, B, H], written
};

}  // namespace fusedlstm::gpu
