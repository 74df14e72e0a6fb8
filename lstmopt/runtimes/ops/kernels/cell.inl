// The update of a cell: 16 units at a time, in the compiler's own vectors, which become whatever the
// file's instruction set has.

typedef float Vector __attribute__((vector_size(64), aligned(64)));
typedef float Unaligned __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(64), aligned(64)));

#define LSTMOPT_INLINE static inline __attribute__((always_inline))

LSTMOPT_INLINE Vector load(const float* at) { return *reinterpret_cast<const Unaligned*>(at); }
LSTMOPT_INLINE void store(float* at, Vector value) { *reinterpret_cast<Unaligned*>(at) = value; }
LSTMOPT_INLINE Vector all(float value) { return Vector{} + value; }

// Both are `x` where x is NaN.
LSTMOPT_INLINE Vector at_least(Vector x, float bound) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(_mm512_max_ps(_mm512_set1_ps(bound), reinterpret_cast<__m512>(x)));
#else
  return all(bound) > x ? all(bound) : x;
#endif
}

LSTMOPT_INLINE Vector at_most(Vector x, float bound) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(_mm512_min_ps(_mm512_set1_ps(bound), reinterpret_cast<__m512>(x)));
#else
  return all(bound) < x ? all(bound) : x;
#endif
}

// Of what is below 2^126: infinity would become NaN.
LSTMOPT_INLINE Vector reciprocal(Vector x) {
#if defined(__AVX512F__)
  const Vector r = reinterpret_cast<Vector>(_mm512_rcp14_ps(reinterpret_cast<__m512>(x)));
  return r + r * (1.0f - x * r);
#else
  return 1.0f / x;
#endif
}

// e^(factor * x) = power * (1 + r * slope): `power` a power of two, the rest a polynomial for |r| <= ln 2 / 2
// that was fitted to a relative error of 1.7e-8. factor is a power of two or its negative, and goes into the
// constants; factor * x must lie within -88..88.
struct Exponential {
  Vector power, r, slope;
};

template <int Factor>
LSTMOPT_INLINE Exponential exponential(Vector x) {
  constexpr float kUnit = Factor, kPart = 1.0f / Factor;
  // Adding 1.5 * 2^23 rounds to the nearest integer n, which lies in the low bits, here with the exponent's
  // bias of 127 added: shifted up, they are 2^n.
  const Vector shifted = x * (1.44269504f * kUnit) + (12582912.0f + 127.0f);
  const Vector n = shifted - (12582912.0f + 127.0f);
  Exponential e;
  e.power = reinterpret_cast<Vector>(reinterpret_cast<Integers>(shifted) << 23);
  e.r = (x - n * (0x1.62e4p-1f * kPart)) - n * (0x1.7f7d1cp-20f * kPart);  // n * (ln 2 = high + low)
  Vector q = e.r * (0x1.6bebfep-10f * kUnit * kUnit * kUnit * kUnit * kUnit * kUnit) +
             0x1.1227b0p-7f * kUnit * kUnit * kUnit * kUnit * kUnit;
  q = q * e.r + 0x1.555674p-5f * kUnit * kUnit * kUnit * kUnit;
  q = q * e.r + 0x1.5554b0p-3f * kUnit * kUnit * kUnit;
  q = q * e.r + 0x1.fffffep-2f * kUnit * kUnit;
  e.slope = q * e.r + kUnit;
  return e;
}

// sigmoid(x) = 1 / sigmoid_denominator(x); below -44 it stays at 1e-19.
LSTMOPT_INLINE Vector sigmoid_denominator(Vector x) {
  const Exponential e = exponential<-1>(at_most(at_least(x, -44.0f), 44.0f));
  return e.power * (e.r * e.slope + 1.0f) + 1.0f;
}

// tanh(x) = (e^2x - 1) / (e^2x + 1), exact for small x too.
LSTMOPT_INLINE void tanh_fraction(Vector x, Vector* numerator, Vector* denominator) {
  const Exponential e = exponential<2>(at_most(at_least(x, -10.0f), 10.0f));
  const Vector above = e.r * e.slope;
  *numerator = e.power * above + (e.power - 1.0f);
  *denominator = e.power * above + (e.power + 1.0f);
}

LSTMOPT_INLINE Vector sigmoid(Vector x) { return reciprocal(sigmoid_denominator(x)); }

LSTMOPT_INLINE Vector tanh(Vector x) {
  Vector numerator, denominator;
  tanh_fraction(x, &numerator, &denominator);
  return numerator * reciprocal(denominator);
}

// sigmoid(a) * tanh(b), at one reciprocal.
LSTMOPT_INLINE Vector gated_tanh(Vector a, Vector b) {
  Vector numerator, denominator;
  tanh_fraction(b, &numerator, &denominator);
  return numerator * reciprocal(denominator * sigmoid_denominator(a));
}

// Activations that models rarely have, one value at a time.
inline float scalar(const Function& function, float x) {
  switch (function.kind) {
    case Activation::kElu: return x >= 0 ? x : function.alpha * ::expm1f(x);
    case Activation::kSoftsign: return x / (1.0f + (x < 0 ? -x : x));
    default: return x > 0 ? x + ::log1pf(::expf(-x)) : ::log1pf(::expf(x));
  }
}

inline Vector activate(const Function& function, Vector x) {
  const float a = function.alpha, b = function.beta;
  switch (function.kind) {
    case Activation::kSigmoid: return sigmoid(x);
    case Activation::kTanh: return tanh(x);
    case Activation::kRelu: return at_least(x, 0.0f);
    case Activation::kAffine: return x * a + b;
    case Activation::kLeakyRelu: return x < 0.0f ? x * a : x;
    case Activation::kThresholdedRelu: return x >= a ? x : Vector{};
    case Activation::kScaledTanh: return tanh(x * b) * a;
    case Activation::kHardSigmoid: return at_most(at_least(x * a + b, 0.0f), 1.0f);
    default:
      for (size_t lane = 0; lane < kLanes; ++lane) x[lane] = scalar(function, x[lane]);
      return x;
  }
}

LSTMOPT_INLINE void plain_cell(const Cell& call, size_t panel) {
  const float *x = call.x + panel * 4 * kLanes, *r = call.r + panel * 4 * kLanes;
  const Vector f = sigmoid(load(x + 32) + load(r + 32));
  const Vector c = f * load(call.c + panel * kLanes) + gated_tanh(load(x) + load(r), load(x + 48) + load(r + 48));
  store(call.c + panel * kLanes, c);
  store(call.h + panel * kLanes, gated_tanh(load(x + 16) + load(r + 16), c));
}

inline void any_cell(const Equations& equations, const Cell& call, size_t panel) {
  const float *x = call.x + panel * 4 * kLanes, *r = call.r + panel * 4 * kLanes;
  const float* p = call.p ? call.p + panel * 3 * kLanes : nullptr;
  const auto clipped = [&](Vector sum) { return at_most(at_least(sum, -equations.clip), equations.clip); };
  const auto gate = [&](size_t number, int peephole, Vector cell) {
    Vector sum = load(x + number * kLanes) + load(r + number * kLanes);
    if (p && peephole >= 0) sum = sum + load(p + peephole * kLanes) * cell;
    return clipped(sum);
  };
  const Vector before = load(call.c + panel * kLanes);
  const Vector i = activate(equations.f, gate(0, 0, before));
  const Vector f = equations.input_forget ? 1.0f - i : activate(equations.f, gate(2, 2, before));
  const Vector c = f * before + i * activate(equations.g, gate(3, -1, before));
  store(call.c + panel * kLanes, c);
  const Vector o = activate(equations.f, gate(1, 1, c));
  store(call.h + panel * kLanes, o * activate(equations.h, c));
}

void cell(const Equations& equations, const Cell& call) {
  if (equations.plain && !call.p) {
    for (size_t panel = 0; panel < call.panels; ++panel) plain_cell(call, panel);
  } else {
    for (size_t panel = 0; panel < call.panels; ++panel) any_cell(equations, call, panel);
  }
}

LSTMOPT_INLINE Vector clipped(const Equations& equations, Vector sum) {
  return at_most(at_least(sum, -equations.clip), equations.clip);
}

LSTMOPT_INLINE Vector gru_gate(const Equations& equations, Vector sum) {
  return equations.plain ? sigmoid(sum) : activate(equations.f, clipped(equations, sum));
}

// (1 - z) . n + z . h, n of the sum of gate h.
LSTMOPT_INLINE void gru_blend(const Equations& equations, Vector sum, Vector z, float* h) {
  const Vector n = equations.plain ? tanh(sum) : activate(equations.g, clipped(equations, sum));
  store(h, (1.0f - z) * n + z * load(h));
}

void gru(const Equations& equations, const GruCell& call) {
  for (size_t panel = 0; panel < call.panels; ++panel) {
    const float *x = call.x + panel * 3 * kLanes, *r = call.r + panel * 3 * kLanes;
    const Vector z = gru_gate(equations, load(x) + load(r)), reset = gru_gate(equations, load(x + 16) + load(r + 16));
    gru_blend(equations, load(x + 32) + reset * load(r + 32), z, call.h + panel * kLanes);
  }
}

void gru_gates(const Equations& equations, const GruCell& call) {
  for (size_t panel = 0; panel < call.panels; ++panel) {
    const float *x = call.x + panel * 3 * kLanes, *r = call.r + panel * 2 * kLanes;
    store(call.z + panel * kLanes, gru_gate(equations, load(x) + load(r)));
    const Vector reset = gru_gate(equations, load(x + 16) + load(r + 16));
    store(call.read + panel * kLanes, reset * load(call.h + panel * kLanes));
  }
}

void gru_state(const Equations& equations, const GruCell& call) {
  for (size_t panel = 0; panel < call.panels; ++panel) {
    const Vector sum = load(call.x + panel * 3 * kLanes + 32) + load(call.r + panel * kLanes);
    gru_blend(equations, sum, load(call.z + panel * kLanes), call.h + panel * kLanes);
  }
}
