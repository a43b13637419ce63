#pragma once
// What a process needs so that a disk can live in it: it may be the one through which the kernel writes pages back in order to have
// memory again, and it must not hold what its users want to unmount.

#include <memory>
#include <optional>
#include <string>

#include "common/log.h"
#include "common/result.h"

namespace rbt::tools::map {

/// Before any thread is started, so that all inherit it: no I/O for the sake of memory (PR_SET_IO_FLUSHER), last to be killed
/// when there is none, small stacks, a heap that gives nothing back, a mount namespace of our own. What is not permitted is
/// said at LogLevel::debug: without privileges there is no disk to lose.
void prepare_surroundings(Logger& logger);

/// When everything is there that will be used: what is mapped stays in memory from now on, what comes later from its first use
/// on. A warning if it cannot be.
void lock_memory(Logger& logger);

/// Standard error goes to the journal, or else to the file `log`: ours, and that of the children to come. Until restore(), or for
/// good.
class ErrorsElsewhere {
 public:
  ErrorsElsewhere() = default;
  ~ErrorsElsewhere();
  ErrorsElsewhere(const ErrorsElsewhere&) = delete;
  ErrorsElsewhere& operator=(const ErrorsElsewhere&) = delete;
  /// Error: there is neither.
  [[nodiscard]] Result<void> redirect(const std::string& identifier, const std::string& log);
  void restore() noexcept;
  /// For good: lets go of what it was.
  void keep() noexcept;

 private:
  int before_ = -1;
};

}  // namespace rbt::tools::map
