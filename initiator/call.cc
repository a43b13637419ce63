#include "initiator/call.h"

#include <fmt/format.h>

#include <cstring>
#include <utility>

#include "common/check.h"
#include "common/sizes.h"

namespace rbt::initiator {

Call::~Call() {
  check(!running_, "a call outlives its command");
}

Result<void> Call::start(nvme::SubmissionQueueEntry entry, std::span<std::byte> data, Instant deadline,
                         std::function<void()> on_done) {
  check(!running_ && data.size() <= kCallDataMax, "one command at a time, of at most kCallDataMax bytes");
  if (!queue_.live())
    return failure(queue_.failure() != nullptr ? *queue_.failure()
                                               : Error(ErrorKind::disconnected, queue_.label() + " is not connected"));
  direction_ = data.empty() ? nvme::Direction::none : nvme::data_direction(entry);
  if (direction_ == nvme::Direction::none) data = {};
  if (!data.empty()) {
    buffer_ = queue_.pool().allocate(data.size());
    if (buffer_.empty())
      return failure(ErrorKind::resource, fmt::format("{}: no buffer of {} bytes is free; fewer commands at a time",
                                                      queue_.label(), data.size()));
  }
  const auto slot = queue_.take_slot();
  if (!slot) {
    if (!buffer_.empty()) queue_.pool().free(std::exchange(buffer_, {}));
    return failure(ErrorKind::resource, fmt::format("{}: all {} command slots are taken; fewer commands at a time",
                                                    queue_.label(), queue_.depth()));
  }
  nvme::DataPointer pointer = nvme::NoData{};
  if (!data.empty()) {
    if (direction_ != nvme::Direction::to_host)
      std::memcpy(buffer_.data(), data.data(), data.size());
    else
      std::memset(buffer_.data(), 0,
                  data.size());  // a controller that says success and sends nothing: zeroes, not old data
    pointer = nvme::KeyedData{.address = reinterpret_cast<std::uint64_t>(buffer_.data()),
                              .length = static_cast<std::uint32_t>(data.size()),
                              .key = queue_.pool().memory().in(queue_.domain())->rkey()};
  }
  entry.sgl = nvme::encode_data_pointer(pointer);
  data_ = data;
  on_done_ = std::move(on_done);
  outcome_ = Outcome::pending;
  running_ = true;
  const bool sent = queue_.send(*slot, entry, {}, *this, deadline);
  check(sent, "a live queue sends");
  return {};
}

void Call::on_response(std::uint32_t /*slot*/, Outcome outcome, const nvme::CompletionQueueEntry& entry) {
  outcome_ = outcome;
  answer_ = entry;
  if (!buffer_.empty()) {
    if (direction_ != nvme::Direction::to_controller && outcome == Outcome::success)
      std::memcpy(data_.data(), buffer_.data(), data_.size());
    queue_.pool().free(std::exchange(buffer_, {}));
  }
  running_ = false;
  if (on_done_) std::exchange(on_done_, nullptr)();
}

Result<nvme::CompletionQueueEntry> Call::result() const {
  check(!running_, "the result of a call that is done");
  if (outcome_ == Outcome::success || outcome_ == Outcome::failed) return answer_;
  if (queue_.failure() != nullptr) return failure(*queue_.failure());
  return failure(ErrorKind::disconnected, fmt::format("{}: no answer ({})", queue_.label(), name(outcome_)));
}

Result<nvme::CompletionQueueEntry> call(Queue& queue, const nvme::SubmissionQueueEntry& entry,
                                        std::span<std::byte> data, Instant deadline) {
  Call one(queue);
  const Instant began = queue.reactor().clock().now();
  auto started = one.start(entry, data, deadline);
  if (!started) return failure(std::move(started.error()));
  // The queue ends the command at its deadline, by closing; this waits for that, too.
  if (!queue.reactor().run_until([&one] { return !one.running(); }, deadline)) {
    queue.fail(
        Outcome::timed_out,
        Error(ErrorKind::timed_out, fmt::format("{} was not answered within {}; the connection is closed for it",
                                                command_name(queue.qid(), entry), format_duration(deadline - began))));
    queue.close();
  }
  return one.result();
}

Result<nvme::CompletionQueueEntry> call_ok(Queue& queue, std::string_view what, const nvme::SubmissionQueueEntry& entry,
                                           std::span<std::byte> data, Instant deadline) {
  auto answer = call(queue, entry, data, deadline);
  if (!answer) return failure(std::move(answer.error()).within(what));
  if (!answer->status().ok()) return failure(status_error(what, answer->status()));
  return answer;
}

Error status_error(std::string_view what, nvme::Status status) {
  using nvme::StatusCode;
  const StatusCode code = status.code();
  ErrorKind kind = ErrorKind::io;
  if (code == StatusCode::connect_invalid_host || code == StatusCode::access_denied ||
      code == StatusCode::operation_denied)
    kind = ErrorKind::permission;
  else if (code == StatusCode::connect_controller_busy)
    kind = ErrorKind::in_use;
  else if (code == StatusCode::authentication_required || code == StatusCode::invalid_opcode ||
           code == StatusCode::invalid_field)
    kind = ErrorKind::unsupported;
  else if (code == StatusCode::invalid_namespace)
    kind = ErrorKind::not_found;
  return {kind, fmt::format("{}: the target answered {}", what, nvme::describe(status))};
}

}  // namespace rbt::initiator
