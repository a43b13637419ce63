#include "target/reactor_context.h"

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "target/admin/admin.h"
#include "target/admin/format.h"
#include "target/authentication.h"
#include "target/core.h"

namespace rbt::target {

namespace {

constexpr Duration kLogInterval = std::chrono::seconds(1);
constexpr Duration kDrainStep = std::chrono::milliseconds(5);
// A removed namespace: how long hosts may take to fetch and take what its commands move, and how often it is looked after.
constexpr Duration kLeaveBound = std::chrono::seconds(5);
// Of the buffers: as much again is there for Compare, Copy, Dataset Management.
constexpr std::uint64_t kSideShare = 8;
constexpr std::size_t kCapsuleBytes = sizeof(nvme::SubmissionQueueEntry);

template <std::size_t... Index>
std::array<RateLimit, sizeof...(Index)> make_log_limits(std::index_sequence<Index...>) {
  return {(static_cast<void>(Index), RateLimit(kLogInterval))...};
}

}  // namespace

Result<std::unique_ptr<FabricGroup>> FabricGroup::open(transport::Fabric& fabric, transport::Reactor& reactor,
                                                       const TargetLimits& limits) {
  const std::uint32_t in_capsule = limits.in_capsule_bytes.value_or(fabric.in_capsule_data_preferred());
  std::unique_ptr<FabricGroup> group(new FabricGroup(fabric, in_capsule));
  transport::PollGroupOptions options;
  options.receive_depth = limits.receive_depth;
  options.receive_size = static_cast<std::uint32_t>(kCapsuleBytes) + in_capsule;
  auto opened = fabric.open_poll_group(reactor, options, *group);
  if (!opened) return failure(std::move(opened.error()));
  group->group_ = std::move(*opened);
  return group;
}

void FabricGroup::on_completions(std::span<const transport::Completion> batch) {
  for (const transport::Completion& completion : batch)
    static_cast<Connection*>(completion.handler)->on_completion(completion);
}

Result<std::unique_ptr<ReactorContext>> ReactorContext::create(Core& core, transport::Reactor& reactor,
                                                               std::size_t index) {
  std::unique_ptr<ReactorContext> context(new ReactorContext(core, reactor, index));
  // Local access is all it takes: hosts never reach this memory by themselves.
  const auto make = [](Bytes size, const char* name, std::unique_ptr<transport::BufferPool>& pool) -> Result<void> {
    auto buffers = transport::BufferPool::create(size, transport::RemoteAccess::none, {.name = name});
    if (!buffers) return failure(std::move(buffers.error()).within("buffers of a reactor"));
    pool = std::move(*buffers);
    return {};
  };
  const Bytes side(core.limits.buffers.value() / kSideShare);
  if (auto made = make(core.limits.buffers, "rbt-target-buffers", context->buffers_); !made)
    return failure(std::move(made.error()));
  if (auto made = make(side, "rbt-target-side", context->side_buffers_); !made) return failure(std::move(made.error()));
  return context;
}

ReactorContext::ReactorContext(Core& core, transport::Reactor& reactor, std::size_t index)
    : core_(core),
      reactor_(reactor),
      index_(index),
      log_limits_(make_log_limits(std::make_index_sequence<kLogCauses>())),
      drain_timer_(reactor.timers(), [this] { drain_step(); }),
      leave_timer_(reactor.timers(), [this] { leave_step(); }),
      sweep_timer_(reactor.timers(), [this] { sweep_step(); }) {}

ReactorContext::~ReactorContext() {
  check(connections_.empty(), "a reactor's connections end before it does");
  buried_.clear();
  check(leaving_.empty(), "a reactor's namespaces are gone before it is");
  close_stores();
  groups_.clear();
}

Result<FabricGroup*> ReactorContext::open_fabric(transport::Fabric& fabric) {
  for (const auto& group : groups_)
    if (&group->fabric() == &fabric) return group.get();
  auto group = FabricGroup::open(fabric, reactor_, core_.limits);
  if (!group) return failure(std::move(group.error()));
  groups_.push_back(std::move(*group));
  return groups_.back().get();
}

void ReactorContext::post(transport::Task task) {
  core_.gate.enter();
  reactor_.post([this, task = std::move(task)]() mutable {
    task();
    core_.gate.leave();
  });
}

void ReactorContext::accept(std::unique_ptr<transport::ConnectionRequest> request, HostTable::Admission admission,
                            transport::Fabric& fabric, const Port& port, const nvme::CmRequest& wanted) {
  const std::string peer = request->peer();
  const auto give_up = [&](const Error& error) {
    core_.connections_refused.fetch_add(1, std::memory_order_relaxed);
    warn(LogCause::refused, "queue {} of {}: {}; refused", wanted.qid.value(), printable(peer), error.message());
  };
  if (core_.draining.load(std::memory_order_relaxed)) {  // since it was admitted
    load_.fetch_sub(1, std::memory_order_relaxed);
    request->reject(nvme::wire_bytes(nvme::encode_cm_reject(nvme::CmReject::no_resources)));
    return;
  }
  auto group = open_fabric(fabric);
  check(group.has_value(), "every reactor has opened the fabric of every listener");
  auto connection = Connection::create(*this, **group, port, ++last_id_, wanted, peer, std::move(admission));
  if (!connection) {
    load_.fetch_sub(1, std::memory_order_relaxed);
    request->reject(nvme::wire_bytes(nvme::encode_cm_reject(nvme::CmReject::no_resources)));
    give_up(connection.error());
    return;
  }
  const auto reply = nvme::encode_cm_accept(static_cast<std::uint16_t>(wanted.host_sends));
  transport::AcceptOptions options;
  options.private_data = nvme::wire_bytes(reply);
  options.send_depth = 2 * wanted.host_sends;  // a read is a WRITE and a SEND
  options.outgoing_reads = core_.limits.reads_max;
  auto accepted = (*group)->group().accept(std::move(request), options, **connection);
  if (!accepted) {
    load_.fetch_sub(1, std::memory_order_relaxed);
    give_up(accepted.error());
    return;
  }
  Connection& added = **connection;
  connections_.emplace(added.id(), std::move(*connection));
  core_.gate.enter();
  core_.connections_accepted.fetch_add(1, std::memory_order_relaxed);
  if (auto attached = added.attach(**accepted); !attached) added.fail(attached.error().message());
}

void ReactorContext::close_connection(std::uint64_t id, std::string reason) {
  post([this, id, reason = std::move(reason)] {
    const auto found = connections_.find(id);
    if (found == connections_.end() || found->second->ended()) return;
    log(LogCause::peer_gone, LogLevel::info, "{}: {}; closing the connection", found->second->who(), reason);
    found->second->close();
  });
}

bool ReactorContext::abort(std::uint64_t id, Cid cid) {
  const auto found = connections_.find(id);
  return found != connections_.end() && found->second->abort(cid);
}

void ReactorContext::answer_abort(std::uint64_t id, std::uint32_t slot, std::uint32_t ticket, bool aborted) {
  const auto found = connections_.find(id);
  if (found == connections_.end() || found->second->ended()) return;
  Command& command = found->second->commands()[slot];
  if (command.ticket() != ticket || command.state() != CommandState::held) return;
  --command.controller().aborts();
  command.complete_held(nvme::Status(), abort_result(aborted));
}

void ReactorContext::finish_authentication(std::uint64_t id, std::uint32_t slot, std::uint32_t ticket, DhJob& job) {
  const auto found = connections_.find(id);
  if (found == connections_.end() || found->second->ended()) return;
  found->second->authentication()->finish(job);
  found->second->note_authentication();
  Command& command = found->second->commands()[slot];
  if (command.ticket() == ticket && command.state() == CommandState::held) command.complete_held(nvme::Status(), 0);
}

void ReactorContext::bury(Connection& connection) {
  const auto found = connections_.find(connection.id());
  check(found != connections_.end(), "a connection ends once");
  buried_.push_back(std::move(found->second));
  connections_.erase(found);
  load_.fetch_sub(1, std::memory_order_relaxed);
  // Not here: this is called from the connection's own functions.
  post([this] {
    for (auto& each : std::exchange(buried_, {})) {
      each.reset();
      core_.gate.leave();
    }
  });
}

// ---- Namespaces: they come and go by messages ----

NamespaceTable& ReactorContext::namespaces(const Subsystem& subsystem) {
  if (namespaces_.size() <= subsystem.index()) namespaces_.resize(subsystem.index() + 1);
  auto& table = namespaces_[subsystem.index()];
  if (table == nullptr) table = std::make_unique<NamespaceTable>();
  return *table;
}

Result<void> ReactorContext::attach(Namespace& ns) {
  return namespaces(ns.subsystem()).add(std::make_unique<ServedNamespace>(ns, *this));
}

void ReactorContext::detach(const Namespace& ns, std::function<void()> gone) {
  NamespaceTable& table = namespaces(ns.subsystem());
  const ServedNamespace* const here = table.find(ns.nsid());
  // Not here: it could not be added, and maybe another one has its NSID.
  auto taken = here != nullptr && &here->shared() == &ns ? table.take(ns.nsid()) : nullptr;
  if (taken == nullptr || taken->commands() == 0) {
    taken.reset();
    gone();
    return;
  }
  core_.gate.enter();
  taken->set_leaving();
  leaving_.push_back({std::move(taken), std::move(gone), reactor_.clock().now() + kLeaveBound});
  if (!leave_timer_.armed()) leave_timer_.arm(leaving_.back().deadline);
}

// Not at once: a store queue is not destroyed from within its own calls.
void ReactorContext::release_later(ServedNamespace& ns) {
  post([this, &ns] {
    const auto found =
        std::find_if(leaving_.begin(), leaving_.end(), [&](const Leaving& each) { return each.ns.get() == &ns; });
    check(found != leaving_.end(), "a namespace leaves once");
    Leaving done = std::move(*found);
    leaving_.erase(found);
    if (leaving_.empty()) leave_timer_.cancel();
    done.ns.reset();
    done.gone();
    core_.gate.leave();
  });
}

void ReactorContext::leave_step() {
  const Instant now = reactor_.clock().now();
  for (Leaving& each : leaving_) {
    if (now < each.deadline) continue;
    each.deadline = now + kLeaveBound;
    const std::size_t in_store = end_waits_for_hosts(*each.ns);
    if (in_store > 0)
      warn(LogCause::leaving,
           "{} was removed, but {} of its commands have not come back from the store; it goes when they do",
           each.ns->shared().who(), in_store);
  }
  if (!leaving_.empty()) leave_timer_.arm(now + kLeaveBound);
}

// Connections whose hosts keep commands of `ns` from ending are closed. Returns how many commands only the store can end.
std::size_t ReactorContext::end_waits_for_hosts(const ServedNamespace& ns) {
  std::size_t in_store = 0;
  for (const auto& [id, connection] : connections_) {  // fail() changes no table: the connections go later
    bool host_waited_for = false;
    for (const Command& command : connection->commands()) {
      if (command.held() != &ns) continue;
      command.in_store() ? static_cast<void>(++in_store) : static_cast<void>(host_waited_for = true);
    }
    if (host_waited_for && !connection->ended())
      connection->fail(fmt::format("{} was removed {} s ago, and this host has not let its commands end",
                                   ns.shared().who(),
                                   std::chrono::duration_cast<std::chrono::seconds>(kLeaveBound).count()));
  }
  return in_store;
}

// Also one that is leaving; commands may still use it.
ServedNamespace* ReactorContext::find(const Subsystem& subsystem, Nsid nsid, std::uint64_t opening) noexcept {
  const auto is_it = [&](const ServedNamespace* ns) { return ns != nullptr && ns->shared().opening() == opening; };
  if (ServedNamespace* const ns = namespaces(subsystem).find(nsid); is_it(ns)) return ns;
  const auto found =
      std::find_if(leaving_.begin(), leaving_.end(), [&](const Leaving& each) { return is_it(each.ns.get()); });
  return found != leaving_.end() ? found->ns.get() : nullptr;
}

void ReactorContext::begin_turns(Namespace& ns) {
  ServedNamespace* const here = find(ns.subsystem(), ns.nsid(), ns.opening());
  here != nullptr ? here->begin_turns() : join_turns(ns);  // not here any more: nobody writes
}

void ReactorContext::join_turns(Namespace& ns) {
  if (!ns.turns().join()) return;
  for (const auto& each : core_.reactors)
    each->post([reactor = each.get(), &subsystem = ns.subsystem(), nsid = ns.nsid(), opening = ns.opening()] {
      if (ServedNamespace* const here = reactor->find(subsystem, nsid, opening)) here->on_turns_complete();
    });
}

void ReactorContext::set_geometry(const Subsystem& subsystem, Nsid nsid, const Geometry& geometry) {
  if (ServedNamespace* const ns = namespaces(subsystem).find(nsid)) ns->set_geometry(geometry);
}

void ReactorContext::note_change(const Subsystem& subsystem, Nsid nsid) {
  for (const auto& [id, connection] : connections_) {  // sending an event changes no table
    Controller* const controller = connection->controller();
    if (controller == nullptr || connection->terms().qid != Qid(0) || connection->ended() ||
        &controller->subsystem() != &subsystem)
      continue;
    if (controller->host() != nullptr && !controller->host()->mask.shows(nsid)) continue;
    controller->changed_namespaces().note(nsid);
    send_due_events(*controller);
  }
}

void ReactorContext::note_shown(const Subsystem& subsystem, const Host& host, const std::vector<Nsid>& changed) {
  const NamespaceTable& table = namespaces(subsystem);
  for (const auto& [id, connection] : connections_) {
    Controller* const controller = connection->controller();
    if (controller == nullptr || connection->terms().qid != Qid(0) || connection->ended() ||
        controller->host() != &host)
      continue;
    for (const Nsid nsid : changed)
      if (table.find(nsid) != nullptr) controller->changed_namespaces().note(nsid);
    send_due_events(*controller);
  }
}

void ReactorContext::note_access_change(const Port& port) {
  for (const auto& [id, connection] : connections_) {
    Controller* const controller = connection->controller();
    if (controller == nullptr || connection->terms().qid != Qid(0) || connection->ended() ||
        &connection->port() != &port)
      continue;
    controller->access_notice().note();
    send_due_events(*controller);
  }
}

// ---- The end ----

void ReactorContext::drain(Instant deadline) {
  drain_deadline_ = drain_timer_.armed() ? std::min(drain_deadline_, deadline) : deadline;
  drain_step();
}

void ReactorContext::drain_step() {
  const bool late = reactor_.clock().now() >= drain_deadline_;
  // close() changes no table: the connections go later.
  for (const auto& [id, connection] : connections_) {
    if (connection->ended()) continue;
    const Controller* const controller = connection->controller();
    const bool has_io_queues =
        controller != nullptr && connection->terms().qid == Qid(0) && core_.controllers.io_queue_count(*controller) > 0;
    if (!late && (!connection->quiet() || has_io_queues)) continue;
    connection->close();
  }
  if (!connections_.empty()) drain_timer_.arm(reactor_.clock().now() + kDrainStep);
}

ReactorStatistics ReactorContext::statistics() const {
  ReactorStatistics statistics;
  statistics.connections = connections_.size() + buried_.size();  // until their memory is back
  statistics.buffers_free = buffers_->free_bytes() + side_buffers_->free_bytes();
  statistics.buffers_size = buffers_->size() + side_buffers_->size();
  statistics.bytes_copied = bytes_copied_;
  statistics.writes_cut_off = writes_cut_off_;
  for (const auto& table : namespaces_) {
    if (table == nullptr) continue;
    for (const auto& ns : table->all())
      statistics.bytes_copied += ns->bytes_copied();
  }
  for (const auto& group : groups_)
    statistics.groups.push_back({std::string(group->fabric().name()), group->group().counters()});
  return statistics;
}

void ReactorContext::write_log(RateLimit& limit, LogLevel level, std::string message) {
  const std::uint64_t suppressed = limit.take_suppressed();
  if (suppressed > 0) message += fmt::format(" (and {} more of this kind since)", suppressed);
  core_.logger.log(level, "{}", message);
}

}  // namespace rbt::target
