// The CPU engine's table of entry points: one per instruction set, chosen at run time.
#pragma once
#include "../recurrence.h"
#include "generator.h"

namespace fusedlstm::cpu {

struct Engine {
  const char* name;
  bool (*available)();
  void (*forward)(DType, const LayerForward&, int threads);
  void (*backward)(DType, const LayerBackward&, int threads);
  Generator* (*generator)(Precision, const Stack&);    // packs the weights; the caller deletes it
  double (*peak)(DType, int threads, double seconds);  // FLOP/s of the micro-kernel on data in L1
};

extern const Engine avx512bf16_engine, avx512_engine, avx2_engine, portable_engine;

}  // namespace fusedlstm::cpu
