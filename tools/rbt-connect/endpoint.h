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
#include "tools/program/interrupt.h"

namespace rbt::tools {

/// One piece of a copy on its way. Its buffer belongs to the copy; `done` is called once, not from within start().
struct Transfer {
  std::uint64_t offset = 0;   ///< bytes
  std::span<std::byte> data;  ///< as much as is to be moved
  std::function<void(Transfer&)> done;
  std::optional<Error> error;  ///< set before `done` if it failed
  void* owner = nullptr;
};

/// One side of a copy. One thread.
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

  /// Something may have happened to transfers that were begun: calls their `done`. If nothing has, waits for it for at most
  /// a moment, and no longer than until the descriptor `also` is readable (-1: nothing else is waited for).
  virtual void progress(int /*also*/) {}
  /// What the other side's progress() is to wait for, too, because ours does not wait: a descriptor, or -1.
  [[nodiscard]] virtual int wakes_on() const noexcept { return -1; }
  /// Why nothing can be moved any more, if so: also found out while nothing is moved.
  [[nodiscard]] virtual std::optional<Error> lost() const { return {}; }
  /// The copy is over: transfers that may wait for ever end, with an error, by the next progress().
  virtual void give_up() {}
  /// A buffer of `size` bytes that suits this endpoint best; empty: any memory will do. Lives as long as the endpoint.
  [[nodiscard]] virtual std::span<std::byte> buffer(std::size_t /*size*/) { return {}; }
};

/// A file, a block device, or "-": standard input or output. Waiting to write to a pipe ends, with an error, when
/// `interrupt` is raised; it outlives the endpoint.
[[nodiscard]] Result<std::unique_ptr<Endpoint>> open_source(const std::string& path, const Interrupt& interrupt);
[[nodiscard]] Result<std::unique_ptr<Endpoint>> open_destination(const std::string& path, const Interrupt& interrupt);

}  // namespace rbt::tools
