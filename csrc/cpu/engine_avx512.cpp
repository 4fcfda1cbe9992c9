#define FUSEDLSTM_ENGINE avx512_engine
#define FUSEDLSTM_NAME "avx512"
#define FUSEDLSTM_AVAILABLE                                                                                        \
  __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && \
      __builtin_cpu_supports("avx512vl")
#define FUSEDLSTM_VECTOR_BYTES 64
#define FUSEDLSTM_TILE_ROWS 12
#include "engine.inc"
