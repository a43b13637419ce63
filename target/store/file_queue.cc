#include "target/store/file_queue.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "common/check.h"
#include "target/store/staged_lease.h"

namespace rbt::target {

namespace {

using Kind = IoOperation::Kind;
using Step = FileOperation::Step;

constexpr Duration kLogInterval = std::chrono::seconds(1);
// A system call that transfers nothing and does not say why, or asks to be tried again, is tried this often.
constexpr std::uint8_t kAttemptsMax = 8;

FileOperation& of(IoOperation& operation) noexcept {
  return static_cast<FileOperation&>(operation);
}

FileOperation& make(StoreRequest& request, Step step) noexcept {
  auto& operation = StoreRequestAccess::make<FileOperation>(request);
  operation.request = &request;
  operation.step = step;
  return operation;
}

/// The medium does not know how, now or ever: ENOTTY and EINVAL come from kernels older than the request.
bool is_refusal(int error) noexcept {
  return error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY || error == EINVAL;
}

bool is_transient(int error) noexcept {
  return error == EINTR || error == EAGAIN;
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

}  // namespace

FileQueue::FileQueue(FileStore& store, const StoreQueueContext& context, IoEngine& engine,
                     std::unique_ptr<IoEngine> own)
    : store_(store),
      reactor_(context.reactor),
      buffers_(context.buffers),
      own_engine_(std::move(own)),
      io_(engine.open(store.medium().fd(), *this)),
      log_limit_(kLogInterval),
      look_timer_(context.reactor.timers(), [this] {
        store_.look_at_size(reactor_.now());
        look_again();
      }) {
  sync_.kind = Kind::sync_data;
  if (store_.observed()) look_again();
}

/// At whole multiples of the period, so that the files of an idle reactor wake it once and not each by itself.
void FileQueue::look_again() {
  const Duration now = reactor_.clock().now().time_since_epoch();
  look_timer_.arm(Instant((now / FileStore::kLookPeriod + 1) * FileStore::kLookPeriod));
}

FileQueue::~FileQueue() {
  check(pending_ == 0, "a store queue is destroyed when nothing is pending");
  buffers_.cancel(*this);
  if (listed_) reactor_.remove(*this);
}

std::uint64_t FileQueue::bytes(Lba lba) const noexcept {
  return lba.value() << store_.medium().geometry().block_shift.value();
}

// ---- a lease: a buffer of the pool ----

Progress FileQueue::acquire(Lease& lease, StoreRequest& request) {
  if (lease.intent == Intent::write && store_.medium().geometry().read_only)
    return Progress::done(StoreStatus::read_only);
  const std::uint64_t length = staged_bytes(lease, store_.medium().geometry().block_shift);
  // Who comes later waits behind those who wait already, even if there is room for something small.
  const std::span<std::byte> buffer = waiting_for_buffer_.empty() ? buffers_.allocate(length) : std::span<std::byte>();
  if (!buffer.empty()) hold(lease, buffer);
  if (!buffer.empty() && lease.intent == Intent::write) return Progress::done();
  auto& operation = make(request, Step::buffer);
  operation.lease = &lease;
  ++pending_;
  if (!buffer.empty()) {
    begin_read(operation);
  } else {
    waiting_for_buffer_.push(operation);
    buffers_.wait(*this);
  }
  return Progress::later();
}

void FileQueue::hold(Lease& lease, std::span<std::byte> buffer) const noexcept {
  stage(lease, buffer, store_.medium().geometry().block_shift, buffers_);
}

void FileQueue::on_buffer_available() {
  while (!waiting_for_buffer_.empty()) {
    FileOperation& operation = of(waiting_for_buffer_.front());
    Lease& lease = *operation.lease;
    const auto buffer = buffers_.allocate(staged_bytes(lease, store_.medium().geometry().block_shift));
    if (buffer.empty()) {
      buffers_.wait(*this);
      return;
    }
    waiting_for_buffer_.pop();
    hold(lease, buffer);
    if (lease.intent == Intent::read) {
      begin_read(operation);
    } else {  // answered from poll(), not from inside of somebody else's release()
      operation.step = Step::ready;
      ready_.push(operation);
      want_turn();
    }
  }
}

void FileQueue::begin_read(FileOperation& operation) {
  const Lease& lease = *operation.lease;
  operation.step = Step::read;
  operation.kind = Kind::read;
  operation.data = lease.few[0].data;
  operation.offset = bytes(lease.range.first);
  operation.length = lease.few[0].length;
  io_->submit(operation);
}

void FileQueue::release(Lease& lease) noexcept {
  unstage(lease, buffers_);
}

Progress FileQueue::commit(Lease& lease, Durability durability, StoreRequest& request) {
  // A write behind the end would make a file that has shrunk longer again, with a hole that nobody wrote.
  if (!store_.medium().is_device() && !store_.reaches(bytes(lease.range.end())))
    return Progress::done(StoreStatus::out_of_range);
  auto& operation = make(request, Step::write);
  operation.lease = &lease;
  operation.durability = durability;
  operation.kind =
      durability == Durability::durable && !store_.refuses(Kind::write_durable) ? Kind::write_durable : Kind::write;
  operation.data = lease.few[0].data;
  operation.offset = bytes(lease.range.first);
  operation.length = lease.few[0].length;
  ++pending_;
  io_->submit(operation);
  return Progress::later();
}

// ---- flush ----

Progress FileQueue::flush(StoreRequest& request) {
  if (store_.medium().geometry().read_only) return Progress::done();
  ++pending_;
  make_durable(make(request, Step::flush));
  return Progress::later();
}

/// An fdatasync that is under way may have passed what this one is about: it waits for the next.
void FileQueue::make_durable(FileOperation& operation) {
  operation.step = Step::flush;
  flush_next_.push(operation);
  want_turn();
}

void FileQueue::begin_flush() {
  if (flush_next_.empty() || !flush_running_.empty()) return;
  flush_running_ = std::exchange(flush_next_, {});
  io_->submit(sync_);
}

void FileQueue::on_flushed(std::int64_t result) {
  const int error = result < 0 ? static_cast<int>(-result) : 0;
  StoreStatus status = error == 0 ? StoreStatus::ok : file_status(error, Intent::write);
  if (error != 0 && status != StoreStatus::unavailable) store_.remember_lost_writes(error);
  if (store_.lost_writes()) status = StoreStatus::write_error;
  Operations done = std::exchange(flush_running_, {});
  while (!done.empty())
    end(of(done.pop()), status);
  if (!flush_next_.empty()) want_turn();
}

// ---- discard and write zeroes ----

Progress FileQueue::discard(std::span<const BlockRange> ranges, StoreRequest& request) {
  if (store_.medium().geometry().read_only) return Progress::done(StoreStatus::read_only);
  auto& operation = make(request, Step::discard);
  operation.ranges = ranges.data();
  operation.ranges_left = ranges.size();
  if (!next_discard(operation)) return Progress::done();
  ++pending_;
  return Progress::later();
}

/// False: nothing is left to do.
bool FileQueue::next_discard(FileOperation& operation) {
  const bool device = store_.medium().is_device();
  const bool discards = device && !store_.refuses(Kind::discard_device);
  if (!discards && store_.refuses(Kind::punch_hole)) return false;  // it was only advice
  for (; operation.ranges_left != 0; ++operation.ranges, --operation.ranges_left) {
    const BlockRange& range = *operation.ranges;
    if (range.count.value() == 0) continue;
    operation.kind = discards ? Kind::discard_device : Kind::punch_hole;
    operation.offset = bytes(range.first);
    operation.length = bytes(range.end()) - operation.offset;
    io_->submit(operation);
    return true;
  }
  return false;
}

Progress FileQueue::write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                                 StoreRequest& request) {
  if (store_.medium().geometry().read_only) return Progress::done(StoreStatus::read_only);
  if (range.count.value() == 0) return Progress::done();
  if (!store_.medium().is_device() && !store_.reaches(bytes(range.end())))
    return Progress::done(StoreStatus::out_of_range);
  auto& operation = make(request, Step::zero);
  operation.deallocate = deallocate;
  operation.durability = durability;
  operation.offset = bytes(range.first);
  operation.end = bytes(range.end());
  ++pending_;
  next_zero(operation);
  return Progress::later();
}

/// The rest of it: by the file system at one stroke, or else a piece of zeroes at a time.
void FileQueue::next_zero(FileOperation& operation) {
  const std::uint64_t left = operation.end - operation.offset;
  operation.length = left;
  if (operation.deallocate == Deallocate::yes && !store_.refuses(Kind::punch_hole)) {
    operation.kind = Kind::punch_hole;
  } else if (!store_.refuses(Kind::zero_range)) {
    operation.kind = Kind::zero_range;
  } else {
    operation.kind = Kind::write;
    operation.data = store_.zeroes().data();
    operation.length = std::min<std::uint64_t>(left, ZeroPages::kSize);
  }
  io_->submit(operation);
}

// ---- what the kernel says ----

void FileQueue::on_io_done(IoOperation& operation, std::int64_t result) {
  if (&operation == &sync_) return on_flushed(result);
  FileOperation& done = of(operation);
  if (result < 0) return on_failed(done, static_cast<int>(-result));
  switch (done.step) {
    case Step::read:
    case Step::write: return on_transferred(done, static_cast<std::uint64_t>(result));
    case Step::discard:
      ++done.ranges;
      --done.ranges_left;
      if (!next_discard(done)) end(done, StoreStatus::ok);
      return;
    case Step::zero:
      if (done.kind == Kind::write) return on_transferred(done, static_cast<std::uint64_t>(result));
      if (done.durability == Durability::durable) return make_durable(done);
      return end(done, StoreStatus::ok);
    case Step::buffer:
    case Step::ready:
    case Step::flush: check(false, "no system call belongs to this step"); return;
  }
}

/// Some or all of it; what is missing is asked for again, from a place where O_DIRECT can go on.
void FileQueue::on_transferred(FileOperation& operation, std::uint64_t bytes_done) {
  if (bytes_done < operation.length) {
    bytes_done -= bytes_done % store_.medium().alignment();
    const std::uint64_t end_wanted = operation.offset + operation.length;
    if (operation.step == Step::read && !store_.reaches(end_wanted)) return end(operation, StoreStatus::out_of_range);
    if (bytes_done != 0) operation.attempts = 0;
  }
  operation.offset += bytes_done;
  operation.length -= bytes_done;
  if (operation.step != Step::zero) operation.data += bytes_done;  // zeroes are the same everywhere
  if (operation.length != 0) {
    const auto failed = operation.step == Step::read ? StoreStatus::read_error : StoreStatus::write_error;
    return retry_or_end(operation, failed);
  }
  if (operation.step == Step::zero && operation.offset < operation.end) return next_zero(operation);
  if (operation.durability == Durability::durable && operation.kind == Kind::write) return make_durable(operation);
  end(operation, StoreStatus::ok);
}

void FileQueue::retry_or_end(FileOperation& operation, StoreStatus status) {
  if (++operation.attempts < kAttemptsMax) return io_->submit(operation);
  report(operation, EIO);
  end(operation, status);
}

void FileQueue::on_failed(FileOperation& operation, int error) {
  if (is_transient(error)) return retry_or_end(operation, StoreStatus::unavailable);
  const Kind kind = operation.kind;
  if (is_refusal(error) && kind != Kind::read && kind != Kind::write) {
    // This way does not exist here, for anybody: remember it, and go another way.
    store_.remember_refusal(kind);
    if (kind == Kind::write_durable) {  // write, then fdatasync
      operation.kind = Kind::write;
      return io_->submit(operation);
    }
    if (operation.step == Step::zero) return next_zero(operation);
    if (!next_discard(operation)) end(operation, StoreStatus::ok);
    return;
  }
  // A disk that has shrunk says ENOSPC or EIO behind its end.
  const bool transfers = operation.step == Step::read || operation.step == Step::write || operation.step == Step::zero;
  if (transfers && !store_.reaches(operation.offset + operation.length))
    return end(operation, StoreStatus::out_of_range);
  report(operation, error);
  end(operation, file_status(error, operation.step == Step::read ? Intent::read : Intent::write));
}

void FileQueue::report(const FileOperation& operation, int error) {
  if (!log_limit_.allow(reactor_.now())) return;
  const std::uint64_t held_back = log_limit_.take_suppressed();
  const std::string what = fmt::format("store '{}': {} {} bytes at byte {}", store_.spec(), name(operation.step),
                                       operation.length, operation.offset);
  store_.logger().error("{}{}", Error::from_errno(error, what).message(),
                        held_back == 0 ? "" : fmt::format(" (and {} failures before it)", held_back));
}

/// Answers the request. After this the operation does not exist any more.
void FileQueue::end(FileOperation& operation, StoreStatus status) {
  if (operation.step == Step::read && status != StoreStatus::ok) release(*operation.lease);
  --pending_;
  operation.request->on_store_done(status);
}

// ---- turns of the reactor ----

void FileQueue::want_turn() {
  if (!std::exchange(listed_, true)) reactor_.add(*this);
}

std::size_t FileQueue::poll() {
  begin_flush();
  std::size_t answered = 0;
  Operations ready = std::exchange(ready_, {});  // what gets ready meanwhile is for the next turn
  for (; !ready.empty(); ++answered)
    end(of(ready.pop()), StoreStatus::ok);
  if (idle()) {
    listed_ = false;
    reactor_.remove(*this);
  }
  return answered;
}

bool FileQueue::idle() const noexcept {
  return ready_.empty() && (flush_next_.empty() || !flush_running_.empty());
}

}  // namespace rbt::target
