#include "equations.h"

#include <cctype>
#include <cmath>
#include <limits>
#include <string>

#include "refusal.h"

namespace lstmopt {
namespace {

struct Known {
  const char* name;
  Activation kind;
  bool takes_alpha, takes_beta;
  float alpha, beta;
};

// Alpha and beta where a model gives none are ONNX Runtime's.
constexpr Known kKnown[] = {
    {"sigmoid", Activation::kSigmoid, false, false, 0, 0},
    {"tanh", Activation::kTanh, false, false, 0, 0},
    {"relu", Activation::kRelu, false, false, 0, 0},
    {"affine", Activation::kAffine, true, true, 0, 0},
    {"leakyrelu", Activation::kLeakyRelu, true, false, 0.01f, 0},
    {"thresholdedrelu", Activation::kThresholdedRelu, true, false, 0, 0},
    {"scaledtanh", Activation::kScaledTanh, true, true, 0, 0},
    {"hardsigmoid", Activation::kHardSigmoid, true, true, 0.2f, 0.5f},
    {"elu", Activation::kElu, true, false, 1, 0},
    {"softsign", Activation::kSoftsign, false, false, 0, 0},
    {"softplus", Activation::kSoftplus, false, false, 0, 0},
};

std::vector<std::string> words(const char* text) {
  std::vector<std::string> found;
  std::string word;
  for (const char* at = text ? text : "";; ++at) {
    if (*at && *at != ' ') {
      word += char(std::tolower(static_cast<unsigned char>(*at)));
    } else {
      if (!word.empty()) found.push_back(word);
      word.clear();
      if (!*at) return found;
    }
  }
}

float next(const float* values, size_t count, size_t& used, float otherwise) {
  if (used >= count) return otherwise;
  if (!std::isfinite(values[used])) throw Refusal{"an activation's alpha or beta is not finite"};
  return values[used++];
}

}  // namespace

std::vector<Equations> read_equations(const lstmopt_layer_config& config, size_t directions) {
  std::vector<std::string> names = words(config.activations);
  const size_t each = config.cell == LSTMOPT_GRU ? 2 : 3;  // activations of a direction
  if (names.empty()) {
    for (size_t i = 0; i < each * directions; ++i) names.push_back(i % each ? "tanh" : "sigmoid");
  }
  if (names.size() != each * directions) {
    throw Refusal{"activations: expected " + std::to_string(each * directions) + " names"};
  }
  if (!(config.clip >= 0)) throw Refusal{"clip is negative or not a number"};
  std::vector<Function> functions;
  size_t alphas = 0, betas = 0;
  for (const std::string& name : names) {
    const Known* known = nullptr;
    for (const Known& item : kKnown) {
      if (name == item.name) known = &item;
    }
    if (!known) throw Refusal{"activation " + name.substr(0, 40) + " is unknown"};
    Function function{known->kind, known->alpha, known->beta};
    if (known->takes_alpha) function.alpha = next(config.alpha, config.alpha_count, alphas, known->alpha);
    if (known->takes_beta) function.beta = next(config.beta, config.beta_count, betas, known->beta);
    functions.push_back(function);
  }
  std::vector<Equations> result;
  for (size_t i = 0; i < directions; ++i) {
    const Function f = functions[each * i], g = functions[each * i + 1], h = functions[each * i + each - 1];
    const float clip = config.clip > 0 ? config.clip : std::numeric_limits<float>::infinity();
    const bool plain = f.kind == Activation::kSigmoid && g.kind == Activation::kTanh && h.kind == Activation::kTanh &&
                       config.clip == 0 && !config.input_forget;
    result.push_back({f, g, h, clip, config.input_forget != 0, plain});
  }
  return result;
}

}  // namespace lstmopt
