#pragma once
// What `copy` reads from and writes to: a namespace, a file or block device, or a pipe.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "common/result.h"
#include "common/units.h"
#include "transport/reactor/reactor.h"

namespace rbt::tools {

/// One piece of a copy on its way. Its buffer belongs to the copy; `done` is called once, from within progress().
struct Transfer {
  std::uint64_t offset = 0;   ///< bytes
  std::span<std::byte> data;  ///< as much as is to be moved
  std::function<void(Transfer&)> done;
  std::optional<Error> error;  ///< set before `done` if it failed
  void* owner = nullptr;
};

/// One side of a copy. Belongs to the thread that turns its reactor.
class Endpoint {
 public:
  virtual ~Endpoint() = default;
  /// For messages.
  [[nodiscard]] virtual const std::string& name() const noexcept = 0;
  /// Bytes; none: only known at its end (a pipe).
  [[nodiscard]] virtual std::optional<std::uint64_t> size() const noexcept = 0;
  /// Transfers are whole multiples of this, but for the end of a file.
  [[nodiscard]] virtual std::uint32_t block_size() const noexcept = 0;
  /// Only from the beginning to the end.
  [[nodiscard]] virtual bool sequential() const noexcept { return false; }

  /// Reading. A transfer that meets the end is shortened (data.size()), to nothing at the end itself.
  virtual void read(Transfer& transfer) = 0;
  /// How many bytes from `offset` on are known to be zero without reading them: a hole.
  [[nodiscard]] virtual std::uint64_t zeroes_at(std::uint64_t /*offset*/) { return 0; }

  /// Writing. `size`: what is going to be written in all, if known; a file becomes that large.
  [[nodiscard]] virtual Result<void> begin_writing(std::optional<std::uint64_t> size) = 0;
  virtual void write(Transfer& transfer) = 0;
  /// Makes [offset, offset + length) read as zeroes. Blocks.
  [[nodiscard]] virtual Result<void> zero(std::uint64_t offset, std::uint64_t length) = 0;
  /// Everything written is durable when this returns. Blocks.
  [[nodiscard]] virtual Result<void> finish_writing(std::uint64_t end) = 0;

  /// progress() has something to do. Turning the reactor makes it so.
  [[nodiscard]] virtual bool due() const noexcept = 0;
  /// Calls `done` of transfers that have ended. Outside of the reactor's turns; may turn it.
  virtual void progress() = 0;
  /// Why nothing can be moved any more, if so: also found out while nothing is moved.
  [[nodiscard]] virtual std::optional<Error> lost() const { return {}; }
  /// The copy is over: transfers that may wait for ever end soon, with an error.
  virtual void give_up() {}
  /// A buffer of `size` bytes that suits this endpoint best; empty: any memory will do. Lives as long as the endpoint.
  [[nodiscard]] virtual std::span<std::byte> buffer(std::size_t /*size*/) { return {}; }
};

/// A file, a block device, or "-": standard input or output. Its calls into the kernel are made by a thread of its own: whoever
/// waits for a pipe or a disk keeps no other side of the copy waiting.
[[nodiscard]] Result<std::unique_ptr<Endpoint>> open_source(const std::string& path, transport::Reactor& reactor);
[[nodiscard]] Result<std::unique_ptr<Endpoint>> open_destination(const std::string& path, transport::Reactor& reactor);

}  // namespace rbt::tools
