// What is thrown inside where input is refused; never crosses the C interface.
#pragma once

#include <cstdio>
#include <new>
#include <string>

namespace lstmopt {

struct Refusal {
  std::string fault;
};

// Runs `body`; returns 0, or 1 with the fault in `error`.
template <class Body>
int guarded(char* error, size_t error_bytes, Body body) {
  const char* fault = "out of memory";
  std::string text;
  try {
    body();
    return 0;
  } catch (const Refusal& refusal) {
    text = refusal.fault;
    fault = text.c_str();
  } catch (...) {
  }
  if (error && error_bytes) std::snprintf(error, error_bytes, "%s", fault);
  return 1;
}

}  // namespace lstmopt
