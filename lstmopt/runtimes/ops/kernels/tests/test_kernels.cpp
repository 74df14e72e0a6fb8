// The kernels against a double-precision reference: every format, every instruction set of this CPU.
//
//   test_kernels [layers a format and instruction set] [threads]
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <utility>

#include "lstmopt_kernels.h"
#include "random_blob.h"
#include "reference.h"

namespace {

using namespace testing;

int failures = 0;

void check(bool holds, const char* what, const std::string& where) {
  if (holds) return;
  std::printf("FAILED %s: %s\n", where.c_str(), what);
  ++failures;
}

// A pool that starts a thread for each task: the worst case for races.
size_t pool_threads = 1;

void run_pool(void*, size_t count, void (*task)(void*, size_t), void* argument) {
  std::vector<std::thread> threads;
  for (size_t i = 1; i < count; ++i) threads.emplace_back(task, argument, i);
  task(argument, 0);
  for (std::thread& thread : threads) thread.join();
}

lstmopt_parallel pool() { return {run_pool, nullptr, pool_threads}; }

double error(const std::vector<float>& have, const std::vector<double>& want) {
  double off = 0, size = 1e-12;
  for (size_t i = 0; i < want.size(); ++i) {
    off += (have[i] - want[i]) * (have[i] - want[i]);
    size += want[i] * want[i];
  }
  return std::sqrt(off / size);
}

std::vector<float> normals(Random& random, size_t count, double size = 1) {
  std::vector<float> values(count);
  for (float& value : values) value = float(size * normal(random));
  return values;
}

struct Made {
  Layer layer;
  std::vector<uint8_t> w, r;
  std::string names;
  std::vector<float> alphas, betas;
  lstmopt_layer* object = nullptr;
  double error = 0;  // bound of the less exact one of the formats of W and R
};

void choose_activations(Random& random, const Kind& kind, Made& made) {
  const char* const bounded[] = {"Sigmoid", "Tanh", "HardSigmoid", "Softsign", "ScaledTanh"};
  const char* const any[] = {"Sigmoid", "Tanh", "HardSigmoid", "Softsign", "ScaledTanh", "Relu",
                             "Affine", "LeakyRelu", "ThresholdedRelu", "Elu", "Softplus"};
  const bool defaults = between(random, 0, 2) > 0;
  const int each = made.layer.functions();
  for (int i = 0; i < each * made.layer.directions; ++i) {
    // The gates are bounded, lest the state grows without end; a gate that is used with its complement (a GRU's
    // update, an LSTM's forget gate where it is coupled with the input's) lies between 0 and 1 for that.
    std::string name = i % each == 2 ? any[between(random, 0, 10)] : bounded[between(random, 0, 4)];
    if ((made.layer.gru || made.layer.input_forget) && i % each == 0) name = between(random, 0, 1) ? "Sigmoid" : "HardSigmoid";
    // A jump makes of any rounding an error as large as the jump: only what is not rounded can be held to a bound.
    if (name == "ThresholdedRelu" && kind.format != kKinds[0].format) name = "Relu";
    if (defaults) name = i % each ? "Tanh" : "Sigmoid";
    double alpha = name == "LeakyRelu" ? 0.01 : name == "HardSigmoid" ? 0.2 : 1, beta = name == "HardSigmoid" ? 0.5 : name == "ScaledTanh" ? 1 : 0;
    const bool takes_alpha = name == "LeakyRelu" || name == "HardSigmoid" || name == "ScaledTanh" || name == "Affine" ||
                             name == "ThresholdedRelu" || name == "Elu";
    const bool takes_beta = name == "HardSigmoid" || name == "ScaledTanh" || name == "Affine";
    if (takes_alpha) made.alphas.push_back(float(alpha *= 0.9));
    if (takes_beta) made.betas.push_back(float(beta *= 0.9));
    made.layer.activations.push_back(name);
    made.layer.alpha.push_back(takes_alpha ? made.alphas.back() : alpha);
    made.layer.beta.push_back(takes_beta ? made.betas.back() : beta);
    made.names += (i ? " " : "") + name;
  }
  if (defaults) made.names.clear();
}

// What a matrix of R is packed as: all gates of it, or of a GRU that resets before the product {z, r} and {h}.
Packed random_recurrent(Random& random, const Kind& kind, const Layer& layer, std::vector<uint8_t>& blob) {
  const bool split = layer.gru && !layer.reset_after;
  Packed r = random_blob(random, kind, split ? 2 : layer.gates(), layer.hidden, layer.hidden, between(random, 0, 4));
  blob.insert(blob.end(), r.blob.begin(), r.blob.end());
  if (!split) return r;
  // One gate has no index list to share with others.
  const Kind& plain = kind.format == 4 ? kKinds[3] : kind;
  const Packed rest = random_blob(random, plain, 1, layer.hidden, layer.hidden, between(random, 0, 4));
  blob.insert(blob.end(), rest.blob.begin(), rest.blob.end());
  r.dense.insert(r.dense.end(), rest.dense.begin(), rest.dense.end());
  return r;
}

Made make(Random& random, const Kind& kind, bool gru) {
  Made made;
  Layer& layer = made.layer;
  // W is packed by itself: half of the time in a format of its own.
  const Kind& of_w = between(random, 0, 1) ? kind : kKinds[between(random, 0, int(std::size(kKinds)) - 1)];
  const Kind& coarser = of_w.error > kind.error ? of_w : kind;
  made.error = coarser.error;
  layer.gru = gru;
  layer.reset_after = gru && between(random, 0, 1);
  layer.direction = between(random, 0, 2);
  layer.directions = layer.direction == 2 ? 2 : 1;
  layer.hidden = between(random, 1, 140);
  layer.input = between(random, 0, 9) ? between(random, 1, 140) : between(random, 2000, 3000);
  for (int d = 0; d < layer.directions; ++d) {
    const Packed w = random_blob(random, of_w, layer.gates(), layer.hidden, layer.input, between(random, 0, 4));
    made.w.insert(made.w.end(), w.blob.begin(), w.blob.end());
    const Packed r = random_recurrent(random, kind, layer, made.r);
    layer.w.push_back(w.dense);
    layer.r.push_back(r.dense);
  }
  if (between(random, 0, 3)) layer.b = normals(random, layer.directions * 2 * layer.gates() * layer.hidden, 0.3);
  if (!gru && !between(random, 0, 3)) layer.p = normals(random, layer.directions * 3 * layer.hidden, 0.3);
  if (!between(random, 0, 3)) layer.clip = 0.7;
  layer.input_forget = !gru && !between(random, 0, 3);
  choose_activations(random, coarser, made);
  lstmopt_layer_config config = {};
  config.cell = gru ? LSTMOPT_GRU : LSTMOPT_LSTM;
  config.linear_before_reset = layer.reset_after;
  config.direction = layer.direction;
  config.hidden_size = layer.hidden;
  config.w = made.w.data(), config.w_bytes = made.w.size();
  config.r = made.r.data(), config.r_bytes = made.r.size();
  config.b = layer.b.empty() ? nullptr : layer.b.data(), config.b_count = layer.b.size();
  config.p = layer.p.empty() ? nullptr : layer.p.data(), config.p_count = layer.p.size();
  config.activations = made.names.c_str();
  config.alpha = made.alphas.data(), config.alpha_count = made.alphas.size();
  config.beta = made.betas.data(), config.beta_count = made.betas.size();
  config.clip = float(layer.clip);
  layer.clip = config.clip;
  config.input_forget = layer.input_forget;
  char fault[200] = "";
  if (lstmopt_layer_create(&config, &made.object, fault, sizeof fault)) check(false, fault, kind.name);
  return made;
}

struct Errors {
  double worst = 0, squares = 0;  // of shares of the bounds
};

void test_layer(Random& random, const Kind& kind, bool gru, Errors* errors) {
  const std::string where = std::string(lstmopt_isa()) + (gru ? " gru " : " ") + kind.name;
  Made made = make(random, kind, gru);
  const Layer& layer = made.layer;
  const size_t D = layer.directions, H = layer.hidden, I = layer.input;
  const size_t steps = between(random, 1, 9), batch = between(random, 1, 9);
  const std::vector<float> x = normals(random, steps * batch * I), h0 = normals(random, D * batch * H), c0 = normals(random, D * batch * H);
  std::vector<int32_t> lengths(batch);
  for (int32_t& length : lengths) length = between(random, -1, int(steps) + 1);
  const bool states = between(random, 0, 1), cut = between(random, 0, 1);
  std::vector<float> y(steps * D * batch * H, 7), y_h(D * batch * H, 7), y_c(D * batch * H, gru ? 0 : 7);
  lstmopt_layer_call call = {steps, batch, x.data(), cut ? lengths.data() : nullptr, states ? h0.data() : nullptr,
                            states ? c0.data() : nullptr, y.data(), y_h.data(), y_c.data()};
  const lstmopt_parallel parallel = pool();
  check(!lstmopt_layer_run(made.object, &call, &parallel), "run", where);
  const Result want = run(layer, int(steps), int(batch), x.data(), call.lengths, call.h0, call.c0);
  const std::pair<const char*, double> offs[] = {
      {"Y", error(y, want.y)}, {"Y_h", error(y_h, want.y_h)}, {"Y_c", gru ? 0 : error(y_c, want.y_c)}};
  double off = 0;
  for (const auto& [name, each] : offs) {
    // Each by itself: std::fmax, good enough for what is printed, forgets a NaN.
    check(each < 3 * made.error, (std::string(name) + ": error " + std::to_string(each)).c_str(), where);
    off = std::fmax(off, each);
  }
  off /= made.error;
  errors->worst = std::fmax(errors->worst, off);
  errors->squares += off * off;

  // Row by row: the very same numbers.
  for (size_t row = 0; row < batch; ++row) {
    std::vector<float> own_x, own_h, own_c, own_y(steps * D * H), own_y_h(D * H), own_y_c(D * H);
    for (size_t t = 0; t < steps; ++t) own_x.insert(own_x.end(), &x[(t * batch + row) * I], &x[(t * batch + row) * I] + I);
    for (size_t d = 0; d < D; ++d) {
      own_h.insert(own_h.end(), &h0[(d * batch + row) * H], &h0[(d * batch + row) * H] + H);
      own_c.insert(own_c.end(), &c0[(d * batch + row) * H], &c0[(d * batch + row) * H] + H);
    }
    lstmopt_layer_call own = {steps, 1, own_x.data(), cut ? &lengths[row] : nullptr, states ? own_h.data() : nullptr,
                             states ? own_c.data() : nullptr, own_y.data(), own_y_h.data(), own_y_c.data()};
    lstmopt_layer_run(made.object, &own, nullptr);
    bool same = true;
    for (size_t i = 0; i < steps * D; ++i) same &= !std::memcmp(&own_y[i * H], &y[(i * batch + row) * H], H * 4);
    for (size_t d = 0; d < D; ++d) same &= !std::memcmp(&own_y_h[d * H], &y_h[(d * batch + row) * H], H * 4);
    for (size_t d = 0; d < D; ++d) same &= !std::memcmp(&own_y_c[d * H], &y_c[(d * batch + row) * H], H * 4);
    check(same, "a row alone differs from the same row in a batch", where);
  }
  lstmopt_layer_destroy(made.object);
}

void test_product(Random& random, const Kind& kind) {
  const std::string where = std::string(lstmopt_isa()) + " product " + kind.name;
  // Words of long rows are summed in parts: the state is encoded no worse than for short ones.
  const bool wide = !between(random, 0, 4);
  const int units = between(random, 1, wide ? 40 : 200), columns = wide ? 12000 : between(random, 1, 200);
  const int rows = between(random, 0, wide ? 9 : 40);
  const Packed w = random_blob(random, kind, 1, units, columns, wide ? 3 : between(random, 0, 4));
  const std::vector<float> b = normals(random, units), x = normals(random, size_t(rows) * columns);
  std::vector<float> y(size_t(rows) * units, 7);
  std::vector<double> want(y.size());
  for (int row = 0; row < rows; ++row) {
    for (int unit = 0; unit < units; ++unit) {
      double sum = b[unit];
      for (int i = 0; i < columns; ++i) sum += w.dense[size_t(unit) * columns + i] * x[size_t(row) * columns + i];
      want[size_t(row) * units + unit] = sum;
    }
  }
  lstmopt_matmul* product = nullptr;
  char fault[200] = "";
  if (lstmopt_matmul_create(w.blob.data(), w.blob.size(), b.data(), b.size(), &product, fault, sizeof fault)) check(false, fault, where);
  const lstmopt_parallel parallel = pool();
  check(!lstmopt_matmul_run(product, rows, x.data(), y.data(), &parallel), "run", where);
  const double off = error(y, want);
  const double bound = (wide && kind.format == 2 ? 1 : 3) * kind.error;
  check(off < bound, ("error " + std::to_string(off)).c_str(), where);
  if (rows) {
    std::vector<float> own(units);
    lstmopt_matmul_run(product, 1, &x[size_t(rows - 1) * columns], own.data(), nullptr);
    check(!std::memcmp(own.data(), &y[size_t(rows - 1) * units], size_t(units) * 4), "a row alone differs", where);
  }
  lstmopt_matmul_destroy(product);
}

// Several threads call one layer at once.
void test_sharing(Random& random, const Kind& kind, bool gru) {
  Made made = make(random, kind, gru);
  const Layer& layer = made.layer;
  const size_t steps = 5, batch = 3;
  const std::vector<float> x = normals(random, steps * batch * layer.input);
  std::vector<std::vector<float>> results(4, std::vector<float>(steps * layer.directions * batch * layer.hidden));
  std::vector<std::thread> threads;
  for (std::vector<float>& y : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) {
        lstmopt_layer_call call = {steps, batch, x.data(), nullptr, nullptr, nullptr, y.data(), nullptr, nullptr};
        const lstmopt_parallel parallel = pool();
        lstmopt_layer_run(made.object, &call, i % 2 ? &parallel : nullptr);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<float>& y : results) check(y == results[0], "threads differ", kind.name);
  lstmopt_layer_destroy(made.object);
}

// What does not fit the layer is refused when it is made.
void test_refusals(Random& random, const Kind& kind) {
  const Packed three = random_blob(random, kind, 3, 20, 20, 2), four = random_blob(random, kind, 4, 20, 20, 2),
               two = random_blob(random, kind, 2, 20, 20, 2);
  const float numbers[120] = {};
  const auto refused = [&](int cell, int after, const Packed& w, const Packed& r, size_t b, bool p, const char* names,
                           const char* fault) {
    lstmopt_layer_config config = {};
    config.cell = cell, config.linear_before_reset = after, config.activations = names;
    config.w = w.blob.data(), config.w_bytes = w.blob.size();
    config.r = r.blob.data(), config.r_bytes = r.blob.size();
    config.b = b ? numbers : nullptr, config.b_count = b;
    config.p = p ? numbers : nullptr, config.p_count = 60;
    lstmopt_layer* layer = nullptr;
    char text[200] = "";
    const bool made = !lstmopt_layer_create(&config, &layer, text, sizeof text);
    check(!made && std::strstr(text, fault), (std::string("not refused rightly: ") + fault + " / " + text).c_str(), kind.name);
    if (made) lstmopt_layer_destroy(layer);
  };
  refused(7, 0, four, four, 0, false, "", "unknown cell");
  refused(LSTMOPT_LSTM, 1, four, four, 0, false, "", "linear_before_reset is for a GRU");
  refused(LSTMOPT_LSTM, 0, three, three, 0, false, "", "W is packed for 3 gates, expected 4");
  refused(LSTMOPT_GRU, 1, four, three, 0, false, "", "W is packed for 4 gates, expected 3");
  refused(LSTMOPT_GRU, 1, three, two, 0, false, "", "R is packed for 2 gates, expected 3");
  refused(LSTMOPT_GRU, 0, three, three, 0, false, "", "R is packed for 3 gates, expected 2");
  refused(LSTMOPT_GRU, 0, three, two, 0, false, "", "packed weights are cut off");
  refused(LSTMOPT_GRU, 1, three, three, 100, false, "", "B has 100 values, expected 120");
  refused(LSTMOPT_GRU, 1, three, three, 0, true, "", "P and input_forget are for an LSTM");
  refused(LSTMOPT_GRU, 1, three, three, 0, false, "Sigmoid Tanh Tanh", "expected 2 names");
}

// Numbers that are not finite come out as NaN, and stay in their row.
void test_not_finite(Random& random, const Kind& kind) {
  const std::string where = std::string(lstmopt_isa()) + " " + kind.name;
  const int columns = 70, units = 40;
  const Packed w = random_blob(random, kind, 1, units, columns, 3);
  lstmopt_matmul* product = nullptr;
  lstmopt_matmul_create(w.blob.data(), w.blob.size(), nullptr, 0, &product, nullptr, 0);
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    std::vector<float> x = normals(random, 3 * columns), y(3 * units);
    for (int i = 0; i < columns; ++i) x[columns + i] = bad;
    lstmopt_matmul_run(product, 3, x.data(), y.data(), nullptr);
    for (int i = 0; i < units; ++i) check(std::isfinite(y[i]) && std::isfinite(y[2 * units + i]), "NaN spread", where);
    if (kind.format != 1) check(std::isnan(y[units]), "NaN was lost", where);
  }
  lstmopt_matmul_destroy(product);
}

}  // namespace

int main(int count, char** arguments) {
  const int layers = count > 1 ? std::atoi(arguments[1]) : 30;
  pool_threads = count > 2 ? size_t(std::atoi(arguments[2])) : 1;
  for (size_t isa = 0; isa < lstmopt_isa_count(); ++isa) {
    if (lstmopt_set_isa(lstmopt_isa_name(isa))) {
      std::printf("%-12s not on this CPU\n", lstmopt_isa_name(isa));
      continue;
    }
    for (const Kind& kind : kKinds) {
      Random random(7);
      for (const bool gru : {false, true}) {
        Errors errors;
        for (int i = 0; i < layers; ++i) test_layer(random, kind, gru, &errors);
        const double mean = std::sqrt(errors.squares / layers);
        check(mean < 1, "the mean error", std::string(lstmopt_isa()) + (gru ? " gru " : " ") + kind.name);
        for (int i = 0; i < (layers + 9) / 10; ++i) test_sharing(random, kind, gru);
        std::printf("%-12s %s %-11s error %.2f of its bound, worst %.2f\n", lstmopt_isa(), gru ? "GRU " : "LSTM", kind.name,
                    mean, errors.worst);
      }
      test_refusals(random, kind);
      for (int i = 0; i < layers && kind.format != 4; ++i) test_product(random, kind);
      if (kind.format != 4) test_not_finite(random, kind);
    }
  }
  std::printf(failures ? "%d FAILED\n" : "all passed\n", failures);
  return failures != 0;
}
