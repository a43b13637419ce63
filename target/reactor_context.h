#pragma once
// One reactor's share of the target: its connections, its way into every fabric and every store, its buffers.

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/nvme/connect_private_data.h"
#include "target/connection.h"
#include "target/controller_table.h"
#include "target/host_table.h"
#include "target/namespace_table.h"
#include "target/store/io_engine.h"
#include "target/subsystem.h"
#include "target/target.h"
#include "transport/fabric.h"
#include "transport/memory/buffer_pool.h"

namespace rbt::target {

struct Core;
class FormatJob;
struct ReservationNews;
struct DhJob;

/// What is logged at most once a second per reactor, each counted apart.
enum class LogCause : std::uint8_t { refused, connect_failed, command_failed, connection_failed, peer_gone, leaving };
inline constexpr std::size_t kLogCauses = 6;

/// A fabric on this reactor.
class FabricGroup final : public transport::CompletionHandler {
 public:
  [[nodiscard]] static Result<std::unique_ptr<FabricGroup>> open(transport::Fabric& fabric, transport::Reactor& reactor,
                                                                 const TargetLimits& limits);
  [[nodiscard]] transport::Fabric& fabric() const noexcept { return fabric_; }
  [[nodiscard]] transport::PollGroup& group() const noexcept { return *group_; }
  /// Bytes that a command capsule may carry behind its entry.
  [[nodiscard]] std::uint32_t in_capsule_bytes() const noexcept { return in_capsule_bytes_; }
  void on_completions(std::span<const transport::Completion> batch) override;

 private:
  FabricGroup(transport::Fabric& fabric, std::uint32_t in_capsule_bytes) noexcept
      : fabric_(fabric), in_capsule_bytes_(in_capsule_bytes) {}
  transport::Fabric& fabric_;
  std::uint32_t in_capsule_bytes_;
  std::unique_ptr<transport::PollGroup> group_;
};

/// Belongs to its reactor's thread once that runs; what other threads may call is marked.
class ReactorContext {
 public:
  /// `index`: its place among the target's reactors.
  [[nodiscard]] static Result<std::unique_ptr<ReactorContext>> create(Core& core, transport::Reactor& reactor,
                                                                      std::size_t index);
  ~ReactorContext();

  // Any thread.
  /// As Reactor::post(), inside the target's gate until it has run.
  void post(transport::Task task);
  /// Connections here and on their way here: for spreading them.
  [[nodiscard]] std::uint32_t load() const noexcept { return load_.load(std::memory_order_relaxed); }
  void add_load() noexcept { load_.fetch_add(1, std::memory_order_relaxed); }
  void close_connection(std::uint64_t id, std::string reason);

  // The reactor's thread.
  [[nodiscard]] Core& core() const noexcept { return core_; }
  [[nodiscard]] transport::Reactor& reactor() const noexcept { return reactor_; }
  [[nodiscard]] transport::BufferPool& buffers() const noexcept { return *buffers_; }
  /// For commands that hold a buffer while they ask a store for memory, which may be a buffer of buffers(): none of these
  /// waits for the other pool, so that they come back, and then the ones here.
  [[nodiscard]] transport::BufferPool& side_buffers() const noexcept { return *side_buffers_; }
  [[nodiscard]] StoreQueueContext store_queue_context() noexcept { return {reactor_, *buffers_, &io_}; }
  [[nodiscard]] std::size_t index() const noexcept { return index_; }
  /// Before the threads run. The same fabric twice is one group.
  [[nodiscard]] Result<FabricGroup*> open_fabric(transport::Fabric& fabric);
  /// `request` was admitted (acceptor.h); load was added. Accepts it here, or logs why not.
  void accept(std::unique_ptr<transport::ConnectionRequest> request, HostTable::Admission admission,
              transport::Fabric& fabric, const Port& port, const nvme::CmRequest& wanted);
  /// The connection has ended and owns nothing any more: it is destroyed soon.
  void bury(Connection& connection);
  /// Lives as long as this.
  [[nodiscard]] NamespaceTable& namespaces(const Subsystem& subsystem);
  /// `ns` is served here from now on. Errors: the store's; it is not, then.
  [[nodiscard]] Result<void> attach(Namespace& ns);
  /// No command finds `ns` here any more. `gone` is called, now or later, when none uses it and its store queue is closed;
  /// also if it never was here.
  void detach(const Namespace& ns, std::function<void()> gone);
  void set_geometry(const Subsystem& subsystem, Nsid nsid, const Geometry& geometry);
  /// Tells the hosts whose admin queue is here.
  void note_change(const Subsystem& subsystem, Nsid nsid);
  /// Tells `host`, if its admin queue is here, that it sees other namespaces than before.
  void note_shown(const Subsystem& subsystem, const Host& host, const std::vector<Nsid>& changed);
  /// Tells the hosts whose admin queue is here and came through `port` that its access state has changed.
  void note_access_change(const Port& port);
  /// As Connection::abort(); false if the connection is gone.
  [[nodiscard]] bool abort(std::uint64_t id, Cid cid);
  /// Answers an Abort command that was held for another reactor's `aborted`, if it is still there.
  void answer_abort(std::uint64_t id, std::uint32_t slot, std::uint32_t ticket, bool aborted);
  /// For Reservations: ends the held `command`, if it is still there then. What it returns may be called on any thread.
  [[nodiscard]] std::function<void(nvme::Status)> later_answer(const Command& command);
  /// Takes a namespace's new view, tells the hosts whose admin queue is here, stops what is to be stopped; then arrives.
  void hear(const std::shared_ptr<ReservationNews>& news);
  /// `done` is called, now or later, when no command that is here can touch blocks of `ns` any more but those that come from
  /// now on.
  void when_quiet(const Namespace& ns, std::function<void()> done);
  void begin_format(std::unique_ptr<FormatJob> job);
  /// Called from the job's own functions: it is destroyed soon.
  void end_format(const FormatJob& job);
  /// A host's Authentication Send that was held for `job` is over, if it is still there.
  void finish_authentication(std::uint64_t id, std::uint32_t slot, std::uint32_t ticket, DhJob& job);
  // Turns of a namespace (turns.h). `ns` is there: a pair that waits for this holds it.
  void begin_turns(Namespace& ns);
  /// This reactor takes turns.
  void join_turns(Namespace& ns);
  /// The last command has left a namespace that is leaving; called from the command's own functions.
  void release_later(ServedNamespace& ns);
  /// Lets what is in flight finish until `deadline`, then closes all.
  void drain(Instant deadline);
  [[nodiscard]] ReactorStatistics statistics() const;
  /// A command's data was copied out of its capsule.
  void count_copy(std::size_t bytes) noexcept { bytes_copied_ += bytes; }
  /// A connection ended in the middle of a command's data.
  void count_cut_off() noexcept { ++writes_cut_off_; }
  /// Frees what must be freed on this thread: no connection is left.
  void close_stores() noexcept {
    namespaces_.clear();
    io_.reset();
  }

  template <typename... Args>
  void log(LogCause cause, LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
    RateLimit& limit = log_limits_[static_cast<std::size_t>(cause)];
    if (limit.allow(reactor_.now())) write_log(limit, level, fmt::format(format, std::forward<Args>(args)...));
  }
  template <typename... Args>
  void warn(LogCause cause, fmt::format_string<Args...> format, Args&&... args) {
    log(cause, LogLevel::warning, format, std::forward<Args>(args)...);
  }

 private:
  struct Leaving {
    std::unique_ptr<ServedNamespace> ns;
    std::function<void()> gone;
    Instant deadline;
  };
  /// Commands that were to be stopped and may still change blocks.
  struct Sweep {
    struct Left {
      std::uint64_t connection;
      std::uint32_t slot;
      std::uint32_t ticket;
    };
    std::vector<Left> left;
    std::function<void()> done;
  };
  ReactorContext(Core& core, transport::Reactor& reactor, std::size_t index);
  void note_reservation(const ReservationNews& news);
  [[nodiscard]] std::vector<Sweep::Left> stop_commands(const ReservationNews& news, const ServedNamespace& ns);
  void await_end(std::vector<Sweep::Left> left, std::function<void()> done);
  void sweep_step();
  void drain_step();
  void leave_step();
  [[nodiscard]] ServedNamespace* find(const Subsystem& subsystem, Nsid nsid, std::uint64_t opening) noexcept;
  std::size_t end_waits_for_hosts(const ServedNamespace& ns);
  void write_log(RateLimit& limit, LogLevel level, std::string message);

  Core& core_;
  transport::Reactor& reactor_;
  const std::size_t index_;
  std::unique_ptr<transport::BufferPool> buffers_;
  std::unique_ptr<transport::BufferPool> side_buffers_;
  std::vector<std::unique_ptr<FabricGroup>> groups_;
  std::unique_ptr<IoEngine> io_;                             // of all file stores here; null until one has asked for it
  std::vector<std::unique_ptr<NamespaceTable>> namespaces_;  // by Subsystem::index(); null until wanted
  std::vector<Leaving> leaving_;
  std::vector<Sweep> sweeps_;
  std::vector<std::unique_ptr<FormatJob>> formats_;
  std::unordered_map<std::uint64_t, std::unique_ptr<Connection>> connections_;
  std::vector<std::unique_ptr<Connection>> buried_;
  std::uint64_t last_id_ = 0;
  std::uint64_t bytes_copied_ = 0;  // in-capsule data; store queues count theirs
  std::uint64_t writes_cut_off_ = 0;
  std::array<RateLimit, kLogCauses> log_limits_;
  std::atomic<std::uint32_t> load_{0};
  Instant drain_deadline_{};
  transport::Timer drain_timer_;
  transport::Timer leave_timer_;  // runs while a namespace is leaving
  transport::Timer sweep_timer_;  // runs while there are sweeps
};

}  // namespace rbt::target
