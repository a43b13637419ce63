#include "transport/shm/group.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "common/check.h"
#include "common/uri.h"
#include "transport/shm/address.h"
#include "transport/shm/listener.h"

namespace rbt::transport::shm {

namespace {
constexpr std::uint32_t kReceiveDepthMax = 1u << 20;
constexpr std::uint32_t kSendDepthMax = 65536;
constexpr std::size_t kReceivesPerBatch = 256;
// READs are carried out one after the other by the poster itself: any number may be posted.
constexpr std::uint32_t kReadDepth = 128;
}  // namespace

// ---- Receive buffers.

ReceivePool::ReceivePool(std::byte* data, std::uint32_t count, std::uint32_t size)
    : data_(data), size_(size), stride_((std::size_t{size} + 63) / 64 * 64), lent_(count) {
  free_.reserve(count);
  for (std::uint32_t id = count; id != 0; --id)
    free_.push_back(id - 1);
}

Result<std::unique_ptr<ReceivePool>> ReceivePool::create(std::uint32_t count, std::uint32_t size, Domain& domain) {
  if (count == 0 || count > kReceiveDepthMax || size == 0 || size > kReceiveSizeMax)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("a poll group with {} receive buffers of {} bytes: 1 to {} of 1 to {} are possible",
                               count, size, kReceiveDepthMax, kReceiveSizeMax));
  const std::size_t bytes = (std::size_t{size} + 63) / 64 * 64 * count;
  void* const data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED)
    return errno_failure(errno, fmt::format("allocating {} bytes of receive buffers", bytes),
                         "lower the receive depth, or check the free memory (`free`)");
  std::unique_ptr<ReceivePool> pool(new ReceivePool(static_cast<std::byte*>(data), count, size));
  auto region = domain.register_memory({pool->data_, bytes, -1, 0}, RemoteAccess::none);
  if (!region) return failure(std::move(region.error()));
  pool->region_ = std::move(*region);
  return pool;
}

ReceivePool::~ReceivePool() {
  region_.reset();
  ::munmap(data_, stride_ * lent_.size());
}

ReceivedMessage ReceivePool::take(std::uint32_t length) noexcept {
  const std::uint32_t id = free_.back();
  free_.pop_back();
  lent_[id] = true;
  return {{data_ + id * stride_, length}, region_->lkey(), id};
}

void ReceivePool::give_back(std::uint32_t id) noexcept {
  check(id < lent_.size() && lent_[id], "a receive buffer is released that was not lent");
  lent_[id] = false;
  free_.push_back(id);
}

// ---- The group.

Result<std::unique_ptr<PollGroup>> Group::create(Reactor& reactor, Domain& domain, const Options& fabric,
                                                 const PollGroupOptions& options, CompletionHandler& handler) {
  auto receives = ReceivePool::create(options.receive_depth, options.receive_size, domain);
  if (!receives) return failure(std::move(receives.error()));
  return std::unique_ptr<PollGroup>(new Group(reactor, domain, fabric, std::move(*receives), handler));
}

Group::Group(Reactor& reactor, Domain& domain, const Options& fabric, std::unique_ptr<ReceivePool> receives,
             CompletionHandler& handler)
    : reactor_(reactor), domain_(domain), options_(fabric), handler_(handler), receives_(std::move(receives)) {
  reactor_.add(*this);
}

Group::~Group() {
  check(queue_pairs_.empty(), "a poll group is destroyed that still has connections");
  reactor_.remove(*this);
}

std::size_t Group::poll() {
  std::size_t work_done = 0;
  // By index: callbacks may connect and accept.
  if (attention_)
    for (std::size_t i = 0; i < queue_pairs_.size(); ++i)
      queue_pairs_[i]->report_established();
  for (std::size_t i = 0; i < queue_pairs_.size() && pending_.size() < completions_max_ + kReceivesPerBatch; ++i)
    work_done += queue_pairs_[i]->receive();
  work_done += deliver();
  if (std::exchange(attention_, false)) {
    for (std::size_t i = 0; i < queue_pairs_.size(); ++i)
      queue_pairs_[i]->report_disconnected();
    work_done += 1 + reap();
  }
  return work_done + work();
}

std::size_t Group::deliver() {
  const std::size_t count = pending_.size();
  if (count == 0) return 0;
  for (const Owned& owned : owners_)
    owned.owner->retire(owned.covers);
  owners_.clear();
  delivering_.swap(pending_);
  counters_.completions += count;
  handler_.on_completions(delivering_);
  delivering_.clear();
  return count;
}

void Group::complete(QueuePair& owner, const Completion& completion, std::uint32_t covers) {
  pending_.push_back(completion);
  owners_.push_back({&owner, covers});
}

void Group::purge(QueuePair& owner) noexcept {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < pending_.size(); ++i) {
    if (owners_[i].owner != &owner) {
      pending_[kept] = pending_[i];
      owners_[kept++] = owners_[i];
    } else if (pending_[i].type == Completion::Type::receive) {
      receives_->give_back(pending_[i].message.buffer_id);
    }
  }
  pending_.resize(kept);
  owners_.resize(kept);
}

void Group::queue_work(QueuePair& owner) {
  if (std::exchange(owner.queued_for_work, true)) return;
  to_work_.push_back(&owner);
}

std::size_t Group::work() {
  if (to_work_.empty()) return 0;
  std::size_t moved = 0;
  working_.swap(to_work_);
  for (QueuePair* queue_pair : working_) {
    queue_pair->queued_for_work = false;
    moved += queue_pair->work();
    if (queue_pair->runnable()) queue_work(*queue_pair);
  }
  working_.clear();
  return moved;
}

void Group::flush() {
  work();
}

std::size_t Group::reap() {
  std::size_t reaped = 0;
  for (std::size_t i = 0; i < queue_pairs_.size();) {
    if (queue_pairs_[i]->state() != State::closed) {
      ++i;
      continue;
    }
    std::unique_ptr<QueuePair> gone = std::move(queue_pairs_[i]);
    queue_pairs_.erase(queue_pairs_.begin() + static_cast<std::ptrdiff_t>(i));
    std::erase(to_work_, gone.get());
    completions_max_ -= gone->limits().send_depth;
    ConnectionHandler& handler = gone->handler();
    gone.reset();
    ++reaped;
    handler.on_closed();
    i = 0;  // the callback may have changed the list
  }
  return reaped;
}

bool Group::arm() {
  if (attention_ || !pending_.empty() || !to_work_.empty()) return false;
  for (const auto& queue_pair : queue_pairs_)
    queue_pair->arm();
  // One fence for all of them. Partner: QueuePair::ring_doorbell().
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return std::none_of(queue_pairs_.begin(), queue_pairs_.end(), [](const auto& q) { return q->woken(); });
}

void Group::disarm() {
  for (const auto& queue_pair : queue_pairs_)
    queue_pair->disarm();
}

transport::Connection* Group::adopt(std::unique_ptr<QueuePair> queue_pair, std::uint32_t send_depth) {
  // All the room that completions can ever need: every request of every connection, and a turn's messages.
  completions_max_ += send_depth;
  const std::size_t room = completions_max_ + 2 * kReceivesPerBatch;
  pending_.reserve(room);
  owners_.reserve(room);
  delivering_.reserve(room);
  queue_pairs_.push_back(std::move(queue_pair));
  to_work_.reserve(queue_pairs_.size());
  working_.reserve(queue_pairs_.size());
  return queue_pairs_.back().get();
}

// ---- Who comes.

Result<std::unique_ptr<Listener>> Group::listen(const Uri& address, const ListenOptions& options,
                                                ListenerHandler& handler) {
  return SocketListener::open(reactor_, address, options_.access, options, handler);
}

Result<transport::Connection*> Group::connect(const Uri& address, const ConnectOptions& options,
                                              ConnectionHandler& handler) {
  if (options.private_data.size() > kConnectDataMax || options.send_depth == 0 || options.send_depth > kSendDepthMax)
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("connecting over shm with {} bytes of private data and a send depth of {}: at most {}, and 1 "
                    "to {}, are possible",
                    options.private_data.size(), options.send_depth, kConnectDataMax, kSendDepthMax));
  auto path = socket_path(address, PathUse::connect);
  if (!path) return failure(std::move(path.error()));
  Descriptor socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid())
    return errno_failure(errno, "making a Unix socket", "raise the limit of open files (`ulimit -n`)");

  const std::uint32_t slots = slot_count_for(receives_->size(), options.send_depth);
  const RingMemory::Sizes sizes{slots, slots};
  Descriptor ring_fd;
  auto ring = RingMemory::create(sizes, ring_fd);
  if (!ring) return failure(std::move(ring.error()));
  HelloMessage hello;
  hello.slots_to_acceptor = sizes.to_acceptor;
  hello.slots_to_connector = sizes.to_connector;
  hello.receive_size = receives_->size();
  hello.incoming_reads = options.incoming_reads;
  hello.private_size = put_bytes(hello.private_data, options.private_data.data(), options.private_data.size());

  auto queue_pair =
      std::make_unique<QueuePair>(*this, handler,
                                  QueuePairOptions{.socket = std::move(socket),
                                                   .ring = std::move(*ring),
                                                   .side = kConnector,
                                                   .send_depth = options.send_depth,
                                                   .read_depth = kReadDepth,
                                                   .peer_receive_size = 0,
                                                   .remote = {options_.mappings_max, options_.mapped_bytes_max, true},
                                                   .peer = *path,
                                                   .timeout = options.timeout});
  if (auto begun = queue_pair->begin_connect(*path, hello, std::move(ring_fd)); !begun)
    return failure(std::move(begun.error()));
  return adopt(std::move(queue_pair), options.send_depth);
}

Result<transport::Connection*> Group::accept(std::unique_ptr<ConnectionRequest> request, const AcceptOptions& options,
                                             ConnectionHandler& handler) {
  auto* const knock = dynamic_cast<Knock*>(request.get());
  if (knock == nullptr)
    return failure(ErrorKind::internal, "accepting over shm: the request comes from another fabric");
  if (options.private_data.size() > kAcceptDataMax || options.send_depth == 0 || options.send_depth > kSendDepthMax)
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("accepting over shm with {} bytes of private data and a send depth of {}: at most {}, and 1 "
                    "to {}, are possible",
                    options.private_data.size(), options.send_depth, kAcceptDataMax, kSendDepthMax));
  AcceptMessage message;
  message.receive_size = receives_->size();
  message.private_size = put_bytes(message.private_data, options.private_data.data(), options.private_data.size());
  auto taken = knock->take();
  auto queue_pair = std::make_unique<QueuePair>(
      *this, handler,
      QueuePairOptions{.socket = std::move(taken.socket),
                       .ring = std::move(taken.ring),
                       .side = kAcceptor,
                       .send_depth = options.send_depth,
                       .read_depth = std::min(options.outgoing_reads, knock->peer_incoming_reads()),
                       .peer_receive_size = taken.receive_size,
                       .remote = {options_.mappings_max, options_.mapped_bytes_max, taken.trusted},
                       .peer = knock->peer(),
                       .timeout = options.timeout});
  if (auto begun = queue_pair->begin_accept(message); !begun) return failure(std::move(begun.error()));
  return adopt(std::move(queue_pair), options.send_depth);
}

}  // namespace rbt::transport::shm
