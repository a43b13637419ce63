#pragma once
// SIGINT and SIGTERM as a flag: what runs long looks at it, finishes what it has begun and says how far it came.

#include <csignal>

namespace rbt::tools {

/// From construction on, the first SIGINT, SIGTERM or SIGHUP raises the flag; a second one ends the process as usual.
/// One at a time.
class Interrupt {
 public:
  Interrupt();
  ~Interrupt();
  Interrupt(const Interrupt&) = delete;
  Interrupt& operator=(const Interrupt&) = delete;
  [[nodiscard]] bool raised() const noexcept;
};

}  // namespace rbt::tools
