#pragma once
// The inside of a Session: the admin queue's life after connect: keep-alive, asynchronous events, queue pairs coming and
// going, and the end. (What leads from `lost` to a new one: recovery.h.)

#include <array>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "initiator/controller.h"
#include "initiator/initiator.h"
#include "initiator/registration.h"

namespace rbt::initiator {

/// The management reactor's thread owns controller, timers and calls: the caller's until start_thread(), the session's own
/// until close(), then the caller's again; the caller's throughout with SessionOptions::management.
class Session::Implementation final : QueueOwner {
 public:
  Implementation(const Environment& environment, const Uri& uri, const SessionOptions& options);
  ~Implementation() override;

  [[nodiscard]] Result<void> connect(Random& random);
  void close();

  [[nodiscard]] SessionState state() const noexcept { return state_.load(std::memory_order_acquire); }
  [[nodiscard]] std::optional<Error> failure_text() const;
  [[nodiscard]] Result<std::unique_ptr<QueuePair>> open_queue_pair(transport::Reactor& reactor,
                                                                   const QueuePairOptions& options);
  [[nodiscard]] Result<nvme::CompletionQueueEntry> admin(const nvme::SubmissionQueueEntry& command,
                                                         std::span<std::byte> data);

  [[nodiscard]] Result<void> authenticate();
  [[nodiscard]] Result<void> authenticate(Queue& queue);
  [[nodiscard]] Result<std::vector<Namespace>> rescan();
  [[nodiscard]] Result<std::optional<Namespace>> look_at(Nsid nsid);

  [[nodiscard]] const Uri& uri() const noexcept { return uri_; }
  [[nodiscard]] const Association& association() const noexcept { return controller_->association(); }
  [[nodiscard]] const ControllerInfo& info() const noexcept { return controller_->info(); }
  [[nodiscard]] const std::vector<Namespace>& namespaces() const noexcept { return namespaces_; }
  [[nodiscard]] Duration keep_alive() const noexcept { return options_.keep_alive; }
  [[nodiscard]] std::uint32_t io_queues() const noexcept { return io_queues_; }
  [[nodiscard]] transport::RegistrationCache& registrations() noexcept { return registrations_; }

 private:
  /// One Asynchronous Event Request and the log page that acknowledges its event.
  struct EventSlot {
    EventSlot(Queue& queue, transport::Reactor& reactor, std::function<void()> again)
        : request(queue), log(queue), rearm(reactor.timers(), std::move(again)) {}
    Call request;
    Call log;
    transport::Timer rearm;
    std::array<std::byte, 4096> page{};
  };
  /// Shared with tasks on their way to a queue pair's reactor; `queue` is read and written on that reactor's thread only.
  struct QueueHandle {
    Queue* queue = nullptr;
  };
  struct OpenQueue {
    Qid qid;
    transport::Reactor* reactor = nullptr;
    std::shared_ptr<QueueHandle> handle;
  };

  [[nodiscard]] Result<void> apply_uri_options();
  [[nodiscard]] Result<void> set_up(Instant deadline);
  [[nodiscard]] Result<Qid> claim_qid(transport::Reactor& reactor, std::shared_ptr<QueueHandle> handle);
  void release_qid(Qid qid);
  void start_thread();
  void stop_thread();

  void start_keep_alive();
  void send_keep_alive();
  void start_events(Instant deadline);
  void request_event(EventSlot& slot);
  void on_event(EventSlot& slot);
  void on_queue_closed(Outcome outcome) override;
  void fail_queue_pairs(const Error& why);
  [[nodiscard]] bool ending() const noexcept { return state() != SessionState::live; }

  transport::Fabric& fabric_;
  const Clock& clock_;
  Logger& logger_;
  Uri uri_;
  SessionOptions options_;
  std::optional<std::uint32_t> depth_;  // the URI's

  std::unique_ptr<transport::Reactor> own_reactor_;
  transport::Reactor* reactor_ = nullptr;
  std::unique_ptr<Controller> controller_;
  std::unique_ptr<Call> keep_alive_;
  std::unique_ptr<transport::Timer> keep_alive_timer_;
  std::vector<std::unique_ptr<EventSlot>> events_;
  std::vector<Namespace> namespaces_;
  std::uint32_t io_queues_ = 0;
  transport::RegistrationCache registrations_;

  std::thread thread_;
  bool stop_ = false;  // the thread's own
  std::atomic<SessionState> state_{
      SessionState::live};    // written by the management thread (release), read by all (acquire)
  mutable std::mutex mutex_;  // guards what follows
  std::optional<Error> failure_;
  std::deque<Qid>
      free_qids_;  // the one that was given back longest ago first: its connection is surely gone at the target
  std::vector<OpenQueue> open_queues_;
};

}  // namespace rbt::initiator
