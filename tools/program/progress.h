#pragma once
// How far a copy is, on a terminal.

#include <cstdint>
#include <optional>

#include "common/clock.h"

namespace rbt::tools {

/// A bar with rate and remaining time on standard error, redrawn at most ten times a second; nothing unless that is a
/// terminal.
class Progress {
 public:
  /// `total` bytes, if known.
  Progress(const Clock& clock, std::optional<std::uint64_t> total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void update(std::uint64_t done, const char* what);

 private:
  const Clock& clock_;
  std::optional<std::uint64_t> total_;
  Instant began_;
  Instant next_{};
  bool terminal_;
  bool drawn_ = false;
};

}  // namespace rbt::tools
