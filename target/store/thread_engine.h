#pragma once
// Plain system calls on a few threads: for kernels and containers that refuse io_uring.

#include "target/store/io_engine.h"

namespace rbt::target {

class ThreadFactory final : public IoEngineFactory {
 public:
  [[nodiscard]] Result<std::unique_ptr<IoEngine>> open(transport::Reactor& reactor,
                                                       transport::BufferPool& buffers) override;
  [[nodiscard]] std::string_view name() const noexcept override { return "threads"; }
};

}  // namespace rbt::target
