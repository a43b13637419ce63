#pragma once
// Plain system calls on a few threads: for kernels and containers that refuse io_uring.

#include "target/store/io_queue.h"

namespace rbt::target {

class ThreadFactory final : public IoQueueFactory {
 public:
  [[nodiscard]] Result<std::unique_ptr<IoQueue>> open(int fd, transport::Reactor& reactor, IoHandler& handler) override;
  [[nodiscard]] std::string_view name() const noexcept override { return "threads"; }
};

}  // namespace rbt::target
