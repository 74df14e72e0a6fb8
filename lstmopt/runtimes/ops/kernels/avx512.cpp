// AVX-512 as its first CPUs have it: bytes become words to be looked up and multiplied.
#include <immintrin.h>
#include <math.h>

#include "isa.h"

namespace lstmopt {
namespace {

#include "cell.inl"
#include "encode.inl"

inline __m512i add_words(__m512i sum, __m512i states, __m512i weights) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(states, weights));
}

struct Bytes {
  using Sum = __m512i;
  struct Bank { __m512i low, high; };
  struct Weights { __m512i even_index, odd_index, even, odd; };
  static Bank bank(const uint8_t* at) {
    return {_mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at))),
            _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32)))};
  }
  static Weights pair(const uint8_t* index, const uint8_t* value) {
    const __m512i i = _mm512_load_si512(index), v = _mm512_load_si512(value);
    return {_mm512_and_si512(i, _mm512_set1_epi16(255)), _mm512_srli_epi16(i, 8),
            _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8), _mm512_srai_epi16(v, 8)};
  }
  static Sum add(Sum sum, const Bank& bank, const Weights& w) {
    sum = add_words(sum, _mm512_permutex2var_epi16(bank.low, w.even_index, bank.high), w.even);
    return add_words(sum, _mm512_permutex2var_epi16(bank.low, w.odd_index, bank.high), w.odd);
  }
};

#include "dot_avx512.inl"

bool usable() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

}  // namespace

const Isa kAvx512 = {"avx512", usable, 4, encode, find_dot, cell, gru, gru_gates, gru_state};

}  // namespace lstmopt
