#include "transport/verbs/poll_group.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "common/check.h"
#include "transport/verbs/errors.h"
#include "transport/verbs/work_id.h"

namespace rbt::transport::verbs {

namespace {

constexpr std::size_t kBatch = 32;          // completions taken, and delivered, at a time
constexpr std::size_t kBatchesPerPoll = 8;  // then others have their turn
constexpr Duration kLingerMax = std::chrono::seconds(2);
constexpr unsigned kDeviceShift = 24;  // of a buffer id: device above, buffer below
constexpr std::size_t kDevicesMax = 256;

constexpr std::uint64_t pair_key(const SharedQueues& queues, std::uint32_t number) noexcept {
  return std::uint64_t{queues.position} << 32 | number;
}

// Rxe leaves IBV_WC_WITH_INV unset (it hands the kernel's flag values through, where 0x4 says it); reliable connections
// never have the checksum flag that 0x4 stands for here.
bool invalidated(const ibv_wc& completion, const DeviceLimits& device) noexcept {
  if ((completion.wc_flags & IBV_WC_WITH_IMM) != 0) return false;
  return (completion.wc_flags & IBV_WC_WITH_INV) != 0 ||
         (device.kernel_completion_flags && (completion.wc_flags & IBV_WC_IP_CSUM_OK) != 0);
}

}  // namespace

// What other threads hold: tasks that arrive after the group has gone find nobody.
class GroupTarget final : public EventTarget {
 public:
  explicit GroupTarget(Reactor& reactor) : EventTarget(reactor) {}
  void on_device_event(DeviceEvent event, std::uint64_t connection, const Device* device) override {
    if (group != nullptr) group->on_device_event(event, connection, device);
  }
  Group* group = nullptr;  // the reactor's thread only
};

// The identifier of a connection that is gone: its disconnect request is repeated by the connection manager until the
// peer has answered, or for kLingerMax.
class Group::Lingering final : public CmEndpoint {
 public:
  Lingering(Group& group, CmId id)
      : group_(group), id_(std::move(id)), timer_(group.reactor_.timers(), [this] { done(); }) {
    id_->context = static_cast<CmEndpoint*>(this);
    timer_.arm(group.reactor_.clock().now() + kLingerMax);
  }
  void on_cm_event(const CmEvent& /*event*/) override { done(); }  // answered, or the device goes away
  [[nodiscard]] bool over() const noexcept { return over_; }

 private:
  void done() { group_.linger_over_ = over_ = true; }
  Group& group_;
  CmId id_;
  Timer timer_;
  bool over_ = false;
};

Result<std::unique_ptr<PollGroup>> Group::open(Devices& devices, Reactor& reactor, const PollGroupOptions& options,
                                               CompletionHandler& handler) {
  auto channel = EventChannel::open();
  if (!channel) return failure(std::move(channel.error()));
  std::unique_ptr<Group> group(new Group(devices, reactor, options, handler, std::move(*channel)));
  auto watched = reactor.watch(group->channel_->descriptor(), EPOLLIN, [raw = group.get()](std::uint32_t) {
    while (raw->channel_->dispatch_one()) {
    }
  });
  if (!watched) return failure(std::move(watched.error()));
  return group;
}

Group::Group(Devices& devices, Reactor& reactor, const PollGroupOptions& options, CompletionHandler& handler,
             std::shared_ptr<EventChannel> channel)
    : devices_(devices), reactor_(reactor), options_(options), handler_(handler), channel_(std::move(channel)) {
  auto target = std::make_shared<GroupTarget>(reactor);
  target->group = this;
  target_ = std::move(target);
  reactor_.add(*this);
}

Group::~Group() {
  check(connections_.empty(), "a poll group was destroyed with connections in it");
  static_cast<GroupTarget&>(*target_).group = nullptr;
  reactor_.remove(*this);
  reactor_.unwatch(channel_->descriptor());
  lingering_.clear();
  for (const auto& queues : queues_) {
    queues->device.detach(*target_);
    reactor_.unwatch(queues->event_descriptor);
    ::close(queues->event_descriptor);
    reactor_.unwatch(queues->completions->descriptor());
  }
}

Result<std::unique_ptr<Listener>> Group::listen(const Uri& address, const ListenOptions& options,
                                                ListenerHandler& handler) {
  auto socket = resolve(address);
  if (!socket) return failure(std::move(socket.error()));
  return VerbsListener::create(*socket, channel_, listeners_, options, handler, reactor_.logger(), devices_.describe());
}

Result<Connection*> Group::connect(const Uri& address, const ConnectOptions& options, ConnectionHandler& handler) {
  if (options.private_data.size() > 56)
    return failure(ErrorKind::invalid_argument, "more than 56 bytes of private data do not fit a connection request");
  auto socket = resolve(address);
  if (!socket) return failure(std::move(socket.error()));
  auto connection = std::make_unique<VerbsConnection>(*this, next_number_++, handler);
  if (auto begun = connection->connect(*socket, options); !begun) return failure(std::move(begun.error()));
  VerbsConnection* const raw = connection.get();
  connections_.emplace(raw->number(), std::move(connection));
  return raw;
}

Result<Connection*> Group::accept(std::unique_ptr<ConnectionRequest> request, const AcceptOptions& options,
                                  ConnectionHandler& handler) {
  auto* const ours = dynamic_cast<Request*>(request.get());
  check(ours != nullptr, "a connection request of another fabric was handed to verbs");
  if (ours->id() == nullptr) return failure(ErrorKind::invalid_argument, "accepting a request that was rejected");
  if (options.private_data.size() > 196)
    return failure(ErrorKind::invalid_argument, "more than 196 bytes of private data do not fit an answer");
  if (auto moved = ours->migrate(channel_); !moved) return failure(std::move(moved.error()));
  auto connection = std::make_unique<VerbsConnection>(*this, next_number_++, handler);
  VerbsConnection* const raw = connection.get();
  connections_.emplace(raw->number(), std::move(connection));
  if (auto accepted = raw->accept(*ours, options); !accepted) {
    raw->reject();
    forget(*raw);
    return failure(std::move(accepted.error()));
  }
  return raw;
}

Result<SharedQueues*> Group::queues_for(ibv_context* context) {
  auto device = devices_.find(context);
  if (!device) return failure(std::move(device.error()));
  for (const auto& queues : queues_)
    if (&queues->device == *device) return queues.get();
  if (queues_.size() == kDevicesMax)
    return failure(ErrorKind::resource, "more than 256 RDMA devices in one poll group");
  auto receives = ReceiveQueue::create(**device, options_, static_cast<std::uint32_t>(queues_.size() << kDeviceShift),
                                       reactor_.logger());
  if (!receives) return failure(std::move(receives.error()));
  auto completions =
      CompletionQueues::create(**device, (*receives)->depth(),
                               static_cast<int>(reinterpret_cast<std::uintptr_t>(this) >> 6 & 0xff), reactor_.logger());
  if (!completions) return failure(std::move(completions.error()));
  std::unique_ptr<SharedQueues> queues(new SharedQueues{.device = **device,
                                                        .position = static_cast<std::uint32_t>(queues_.size()),
                                                        .receives = std::move(*receives),
                                                        .completions = std::move(*completions)});
  queues->event_descriptor = ::dup((*device)->event_descriptor());
  if (queues->event_descriptor < 0)
    return failure(call_failed(errno, "dup of the event descriptor", (*device)->name()));
  auto watched =
      reactor_.watch(queues->event_descriptor, EPOLLIN, [raw = *device](std::uint32_t) { raw->read_events(); });
  if (watched)
    watched = reactor_.watch(queues->completions->descriptor(), EPOLLIN, [this, raw = queues.get()](std::uint32_t) {
      counters_.wake_ups += raw->completions->take_events();
    });
  if (!watched) {
    reactor_.unwatch(queues->event_descriptor);
    ::close(queues->event_descriptor);
    return failure(std::move(watched.error()));
  }
  (*device)->attach(target_);
  queues_.push_back(std::move(queues));
  return queues_.back().get();
}

QueuePairOwner Group::owner(std::uint64_t connection, const Device& device) const {
  return {.target = target_, .connection = connection, .device = &device};
}

void Group::add_queue_pair(VerbsConnection& connection) {
  QueuePair& pair = *connection.queue_pair();
  queue_pairs_.emplace(pair_key(pair.queues(), pair.number()), &connection);
}

void Group::mark_dirty(VerbsConnection& connection) {
  if (std::exchange(connection.dirty, true)) return;
  dirty_.push_back(&connection);
}

void Group::flush_one(VerbsConnection& connection) {
  connection.dirty = false;
  QueuePair* const pair = connection.queue_pair();
  if (pair == nullptr || !connection.open()) return;
  SendQueue& sends = pair->sends();
  sends.flush();
  const SendQueue::Counters done = sends.take_counters();
  counters_.work_requests += done.requests;
  counters_.doorbells += done.doorbells;
  counters_.bytes_copied += done.bytes_copied;
  if (const int error = sends.error(); error != 0) connection.on_post_error(error);
}

void Group::flush() {
  // By index: a consumer told of a failed post may post on another connection.
  for (std::size_t i = 0; i < dirty_.size(); ++i)
    if (dirty_[i] != nullptr) flush_one(*dirty_[i]);
  dirty_.clear();
  for (const auto& queues : queues_)
    queues->receives->flush();
}

void Group::release(std::uint32_t buffer_id) {
  const std::size_t position = buffer_id >> kDeviceShift;
  check(position < queues_.size(), "a receive buffer of no device was released");
  queues_[position]->receives->release(buffer_id & ((1U << kDeviceShift) - 1));
}

VerbsConnection* Group::find(std::uint64_t number) noexcept {
  if (last_found_ != nullptr && last_found_->number() == number) return last_found_;
  const auto found = connections_.find(number);
  if (found == connections_.end()) return nullptr;
  return last_found_ = found->second.get();
}

bool Group::translate_receive(SharedQueues& queues, const ibv_wc& from, Completion& to) {
  const std::uint32_t index = receive_index(from.wr_id);
  check(queues.receives->with_device(index), "a device completed a receive that was not posted");
  const auto found = queue_pairs_.find(pair_key(queues, from.qp_num));
  VerbsConnection* const connection = found == queue_pairs_.end() ? nullptr : found->second;
  if (from.status != IBV_WC_SUCCESS || connection == nullptr || !connection->open()) {
    queues.receives->recycle(index);
    if (connection == nullptr || !connection->open()) return false;
    to = Completion{};
    to.handler = &connection->handler();
    to.type = Completion::Type::receive;
    to.status = status_of(from);
    failures_.push_back({connection->number(), to.status, from.vendor_err});
    return true;
  }
  if (connection->awaits_first_message()) {
    connection->on_first_message();
    if (!connection->open()) {
      queues.receives->recycle(index);
      return false;
    }
  }
  to = Completion{};
  to.handler = &connection->handler();
  to.type = Completion::Type::receive;
  connection->queue_pair()->received(queues.receives->turn(index));
  to.message = queues.receives->lend(index, from.byte_len);
  if (queues.receives->exhausted()) ++counters_.receives_stalled;
  if (invalidated(from, queues.device.limits())) to.invalidated_rkey = from.invalidated_rkey;
  return true;
}

bool Group::translate_send(const ibv_wc& from, Completion& to) {
  VerbsConnection* const connection = find(send_connection(from.wr_id));
  if (connection == nullptr || !connection->open()) return false;
  SendQueue::Retired retired;
  if (!connection->queue_pair()->sends().complete(send_ring_index(from.wr_id), retired)) return false;
  const CompletionStatus status = status_of(from);
  if (status == CompletionStatus::success && !retired.wanted) return false;
  to = Completion{};
  to.handler = &connection->handler();
  to.type = retired.type;
  to.status = status;
  to.wr_id = retired.wr_id;
  if (status != CompletionStatus::success) failures_.push_back({connection->number(), status, from.vendor_err});
  return true;
}

void Group::deliver(SharedQueues& queues, std::span<const ibv_wc> batch) {
  std::array<Completion, kBatch> out;
  std::size_t count = 0;
  for (const ibv_wc& from : batch)
    count += (is_receive(from.wr_id) ? translate_receive(queues, from, out[count]) : translate_send(from, out[count]))
                 ? 1
                 : 0;
  counters_.completions += count;
  if (count != 0) handler_.on_completions({out.data(), count});
  if (!failures_.empty()) report_failures();
  if (queues.receives->last_turn() >= queues.audit_turn) reclaim_receives(queues);
}

void Group::report_failures() {
  for (const Failure& failure : std::exchange(failures_, {}))
    if (VerbsConnection* const connection = find(failure.connection); connection != nullptr)
      connection->on_completion_error(failure.status, failure.vendor_error);
}

std::size_t Group::poll_queues(SharedQueues& queues, std::size_t batches_max) {
  std::array<ibv_wc, kBatch> batch;  // NOLINT(cppcoreguidelines-pro-type-member-init): written by ibv_poll_cq
  std::size_t taken = 0;
  for (std::size_t i = 0; i < batches_max; ++i) {
    const std::size_t count = queues.completions->poll(batch);
    if (count == 0) break;
    taken += count;
    deliver(queues, {batch.data(), count});
  }
  return taken;
}

std::size_t Group::drain() {
  std::size_t taken = 0;
  for (std::size_t i = 0; i < queues_.size(); ++i)
    taken += poll_queues(*queues_[i], ~std::size_t{0});
  return taken;
}

std::size_t Group::poll() {
  std::size_t work = 0;
  for (std::size_t i = 0; i < queues_.size(); ++i)
    work += poll_queues(*queues_[i], kBatchesPerPoll);
  if (!closing_.empty()) work += finish_closing();
  if (linger_over_) {
    linger_over_ = false;
    std::erase_if(lingering_, [](const auto& entry) { return entry->over(); });
  }
  flush();
  return work;
}

bool Group::arm() {
  flush();
  for (VerbsConnection* const connection : closing_)
    if (connection->quiet()) return false;
  for (const auto& queues : queues_)
    if (!queues->completions->arm()) return false;
  // What came before the queues were armed rings nothing.
  std::size_t work = 0;
  for (std::size_t i = 0; i < queues_.size(); ++i)
    work += poll_queues(*queues_[i], 1);
  return work == 0;
}

void Group::begin_close(VerbsConnection& connection) {
  closing_.push_back(&connection);
}

std::size_t Group::finish_closing() {
  std::size_t finished = 0;
  for (std::size_t i = 0; i < closing_.size();) {  // by index: on_closed() may close others
    VerbsConnection* const connection = closing_[i];
    if (!connection->quiet()) {
      ++i;
      continue;
    }
    closing_.erase(closing_.begin() + static_cast<std::ptrdiff_t>(i));
    finish(*connection);
    ++finished;
  }
  return finished;
}

void Group::finish(VerbsConnection& connection) {
  ConnectionHandler& handler = connection.handler();
  QueuePair* const pair = connection.queue_pair();
  SharedQueues* const queues = pair != nullptr && pair->was_ready() ? &pair->queues() : nullptr;
  drain();                 // its receives come back before the queue pair goes: some drivers drop them with it
  connection.dismantle();  // the fence
  drain();                 // and what it completed since; from here on nothing names it
  if (CmId id = connection.take_id_to_linger()) lingering_.push_back(std::make_unique<Lingering>(*this, std::move(id)));
  forget(connection);
  if (queues != nullptr && queues->device.limits().keeps_receives) {
    reclaim_receives(*queues);
    queues->audit_turn = queues->receives->last_turn() + 2ULL * queues->receives->depth();  // what is not certain yet
  }
  handler.on_closed();
}

void Group::forget(VerbsConnection& connection) {
  std::erase_if(queue_pairs_, [&](const auto& entry) { return entry.second == &connection; });
  std::replace(dirty_.begin(), dirty_.end(), &connection, static_cast<VerbsConnection*>(nullptr));
  if (last_found_ == &connection) last_found_ = nullptr;
  connections_.erase(connection.number());
}

void Group::reclaim_receives(SharedQueues& queues) {
  queues.audit_turn = ~std::uint64_t{0};
  if (queues.queue_pairs == 0) {
    if (auto renewed = queues.receives->renew(); !renewed) reactor_.logger().error("{}", renewed.error().message());
    return;
  }
  std::uint64_t before = queues.receives->last_turn();
  for (const auto& [number, connection] : connections_)
    if (const QueuePair* const pair = connection->queue_pair(); pair != nullptr && &pair->queues() == &queues)
      before = std::min(before, pair->last_turn());
  if (const std::size_t count = queues.receives->reclaim(before); count != 0)
    reactor_.logger().debug("{}: {} receive buffers taken back that dead queue pairs had kept", queues.device.name(),
                            count);
}

void Group::on_device_event(DeviceEvent event, std::uint64_t number, const Device* device) {
  if (number != 0) {
    if (VerbsConnection* const connection = find(number); connection != nullptr)
      connection->on_device_event(event, device);
    return;
  }
  std::vector<std::uint64_t> numbers;  // handlers may close or open connections meanwhile
  for (const auto& [each, connection] : connections_)
    numbers.push_back(each);
  std::sort(numbers.begin(), numbers.end());
  for (const std::uint64_t each : numbers)
    if (VerbsConnection* const connection = find(each); connection != nullptr)
      connection->on_device_event(event, device);
  const Listeners listeners = *listeners_;
  for (VerbsListener* const listener : listeners) {
    if (std::find(listeners_->begin(), listeners_->end(), listener) == listeners_->end()) continue;
    rdma_cm_id* const id = listener->id();
    if (id == nullptr || id->verbs != device->context()) continue;
    if (event == DeviceEvent::failed)
      listener->fail("its RDMA device failed");
    else if (event == DeviceEvent::addresses_changed && device->lost_address(id->port_num, rdma_get_local_addr(id)))
      listener->fail("the address was removed");
  }
}

}  // namespace rbt::transport::verbs
