#pragma once
// A volume's process outlives whoever starts it: started in a session of its own, waited for until it is ready.

#include <string>
#include <vector>

#include "common/result.h"
#include "tools/program/interrupt.h"

namespace rbt::tools::map {

/// The starter's side: runs this program again with `words` and --detached FD, and waits for what it says. Returns the device's
/// path. What it logs until then comes out of our standard error. Error: what the process said, or how it ended.
[[nodiscard]] Result<std::string> launch(const std::vector<std::string>& words, const Interrupt& interrupt);

/// The process's side: whom it tells that it is ready, or why it is not. Says one thing once.
class Starter {
 public:
  /// `fd` is the argument of --detached; -1: it runs in the foreground, the path goes to standard output.
  explicit Starter(int fd) noexcept;
  ~Starter();
  Starter(const Starter&) = delete;
  Starter& operator=(const Starter&) = delete;

  [[nodiscard]] bool detached() const noexcept { return detached_; }
  void ready(const std::string& device);
  void failed(const Error& error);

 private:
  void say(const std::string& line);
  int fd_;
  bool detached_ = fd_ >= 0;
};

}  // namespace rbt::tools::map
