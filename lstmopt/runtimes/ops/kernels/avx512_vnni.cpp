// AVX-512 with VNNI and VBMI: bytes are looked up and multiplied four at a time.
#include <immintrin.h>
#include <math.h>

#include "isa.h"

namespace lstmopt {
namespace {

#include "cell.inl"
#include "encode.inl"

// gcc 12 copies the sums around the intrinsics of these two; written like this it does not.
inline __m512i add_words(__m512i sum, __m512i states, __m512i weights) {
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(states), "v"(weights));
  return sum;
}

inline __m512i add_bytes(__m512i sum, __m512i states, __m512i weights) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(states), "v"(weights));
  return sum;
}

struct Bytes {
  using Sum = __m512i;
  struct Bank { __m512i bytes; };
  struct Weights { __m512i index, value; };
  static Bank bank(const uint8_t* at) { return {_mm512_loadu_si512(at)}; }
  static Weights pair(const uint8_t* index, const uint8_t* value) {
    return {_mm512_load_si512(index), _mm512_load_si512(value)};
  }
  static Sum add(Sum sum, const Bank& bank, const Weights& w) {
    return add_bytes(sum, _mm512_permutexvar_epi8(w.index, bank.bytes), w.value);
  }
};

#include "dot_avx512.inl"

bool usable() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

}  // namespace

const Isa kAvx512Vnni = {"avx512_vnni", usable, 4, encode, find_dot, cell, gru, gru_gates, gru_state};

}  // namespace lstmopt
