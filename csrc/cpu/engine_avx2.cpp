#define FUSEDLSTM_ENGINE avx2_engine
#define FUSEDLSTM_NAME "avx2"
#define FUSEDLSTM_AVAILABLE __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
#define FUSEDLSTM_VECTOR_BYTES 32
#define FUSEDLSTM_TILE_ROWS 6
#include "engine.inc"
