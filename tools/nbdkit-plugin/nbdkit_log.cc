#include "tools/nbdkit-plugin/nbdkit_log.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

namespace rbt::tools {

void NbdkitLogger::write(LogLevel level, std::string message) {
  if (level >= LogLevel::warning)
    nbdkit_error("%s", message.c_str());
  else
    nbdkit_debug("%s", message.c_str());
}

void Complaints::complain(std::string_view message) {
  const std::lock_guard lock(mutex_);
  if (!limit_.allow(clock_.now())) return;
  const std::uint64_t suppressed = limit_.take_suppressed();
  const std::string text(message);
  if (suppressed == 0)
    nbdkit_error("%s", text.c_str());
  else
    nbdkit_error("%s (and %llu other requests that failed since the last such line)", text.c_str(),
                 static_cast<unsigned long long>(suppressed));
}

}  // namespace rbt::tools
