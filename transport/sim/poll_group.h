#pragma once
// One reactor's share of a machine: what the network has for it lies in queues here until the reactor polls.

#include <array>
#include <memory>
#include <vector>

#include "transport/fabric.h"
#include "transport/sim/fifo.h"
#include "transport/sim/listener.h"
#include "transport/sim/receive_queue.h"

namespace rbt::transport::sim {

class World;
class Machine;
class QueuePair;
struct Device;

class Group final : public PollGroup {
 public:
  Group(World& world, Machine& machine, Reactor& reactor, const PollGroupOptions& options, CompletionHandler& handler);
  ~Group() override;

  std::size_t poll() override;
  [[nodiscard]] bool arm() override;
  void disarm() override { armed_ = false; }

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

  // From the network.
  /// `covers`: send queue slots that this completion frees when it is delivered.
  void push_completion(QueuePair& pair, const Completion& completion, std::uint32_t covers);
  void push_established(QueuePair& pair) { push({Notice::Kind::established, &pair, nullptr, nullptr}); }
  void push_disconnected(QueuePair& pair) { push({Notice::Kind::disconnected, &pair, nullptr, nullptr}); }
  void push_request(SimListener& listener, std::unique_ptr<Request> request) {
    push({Notice::Kind::request, nullptr, &listener, std::move(request)});
  }
  void push_listener_failed(SimListener& listener) {
    push({Notice::Kind::listener_failed, nullptr, &listener, nullptr});
  }
  void push_closed(QueuePair& pair);
  /// Nothing of `pair` is delivered any more; receive buffers with its messages are free again.
  void forget(QueuePair& pair);
  void forget(const SimListener& listener);
  void queue_doorbell(QueuePair& pair) { doorbells_due_.push_back(&pair); }
  [[nodiscard]] ReceiveQueue& receive_queue(const Device& device);
  [[nodiscard]] std::uint32_t buffer_id(const Device& device, std::uint32_t buffer) const noexcept;
  [[nodiscard]] PollGroupCounters& tally() noexcept { return counters_; }
  [[nodiscard]] Machine& machine() noexcept { return machine_; }

  // Faults.
  /// The process is gone. `farewell`: its kernel disconnects for it.
  void kill(bool farewell);
  [[nodiscard]] bool dead() const noexcept { return dead_; }
  void heal() noexcept;
  void lose_device(const Device& device, Disconnect::Reason reason);

 private:
  struct Notice {
    enum class Kind : std::uint8_t { nothing, established, disconnected, request, listener_failed };
    Kind kind = Kind::nothing;
    QueuePair* pair = nullptr;
    SimListener* listener = nullptr;
    std::unique_ptr<Request> request;
  };
  struct Entry {
    QueuePair* pair = nullptr;  // null: forgotten
    std::uint32_t covers = 0;
    Completion completion;
  };
  static constexpr std::size_t kBatch = 32;

  void push(Notice notice);
  void became_ready();
  std::size_t deliver_notices();
  std::size_t deliver_completions();
  void hand_over(std::size_t count);
  std::size_t deliver_closed();
  Result<Connection*> adopt(std::unique_ptr<QueuePair> pair);

  World& world_;
  Machine& machine_;
  Reactor& reactor_;
  PollGroupOptions options_;
  CompletionHandler& handler_;
  std::vector<std::unique_ptr<ReceiveQueue>> receive_queues_;  // by device; made when needed
  std::vector<std::unique_ptr<QueuePair>> connections_;
  Fifo<Notice> notices_;
  Fifo<Entry> completions_;
  Fifo<QueuePair*> closed_;
  std::vector<QueuePair*> doorbells_due_;
  std::array<Completion, kBatch> batch_;
  PollGroupCounters counters_;
  bool armed_ = false;
  bool dead_ = false;
};

}  // namespace rbt::transport::sim
