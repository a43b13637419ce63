#include "target/controller_table.h"

#include <algorithm>

#include "common/check.h"

namespace rbt::target {

using nvme::ConnectFailure;
using nvme::invalid_connect_data;
using nvme::invalid_connect_field;
using nvme::StatusCode;

Controller* ControllerTable::create(const Factory& factory, const ConnectionRef& admin_queue) {
  const std::lock_guard lock(mutex_);
  if (entries_.size() >= nvme::kCntlidMax.value()) return nullptr;
  do {
    last_ = last_ >= nvme::kCntlidMax.value() ? std::uint16_t{1} : static_cast<std::uint16_t>(last_ + 1);
  } while (entries_.contains(Cntlid(last_)));
  Entry entry{factory(Cntlid(last_)), {{Qid(0), admin_queue}}, ++associations_, false};
  Controller* const controller = entry.controller.get();
  entries_.emplace(Cntlid(last_), std::move(entry));
  return controller;
}

tl::expected<Controller*, ConnectFailure> ControllerTable::attach(const nvme::ConnectRequest& request,
                                                                  const Subsystem& subsystem,
                                                                  const ConnectionRef& queue) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(request.cntlid);
  if (found == entries_.end() || found->second.closing || &found->second.controller->subsystem() != &subsystem)
    return tl::unexpected(invalid_connect_data(offsetof(nvmf_connect_data, cntlid)));
  Entry& entry = found->second;
  Controller& controller = *entry.controller;
  // Another host's controller: it learns no more than that it is not its own.
  if (controller.identity().host_nqn != request.host_nqn)
    return tl::unexpected(invalid_connect_data(offsetof(nvmf_connect_data, hostnqn)));
  if (controller.identity().host_id != request.host_id)
    return tl::unexpected(invalid_connect_data(offsetof(nvmf_connect_data, hostid)));
  if (request.qid.value() > controller.io_queues_granted())
    return tl::unexpected(invalid_connect_field(offsetof(nvme::ConnectCommand, qid)));
  const bool in_use =
      std::any_of(entry.queues.begin(), entry.queues.end(), [&](const Queue& each) { return each.qid == request.qid; });
  // Both are what Linux answers, too: the queue exists, or the controller is not enabled yet.
  if (in_use || !controller.ready())
    return tl::unexpected(ConnectFailure{nvme::Status::permanent(StatusCode::command_sequence_error), 0});
  entry.queues.push_back({request.qid, queue});
  return &controller;
}

void ControllerTable::detach(Controller& controller, Qid qid) {
  std::unique_ptr<Controller> last;  // destroyed after the lock is gone
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(controller.identity().cntlid);
  check(found != entries_.end(), "a controller is known as long as it has queues");
  const auto removed = std::erase_if(found->second.queues, [&](const Queue& each) { return each.qid == qid; });
  check(removed == 1, "a queue is detached once");
  if (!found->second.queues.empty()) return;
  last = std::move(found->second.controller);
  entries_.erase(found);
}

std::vector<ConnectionRef> ControllerTable::close(Controller& controller) {
  {
    const std::lock_guard lock(mutex_);
    entries_.at(controller.identity().cntlid).closing = true;
  }
  return io_queues(controller);
}

std::uint64_t ControllerTable::association(const Controller& controller) const {
  const std::lock_guard lock(mutex_);
  return entries_.at(controller.identity().cntlid).association;
}

std::optional<std::vector<ConnectionRef>> ControllerTable::fence(std::uint64_t association, const Controller& asking) {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const auto& each) { return each.second.association == association; });
  std::vector<ConnectionRef> queues;
  if (found == entries_.end()) return queues;
  Entry& entry = found->second;
  const Controller::Identity& mine = asking.identity();
  const Controller::Identity& other = entry.controller->identity();
  if (entry.controller.get() == &asking || &entry.controller->subsystem() != &asking.subsystem() ||
      other.host_nqn != mine.host_nqn || other.host_id != mine.host_id)
    return std::nullopt;
  entry.closing = true;
  for (const Queue& each : entry.queues)
    queues.push_back(each.connection);
  return queues;
}

std::vector<ConnectionRef> ControllerTable::io_queues(Controller& controller) const {
  const std::lock_guard lock(mutex_);
  std::vector<ConnectionRef> queues;
  for (const Queue& each : entries_.at(controller.identity().cntlid).queues)
    if (each.qid != Qid(0)) queues.push_back(each.connection);
  return queues;
}

std::optional<ConnectionRef> ControllerTable::queue(const Controller& controller, Qid qid) const {
  const std::lock_guard lock(mutex_);
  for (const Queue& each : entries_.at(controller.identity().cntlid).queues)
    if (each.qid == qid) return each.connection;
  return std::nullopt;
}

std::vector<Cntlid> ControllerTable::of_host(const nvme::HostId& host, const Subsystem& subsystem) const {
  const std::lock_guard lock(mutex_);
  std::vector<Cntlid> ids;
  for (const auto& [cntlid, entry] : entries_)
    if (entry.controller->identity().host_id == host && &entry.controller->subsystem() == &subsystem)
      ids.push_back(cntlid);
  return ids;
}

std::size_t ControllerTable::io_queue_count(const Controller& controller) const {
  const std::lock_guard lock(mutex_);
  const auto& queues = entries_.at(controller.identity().cntlid).queues;
  return static_cast<std::size_t>(
      std::count_if(queues.begin(), queues.end(), [](const Queue& each) { return each.qid != Qid(0); }));
}

bool ControllerTable::contains(Cntlid cntlid) const {
  const std::lock_guard lock(mutex_);
  return entries_.contains(cntlid);
}

std::size_t ControllerTable::size() const {
  const std::lock_guard lock(mutex_);
  return entries_.size();
}

}  // namespace rbt::target
