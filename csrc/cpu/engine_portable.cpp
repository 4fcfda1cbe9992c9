#define FUSEDLSTM_ENGINE portable_engine
#define FUSEDLSTM_NAME "portable"
#define FUSEDLSTM_AVAILABLE true
#define FUSEDLSTM_VECTOR_BYTES 16
#define FUSEDLSTM_TILE_ROWS 6
#include "engine.inc"
