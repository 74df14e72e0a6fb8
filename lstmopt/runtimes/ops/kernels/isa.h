// One implementation of the inner functions for each instruction set, chosen at run time.
//
// The files of the instruction sets are compiled with their own flags. They keep everything in an
// anonymous namespace and use no templates of the standard library: the linker would be free to pick
// their copy of a shared inline function for CPUs that cannot run it.
#pragma once

#include "matrix.h"

namespace lstmopt {

// Sums of some panels for some states: out[column * stride + (panel - first) * rows + row].
struct Dot {
  size_t first, last;
  const uint8_t* const* states;
  const float* scales;
  const float* bias;  // [panels * rows], or null
  float* out;
  size_t stride;
};

using DotFunction = void (*)(const Matrix&, const Dot&);

enum class Activation {
  kSigmoid, kTanh, kRelu, kAffine, kLeakyRelu, kThresholdedRelu, kScaledTanh, kHardSigmoid, kElu, kSoftsign, kSoftplus
};

struct Function {
  Activation kind;
  float alpha, beta;
};

// What a cell does to its sums, beside the weights; a GRU has no h.
struct Equations {
  Function f, g, h;
  float clip;  // infinity: none
  bool input_forget;
  bool plain;  // the default activations and nothing else
};

// The update of some panels of one sequence's states, of an LSTM.
struct Cell {
  size_t panels;
  const float* x;  // input part of the sums, [panels, 4, 16]
  const float* r;  // recurrent part
  const float* p;  // peepholes, [panels, 3, 16], or null
  float* c;        // [panels, 16]
  float* h;
};

// The same of a GRU. Where the reset comes before the product, the update is in two parts: `z` and `read` are
// what the first hands to the second.
struct GruCell {
  size_t panels;
  const float* x;  // input part of the sums, [panels, 3, 16]
  const float* r;  // recurrent part, [panels, 3, 16]; of the first part [panels, 2, 16], of the second [panels, 16]
  float* z;        // [panels, 16]
  float* read;     // [panels, 16]: reset . h, which is multiplied with R
  float* h;
};

struct Isa {
  const char* name;
  bool (*usable)();
  size_t most_columns;  // states that a dot function takes at once: 1, 2 or 4
  // Encodes a state or an input of matrix.columns values into matrix.state_bytes.
  void (*encode)(const Matrix&, const float* values, uint8_t* state, float* scale);
  DotFunction (*dot)(const Matrix&, size_t columns);
  void (*cell)(const Equations&, const Cell&);
  void (*gru)(const Equations&, const GruCell&);  // reset after the product
  void (*gru_gates)(const Equations&, const GruCell&);
  void (*gru_state)(const Equations&, const GruCell&);
};

extern const Isa kPortable;
#if defined(LSTMOPT_X86)
extern const Isa kAvx2, kAvx512, kAvx512Vnni;
#endif

const Isa& current_isa();

}  // namespace lstmopt
