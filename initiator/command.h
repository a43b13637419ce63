#pragma once
// The inside of a QueuePair: command.cc has the life of one command.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "initiator/identify.h"
#include "initiator/queue.h"
#include "initiator/queue_pair.h"
#include "transport/memory/registration_view.h"

namespace rbt::initiator {

/// What a queue pair takes from its session. All outlive it.
struct QueuePairContext {
  transport::RegistrationCache& registrations;
  CommandLimits limits;
  std::uint32_t in_capsule_max = 0;
  Duration command_timeout{};
};

/// Outcome::pending if the request may be sent, else why not. Sets range.count from the data.
[[nodiscard]] Outcome validate(Request& request) noexcept;

/// Belongs to its reactor's thread.
class QueuePair::Implementation final : public ResponseHandler, public QueueOwner {
 public:
  Implementation(transport::Fabric& fabric, transport::Reactor& reactor, const QueueOptions& queue,
                 const QueuePairContext& context);
  ~Implementation() override;

  /// The queue is connected: sizes everything, so that no I/O allocates.
  [[nodiscard]] Result<void> prepare(Bytes buffers);

  Submitted submit(Request& request);

  [[nodiscard]] Queue& queue() noexcept { return queue_; }
  [[nodiscard]] transport::BufferPool* buffers() noexcept { return buffers_.get(); }
  [[nodiscard]] std::uint32_t in_flight() const noexcept { return in_flight_; }
  [[nodiscard]] QueuePairCounters counters() const;
  std::function<void()> on_destroyed;  ///< the session's: the queue identifier is free again
  std::function<void()> on_lost;       ///< QueuePairOptions::on_lost

 private:
  /// One command of a request, while it is outstanding. Indexed by its slot.
  struct Command {
    Request* request = nullptr;
    std::uint64_t position = 0;  // blocks (discard: ranges) of the request before this command's
    std::uint64_t bytes = 0;
    std::span<std::byte> bounce{};  // the data was, or will be, copied
    transport::Reached reached{};   // or is where the caller has it
    std::size_t piece = 0;          // where it belongs in the request's iovecs
    std::size_t piece_offset = 0;
  };
  /// Where a command's data is for the wire.
  struct Data {
    nvme::DataPointer pointer = nvme::NoData{};
    transport::Segment in_capsule;
  };

  void issue(Request& request);
  [[nodiscard]] bool issue_one(Request& request, std::uint32_t slot);
  [[nodiscard]] bool encode_transfer(Request& request, Command& command, nvme::SubmissionQueueEntry& entry, Data& data);
  [[nodiscard]] bool encode_discard(Request& request, Command& command, nvme::SubmissionQueueEntry& entry, Data& data);
  void encode_write_zeroes(Request& request, nvme::SubmissionQueueEntry& entry) const;
  [[nodiscard]] bool place(Request& request, Command& command, Data& data);
  void let_go(Command& command) noexcept;
  void on_memory_overdue();
  [[nodiscard]] bool take_bounce(Command& command, std::size_t size);
  void copy(const Request& request, const Command& command);

  void on_response(std::uint32_t slot, Outcome outcome, const nvme::CompletionQueueEntry& entry) override;
  void on_queue_lost() override {
    if (on_lost) on_lost();
  }
  void on_queue_closed(Outcome outcome) override;
  void settle(Request& request, std::uint64_t position, Outcome outcome, nvme::Status status) noexcept;
  void complete(Request& request);
  void go_on();

  QueuePairContext context_;
  Queue queue_;
  std::unique_ptr<transport::RegistrationView> reachable_;
  std::unique_ptr<transport::BufferPool> buffers_;
  std::vector<Command> commands_;  // by slot
  Request* unfinished_ =
      nullptr;  // the one whose commands have not all been sent: at most one, so that requests stay in order
  std::uint32_t bounce_rkey_ = 0;  // of the queue's pool
  std::uint32_t bounce_lkey_ = 0;
  std::uint32_t in_flight_ = 0;
  QueuePairCounters counters_;
};

}  // namespace rbt::initiator
