#include "target/store/nbd_queue.h"

#include <fmt/format.h>

#include <cerrno>
#include <utility>

#include "common/check.h"
#include "common/sizes.h"
#include "target/store/file_store.h"

namespace rbt::target {

namespace {

using Kind = NbdOperation::Kind;
using Step = NbdRequest::Step;

constexpr Duration kLogInterval = std::chrono::seconds(1);

NbdRequest& of(NbdOperation& operation) noexcept {
  return static_cast<NbdRequest&>(operation);
}

std::string_view name(Step step) noexcept {
  switch (step) {
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
    : StagedQueue(store.range_lock(), store.block_shift(), context), store_(store), log_limit_(kLogInterval) {
  flush_.kind = Kind::flush;
  flush_.step = Step::flush;
}

Result<std::unique_ptr<NbdQueue>> NbdQueue::open(NbdStore& store, const StoreQueueContext& context) {
  std::unique_ptr<NbdQueue> queue(new NbdQueue(store, context));
  if (auto connected = queue->connect(); !connected) return failure(std::move(connected.error()));
  return queue;
}

Result<void> NbdQueue::connect() {
  if (!store_.shares_links()) return make_link();
  shared_ = &store_.next_shared();
  const std::lock_guard lock(shared_->mutex);
  return shared_->link == nullptr ? make_link() : Result<void>();
}

/// With the mutex of shared_, if there is one.
Result<void> NbdQueue::make_link() {
  const auto sharing = shared_ != nullptr ? NbdLink::Sharing::other_reactors : NbdLink::Sharing::none;
  auto link = NbdLink::open(store_.server(), reactor(), sharing);
  if (!link) return failure(std::move(link.error()));
  link_ = std::move(*link);
  if (shared_ != nullptr) shared_->link = link_.get();
  return {};
}

NbdQueue::~NbdQueue() {
  if (link_ != nullptr && shared_ != nullptr) {
    const std::lock_guard lock(shared_->mutex);
    shared_->link = nullptr;
  }
  link_.reset();  // what others have in there goes back to them, and they make a link of their own
  if (listed_) reactor().remove(*this);
}

NbdRequest& NbdQueue::make(StoreRequest& request, Step step, Kind kind) noexcept {
  auto& made = StoreRequestAccess::make<NbdRequest>(request);
  made.step = step;
  made.kind = kind;
  made.waits_since = reactor().now();
  adopt(made, request);
  return made;
}

void NbdQueue::promise(NbdRequest& request, Durability durability) const noexcept {
  request.durability = store_.durability(durability);
  request.fua = request.durability == Durability::durable && store_.can_fua();
}

StagedRequest& NbdQueue::make_read(StoreRequest& request) {
  return make(request, Step::read, Kind::read);
}

Progress NbdQueue::commit(Lease& lease, Durability durability, StoreRequest& request) {
  NbdRequest& made = make(request, Step::write, Kind::write);
  made.lease = &lease;
  promise(made, durability);
  return begin(made, lease.range, Intent::write);
}

Progress NbdQueue::flush(StoreRequest& request) {
  if (read_only()) return Progress::done();
  return begin(make(request, Step::flush, Kind::flush));
}

Progress NbdQueue::discard(std::span<const BlockRange> ranges, StoreRequest& request) {
  if (read_only()) return Progress::done(StoreStatus::read_only);
  NbdRequest& made = make(request, Step::discard, Kind::trim);
  promise(made, Durability::cached);
  return begin(made, ranges);
}

Progress NbdQueue::write_zeroes(BlockRange range, Deallocate deallocate, Durability durability, StoreRequest& request) {
  if (read_only()) return Progress::done(StoreStatus::read_only);
  if (range.count.value() == 0) return Progress::done();
  NbdRequest& made = make(request, Step::zero, store_.can_zero() ? Kind::zero : Kind::write);
  made.data = store_.zeroes().data();
  made.repeats = true;
  made.may_trim = deallocate == Deallocate::yes;
  promise(made, durability);
  return begin(made, range, Intent::write);
}

Progress NbdQueue::start(StagedRequest& staged) {
  auto& request = static_cast<NbdRequest&>(staged);
  if (request.step == Step::flush) {
    make_durable(request);
    return Progress::later();
  }
  request.offset = bytes(request.range.first);
  request.length = bytes(request.range.end()) - request.offset;
  request.losses_seen = store_.losses();
  if (request.lease != nullptr) request.data = request.lease->few[0].data;
  submit(request);
  return Progress::later();
}

// ---- flush ----

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
  Operations flushed = std::exchange(flush_running_, {});
  while (!flushed.empty())
    end_flushed(of(flushed.pop()), status);
  if (!flush_next_.empty()) want_turn();
}

/// What was written, but not flushed, when a server died may not be there: it is written again. It has its range still, so
/// that nobody has seen what is over it by then.
void NbdQueue::end_flushed(NbdRequest& request, StoreStatus status) {
  const bool writes = request.kind != Kind::flush;
  if (!writes) return done(request, status);
  request.step = request.repeats ? Step::zero : Step::write;
  if (status != StoreStatus::ok || request.losses_seen == store_.losses()) return done(request, status);
  request.losses_seen = store_.losses();
  submit(request);
}

// ---- to the link and back ----

void NbdQueue::submit(NbdRequest& request) {
  request.client = this;
  request.away = false;
  if (link_ != nullptr) return link_->submit(request);
  submit_elsewhere(request);
}

/// To the link of another reactor; if that has gone, this one makes the next.
void NbdQueue::submit_elsewhere(NbdRequest& request) {
  const std::lock_guard lock(shared_->mutex);
  if (shared_->link != nullptr) {
    request.away = true;
    hand_over().expect();
    return shared_->link->submit_from_elsewhere(request);
  }
  if (auto made = make_link(); made) return link_->submit(request);
  request.error = ENOMEM;  // descriptors, most likely: the host may try again
  hand_over().expect();    // so that it is answered in a turn
  hand_over().give(request);
}

/// On the thread of the link, which is another one for what was handed over.
void NbdQueue::on_nbd_done(NbdOperation& operation) {
  if (operation.away) return hand_over().give(of(operation));
  finish(of(operation));
}

void NbdQueue::on_back(StagedRequest& request) {
  finish(static_cast<NbdRequest&>(request));
}

void NbdQueue::finish(NbdRequest& request) {
  if (request.error == ENOTCONN) return submit(request);
  if (&request == &flush_) return on_flushed();
  if (request.error != 0) return on_failed(request);
  switch (request.step) {
    case Step::read:
    case Step::discard: return done(request, StoreStatus::ok);
    case Step::write:
    case Step::zero: return on_written(request);
    case Step::flush: check(false, "no command belongs to this step"); return;
  }
}

void NbdQueue::on_written(NbdRequest& request) {
  if (request.durability == Durability::durable && !request.fua) return make_durable(request);
  if (!request.fua) store_.note_cached();
  done(request, StoreStatus::ok);
}

void NbdQueue::on_failed(NbdRequest& request) {
  const bool refused = request.error == EOPNOTSUPP || request.error == EINVAL;
  if (refused && request.kind == Kind::zero) {  // it said that it could: write zeroes from now on
    store_.remember_zero_refused();
    request.kind = Kind::write;
    return submit(request);
  }
  if (request.error == EOPNOTSUPP && request.fua) {  // the server that came back cannot
    request.fua = false;
    return submit(request);
  }
  if (refused && request.step == Step::discard) return done(request, StoreStatus::ok);  // it was only advice
  report(request, request.error);
  done(request, nbd_status(request.error, request.step == Step::read ? Intent::read : Intent::write));
}

void NbdQueue::report(const NbdRequest& request, int error) {
  if (!log_limit_.allow(reactor().now())) return;
  const std::uint64_t held_back = log_limit_.take_suppressed();
  const std::string why = error == ETIMEDOUT ? fmt::format("no server for {}", format_duration(store_.patience()))
                                             : Error::from_errno(error, "the server's answer").message();
  store_.logger().error("store '{}': {} {} bytes at byte {}: {}{}", store_.spec(), name(request.step), request.length,
                        request.offset, why,
                        held_back == 0 ? "" : fmt::format(" (and {} failures before it)", held_back));
}

// ---- turns of the reactor ----

void NbdQueue::want_turn() {
  if (!std::exchange(listed_, true)) reactor().add(*this);
}

std::size_t NbdQueue::poll() {
  const bool begins = !idle();
  if (begins) {
    flush_running_ = std::exchange(flush_next_, {});
    flush_covers_ = store_.cached();
    flush_.waits_since = reactor().now();
    submit(flush_);
  }
  listed_ = false;
  reactor().remove(*this);
  return begins ? 1 : 0;
}

}  // namespace rbt::target
