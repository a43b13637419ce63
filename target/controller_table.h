#pragma once
// Every controller of the target, by id, with the queues attached to it.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "common/nvme/fabrics.h"
#include "target/controller.h"

namespace rbt::target {

class ReactorContext;

/// Where a connection lives: outlives the connection itself, so that a message may come too late.
struct ConnectionRef {
  ReactorContext* reactor = nullptr;
  std::uint64_t id = 0;
};

/// Owns the controllers. Thread-safe; slow path only (Connect, teardown, reset).
class ControllerTable {
 public:
  /// Makes the controller once its id is known.
  using Factory = std::function<std::unique_ptr<Controller>(Cntlid)>;

  /// For an admin queue. Ids go round 1 to FFEFh, so that one just freed is not used again soon. Null: all are in use.
  [[nodiscard]] Controller* create(const Factory& factory, const ConnectionRef& admin_queue);

  /// For an I/O queue: finds the controller and checks that it is the host's, enabled, and that the queue is one it
  /// granted and not in use (Base 2.0, 6.3).
  [[nodiscard]] tl::expected<Controller*, nvme::ConnectFailure> attach(const nvme::ConnectRequest& request,
                                                                       const Subsystem& subsystem,
                                                                       const ConnectionRef& queue);
  /// The connection of queue `qid` has gone. With the last one goes the controller.
  void detach(Controller& controller, Qid qid);

  /// No queue can be attached any more. Returns the I/O queues that have to go.
  [[nodiscard]] std::vector<ConnectionRef> close(Controller& controller);
  /// Which association with this target the controller stands for: counted from 1, never used again.
  [[nodiscard]] std::uint64_t association(const Controller& controller) const;
  /// No queue can be attached to that controller any more. Returns the queues that are left of it, which have to go, in
  /// which no command can be carried out any more once there are none; nothing if it is not of the same host (NQN and
  /// identifier) and subsystem as `asking`, or `asking` itself.
  [[nodiscard]] std::optional<std::vector<ConnectionRef>> fence(std::uint64_t association, const Controller& asking);
  [[nodiscard]] std::vector<ConnectionRef> io_queues(Controller& controller) const;
  /// Of queue `qid`; nothing if there is none.
  [[nodiscard]] std::optional<ConnectionRef> queue(const Controller& controller, Qid qid) const;
  /// In ascending order.
  [[nodiscard]] std::vector<Cntlid> of_host(const nvme::HostId& host, const Subsystem& subsystem) const;
  [[nodiscard]] std::size_t io_queue_count(const Controller& controller) const;
  [[nodiscard]] bool contains(Cntlid cntlid) const;
  [[nodiscard]] std::size_t size() const;

 private:
  struct Queue {
    Qid qid;
    ConnectionRef connection;
  };
  struct Entry {
    std::unique_ptr<Controller> controller;
    std::vector<Queue> queues;
    std::uint64_t association = 0;
    bool closing = false;
  };
  mutable std::mutex mutex_;
  std::map<Cntlid, Entry> entries_;  // guarded by mutex_
  std::uint16_t last_ = 0;           // guarded by mutex_
  std::uint64_t associations_ = 0;   // guarded by mutex_
};

}  // namespace rbt::target
