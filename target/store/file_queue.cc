#include "target/store/file_queue.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "common/check.h"

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

/// The medium does not know how, now or ever: ENOTTY and EINVAL come from kernels older than the request.
bool is_refusal(int error) noexcept {
  return error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY || error == EINVAL;
}

bool is_transient(int error) noexcept {
  return error == EINTR || error == EAGAIN;
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

}  // namespace

FileQueue::FileQueue(FileStore& store, const StoreQueueContext& context, IoEngine& engine,
                     std::unique_ptr<IoEngine> own)
    : StagedQueue(store.range_lock(), store.medium().geometry().block_shift, context),
      store_(store),
      own_engine_(std::move(own)),
      io_(engine.open(store.medium().fd(), *this)),
      log_limit_(kLogInterval),
      look_timer_(context.reactor.timers(), [this] {
        store_.look_at_size(reactor().now());
        look_again();
      }) {
  sync_.kind = Kind::sync_data;
  if (store_.observed()) look_again();
}

/// At whole multiples of the period, so that the files of an idle reactor wake it once and not each by itself.
void FileQueue::look_again() {
  const Duration now = reactor().clock().now().time_since_epoch();
  look_timer_.arm(Instant((now / FileStore::kLookPeriod + 1) * FileStore::kLookPeriod));
}

FileQueue::~FileQueue() {
  if (listed_) reactor().remove(*this);
}

FileOperation& FileQueue::make(StoreRequest& request, Step step) noexcept {
  auto& operation = StoreRequestAccess::make<FileOperation>(request);
  operation.step = step;
  adopt(operation, request);
  return operation;
}

StagedRequest& FileQueue::make_read(StoreRequest& request) {
  return make(request, Step::read);
}

Progress FileQueue::commit(Lease& lease, Durability durability, StoreRequest& request) {
  FileOperation& operation = make(request, Step::write);
  operation.lease = &lease;
  operation.durability = durability;
  return begin(operation, lease.range, Intent::write);
}

/// A write there would make a file that has shrunk longer again, with a hole that nobody wrote.
bool FileQueue::behind_end(const FileOperation& operation) const noexcept {
  return !store_.medium().is_device() && !store_.reaches(bytes(operation.range.end()));
}

Progress FileQueue::start(StagedRequest& request) {
  auto& operation = static_cast<FileOperation&>(request);
  operation.offset = bytes(operation.range.first);
  operation.length = bytes(operation.range.end()) - operation.offset;
  operation.attempts = 0;
  switch (operation.step) {
    case Step::read:
      operation.kind = Kind::read;
      operation.data = operation.lease->few[0].data;
      break;
    case Step::write:
      if (behind_end(operation)) return Progress::done(StoreStatus::out_of_range);
      operation.kind = operation.durability == Durability::durable && !store_.refuses(Kind::write_durable)
                           ? Kind::write_durable
                           : Kind::write;
      operation.data = operation.lease->few[0].data;
      break;
    case Step::discard: return start_discard(operation);
    case Step::zero:
      if (behind_end(operation)) return Progress::done(StoreStatus::out_of_range);
      next_zero(operation);
      return Progress::later();
    case Step::flush: make_durable(operation); return Progress::later();
  }
  io_->submit(operation);
  return Progress::later();
}

// ---- flush ----

Progress FileQueue::flush(StoreRequest& request) {
  if (read_only()) return Progress::done();
  return begin(make(request, Step::flush));
}

/// An fdatasync that is under way may have passed what this one is about: it waits for the next.
void FileQueue::make_durable(FileOperation& operation) {
  operation.step = Step::flush;
  flush_next_.push(operation);
  want_turn();
}

void FileQueue::on_flushed(std::int64_t result) {
  const int error = result < 0 ? static_cast<int>(-result) : 0;
  StoreStatus status = error == 0 ? StoreStatus::ok : file_status(error, Intent::write);
  if (error != 0 && status != StoreStatus::unavailable) store_.remember_lost_writes(error);
  if (store_.lost_writes()) status = StoreStatus::write_error;
  Operations flushed = std::exchange(flush_running_, {});
  while (!flushed.empty())
    done(of(flushed.pop()), status);
  if (!flush_next_.empty()) want_turn();
}

// ---- discard and write zeroes ----

Progress FileQueue::discard(std::span<const BlockRange> ranges, StoreRequest& request) {
  if (read_only()) return Progress::done(StoreStatus::read_only);
  return begin(make(request, Step::discard), ranges);
}

Progress FileQueue::start_discard(FileOperation& operation) {
  const bool discards = store_.medium().is_device() && !store_.refuses(Kind::discard_device);
  if (!discards && store_.refuses(Kind::punch_hole)) return Progress::done();  // it was only advice
  operation.kind = discards ? Kind::discard_device : Kind::punch_hole;
  io_->submit(operation);
  return Progress::later();
}

Progress FileQueue::write_zeroes(BlockRange range, Deallocate deallocate, Durability durability,
                                 StoreRequest& request) {
  if (read_only()) return Progress::done(StoreStatus::read_only);
  if (range.count.value() == 0) return Progress::done();
  FileOperation& operation = make(request, Step::zero);
  operation.deallocate = deallocate;
  operation.durability = durability;
  return begin(operation, range, Intent::write);
}

/// The rest of it: by the file system at one stroke, or else a piece of zeroes at a time.
void FileQueue::next_zero(FileOperation& operation) {
  const std::uint64_t left = bytes(operation.range.end()) - operation.offset;
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
  FileOperation& ended = of(operation);
  if (result < 0) return on_failed(ended, static_cast<int>(-result));
  switch (ended.step) {
    case Step::read:
    case Step::write: return on_transferred(ended, static_cast<std::uint64_t>(result));
    case Step::zero:
      if (ended.kind == Kind::write) return on_transferred(ended, static_cast<std::uint64_t>(result));
      return on_done(ended);
    case Step::discard: return on_done(ended);
    case Step::flush: check(false, "no system call belongs to this step"); return;
  }
}

/// Some or all of it; what is missing is asked for again, from a place where O_DIRECT can go on.
void FileQueue::on_transferred(FileOperation& operation, std::uint64_t bytes_done) {
  if (bytes_done < operation.length) {
    bytes_done -= bytes_done % store_.medium().alignment();
    const std::uint64_t end_wanted = operation.offset + operation.length;
    if (operation.step == Step::read && !store_.reaches(end_wanted)) return done(operation, StoreStatus::out_of_range);
    if (bytes_done != 0) operation.attempts = 0;
  }
  operation.offset += bytes_done;
  operation.length -= bytes_done;
  if (operation.step != Step::zero) operation.data += bytes_done;  // zeroes are the same everywhere
  if (operation.length != 0) {
    const auto failed = operation.step == Step::read ? StoreStatus::read_error : StoreStatus::write_error;
    return retry_or_end(operation, failed);
  }
  if (operation.step == Step::zero && operation.offset < bytes(operation.range.end())) return next_zero(operation);
  on_done(operation);
}

/// All of its range.
void FileQueue::on_done(FileOperation& operation) {
  const bool durable = operation.durability == Durability::cached || operation.kind == Kind::write_durable;
  if (!durable && !has_more(operation)) return make_durable(operation);
  done(operation, StoreStatus::ok);
}

void FileQueue::retry_or_end(FileOperation& operation, StoreStatus status) {
  if (++operation.attempts < kAttemptsMax) return io_->submit(operation);
  report(operation, EIO);
  done(operation, status);
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
    if (!start_discard(operation).pending) done(operation, StoreStatus::ok);
    return;
  }
  // A disk that has shrunk says ENOSPC or EIO behind its end.
  const bool transfers = operation.step == Step::read || operation.step == Step::write || operation.step == Step::zero;
  if (transfers && !store_.reaches(operation.offset + operation.length))
    return done(operation, StoreStatus::out_of_range);
  report(operation, error);
  done(operation, file_status(error, operation.step == Step::read ? Intent::read : Intent::write));
}

void FileQueue::report(const FileOperation& operation, int error) {
  if (!log_limit_.allow(reactor().now())) return;
  const std::uint64_t held_back = log_limit_.take_suppressed();
  const std::string what = fmt::format("store '{}': {} {} bytes at byte {}", store_.spec(), name(operation.step),
                                       operation.length, operation.offset);
  store_.logger().error("{}{}", Error::from_errno(error, what).message(),
                        held_back == 0 ? "" : fmt::format(" (and {} failures before it)", held_back));
}

// ---- turns of the reactor ----

void FileQueue::want_turn() {
  if (!std::exchange(listed_, true)) reactor().add(*this);
}

std::size_t FileQueue::poll() {
  const bool begins = !idle();
  if (begins) {
    flush_running_ = std::exchange(flush_next_, {});
    io_->submit(sync_);
  }
  listed_ = false;
  reactor().remove(*this);
  return begins ? 1 : 0;
}

/// One fdatasync at a time.
bool FileQueue::idle() const noexcept {
  return flush_next_.empty() || !flush_running_.empty();
}

}  // namespace rbt::target
