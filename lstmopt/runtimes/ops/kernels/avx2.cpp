// AVX2 and FMA: two registers for 16 rows. No permute reaches over a whole bank, so each looks at its part of the
// bank and what it found there is put together: gathers take 2 to 4 times as long (Zen 3: 39 micro-operations).
#include <immintrin.h>
#include <math.h>

#include "isa.h"

namespace lstmopt {
namespace {

#include "cell.inl"
#include "encode.inl"

// Bytes of a bank of 16 Parts bytes, by their numbers.
template <int Parts>
inline __m256i looked_up(const uint8_t* bank, __m256i index) {
  __m256i found = _mm256_setzero_si256();
  for (int part = 0; part < Parts; ++part) {
    // Bytes whose index is not of this part of the bank get their highest bit set: shuffled, they are 0.
    const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bank + 16 * part)));
    const __m256i at = _mm256_adds_epu8(_mm256_xor_si256(index, _mm256_set1_epi8(char(16 * part))), _mm256_set1_epi8(0x70));
    found = _mm256_or_si256(found, _mm256_shuffle_epi8(table, at));
  }
  return found;
}

struct F32Sums {
  using Sum = __m256;
  static constexpr bool kFloat = true;
  static constexpr size_t kGroup = 64, kShared = 0;
  static Sum add(Sum sum, const uint8_t* bank, const uint8_t*, const uint8_t* group, size_t half) {
    const float* states = reinterpret_cast<const float*>(bank);
    const __m256 value = _mm256_load_ps(reinterpret_cast<const float*>(group + 32 * half));
    // The lowest 5 bits are the index: 3 for the permutes, then one for each choice between two of them.
    const __m256i index = _mm256_castps_si256(value);
    const __m256 fourth = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
    const __m256 fifth = _mm256_castsi256_ps(_mm256_slli_epi32(index, 27));
    const __m256 low = _mm256_blendv_ps(part(states, index), part(states + 8, index), fourth);
    const __m256 high = _mm256_blendv_ps(part(states + 16, index), part(states + 24, index), fourth);
    return _mm256_fmadd_ps(_mm256_blendv_ps(low, high, fifth), value, sum);
  }
  static __m256 part(const float* states, __m256i index) {
    return _mm256_permutevar8x32_ps(_mm256_loadu_ps(states), index);
  }
};

template <int Mask>
struct Words {
  using Sum = __m256i;
  static constexpr bool kFloat = false;
  static constexpr size_t kGroup = 64, kShared = 0;
  static Sum add(Sum sum, const uint8_t* bank, const uint8_t*, const uint8_t* group, size_t half) {
    const __m256i words = _mm256_load_si256(reinterpret_cast<const __m256i*>(group + 32 * half));
    const __m256i index = _mm256_and_si256(words, _mm256_set1_epi16(Mask));
    // The two bytes of the state that an index names.
    const __m256i bytes = _mm256_add_epi16(_mm256_mullo_epi16(index, _mm256_set1_epi16(0x0202)), _mm256_set1_epi16(0x0100));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(looked_up<(Mask + 1) / 8>(bank, bytes), words));
  }
};

template <size_t Group, size_t Shared>
struct Bytes {
  using Sum = __m256i;
  static constexpr bool kFloat = false;
  static constexpr size_t kGroup = Group, kShared = Shared;
  static Sum add(Sum sum, const uint8_t* bank, const uint8_t* slot, const uint8_t* group, size_t half) {
    const uint8_t *indices = Shared ? slot : group + 64, *values = group;
    const __m256i index = _mm256_load_si256(reinterpret_cast<const __m256i*>(indices + 32 * half));
    const __m256i value = _mm256_load_si256(reinterpret_cast<const __m256i*>(values + 32 * half));
    const __m256i state = looked_up<4>(bank, index);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(state, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(value, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(state, 8), _mm256_srai_epi16(value, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
  }
};

inline __m256 plus(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
inline __m256i plus(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
inline __m256 to_float(__m256 sum) { return sum; }
inline __m256 to_float(__m256i sum) { return _mm256_cvtepi32_ps(sum); }

template <class Kind>
inline typename Kind::Sum zero_sum(const Matrix& matrix, size_t row) {
  if constexpr (Kind::kFloat) {
    return _mm256_setzero_ps();
  } else {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(&matrix.origin[row]));
  }
}

// The sums of one plane of one state, of 8 rows of each gate: as float, before scales.
template <class Kind, int Gates>
inline void half_panel(const Matrix& matrix, size_t panel, size_t half, const uint8_t* state, bool low, __m256* result) {
  constexpr size_t kSlot = Gates * Kind::kGroup + Kind::kShared;
  constexpr int kSums = Gates == 1 ? 4 : Gates;  // side by side: of the gates, or of a plain matrix's slots
  using Sum = typename Kind::Sum;
  Sum sums[kSums] = {};
  for (int gate = 0; gate < Gates && !low; ++gate) {
    sums[gate] = zero_sum<Kind>(matrix, (panel * Gates + gate) * kLanes + 8 * half);
  }
  const uint8_t* slot = &matrix.data[matrix.start[panel] * kSlot];
  const uint32_t* offset = &matrix.offset[matrix.start[panel]];
  const uint32_t* end = &matrix.offset[matrix.start[panel + 1]];
  for (int gate = 0; gate < Gates; ++gate) result[gate] = _mm256_setzero_ps();
  for (bool more = true; more;) {
    // A part, or all of the panel that is left.
    const uint32_t* const stop = size_t(end - offset) > matrix.part ? offset + matrix.part : end;
    for (; offset != stop; offset += Gates == 1 ? 4 : 1, slot += Gates == 1 ? 4 * kSlot : kSlot) {
      for (int j = 0; j < kSums; ++j) {
        const uint8_t* own = Gates == 1 ? slot + j * kSlot : slot;
        const uint8_t* group = own + (Gates == 1 ? 0 : Kind::kShared + j * Kind::kGroup);
        sums[j] = Kind::add(sums[j], state + offset[Gates == 1 ? j : 0], own, group, half);
      }
    }
    more = stop != end;
    if constexpr (Gates == 1) sums[0] = plus(plus(sums[0], sums[1]), plus(sums[2], sums[3]));
    for (int gate = 0; gate < Gates; ++gate) result[gate] = _mm256_add_ps(result[gate], to_float(sums[gate]));
    for (int j = 0; j < kSums; ++j) sums[j] = Sum{};
  }
}

template <class Kind, int Gates, int Planes>
void dot(const Matrix& matrix, const Dot& call) {
  constexpr size_t kRows = Gates * kLanes;
  for (size_t panel = call.first; panel < call.last; ++panel) {
    for (size_t half = 0; half < 2; ++half) {
      __m256 sums[Gates], low[Gates];
      half_panel<Kind, Gates>(matrix, panel, half, call.states[0], false, sums);
      if constexpr (Planes == 2) half_panel<Kind, Gates>(matrix, panel, half, call.states[0] + matrix.plane_bytes, true, low);
      for (int gate = 0; gate < Gates; ++gate) {
        const size_t row = panel * kRows + gate * kLanes + 8 * half;
        __m256 sum = sums[gate];
        if constexpr (Planes == 2) sum = _mm256_fmadd_ps(sum, _mm256_set1_ps(128.0f), low[gate]);
        if constexpr (!Kind::kFloat) {
          sum = _mm256_mul_ps(sum, _mm256_mul_ps(_mm256_load_ps(&matrix.scale[row]), _mm256_set1_ps(call.scales[0])));
        }
        if (call.bias) sum = _mm256_add_ps(sum, _mm256_load_ps(call.bias + row));
        _mm256_storeu_ps(call.out + (panel - call.first) * kRows + gate * kLanes + 8 * half, sum);
      }
    }
  }
}

template <int Gates>
DotFunction for_format(Format format) {
  switch (format) {
    case Format::kF32: return dot<F32Sums, Gates, 1>;
    case Format::kI16Bank32: return dot<Words<31>, Gates, 1>;
    case Format::kI16Bank64: return dot<Words<63>, Gates, 1>;
    case Format::kI8: return dot<Bytes<128, 0>, Gates, 1>;
    case Format::kI8Planes2: return dot<Bytes<128, 0>, Gates, 2>;
    default: return dot<Bytes<64, 64>, Gates == 1 ? 4 : Gates, 1>;  // of one gate there is none
  }
}

DotFunction find_dot(const Matrix& matrix, size_t) {
  switch (matrix.gates) {
    case 4: return for_format<4>(matrix.format);
    case 3: return for_format<3>(matrix.format);
    case 2: return for_format<2>(matrix.format);
    default: return for_format<1>(matrix.format);
  }
}

bool usable() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

const Isa kAvx2 = {"avx2", usable, 1, encode, find_dot, cell, gru, gru_gates, gru_state};

}  // namespace lstmopt
