// The contract of one LSTM layer: what every backend reads and writes.
//
// Words: T steps, B sequences, N rows (one row = one step of one sequence), I inputs, H hidden units,
// D directions. Gate order i, f, g, o as in torch. E is the storage type (float, double or bfloat16);
// A is the accumulation type: float for float and bfloat16, double for double.
//
// Rows are time-major and packed: row(t, b) = offset[t] + b, where step t holds batch_sizes[t] sequences
// (never more than step t-1). Without batch_sizes every step holds B of them, and N = T*B.
// Direction 1 runs backwards in time; a sequence then starts at its own last step.
//
// Every pointer is borrowed for the call, contiguous, and none may alias another.
#pragma once
#include <cstdint>

namespace fusedlstm {

enum class DType : int { float32 = 0, float64 = 1, bfloat16 = 2 };

struct LayerShape {
  int64_t T, B, N, I, H, D;
  const int64_t* batch_sizes;  // [T], or null: B rows at every step
};

struct DirectionWeights {
  const void* w_ih;  // E [4H, I]
  const void* w_hh;  // E [4H, H]
  const void* b_ih;  // E [4H], or null (then b_hh is null too)
  const void* b_hh;  // E [4H]
};

struct LayerForward {
  LayerShape shape;
  const void* x;       // E [N, I], or null when ids is given
  const int64_t* ids;  // [N], each 0 <= id < I: a one-hot row of x
  const void* h0;      // E [D, B, H]
  const void* c0;      // E [D, B, H]
  DirectionWeights weights[2];
  void* y;      // E [N, D*H], written
  void* h_n;    // E [D, B, H], written
  void* c_n;    // E [D, B, H], written
  void* c;      // A [D, N, H], written; null when nothing is saved for the backward
  void* gates;  // E [D, N, 4H], activated i, f, g, o, written; null when c is
};

struct DirectionGradients {
  void* dw_ih;  // E [4H, I], written; null: not wanted (then dw_hh and db are null too)
  void* dw_hh;  // E [4H, H], written
  void* db;     // E [4H], written: the gradient of b_ih and of b_hh; null without bias
};

struct LayerBackward {
  LayerShape shape;
  const void* dy;    // E [N, D*H], or null for zeros
  const void* dh_n;  // E [D, B, H], or null for zeros
  const void* dc_n;  // E [D, B, H], or null for zeros
  const void* x;
  const int64_t* ids;
  const void* h0;
  const void* c0;
  DirectionWeights weights[2];
  const void* y;      // as the forward wrote it
  const void* c;      // as the forward wrote it
  const void* gates;  // as the forward wrote it
  void* dx;           // E [N, I], written; null: not wanted
  void* dh0;          // E [D, B, H], written
  void* dc0;          // E [D, B, H], written
  DirectionGradients gradients[2];
};

}  // namespace fusedlstm
