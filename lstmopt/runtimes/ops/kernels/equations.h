// ONNX's names of activations and the attributes that go with them.
#pragma once

#include <vector>

#include "isa.h"
#include "lstmopt_kernels.h"

namespace lstmopt {

// Returns the equations of each direction. Throws Refusal.
std::vector<Equations> read_equations(const lstmopt_layer_config& config, size_t directions);

}  // namespace lstmopt
