// Which copy of the engine runs here.
#pragma once
#include <string>
#include <vector>

#include "engine.h"

namespace fusedlstm::cpu {

// The engine in use: the widest instruction set of this processor, unless select() named another.
const Engine& engine();

// Names of the engines that this processor can run, widest first.
std::vector<std::string> available_engines();

// Switches to the named engine; throws std::invalid_argument when this processor cannot run it.
void select(const std::string& name);

}  // namespace fusedlstm::cpu
