#include "tools/program/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "common/sizes.h"

namespace rbt::tools {

Progress::Progress(const Clock& clock, std::optional<std::uint64_t> total)
    : clock_(clock), total_(total), began_(clock.now()), terminal_(::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (drawn_) fmt::print(stderr, "\r\x1b[K");
}

void Progress::update(std::uint64_t done, const char* what) {
  if (!terminal_) return;
  const Instant now = clock_.now();
  if (now < next_) return;
  next_ = now + std::chrono::milliseconds(100);
  drawn_ = true;
  const double seconds = std::max(std::chrono::duration<double>(now - began_).count(), 0.001);
  const double rate = static_cast<double>(done) / seconds;
  const auto per_second = format_bytes(Bytes(static_cast<std::uint64_t>(rate)));
  if (!total_ || *total_ == 0) {
    fmt::print(stderr, "\r\x1b[K{} {}  {}/s", what, format_bytes(Bytes(done)), per_second);
    return;
  }
  constexpr std::size_t kWidth = 30;
  const double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(*total_));
  const auto filled = static_cast<std::size_t>(share * kWidth);
  const double left = rate > 0 ? static_cast<double>(*total_ - std::min(done, *total_)) / rate : 0;
  fmt::print(stderr, "\r\x1b[K{} [{:=<{}}{: <{}}] {:3.0f} %  {} of {}  {}/s  ETA {:.0f} s", what, "", filled, "",
             kWidth - filled, share * 100, format_bytes(Bytes(done)), format_bytes(Bytes(*total_)), per_second, left);
  std::fflush(stderr);
}

}  // namespace rbt::tools
