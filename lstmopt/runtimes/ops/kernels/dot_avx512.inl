// Sums of panels with 512-bit registers: one for 16 rows. The file that includes this names the way int8
// is multiplied (struct Bytes).
//
// A format says how to load a bank of a state, how to load the weights of 16 rows, and how to add their
// products. Sums run side by side for each state: of a panel's gates, or for a plain matrix of four
// slots. Sums of f32 come out the same for any number of states.

struct F32Sums {
  using Sum = __m512;
  struct Bank { __m512 low, high; };
  struct Weights { __m512 value; };
  static constexpr size_t kGroup = 64, kShared = 0;
  static Bank bank(const uint8_t* at) { return {_mm512_loadu_ps(at), _mm512_loadu_ps(at + 64)}; }
  static Weights weights(const uint8_t*, const uint8_t* group) { return {_mm512_load_ps(group)}; }
  static Sum add(Sum sum, const Bank& bank, const Weights& w) {
    return _mm512_fmadd_ps(_mm512_permutex2var_ps(bank.low, _mm512_castps_si512(w.value), bank.high), w.value, sum);
  }
};

struct Words32 {
  using Sum = __m512i;
  struct Bank { __m512i words; };
  struct Weights { __m512i words; };
  static constexpr size_t kGroup = 64, kShared = 0;
  static Bank bank(const uint8_t* at) { return {_mm512_loadu_si512(at)}; }
  static Weights weights(const uint8_t*, const uint8_t* group) { return {_mm512_load_si512(group)}; }
  static Sum add(Sum sum, const Bank& bank, const Weights& w) {
    return add_words(sum, _mm512_permutexvar_epi16(w.words, bank.words), w.words);
  }
};

struct Words64 {
  using Sum = __m512i;
  struct Bank { __m512i low, high; };
  struct Weights { __m512i words; };
  static constexpr size_t kGroup = 64, kShared = 0;
  static Bank bank(const uint8_t* at) { return {_mm512_loadu_si512(at), _mm512_loadu_si512(at + 64)}; }
  static Weights weights(const uint8_t*, const uint8_t* group) { return {_mm512_load_si512(group)}; }
  static Sum add(Sum sum, const Bank& bank, const Weights& w) {
    return add_words(sum, _mm512_permutex2var_epi16(bank.low, w.words, bank.high), w.words);
  }
};

struct OwnBytes : Bytes {
  static constexpr size_t kGroup = 128, kShared = 0;
  static Weights weights(const uint8_t*, const uint8_t* group) { return pair(group + 64, group); }
};

struct SharedBytes : Bytes {
  static constexpr size_t kGroup = 64, kShared = 64;
  static Weights weights(const uint8_t* slot, const uint8_t* group) { return pair(slot, group); }
};

inline __m512 zero_sum(const Matrix&, size_t, __m512) { return _mm512_setzero_ps(); }
inline __m512i zero_sum(const Matrix& matrix, size_t row, __m512i) { return _mm512_load_si512(&matrix.origin[row]); }

inline __m512 plus(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
inline __m512i plus(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }

// `before`: of the parts before the last.
template <int Planes>
inline __m512 finish(const Matrix&, size_t, float, const __m512* sums, __m512) {
  return sums[0];
}

template <int Planes>
inline __m512 finish(const Matrix& matrix, size_t row, float scale, const __m512i* sums, __m512 before) {
  __m512 sum = _mm512_cvtepi32_ps(sums[0]);
  if constexpr (Planes == 2) sum = _mm512_fmadd_ps(sum, _mm512_set1_ps(128.0f), _mm512_cvtepi32_ps(sums[1]));
  sum = _mm512_add_ps(sum, before);
  return _mm512_mul_ps(sum, _mm512_mul_ps(_mm512_load_ps(&matrix.scale[row]), _mm512_set1_ps(scale)));
}

constexpr size_t kAhead = 1024;  // bytes that weights are fetched ahead

// Where a panel's sums are: its next slot, and the sums so far.
template <class Kind, int Gates, int States>
struct Sums {
  static constexpr int kSums = Gates == 1 ? 4 : Gates;
  static constexpr size_t kSlot = Gates * Kind::kGroup + Kind::kShared;
  const uint8_t* slot;
  const uint32_t* offset;
  typename Kind::Sum sums[kSums][States];

  [[gnu::always_inline]] void add_until(const uint32_t* end, const uint8_t* const* states) {
    for (; offset != end; offset += Gates == 1 ? 4 : 1, slot += Gates == 1 ? 4 * kSlot : kSlot) {
      // Weights come from the L2 cache, faster when they are asked for early.
#pragma GCC unroll 16
      for (size_t line = 0; line < (Gates == 1 ? 4 * kSlot : kSlot); line += 64) __builtin_prefetch(slot + kAhead + line);
      typename Kind::Bank banks[States];
#pragma GCC unroll 4
      for (int j = 0; j < kSums; ++j) {
        const uint8_t* own = Gates == 1 ? slot + j * kSlot : slot;
        const typename Kind::Weights weights = Kind::weights(own, Gates == 1 ? own : own + Kind::kShared + j * Kind::kGroup);
#pragma GCC unroll 4
        for (int i = 0; i < States; ++i) {
          if (Gates == 1 || j == 0) banks[i] = Kind::bank(states[i] + offset[Gates == 1 ? j : 0]);
          sums[j][i] = Kind::add(sums[j][i], banks[i], weights);
        }
      }
    }
  }

  // Of a plain matrix the sums of four slots are one.
  typename Kind::Sum whole(int gate, int state) const {
    if constexpr (Gates == 1) {
      return plus(plus(sums[0][state], sums[1][state]), plus(sums[2][state], sums[3][state]));
    } else {
      return sums[gate][state];
    }
  }

  // Adds the sums to `parts` and begins again.
  [[gnu::always_inline]] void end_part(__m512 (*parts)[States]) {
    for (int i = 0; i < States; ++i) {
      for (int gate = 0; gate < Gates; ++gate) {
        parts[gate][i] = _mm512_add_ps(parts[gate][i], _mm512_cvtepi32_ps(whole(gate, i)));
      }
      for (int j = 0; j < kSums; ++j) sums[j][i] = typename Kind::Sum{};
    }
  }
};

template <class Kind, int Gates, int Columns, int Planes, bool InParts = false>
void dot(const Matrix& matrix, const Dot& call) {
  constexpr int kStates = Columns * Planes;
  constexpr size_t kRows = Gates * kLanes;
  const uint8_t* states[kStates];
  for (int i = 0; i < kStates; ++i) states[i] = call.states[i / Planes] + (i % Planes) * matrix.plane_bytes;
  for (size_t panel = call.first; panel < call.last; ++panel) {
    Sums<Kind, Gates, kStates> sums;
    for (int j = 0; j < sums.kSums; ++j) {
      for (int i = 0; i < kStates; ++i) {
        // Only one of a row's sums starts with what takes the states' offset away, and of the low plane none.
        const bool none = i % Planes || (Gates == 1 && j);
        const size_t row = panel * kRows + (Gates == 1 ? 0 : j) * kLanes;
        sums.sums[j][i] = none ? typename Kind::Sum{} : zero_sum(matrix, row, typename Kind::Sum{});
      }
    }
    sums.slot = &matrix.data[matrix.start[panel] * sums.kSlot];
    sums.offset = &matrix.offset[matrix.start[panel]];
    const uint32_t* end = &matrix.offset[matrix.start[panel + 1]];
    __m512 parts[Gates][kStates] = {};
    if constexpr (InParts) {
      while (size_t(end - sums.offset) > matrix.part) {
        sums.add_until(sums.offset + matrix.part, states);
        sums.end_part(parts);
      }
    }
    sums.add_until(end, states);
    for (int column = 0; column < Columns; ++column) {
      float* out = call.out + column * call.stride + (panel - call.first) * kRows;
      for (int gate = 0; gate < Gates; ++gate) {
        typename Kind::Sum whole[Planes];
        for (int plane = 0; plane < Planes; ++plane) whole[plane] = sums.whole(gate, column * Planes + plane);
        const size_t row = panel * kRows + gate * kLanes;
        __m512 sum = finish<Planes>(matrix, row, call.scales[column], whole, parts[gate][column]);
        if (call.bias) sum = _mm512_add_ps(sum, _mm512_load_ps(call.bias + row));
        _mm512_storeu_ps(out + gate * kLanes, sum);
      }
    }
  }
}

template <class Kind, int Gates, bool InParts = false>
DotFunction for_columns(size_t columns) {
  return columns == 1   ? dot<Kind, Gates, 1, 1, InParts>
         : columns == 2 ? dot<Kind, Gates, 2, 1, InParts>
                        : dot<Kind, Gates, 4, 1, InParts>;
}

template <class Kind, int Gates>
DotFunction for_words(const Matrix& matrix, size_t columns) {
  return matrix.in_parts ? for_columns<Kind, Gates, true>(columns) : for_columns<Kind, Gates>(columns);
}

template <int Gates>
DotFunction for_format(const Matrix& matrix, size_t columns) {
  switch (matrix.format) {
    case Format::kF32: return for_columns<F32Sums, Gates>(columns);
    case Format::kI16Bank32: return for_words<Words32, Gates>(matrix, columns);
    case Format::kI16Bank64: return for_words<Words64, Gates>(matrix, columns);
    case Format::kI8: return for_columns<OwnBytes, Gates>(columns);
    case Format::kI8Planes2: return columns == 1 ? dot<OwnBytes, Gates, 1, 2> : dot<OwnBytes, Gates, 2, 2>;
    default: return for_columns<SharedBytes, Gates == 1 ? 4 : Gates>(columns);  // of one gate there is none
  }
}

DotFunction find_dot(const Matrix& matrix, size_t columns) {
  switch (matrix.gates) {
    case 4: return for_format<4>(matrix, columns);
    case 3: return for_format<3>(matrix, columns);
    case 2: return for_format<2>(matrix, columns);
    default: return for_format<1>(matrix, columns);
  }
}
