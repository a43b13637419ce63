#pragma once
// One reactor's share of the verbs fabric.

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "transport/fabric.h"
#include "transport/verbs/cm.h"
#include "transport/verbs/connection.h"
#include "transport/verbs/devices.h"
#include "transport/verbs/listener.h"
#include "transport/verbs/queue_pair.h"

namespace rbt::transport::verbs {

/// Belongs to its reactor's thread; only GroupTarget (poll_group.cc) is reached from others.
class Group final : public PollGroup {
 public:
  [[nodiscard]] static Result<std::unique_ptr<PollGroup>> open(Devices& devices, Reactor& reactor,
                                                               const PollGroupOptions& options,
                                                               CompletionHandler& handler);
  ~Group() override;

  [[nodiscard]] Result<std::unique_ptr<Listener>> listen(const Uri& address, const ListenOptions& options,
                                                         ListenerHandler& handler) override;
  [[nodiscard]] Result<Connection*> connect(const Uri& address, const ConnectOptions& options,
                                            ConnectionHandler& handler) override;
  [[nodiscard]] Result<Connection*> accept(std::unique_ptr<ConnectionRequest> request, const AcceptOptions& options,
                                           ConnectionHandler& handler) override;
  void release(std::uint32_t buffer_id) override;
  void flush() override;
  [[nodiscard]] std::size_t connections() const noexcept override { return connections_.size(); }
  [[nodiscard]] const PollGroupCounters& counters() const noexcept override { return counters_; }

  std::size_t poll() override;
  [[nodiscard]] bool arm() override;

  // For its connections:
  [[nodiscard]] Reactor& reactor() noexcept { return reactor_; }
  [[nodiscard]] Devices& devices() noexcept { return devices_; }
  [[nodiscard]] const std::shared_ptr<EventChannel>& channel() const noexcept { return channel_; }
  [[nodiscard]] Result<SharedQueues*> queues_for(ibv_context* context);
  [[nodiscard]] QueuePairOwner owner(std::uint64_t connection, const Device& device) const;
  void add_queue_pair(VerbsConnection& connection);
  void mark_dirty(VerbsConnection& connection);
  void begin_close(VerbsConnection& connection);
  /// Delivers every completion that is there, so that what comes after was seen after.
  std::size_t drain();

  void on_device_event(DeviceEvent event, std::uint64_t connection, const Device* device);

 private:
  class Lingering;
  Group(Devices& devices, Reactor& reactor, const PollGroupOptions& options, CompletionHandler& handler,
        std::shared_ptr<EventChannel> channel);
  std::size_t poll_queues(SharedQueues& queues, std::size_t batches_max);
  void deliver(SharedQueues& queues, std::span<const ibv_wc> batch);
  [[nodiscard]] bool translate_receive(SharedQueues& queues, const ibv_wc& from, Completion& to);
  [[nodiscard]] bool translate_send(const ibv_wc& from, Completion& to);
  [[nodiscard]] VerbsConnection* find(std::uint64_t number) noexcept;
  void flush_one(VerbsConnection& connection);
  void report_failures();
  std::size_t finish_closing();
  void finish(VerbsConnection& connection);
  void forget(VerbsConnection& connection);
  void reclaim_receives(SharedQueues& queues);

  Devices& devices_;
  Reactor& reactor_;
  PollGroupOptions options_;
  CompletionHandler& handler_;
  std::shared_ptr<EventChannel> channel_;
  std::shared_ptr<EventTarget> target_;
  std::shared_ptr<Listeners> listeners_ = std::make_shared<Listeners>();
  std::vector<std::unique_ptr<SharedQueues>> queues_;  // position: the upper byte of a buffer id
  std::unordered_map<std::uint64_t, std::unique_ptr<VerbsConnection>> connections_;  // by number
  std::unordered_map<std::uint64_t, VerbsConnection*> queue_pairs_;                  // by device and queue pair number
  VerbsConnection* last_found_ = nullptr;                                            // completions come in runs
  std::uint64_t next_number_ = 1;
  std::vector<VerbsConnection*> dirty_;
  std::vector<VerbsConnection*> closing_;
  struct Failure {
    std::uint64_t connection;
    CompletionStatus status;
    std::uint32_t vendor_error;
  };
  std::vector<Failure> failures_;
  std::vector<std::unique_ptr<Lingering>> lingering_;
  bool linger_over_ = false;
  PollGroupCounters counters_;
};

}  // namespace rbt::transport::verbs
