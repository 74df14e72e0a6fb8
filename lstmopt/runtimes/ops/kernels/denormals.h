// Denormals cost up to 80 times as much as other numbers: they are zero while this object lives.
#pragma once

#if defined(LSTMOPT_X86)
#include <immintrin.h>
#endif

namespace lstmopt {

class NoDenormals {
 public:
#if defined(LSTMOPT_X86)
  NoDenormals() : before_(_mm_getcsr()) { _mm_setcsr(kFlags); }
  ~NoDenormals() { _mm_setcsr(before_); }

 private:
  // All exceptions masked, round to nearest, flush to zero, denormals are zero.
  static constexpr unsigned kFlags = 0x1F80 | 0x8000 | 0x0040;
  unsigned before_;
#else
  NoDenormals() {}
  ~NoDenormals() {}
#endif
  NoDenormals(const NoDenormals&) = delete;
  NoDenormals& operator=(const NoDenormals&) = delete;
};

}  // namespace lstmopt
