// ONNX's LSTM and GRU in double precision, written from their specifications, one value at a time. Of a sequence
// of length 0 they say nothing: the last states are zeros then, as ONNX Runtime's are.
#pragma once

#include <cmath>
#include <string>
#include <vector>

namespace testing {

struct Layer {
  bool gru = false, reset_after = false;
  int direction = 0, directions = 1, hidden = 1, input = 1;
  std::vector<std::vector<double>> w, r;  // [direction][gates, hidden, columns]
  std::vector<float> b, p;
  std::vector<std::string> activations;  // three a direction, of a GRU two
  std::vector<double> alpha, beta;       // one an activation
  double clip = 0;
  bool input_forget = false;

  int gates() const { return gru ? 3 : 4; }
  int functions() const { return gru ? 2 : 3; }  // activations of a direction
};

struct Result {
  std::vector<double> y, y_h, y_c;
};

inline double activate(const std::string& name, double a, double b, double x) {
  if (name == "Sigmoid") return 1 / (1 + std::exp(-x));
  if (name == "Tanh") return std::tanh(x);
  if (name == "Relu") return std::fmax(x, 0);
  if (name == "Affine") return a * x + b;
  if (name == "LeakyRelu") return x < 0 ? a * x : x;
  if (name == "ThresholdedRelu") return x >= a ? x : 0;
  if (name == "ScaledTanh") return a * std::tanh(b * x);
  if (name == "HardSigmoid") return std::fmin(std::fmax(a * x + b, 0), 1);
  if (name == "Elu") return x >= 0 ? x : a * std::expm1(x);
  if (name == "Softsign") return x / (1 + std::fabs(x));
  return std::log1p(std::exp(x));
}

// One step of one row: a GRU's new state from W x, without biases, and the old one.
template <class Act, class Clip>
std::vector<double> gru_step(const Layer& layer, int d, const std::vector<double>& sums, const std::vector<double>& h,
                             const Act& act, const Clip& clip) {
  const int H = layer.hidden;
  const auto bias = [&](int which, int g, int u) { return layer.b.empty() ? 0.0 : double(layer.b[((d * 2 + which) * 3 + g) * H + u]); };
  const auto recurrent = [&](int g, int u, const std::vector<double>& read) {
    double sum = bias(1, g, u);
    for (int i = 0; i < H; ++i) sum += layer.r[d][(size_t(g) * H + u) * H + i] * read[i];
    return sum;
  };
  const auto given = [&](int g, int u) { return sums[g * H + u] + bias(0, g, u); };
  std::vector<double> z(H), reset(H), read(H), next(H);
  for (int u = 0; u < H; ++u) {
    z[u] = act(0, clip(given(0, u) + recurrent(0, u, h)));
    reset[u] = act(0, clip(given(1, u) + recurrent(1, u, h)));
    read[u] = reset[u] * h[u];
  }
  for (int u = 0; u < H; ++u) {
    const double inner = layer.reset_after ? reset[u] * recurrent(2, u, h) : recurrent(2, u, read);
    next[u] = (1 - z[u]) * act(1, clip(given(2, u) + inner)) + z[u] * h[u];
  }
  return next;
}

inline Result run(const Layer& layer, int steps, int batch, const float* x, const int32_t* lengths, const float* h0,
                  const float* c0) {
  const int H = layer.hidden, I = layer.input, D = layer.directions;
  Result result;
  result.y.assign(size_t(steps) * D * batch * H, 0);
  result.y_h.assign(size_t(D) * batch * H, 0);
  result.y_c = result.y_h;
  for (int d = 0; d < D; ++d) {
    const auto act = [&](int which, double value) {
      const int i = layer.functions() * d + which;
      return activate(layer.activations[i], layer.alpha[i], layer.beta[i], value);
    };
    const auto clip = [&](double value) { return layer.clip > 0 ? std::fmax(-layer.clip, std::fmin(layer.clip, value)) : value; };
    const bool backward = layer.direction == 1 || d == 1;
    for (int row = 0; row < batch; ++row) {
      const size_t state = (size_t(d) * batch + row) * H;
      std::vector<double> h(H), c(H);
      for (int u = 0; u < H; ++u) h[u] = h0 ? h0[state + u] : 0, c[u] = c0 ? c0[state + u] : 0;
      const int length = lengths ? std::max(0, std::min(steps, lengths[row])) : steps;
      for (int step = 0; step < length; ++step) {
        const int t = backward ? length - 1 - step : step;
        const float* row_x = x + (size_t(t) * batch + row) * I;
        if (layer.gru) {
          std::vector<double> sums(3 * H);
          for (int i = 0; i < 3 * H * I; ++i) sums[i / I] += layer.w[d][i] * row_x[i % I];
          h = gru_step(layer, d, sums, h, act, clip);
          for (int u = 0; u < H; ++u) result.y[((size_t(t) * D + d) * batch + row) * H + u] = h[u];
          continue;
        }
        std::vector<double> sums(4 * H), h_next(H);
        for (int g = 0; g < 4; ++g) {
          for (int u = 0; u < H; ++u) {
            double sum = 0;
            if (!layer.b.empty()) sum += double(layer.b[(d * 8 + g) * H + u]) + layer.b[(d * 8 + 4 + g) * H + u];
            for (int i = 0; i < I; ++i) sum += layer.w[d][(size_t(g) * H + u) * I + i] * row_x[i];
            for (int i = 0; i < H; ++i) sum += layer.r[d][(size_t(g) * H + u) * H + i] * h[i];
            sums[g * H + u] = sum;
          }
        }
        for (int u = 0; u < H; ++u) {
          const auto peep = [&](int which, double cell) { return layer.p.empty() ? 0.0 : layer.p[(d * 3 + which) * H + u] * cell; };
          const double i = act(0, clip(sums[u] + peep(0, c[u])));
          const double f = layer.input_forget ? 1 - i : act(0, clip(sums[2 * H + u] + peep(2, c[u])));
          c[u] = f * c[u] + i * act(1, clip(sums[3 * H + u]));
          h_next[u] = act(0, clip(sums[H + u] + peep(1, c[u]))) * act(2, c[u]);
        }
        h = h_next;
        for (int u = 0; u < H; ++u) result.y[((size_t(t) * D + d) * batch + row) * H + u] = h[u];
      }
      for (int u = 0; u < H && length; ++u) result.y_h[state + u] = h[u], result.y_c[state + u] = c[u];
    }
  }
  return result;
}

}  // namespace testing
