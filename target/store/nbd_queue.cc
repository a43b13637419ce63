#include "target/store/nbd_queue.h"

#include <fmt/format.h>

#include <cerrno>
#include <utility>

#include "common/check.h"
#include "common/sizes.h"
#include "target/store/file_store.h"
#include "target/store/staged_lease.h"

namespace rbt::target {

namespace {

using Kind = NbdOperation::Kind;
using Step = NbdRequest::Step;

constexpr Duration kLogInterval = std::chrono::seconds(1);

NbdRequest& of(NbdOperation& operation) noexcept {
  return static_cast<NbdRequest&>(operation);
}

NbdRequest& make(StoreRequest& request, Step step) noexcept {
  auto& made = StoreRequestAccess::make<NbdRequest>(request);
  made.request = &request;
  made.step = step;
  return made;
}

std::string_view name(Step step) noexcept {
  switch (step) {
    case Step::buffer:
    case Step::ready:
    case Step::read: return "reading";
    case Step::write: return "writing";
    case Step::discard: return "discarding";
    case Step::zero: return "zeroing";
    case Step::flush: return "flushing";
  }
  return {};
}

/// What the server says is an errno like the kernel's; what the link says is its own.
StoreStatus nbd_status(int error, Intent intent) noexcept {
  switch (error) {
    case ETIMEDOUT:
    case ENOTCONN: return StoreStatus::unavailable;
    case ERANGE: return StoreStatus::out_of_range;
    default: return file_status(error, intent);
  }
}

}  // namespace

NbdQueue::NbdQueue(NbdStore& store, const StoreQueueContext& context)
    : store_(store),
      reactor_(context.reactor),
      buffers_(context.buffers),
      inbox_(context.reactor),
      log_limit_(kLogInterval) {
  flush_.kind = Kind::flush;
}

Result<std::unique_ptr<NbdQueue>> NbdQueue::open(NbdStore& store, const StoreQueueContext& context) {
  std::unique_ptr<NbdQueue> queue(new NbdQueue(store, context));
  if (auto started = queue->start(); !started) return failure(std::move(started.error()));
  return queue;
}

Result<void> NbdQueue::start() {
  if (!store_.shares_links()) return make_link();
  shared_ = &store_.next_shared();
  if (auto opened = inbox_.open([this] { want_turn(); }); !opened) return opened;
  const std::lock_guard lock(shared_->mutex);
  return shared_->link == nullptr ? make_link() : Result<void>();
}

/// With the mutex of shared_, if there is one.
Result<void> NbdQueue::make_link() {
  const auto sharing = shared_ != nullptr ? NbdLink::Sharing::other_reactors : NbdLink::Sharing::none;
  auto link = NbdLink::open(store_.server(), reactor_, sharing);
  if (!link) return failure(std::move(link.error()));
  link_ = std::move(*link);
  if (shared_ != nullptr) shared_->link = link_.get();
  return {};
}

NbdQueue::~NbdQueue() {
  check(pending_ == 0, "a store queue is destroyed when nothing is pending");
  buffers_.cancel(*this);
  if (link_ != nullptr && shared_ != nullptr) {
    const std::lock_guard lock(shared_->mutex);
    shared_->link = nullptr;
  }
  link_.reset();  // what others have in there goes back to them, and they make a link of their own
  if (listed_) reactor_.remove(*this);
}

// ---- a lease: a buffer of the pool ----

Progress NbdQueue::acquire(Lease& lease, StoreRequest& request) {
  if (lease.intent == Intent::write && store_.read_only()) return Progress::done(StoreStatus::read_only);
  const std::uint64_t length = staged_bytes(lease, store_.block_shift());
  // Who comes later waits behind those who wait already, even if there is room for something small.
  const std::span<std::byte> buffer = waiting_for_buffer_.empty() ? buffers_.allocate(length) : std::span<std::byte>();
  if (!buffer.empty()) stage(lease, buffer, store_.block_shift(), buffers_);
  if (!buffer.empty() && lease.intent == Intent::write) return Progress::done();
  NbdRequest& made = make(request, Step::buffer);
  made.lease = &lease;
  ++pending_;
  if (!buffer.empty()) {
    begin_read(made);
  } else {
    waiting_for_buffer_.push(made);
    buffers_.wait(*this);
  }
  return Progress::later();
}

void NbdQueue::on_buffer_available() {
  while (!waiting_for_buffer_.empty()) {
    NbdRequest& request = of(waiting_for_buffer_.front());
    Lease& lease = *request.lease;
    const auto buffer = buffers_.allocate(staged_bytes(lease, store_.block_shift()));
    if (buffer.empty()) {
      buffers_.wait(*this);
      return;
    }
    waiting_for_buffer_.pop();
    stage(lease, buffer, store_.block_shift(), buffers_);
    if (lease.intent == Intent::read) {
      begin_read(request);
    } else {  // answered from poll(), not from inside of somebody else's release()
      request.step = Step::ready;
      ready_.push(request);
      want_turn();
    }
  }
}

void NbdQueue::cover(NbdRequest& request, BlockRange range) const noexcept {
  request.offset = range.first.value() << store_.block_shift().value();
  request.length = range.count.value() << store_.block_shift().value();
}

void NbdQueue::begin_read(NbdRequest& request) {
  request.step = Step::read;
  request.kind = Kind::read;
  request.data = request.lease->few[0].data;
  cover(request, request.lease->range);
  begin(request);
}

void NbdQueue::release(Lease& lease) noexcept {
  unstage(lease, buffers_);
}

Progress NbdQueue::commit(Lease& lease, Durability durability, StoreRequest& request) {
  NbdRequest& made = make(request, Step::write);
  made.lease = &lease;
  made.kind = Kind::write;
  made.data = lease.few[0].data;
  made.durability = store_.durability(durability);
  made.fua = made.durability == Durability::durable && store_.can_fua();
  cover(made, lease.range);
  ++pending_;
  begin_write(made, Step::write);
  return Progress::later();
}

void NbdQueue::begin_write(NbdRequest& request, Step step) {
  request.step = step;
  request.losses_seen = store_.losses();
  begin(request);
}

// ---- flush, discard, write zeroes ----

Progress NbdQueue::flush(StoreRequest& request) {
  if (store_.read_only()) return Progress::done();
  NbdRequest& made = make(request, Step::flush);
  made.kind = Kind::flush;
  ++pending_;
  make_durable(made);
  return Progress::later();
}

/// A flush that is under way may have passed what this one is about: it waits for the next.
void NbdQueue::make_durable(NbdRequest& request) {
  request.step = Step::flush;
  flush_next_.push(request);
  want_turn();
}

void NbdQueue::on_flushed() {
  const int error = flush_.error;
  StoreStatus status = error == 0 ? StoreStatus::ok : nbd_status(error, Intent::write);
  if (error == 0) store_.note_flushed(flush_covers_);
  if (store_.lost_writes()) status = StoreStatus::write_error;
  if (error != 0) report(of(flush_running_.front()), error);
  Operations done = std::exchange(flush_running_, {});
  while (!done.empty())
    end_flushed(of(done.pop()), status);
  if (!flush_next_.empty()) want_turn();
}

/// What was written, but not flushed, when a server died may not be there: it is written again.
void NbdQueue::end_flushed(NbdRequest& request, StoreStatus status) {
  const bool writes = request.kind != Kind::flush;
  if (!writes || status != StoreStatus::ok || request.losses_seen == store_.losses()) return end(request, status);
  begin_write(request, request.repeats ? Step::zero : Step::write);
}

Progress NbdQueue::discard(std::span<const BlockRange> ranges, StoreRequest& request) {
  if (store_.read_only()) return Progress::done(StoreStatus::read_only);
  NbdRequest& made = make(request, Step::discard);
  made.kind = Kind::trim;
  made.ranges = ranges.data();
  made.ranges_left = static_cast<std::uint32_t>(ranges.size());
  made.fua = store_.durability(Durability::cached) == Durability::durable && store_.can_fua();
  if (!next_discard(made)) return Progress::done();
  ++pending_;
  return Progress::later();
}

/// False: nothing is left to do.
bool NbdQueue::next_discard(NbdRequest& request) {
  for (; request.ranges_left != 0; ++request.ranges, --request.ranges_left) {
    if (request.ranges->count.value() == 0) continue;
    cover(request, *request.ranges);
    begin(request);
    return true;
  }
  return false;
}

Progress NbdQueue::write_zeroes(BlockRange range, Deallocate deallocate, Durability durability, StoreRequest& request) {
  if (store_.read_only()) return Progress::done(StoreStatus::read_only);
  if (range.count.value() == 0) return Progress::done();
  NbdRequest& made = make(request, Step::zero);
  made.kind = store_.can_zero() ? Kind::zero : Kind::write;
  made.data = store_.zeroes().data();
  made.repeats = true;
  made.may_trim = deallocate == Deallocate::yes;
  made.durability = store_.durability(durability);
  made.fua = made.durability == Durability::durable && store_.can_fua();
  cover(made, range);
  ++pending_;
  begin_write(made, Step::zero);
  return Progress::later();
}

// ---- to the link and back ----

void NbdQueue::begin(NbdOperation& operation) {
  operation.client = this;
  operation.away = false;
  if (link_ != nullptr) return link_->submit(operation);
  hand_over(operation);
}

/// To the link of another reactor; if that has gone, this one makes the next.
void NbdQueue::hand_over(NbdOperation& operation) {
  const std::lock_guard lock(shared_->mutex);
  if (shared_->link != nullptr) {
    operation.away = true;
    ++away_;
    want_turn();
    return shared_->link->submit_from_elsewhere(operation);
  }
  if (auto made = make_link(); made) return link_->submit(operation);
  operation.error = ENOMEM;  // descriptors, most likely: the host may try again
  operation.away = true;     // so that it is answered from poll()
  ++away_;
  want_turn();
  inbox_.put(operation);
}

/// On the thread of the link, which is another one for what was handed over.
void NbdQueue::on_nbd_done(NbdOperation& operation) {
  if (operation.away) return inbox_.put(operation);
  finish(operation);
}

void NbdQueue::finish(NbdOperation& operation) {
  if (operation.error == ENOTCONN) return begin(operation);
  if (&operation == &flush_) return on_flushed();
  NbdRequest& request = of(operation);
  if (request.error != 0) return on_failed(request);
  switch (request.step) {
    case Step::read: return end(request, StoreStatus::ok);
    case Step::write:
    case Step::zero: return on_written(request);
    case Step::discard:
      ++request.ranges;
      --request.ranges_left;
      if (!next_discard(request)) end(request, StoreStatus::ok);
      return;
    case Step::buffer:
    case Step::ready:
    case Step::flush: check(false, "no command belongs to this step"); return;
  }
}

void NbdQueue::on_written(NbdRequest& request) {
  if (request.durability == Durability::durable && !request.fua) return make_durable(request);
  if (!request.fua) store_.note_cached();
  end(request, StoreStatus::ok);
}

void NbdQueue::on_failed(NbdRequest& request) {
  const bool refused = request.error == EOPNOTSUPP || request.error == EINVAL;
  if (refused && request.kind == Kind::zero) {  // it said that it could: write zeroes from now on
    store_.remember_zero_refused();
    request.kind = Kind::write;
    return begin(request);
  }
  if (request.error == EOPNOTSUPP && request.fua) {  // the server that came back cannot
    request.fua = false;
    return begin(request);
  }
  if (refused && request.step == Step::discard) return end(request, StoreStatus::ok);  // it was only advice
  report(request, request.error);
  end(request, nbd_status(request.error, request.step == Step::read ? Intent::read : Intent::write));
}

void NbdQueue::report(const NbdRequest& request, int error) {
  if (!log_limit_.allow(reactor_.now())) return;
  const std::uint64_t held_back = log_limit_.take_suppressed();
  const std::string why = error == ETIMEDOUT ? fmt::format("no server for {}", format_duration(store_.patience()))
                                             : Error::from_errno(error, "the server's answer").message();
  store_.logger().error("store '{}': {} {} bytes at byte {}: {}{}", store_.spec(), name(request.step), request.length,
                        request.offset, why,
                        held_back == 0 ? "" : fmt::format(" (and {} failures before it)", held_back));
}

/// Answers the request. After this it does not exist any more.
void NbdQueue::end(NbdRequest& request, StoreStatus status) {
  if (request.step == Step::read && status != StoreStatus::ok) release(*request.lease);
  --pending_;
  request.request->on_store_done(status);
}

// ---- turns of the reactor ----

void NbdQueue::want_turn() {
  if (!std::exchange(listed_, true)) reactor_.add(*this);
}

std::size_t NbdQueue::poll() {
  std::size_t answered = 0;
  if (!flush_next_.empty() && flush_running_.empty()) {
    flush_running_ = std::exchange(flush_next_, {});
    flush_covers_ = store_.cached();
    begin(flush_);
  }
  Operations back;
  if (away_ != 0) inbox_.take(back);
  for (; !back.empty(); ++answered) {
    --away_;
    finish(back.pop());
  }
  Operations ready = std::exchange(ready_, {});  // what gets ready meanwhile is for the next turn
  for (; !ready.empty(); ++answered)
    end(of(ready.pop()), StoreStatus::ok);
  if (idle()) {
    listed_ = false;
    reactor_.remove(*this);
  }
  return answered;
}

bool NbdQueue::idle() const noexcept {
  return away_ == 0 && ready_.empty() && (flush_next_.empty() || !flush_running_.empty());
}

bool NbdQueue::arm() {
  const bool nothing = ready_.empty() && (flush_next_.empty() || !flush_running_.empty());
  return nothing && (away_ == 0 || inbox_.arm());
}

}  // namespace rbt::target
