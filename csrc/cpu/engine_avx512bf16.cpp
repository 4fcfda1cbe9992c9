#define FUSEDLSTM_ENGINE avx512bf16_engine
#define FUSEDLSTM_NAME "avx512bf16"
#define FUSEDLSTM_AVAILABLE avx512_engine.available() && __builtin_cpu_supports("avx512bf16")
#define FUSEDLSTM_VECTOR_BYTES 64
#define FUSEDLSTM_TILE_ROWS 12
#include "engine.inc"
