#pragma once
// One command of the slow path, with its data in the queue's pool: connect, identify, features, logs, keep-alive.

#include <functional>
#include <span>
#include <string>

#include "common/nvme/capsule.h"
#include "common/result.h"
#include "initiator/queue.h"

namespace rbt::initiator {

/// At most this many bytes of data with one call.
inline constexpr std::size_t kCallDataMax = 128 * kKiB;

/// Used again and again by its owner, one command at a time. Lives until the command is done. On the queue's thread.
class Call final : public ResponseHandler {
 public:
  explicit Call(Queue& queue) noexcept : queue_(queue) {}
  ~Call() override;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  /// Sends `entry` (cid and data pointer are set here). `data` goes out or comes in as the opcode says and stays valid until
  /// done. `on_done`, if any, is called when it is, unless start() failed; it may start the next command.
  [[nodiscard]] Result<void> start(nvme::SubmissionQueueEntry entry, std::span<std::byte> data, Instant deadline,
                                   std::function<void()> on_done = {});
  [[nodiscard]] bool running() const noexcept { return running_; }
  /// After it is done: the answer, whatever its status; or why there is none.
  [[nodiscard]] Result<nvme::CompletionQueueEntry> result() const;

 private:
  void on_response(std::uint32_t slot, Outcome outcome, const nvme::CompletionQueueEntry& entry) override;

  Queue& queue_;
  std::span<std::byte> data_;
  std::span<std::byte> buffer_;
  nvme::Direction direction_ = nvme::Direction::none;
  bool running_ = false;
  Outcome outcome_ = Outcome::pending;
  nvme::CompletionQueueEntry answer_;
  std::function<void()> on_done_;
};

/// Sends and turns the reactor until the answer is there; a status other than success is not an Error. `deadline` past: the
/// queue is closed.
[[nodiscard]] Result<nvme::CompletionQueueEntry> call(Queue& queue, const nvme::SubmissionQueueEntry& entry,
                                                      std::span<std::byte> data, Instant deadline);
/// The same, and a status other than success is an Error that begins with `what`.
[[nodiscard]] Result<nvme::CompletionQueueEntry> call_ok(Queue& queue, std::string_view what,
                                                         const nvme::SubmissionQueueEntry& entry,
                                                         std::span<std::byte> data, Instant deadline);

/// "<what>: the target answered <status>".
[[nodiscard]] Error status_error(std::string_view what, nvme::Status status);

/// The bytes of a wire or libnvme structure to be filled.
template <typename T>
[[nodiscard]] std::span<std::byte> bytes_of(T& object) noexcept {
  return std::as_writable_bytes(std::span<T, 1>(&object, 1));
}

}  // namespace rbt::initiator
