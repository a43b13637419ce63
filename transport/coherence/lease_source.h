#pragma once
// The monitor's side of file leases: the signal that says that one is being broken, and whose it is.

#include <mutex>

#include "transport/coherence/lease.h"

namespace rbt::transport::coherence {

class LeaseWatch;

class Leases final : public LeaseSource {
 public:
  explicit Leases(int signal_number) noexcept;
  ~Leases() override;
  /// On the watch thread, which has all signals blocked: the signals go to it and to nobody else.
  [[nodiscard]] Result<void> start();
  /// A signalfd; -1 before start().
  [[nodiscard]] int descriptor() const noexcept { return descriptor_; }
  /// Watch thread: rings the watches whose leases are being broken. Asks them all: signals can be merged and lost.
  void on_signal() noexcept;
  [[nodiscard]] Result<std::unique_ptr<Watch>> watch(int fd, std::string path) override;

 private:
  friend class LeaseWatch;
  int signal_;
  int descriptor_ = -1;
  int thread_ = 0;    // the watch thread's tid
  std::mutex mutex_;  // guards first_; pointer operations and fcntl only
  LeaseWatch* first_ = nullptr;
};

}  // namespace rbt::transport::coherence
