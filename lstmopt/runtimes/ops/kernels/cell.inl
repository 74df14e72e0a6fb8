// The update of a cell: 16 units at a time, in the compiler's own vectors, which become whatever the
// file's instruction set has.

typedef float Vector __attribute__((vector_size(64), aligned(64)));
typedef float Unaligned __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(64), aligned(64)));

#define LSTMOPT_INLINE static inline __attribute__((always_inline))

LSTMOPT_INLINE Vector load(const float* at) { return *reinterpret_cast<const Unaligned*>(at); }
LSTMOPT_INLINE void store(float* at, Vector value) { *reinterpret_cast<Unaligned*>(at) = value; }
LSTMOPT_INLINE Vector all(float value) { return Vector{} + value; }

// The result is `x` where x is NaN.
LSTMOPT_INLINE Vector at_least(Vector x, float bound) { return all(bound) > x ? all(bound) : x; }
LSTMOPT_INLINE Vector at_most(Vector x, float bound) { return all(bound) < x ? all(bound) : x; }

LSTMOPT_INLINE Vector reciprocal(Vector x) {
#if defined(__AVX512F__)
  const Vector r = reinterpret_cast<Vector>(_mm512_rcp14_ps(reinterpret_cast<__m512>(x)));
  return r + r * (1.0f - x * r);  // infinity would become NaN: all arguments here are below 2^127
#else
  return 1.0f / x;
#endif
}

// e^x - 1 = power * fraction + (power - 1): `power` a power of two, `fraction` = e^r - 1, |r| <= ln 2 / 2.
// The polynomial was fitted to a relative error of 1.7e-8. x must lie within -87..88.
LSTMOPT_INLINE void split_exp(Vector x, Vector* power, Vector* fraction) {
  const Vector shifted = x * 1.44269504f + 12582912.0f;  // rounds, see encode.inl
  const Vector n = shifted - 12582912.0f;
  const Vector r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;  // n * (ln 2 = high + low)
  *power = reinterpret_cast<Vector>((reinterpret_cast<Integers>(shifted) << 23) + 0x3F800000);
  Vector q = r * 0x1.6bebfep-10f + 0x1.1227b0p-7f;
  q = q * r + 0x1.555674p-5f;
  q = q * r + 0x1.5554b0p-3f;
  q = q * r + 0x1.fffffep-2f;
  *fraction = q * (r * r) + r;
}

LSTMOPT_INLINE Vector sigmoid(Vector x) {
  Vector power, fraction;
  split_exp(at_most(at_least(-x, -87.0f), 87.0f), &power, &fraction);
  return reciprocal(power * fraction + power + 1.0f);
}

LSTMOPT_INLINE Vector tanh(Vector x) {
  const Integers sign = reinterpret_cast<Integers>(x) & INT32_MIN;
  const Vector magnitude = reinterpret_cast<Vector>(reinterpret_cast<Integers>(x) ^ sign);
  Vector power, fraction;
  split_exp(at_most(magnitude, 10.0f) * 2.0f, &power, &fraction);
  const Vector e = power * fraction + (power - 1.0f);
  const Vector result = e * reciprocal(e + 2.0f);
  return reinterpret_cast<Vector>(reinterpret_cast<Integers>(result) | sign);
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
  const Vector i = sigmoid(load(x) + load(r));
  const Vector f = sigmoid(load(x + 32) + load(r + 32));
  const Vector g = tanh(load(x + 48) + load(r + 48));
  const Vector c = f * load(call.c + panel * kLanes) + i * g;
  store(call.c + panel * kLanes, c);
  store(call.h + panel * kLanes, sigmoid(load(x + 16) + load(r + 16)) * tanh(c));
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
