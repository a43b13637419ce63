#include "common/check.h"

#include <cstdio>
#include <cstdlib>

namespace rbt {

void check_failed(const char* what, const char* file, int line) noexcept {
  std::fprintf(stderr, "%s:%d: rbt is broken: %s\n", file, line, what);
  std::abort();
}

}  // namespace rbt
