#pragma once
// io_uring (io_uring(7)): one ring per queue, entered only by its reactor.

#include "target/store/io_queue.h"

namespace rbt::target {

class UringFactory final : public IoQueueFactory {
 public:
  /// Asks the kernel which rings it gives this process, newest kind first. Error: `unsupported` or `permission` with
  /// the reason (a kernel without it, a sysctl, a container's seccomp filter).
  [[nodiscard]] static Result<UringFactory> probe();

  [[nodiscard]] Result<std::unique_ptr<IoQueue>> open(int fd, transport::Reactor& reactor, IoHandler& handler) override;
  [[nodiscard]] std::string_view name() const noexcept override { return "io_uring"; }

 private:
  explicit UringFactory(unsigned setup_flags) noexcept : setup_flags_(setup_flags) {}
  unsigned setup_flags_;
};

}  // namespace rbt::target
