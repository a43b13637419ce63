#include "transport/sim/poll_group.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/check.h"
#include "common/uri.h"
#include "transport/sim/address.h"
#include "transport/sim/queue_pair.h"
#include "transport/sim/world.h"

namespace rbt::transport::sim {

namespace {

constexpr unsigned kDeviceShift = 24;  // of a buffer id

Error too_long(std::string_view doing, std::size_t given, std::size_t allowed) {
  return {ErrorKind::invalid_argument,
          fmt::format("{}: {} bytes of private data; at most {} are carried", doing, given, allowed)};
}

}  // namespace

Group::Group(World& world, Machine& machine, Reactor& reactor, const PollGroupOptions& options,
             CompletionHandler& handler)
    : world_(world), machine_(machine), reactor_(reactor), options_(options), handler_(handler) {
  receive_queues_.resize(machine.devices().size());
  machine_.add(*this);
  world_.join(reactor, this);
  reactor_.add(*this);
  world_.note(What::group, machine.number());
}

Group::~Group() {
  check(dead_ || connections_.empty(), "a poll group goes after its connections");
  while (!notices_.empty())
    notices_.pop();  // rejects what nobody took
  connections_.clear();
  reactor_.remove(*this);
  world_.leave(reactor_, this);
  machine_.remove(*this);
}

Result<std::unique_ptr<Listener>> Group::listen(const Uri& address, const ListenOptions& options,
                                                ListenerHandler& handler) {
  auto where = local_address(address, machine_);
  if (!where) return failure(std::move(where.error()));
  if (world_.fails(Operation::listen, machine_.host()))
    return failure(ErrorKind::resource,
                   fmt::format("listening on {}: no memory (simulated fault)", address.to_string()));
  if (where->device ? machine_.devices()[*where->device]->removed : machine_.device_towards(0) == nullptr)
    return failure(ErrorKind::not_found, fmt::format("listening on {}: the device was removed", address.to_string()));
  if (where->port == 0) where->port = machine_.free_port();
  if (const SimListener* other = machine_.listener_conflict(where->device, where->port); other != nullptr)
    return failure(ErrorKind::in_use, fmt::format("listening on {}: {} is taken; choose another port or stop the other "
                                                  "program",
                                                  address.to_string(), other->address()));
  return std::make_unique<SimListener>(world_, machine_, *this, where->device, where->port, options, handler);
}

Result<Connection*> Group::connect(const Uri& address, const ConnectOptions& options, ConnectionHandler& handler) {
  if (address.scheme != Uri::Scheme::sim)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("connecting to {}: not an address of the simulated network; nvme+sim://NAME is",
                               address.to_string()));
  if (options.private_data.size() > kRequestDataSize)
    return failure(too_long("connecting to " + address.to_string(), options.private_data.size(), kRequestDataSize));
  if (world_.fails(Operation::connect, machine_.host()))
    return failure(ErrorKind::resource,
                   fmt::format("connecting to {}: no queue pair left (simulated fault)", address.to_string()));
  const RemoteAddress remote = remote_address(address, world_);
  Device* const device = machine_.device_towards(remote.device);
  if (device == nullptr)
    return failure(ErrorKind::not_found, fmt::format("connecting to {}: every device of machine {} was removed",
                                                     address.to_string(), machine_.host()));
  auto pair = std::make_unique<QueuePair>(world_, *this, *device, handler, options.send_depth);
  pair->begin_connect(remote, options);
  return adopt(std::move(pair));
}

Result<Connection*> Group::accept(std::unique_ptr<ConnectionRequest> request, const AcceptOptions& options,
                                  ConnectionHandler& handler) {
  auto* const mine = dynamic_cast<Request*>(request.get());
  check(mine != nullptr && &mine->machine() == &machine_, "a request is accepted on the machine that received it");
  if (options.private_data.size() > kReplyDataSize)
    return failure(too_long("accepting " + mine->peer(), options.private_data.size(), kReplyDataSize));
  if (world_.fails(Operation::accept, machine_.host()))
    return failure(ErrorKind::resource,
                   fmt::format("accepting {}: no queue pair left (simulated fault)", mine->peer()));
  if (mine->device().removed)
    return failure(ErrorKind::not_found, fmt::format("accepting {}: the device was removed", mine->peer()));
  auto pair = std::make_unique<QueuePair>(world_, *this, mine->device(), handler, options.send_depth);
  pair->begin_accept(*mine, options);
  return adopt(std::move(pair));
}

Result<Connection*> Group::adopt(std::unique_ptr<QueuePair> pair) {
  connections_.push_back(std::move(pair));
  return connections_.back().get();
}

ReceiveQueue& Group::receive_queue(const Device& device) {
  auto& queue = receive_queues_[device.index];
  if (!queue)
    queue = std::make_unique<ReceiveQueue>(world_, *machine_.devices()[device.index], options_.receive_depth,
                                           options_.receive_size);
  return *queue;
}

std::uint32_t Group::buffer_id(const Device& device, std::uint32_t buffer) const noexcept {
  return (device.index << kDeviceShift) | buffer;
}

void Group::release(std::uint32_t buffer_id) {
  const std::uint32_t device = buffer_id >> kDeviceShift;
  check(device < receive_queues_.size() && receive_queues_[device] != nullptr, "a receive buffer comes from its group");
  receive_queues_[device]->give_back(buffer_id & ((1U << kDeviceShift) - 1));
}

void Group::flush() {
  if (doorbells_due_.empty()) return;
  ++counters_.doorbells;
  for (QueuePair* pair : doorbells_due_)
    pair->ring();
  doorbells_due_.clear();
}

bool Group::arm() {
  if (!notices_.empty() || !completions_.empty() || !closed_.empty() || !doorbells_due_.empty()) return false;
  armed_ = true;
  return true;
}

void Group::became_ready() {
  if (armed_) {
    armed_ = false;
    ++counters_.wake_ups;
  }
  world_.ready();
}

void Group::push(Notice notice) {
  notices_.push(std::move(notice));
  became_ready();
}

void Group::push_completion(QueuePair& pair, const Completion& completion, std::uint32_t covers) {
  completions_.push({&pair, covers, completion});
  became_ready();
}

void Group::push_closed(QueuePair& pair) {
  closed_.push(&pair);
  became_ready();
}

void Group::forget(QueuePair& pair) {
  for (std::size_t i = 0; i < completions_.size(); ++i) {
    Entry& entry = completions_[i];
    if (entry.pair != &pair) continue;
    entry.pair = nullptr;
    if (entry.completion.message.lkey != 0) release(entry.completion.message.buffer_id);
  }
  for (std::size_t i = 0; i < notices_.size(); ++i)
    if (notices_[i].pair == &pair) notices_[i].kind = Notice::Kind::nothing;
  std::erase(doorbells_due_, &pair);
}

void Group::forget(const SimListener& listener) {
  for (std::size_t i = 0; i < notices_.size(); ++i) {
    if (notices_[i].listener != &listener) continue;
    notices_[i].kind = Notice::Kind::nothing;
    notices_[i].request.reset();
  }
}

std::size_t Group::poll() {
  std::size_t work = 0;
  if (!notices_.empty() || !completions_.empty() || !closed_.empty()) {
    // Connection events and completions come by different ways on a device: either may be first.
    const bool notices_first = world_.chance().below(2) == 0;
    if (notices_first) work += deliver_notices();
    work += deliver_completions();
    if (!notices_first) work += deliver_notices();
    work += deliver_closed();
  }
  work += doorbells_due_.size();
  flush();
  return work;
}

std::size_t Group::deliver_notices() {
  const std::size_t count = notices_.size();  // what callbacks add waits for the next poll
  for (std::size_t i = 0; i < count; ++i) {
    Notice notice = notices_.pop();
    switch (notice.kind) {
      case Notice::Kind::nothing: break;
      case Notice::Kind::established: notice.pair->tell_established(); break;
      case Notice::Kind::disconnected: notice.pair->tell_disconnected(); break;
      case Notice::Kind::request: notice.listener->handler().on_request(std::move(notice.request)); break;
      case Notice::Kind::listener_failed:
        notice.listener->handler().on_listener_failed(notice.listener->failure_reason());
        break;
    }
  }
  return count;
}

std::size_t Group::deliver_completions() {
  const std::size_t count = completions_.size();
  std::size_t filled = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (!completions_.empty() && completions_[0].pair != nullptr &&
        completions_[0].completion.type == Completion::Type::receive && !completions_[0].pair->told_established()) {
      // The message overtook the event: the seam promises the event first. The entry stays queued meanwhile, so that
      // a close() from within the callback finds it.
      hand_over(filled);
      filled = 0;
      completions_[0].pair->tell_established();
    }
    const Entry entry = completions_.pop();
    if (entry.pair == nullptr) continue;
    entry.pair->reclaim(entry.covers);
    batch_[filled++] = entry.completion;
    ++counters_.completions;
    if (filled == kBatch) {
      hand_over(filled);
      filled = 0;
    }
  }
  hand_over(filled);
  return count;
}

void Group::hand_over(std::size_t count) {
  if (count != 0) handler_.on_completions(std::span(batch_.data(), count));
}

std::size_t Group::deliver_closed() {
  const std::size_t count = closed_.size();
  for (std::size_t i = 0; i < count; ++i) {
    QueuePair* const pair = closed_.pop();
    ConnectionHandler& handler = pair->handler();
    world_.note(What::closed, pair->id());
    std::erase_if(connections_, [pair](const auto& mine) { return mine.get() == pair; });
    handler.on_closed();
  }
  return count;
}

void Group::kill(bool farewell) {
  for (const auto& pair : connections_)
    pair->die(farewell);
  dead_ = true;
}

void Group::heal() noexcept {
  for (const auto& pair : connections_)
    pair->heal();
}

void Group::lose_device(const Device& device, Disconnect::Reason reason) {
  for (const auto& pair : connections_)
    if (&pair->device() == &device) pair->lose_device(reason);
}

}  // namespace rbt::transport::sim
