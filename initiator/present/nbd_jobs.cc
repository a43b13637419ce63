#include "initiator/present/nbd_jobs.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "common/check.h"
#include "initiator/present/nbd_connection.h"
#include "initiator/present/shared_disk.h"

namespace rbt::initiator::nbd {

namespace {

std::uint32_t nbd_error(int error) noexcept {
  switch (error) {
    case 0: return 0;
    case EPERM:
    case EROFS: return kErrorPermission;
    case EINVAL: return kErrorInvalid;
    case ENOSPC: return kErrorNoSpace;
    case ENOTSUP: return kErrorUnsupported;
    default: return kErrorIo;
  }
}

}  // namespace

Jobs::Jobs(Volume& volume, std::uint32_t count, std::uint32_t connections, bool read_only)
    : volume_(volume), read_only_(read_only), jobs_(count) {
  const std::size_t blocks = volume.buffers()->size().value() / Arena::kBlock / connections;
  places_.reserve(connections);
  for (std::uint32_t i = 0; i < connections; ++i)
    places_.push_back({.arena = Arena(*volume.buffers(), blocks)});
  for (Job& job : jobs_) {
    job.jobs = this;
    job.request.context = &job;
    job.request.done = on_done;
    job.next = std::exchange(free_, &job);
  }
}

std::unique_ptr<Jobs> Jobs::create(Volume& volume, std::uint32_t count, std::uint32_t connections, bool read_only) {
  return std::unique_ptr<Jobs>(new Jobs(volume, count, connections, read_only));
}

void Jobs::free_buffer(Job& job) noexcept {
  if (job.buffer.empty()) return;
  in_use_ -= job.buffer.size();
  job.arena->free(std::exchange(job.buffer, {}));
}

Arena& Jobs::enter_arena() noexcept {
  const auto place = std::find_if(places_.begin(), places_.end(), [](const Place& each) { return !each.taken; });
  check(place != places_.end(), "there are as many arenas as connections");
  place->taken = true;
  return place->arena;
}

void Jobs::leave_arena(const Arena& arena) noexcept {
  for (Place& place : places_)
    if (&place.arena == &arena) place.taken = false;
}

void Jobs::leave(std::unique_ptr<Jobs> jobs) {
  if (jobs->submitted_ == 0) return;
  jobs->left_ = true;
  static_cast<void>(jobs.release());  // on_done() has it from here
}

std::uint16_t Jobs::flags() const noexcept {
  const Abilities& can = volume_.disk().abilities;
  std::uint16_t out = kHasFlags | kSendFlush | kSendFua | kCanMultiConn;
  if (is_read_only()) return out | kReadOnly;
  if (can.discard) out |= kSendTrim;
  if (can.write_zeroes) out |= kSendWriteZeroes;
  return out;
}

// ---- from the client

Job* Jobs::take(Connection& client) noexcept {
  if (free_ == nullptr) return nullptr;
  Job& job = *free_;
  free_ = job.next;
  job.state = Job::State::receiving;
  job.changes = job.flush_after = false;
  job.error = job.length = 0;
  job.next = nullptr;
  job.client = &client;
  return &job;
}

void Jobs::give_back(Job& job) noexcept {
  check(job.state != Job::State::free && job.state != Job::State::submitted,
        "a job is given back once, and not before its end");
  if (job.state == Job::State::waiting) {
    --waiting_;
    unlink(job);
  }
  free_buffer(job);
  job.state = Job::State::free;
  job.client = nullptr;
  job.next = std::exchange(free_, &job);
  retry_ = true;
}

std::uint32_t Jobs::prepare(Job& job, const Command& command) const noexcept {
  Request& request = job.request;
  request.fua = (command.flags & kCommandFua) != 0 ? nvme::ForceUnitAccess::yes : nvme::ForceUnitAccess::no;
  request.data = {};
  request.ranges = {};
  const auto allowed = static_cast<std::uint16_t>(
      command.type == CommandType::write_zeroes ? kCommandFua | kCommandNoHole : kCommandFua);
  if ((command.flags & ~allowed) != 0) return kErrorInvalid;
  switch (command.type) {
    case CommandType::read:
      request.operation = Operation::read;
      request.fua = nvme::ForceUnitAccess::no;
      break;
    case CommandType::write: request.operation = Operation::write; break;
    case CommandType::trim: request.operation = Operation::discard; break;
    case CommandType::write_zeroes:
      request.operation = Operation::write_zeroes;
      request.deallocate = (command.flags & kCommandNoHole) != 0 ? nvme::Deallocate::no : nvme::Deallocate::yes;
      break;
    case CommandType::flush: request.operation = Operation::flush; return 0;
    case CommandType::disconnect:
    default: return kErrorInvalid;
  }
  return prepare_range(job, command);
}

std::uint32_t Jobs::prepare_range(Job& job, const Command& command) const noexcept {
  const Operation operation = job.request.operation;
  const Namespace& disk = volume_.disk();
  const std::uint64_t size = disk.size().value();
  const bool carries_data = operation == Operation::read || operation == Operation::write;
  job.changes = operation != Operation::read;
  if (job.changes && is_read_only()) return kErrorPermission;
  if (command.length == 0 || (carries_data && command.length > kDataMax)) return kErrorInvalid;
  if (command.offset > size || command.length > size - command.offset)
    return operation == Operation::write || operation == Operation::write_zeroes ? kErrorNoSpace : kErrorInvalid;
  std::uint64_t begin = command.offset;
  std::uint64_t end = command.offset + command.length;
  if (operation == Operation::discard) {  // a hint: the whole blocks within
    if (!disk.abilities.discard) return kErrorUnsupported;
    const std::uint64_t mask = disk.block_size() - 1;
    begin = (begin + mask) & ~mask;
    end &= ~mask;
    job.flush_after = job.request.fua == nvme::ForceUnitAccess::yes;  // Dataset Management has no such bit
  } else if (!disk.block_shift.is_multiple(begin) || !disk.block_shift.is_multiple(end)) {
    return kErrorInvalid;
  }
  if (operation == Operation::write_zeroes && !disk.abilities.write_zeroes) return kErrorUnsupported;
  job.range = {Lba(begin >> disk.block_shift.value()), disk.block_shift.blocks(Bytes(end > begin ? end - begin : 0))};
  return 0;
}

bool Jobs::allocate(Job& job, Arena& arena, std::uint32_t length) noexcept {
  job.arena = &arena;
  job.buffer = arena.allocate(length);
  in_use_ += job.buffer.size();
  job.length = job.buffer.empty() ? 0 : length;
  return !job.buffer.empty();
}

// ---- to the volume

void Jobs::submit(Job& job) {
  job.data = {job.buffer.data(), job.length};
  job.request.range = job.range;
  job.request.data = {&job.data, job.length == 0 ? std::size_t{0} : std::size_t{1}};
  job.request.ranges = {&job.range, job.request.operation == Operation::discard ? std::size_t{1} : std::size_t{0}};
  job.state = Job::State::waiting;
  ++waiting_;
  job.next_active = nullptr;
  job.previous_active = newest_;
  (newest_ == nullptr ? oldest_ : newest_->next_active) = &job;
  newest_ = &job;
  static_cast<void>(begin(job));
}

bool Jobs::must_wait(const Job& job) const noexcept {
  if (!job.changes) return false;
  for (const Job* before = job.previous_active; before != nullptr; before = before->previous_active)
    if (before->changes && before->range.overlaps(job.range)) return true;
  return false;
}

// False: it waits on, or there is no client for it any more (who will be told so, and abandons it).
bool Jobs::begin(Job& job) {
  if (must_wait(job)) return false;
  if (job.changes && !job.client->still_open()) return false;
  if (job.request.operation == Operation::discard && job.range.count == Blocks(0)) {
    if (!job.flush_after) {
      --waiting_;
      finish(job);
      return true;
    }
    job.request.operation = Operation::flush;
  }
  switch (volume_.submit(job.request)) {
    case Submitted::accepted:
      --waiting_;
      ++submitted_;
      ++begun_;
      job.state = Job::State::submitted;
      return true;
    case Submitted::full: return false;
    case Submitted::refused:
      job.error = nbd_error(errno_of(job.request.operation, {job.request.outcome, job.request.status}, is_read_only()));
      break;
    case Submitted::dead: job.error = kErrorIo; break;
  }
  --waiting_;
  finish(job);
  return true;
}

std::size_t Jobs::retry() {
  if (!std::exchange(retry_, false) || waiting_ == 0) return 0;
  std::size_t begun = 0;
  for (Job* job = oldest_; job != nullptr;) {
    Job* const next = job->next_active;
    if (job->state == Job::State::waiting && begin(*job)) ++begun;
    job = next;
  }
  return begun;
}

void Jobs::on_done(Request& request) {
  Job& job = *static_cast<Job*>(request.context);
  Jobs& jobs = *job.jobs;
  --jobs.submitted_;
  if (jobs.left_) {
    if (jobs.submitted_ == 0) delete &jobs;
    return;
  }
  job.error = nbd_error(errno_of(request.operation, {request.outcome, request.status}, jobs.is_read_only()));
  if (job.error == 0 && job.client != nullptr && std::exchange(job.flush_after, false) &&
      request.operation == Operation::discard) {
    request.operation = Operation::flush;
    job.state = Job::State::waiting;
    ++jobs.waiting_;
    jobs.retry_ = true;  // retry() has it from here
    return;
  }
  jobs.finish(job);
}

void Jobs::finish(Job& job) {
  unlink(job);
  job.state = Job::State::replying;
  retry_ = true;
  if (job.client == nullptr) return give_back(job);
  job.client->reply(job);
}

void Jobs::unlink(Job& job) noexcept {
  (job.previous_active == nullptr ? oldest_ : job.previous_active->next_active) = job.next_active;
  (job.next_active == nullptr ? newest_ : job.next_active->previous_active) = job.previous_active;
}

void Jobs::abandon(const Connection& client) noexcept {
  for (Job& job : jobs_) {
    if (job.client != &client || job.state == Job::State::free) continue;
    if (job.state == Job::State::submitted)
      job.client = nullptr;
    else
      give_back(job);
  }
}

}  // namespace rbt::initiator::nbd
