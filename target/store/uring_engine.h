#pragma once
// io_uring (io_uring(7)): one ring per reactor, entered only by it, for all files.

#include "target/store/io_engine.h"

namespace rbt::target {

/// Whether the pool's memory is registered with the ring, which saves looking up its pages at each I/O and pins all of it.
enum class FixedBuffers : std::uint8_t { if_allowed, never };

class UringFactory final : public IoEngineFactory {
 public:
  /// Asks the kernel which rings it gives this process, newest kind first. Error: `unsupported` or `permission` with
  /// the reason (a kernel without it, a sysctl, a container's seccomp filter).
  [[nodiscard]] static Result<UringFactory> probe(FixedBuffers fixed_buffers = FixedBuffers::if_allowed);

  [[nodiscard]] Result<std::unique_ptr<IoEngine>> open(transport::Reactor& reactor,
                                                       transport::BufferPool& buffers) override;
  [[nodiscard]] std::string_view name() const noexcept override { return "io_uring"; }

 private:
  UringFactory(unsigned setup_flags, FixedBuffers fixed_buffers) noexcept
      : setup_flags_(setup_flags), fixed_buffers_(fixed_buffers) {}
  unsigned setup_flags_;
  FixedBuffers fixed_buffers_;
};

}  // namespace rbt::target
