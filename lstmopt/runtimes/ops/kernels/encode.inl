// Encodes a state or an input: a copy for f32, else integers and the scale that is the largest magnitude's.
// Plain loops, which the compiler makes into vectors for the file's instruction set.

// Adding 1.5 * 2^23 rounds to the nearest integer, which then lies in the low bits.
inline int32_t rounded(float value) {
  const float shifted = value + 12582912.0f;
  int32_t bits;
  __builtin_memcpy(&bits, &shifted, 4);
  return bits - 0x4B400000;
}

// The largest magnitude as an integer: these order as the magnitudes do, and infinity and NaN above all.
inline int32_t largest_bits(const float* values, size_t count) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    int32_t bits;
    __builtin_memcpy(&bits, values + i, 4);
    bits &= 0x7FFFFFFF;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

// Returns what values are multiplied by; a state that is not finite makes every sum NaN.
inline float choose_scale(const Matrix& matrix, const float* values, float* scale) {
  const int32_t bits = largest_bits(values, matrix.columns);
  float largest;
  __builtin_memcpy(&largest, &bits, 4);
  if (bits >= 0x7F800000) {
    *scale = __builtin_nanf("");
    return 0.0f;
  }
  if (largest < 1e-30f) {
    *scale = 0.0f;
    return 0.0f;
  }
  *scale = largest / matrix.limit;
  return matrix.limit / largest;
}

void encode(const Matrix& matrix, const float* values, uint8_t* state, float* scale) {
  const size_t count = matrix.columns, padded = matrix.banks * matrix.width;
  if (matrix.format == Format::kF32) {
    *scale = 1.0f;
    __builtin_memcpy(state, values, 4 * count);
    __builtin_memset(state + 4 * count, 0, 4 * (padded - count));
    return;
  }
  const float factor = choose_scale(matrix, values, scale);
  // 0 times infinity is NaN: a state that is not finite must not be read at all.
  if (factor == 0.0f) {
    __builtin_memset(state, has_words(matrix.format) ? 0 : 128, matrix.plane_bytes);
    __builtin_memset(state + matrix.plane_bytes, 0, matrix.state_bytes - matrix.plane_bytes);
    return;
  }
  switch (matrix.format) {
    case Format::kI16Bank32:
    case Format::kI16Bank64: {
      int16_t* words = reinterpret_cast<int16_t*>(state);
      for (size_t i = 0; i < count; ++i) words[i] = int16_t(rounded(values[i] * factor));
      __builtin_memset(words + count, 0, 2 * (padded - count));
      break;
    }
    case Format::kI8Planes2: {
      uint8_t* low = state + matrix.plane_bytes;
      for (size_t i = 0; i < count; ++i) {
        const uint32_t word = uint32_t(rounded(values[i] * factor) + 16384);
        state[i] = uint8_t(word >> 7);
        low[i] = uint8_t(word & 127);
      }
      __builtin_memset(state + count, 128, padded - count);
      __builtin_memset(low + count, 0, padded - count);
      break;
    }
    default:
      for (size_t i = 0; i < count; ++i) state[i] = uint8_t(rounded(values[i] * factor) + 128);
      __builtin_memset(state + count, 128, padded - count);
  }
}
