// Which instruction sets there are, and which is used.
#include "isa.h"

#include <atomic>
#include <cstring>

#include "lstmopt_kernels.h"

namespace lstmopt {
namespace {

const Isa* const kIsas[] = {
#if defined(LSTMOPT_X86)
    &kAvx512Vnni, &kAvx512, &kAvx2,
#endif
    &kPortable,
};

const Isa* best() {
  for (const Isa* isa : kIsas) {
    if (isa->usable()) return isa;
  }
  return &kPortable;
}

std::atomic<const Isa*> chosen{nullptr};

}  // namespace

const Isa& current_isa() {
  const Isa* isa = chosen.load(std::memory_order_relaxed);
  if (!isa) {
    isa = best();
    chosen.store(isa, std::memory_order_relaxed);
  }
  return *isa;
}

}  // namespace lstmopt

using lstmopt::kIsas;

size_t lstmopt_isa_count(void) { return sizeof kIsas / sizeof *kIsas; }

const char* lstmopt_isa_name(size_t index) { return index < lstmopt_isa_count() ? kIsas[index]->name : ""; }

int lstmopt_isa_usable(size_t index) { return index < lstmopt_isa_count() && kIsas[index]->usable(); }

const char* lstmopt_isa(void) { return lstmopt::current_isa().name; }

int lstmopt_set_isa(const char* name) {
  if (!name) {
    lstmopt::chosen.store(nullptr);
    return 0;
  }
  for (const lstmopt::Isa* isa : kIsas) {
    if (!std::strcmp(isa->name, name) && isa->usable()) {
      lstmopt::chosen.store(isa);
      return 0;
    }
  }
  return 1;
}
