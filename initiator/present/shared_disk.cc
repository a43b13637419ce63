#include "initiator/present/shared_disk.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

namespace rbt::initiator {

// What read() and write() were asked for.
struct SharedDisk::Transfer {
  Operation operation;
  std::byte* data;  // not written to by a write
  std::uint64_t size;
  std::uint64_t offset;
  nvme::ForceUnitAccess fua;
};

// ---- connect

Result<std::unique_ptr<SharedDisk>> SharedDisk::connect(const Environment& environment, const Uri& uri,
                                                        SharedDiskOptions options) {
  if (options.requests < 1 || options.requests > kRequestsMax)
    return rbt::failure(ErrorKind::invalid_argument,
                        fmt::format("{} requests in flight: 1 to {} are allowed", options.requests, kRequestsMax));
  std::unique_ptr<SharedDisk> disk(new SharedDisk);
  options.session.on_event = [&changed = disk->changed_](const nvme::AsyncEvent&) {
    changed.store(true, std::memory_order_release);
  };
  auto session = Session::connect(environment, uri, options.session);
  if (!session) return rbt::failure(std::move(session.error()));
  disk->session_ = std::move(*session);
  auto space = disk->session_->find(uri.nsid);
  if (!space) return rbt::failure(std::move(space.error()));
  disk->space_.store(&disk->looks_.emplace_back(**space), std::memory_order_release);
  auto opened = disk->open_lanes(environment, options);
  if (!opened) return rbt::failure(std::move(opened.error()));
  return disk;
}

// Jobs go round the lanes, so that neighbours in the free word are on different ones.
Result<void> SharedDisk::open_lanes(const Environment& environment, const SharedDiskOptions& options) {
  const std::uint32_t lanes = std::clamp<std::uint32_t>(session_->io_queues(), 1, options.requests);
  const std::uint32_t each = (options.requests + lanes - 1) / lanes;
  const std::size_t piece = std::min<std::uint64_t>(kPiece, space().transfer_max.value());
  for (std::uint32_t i = 0; i < lanes; ++i) {
    // All data lies in the jobs' buffers: bounce memory is for the ranges of discards only.
    auto lane = Lane::open(*session_, environment.clock, environment.logger,
                           {.depth = each, .buffers = Bytes(each * std::bit_ceil(piece)), .bounce = Bytes(2 * kMiB)});
    if (!lane) return rbt::failure(std::move(lane.error()));
    lanes_.push_back(std::move(*lane));
  }
  for (std::uint32_t i = 0; i < options.requests; ++i) {
    Lane& lane = *lanes_[i % lanes];
    jobs_[i].lane = &lane;
    jobs_[i].buffer = lane.buffer(piece).first(piece);
  }
  for (const auto& lane : lanes_)
    lane->start();
  free_.store(options.requests == kRequestsMax ? ~std::uint64_t{0} : (std::uint64_t{1} << options.requests) - 1,
              std::memory_order_release);
  return {};
}

SharedDisk::~SharedDisk() {
  lanes_.clear();
  if (session_) session_->close();
}

Result<void> SharedDisk::look_again() {
  const std::lock_guard lock(look_mutex_);
  changed_.store(false, std::memory_order_release);  // before looking: a change after it sets it again
  auto all = session_->rescan();
  if (!all) return rbt::failure(std::move(all.error()));
  const Namespace& before = space();
  const auto now =
      std::find_if(all->begin(), all->end(), [&](const Namespace& each) { return each.nsid == before.nsid; });
  if (now == all->end())
    return rbt::failure(ErrorKind::not_found,
                        fmt::format("{}: namespace {} has gone", session_->uri().to_string(), before.nsid.value()));
  if (!same_disk(before, *now))
    return rbt::failure(ErrorKind::mismatch, fmt::format("{}: namespace {} is another disk now",
                                                         session_->uri().to_string(), before.nsid.value()));
  space_.store(&looks_.emplace_back(*now), std::memory_order_release);
  return {};
}

std::optional<Error> SharedDisk::failure() const {
  if (session_->state() != SessionState::live) {
    if (auto why = session_->failure()) return why;
  }
  for (const auto& lane : lanes_)
    if (auto why = lane->failure()) return why;
  return std::nullopt;
}

// ---- jobs

Job* SharedDisk::try_take() noexcept {
  std::uint64_t free = free_.load(std::memory_order_relaxed);
  while (free != 0)
    if (free_.compare_exchange_weak(free, free & (free - 1), std::memory_order_acquire, std::memory_order_relaxed))
      return &jobs_[static_cast<std::size_t>(std::countr_zero(free))];
  return nullptr;
}

Job& SharedDisk::take() noexcept {
  while (true) {
    if (Job* const job = try_take()) return *job;
    free_.wait(0, std::memory_order_relaxed);
  }
}

void SharedDisk::give_back(Job& job) noexcept {
  free_.fetch_or(std::uint64_t{1} << (&job - jobs_.data()), std::memory_order_release);
  free_.notify_one();
}

Ending SharedDisk::carry_out(Job& job) {
  job.request.target = &space();
  job.lane->submit(job);
  Lane::wait(job);
  const Ending ending{job.request.outcome, job.request.status};
  give_back(job);
  return ending;
}

// ---- reading and writing

bool SharedDisk::aligned(Bytes offset, Bytes length) const noexcept {
  const BlockShift shift = space().block_shift;
  return shift.is_multiple(offset.value()) && shift.is_multiple(length.value());
}

void SharedDisk::start_piece(Job& job, const Transfer& transfer, std::uint64_t at, std::size_t size) {
  if (transfer.operation == Operation::write) std::memcpy(job.buffer.data(), transfer.data + at, size);
  const Namespace& target = space();
  Request& request = job.request;
  job.data = {job.buffer.data(), size};
  request.operation = transfer.operation;
  request.target = &target;
  request.range = {Lba((transfer.offset + at) >> target.block_shift.value()), target.block_shift.blocks(Bytes(size))};
  request.data = {&job.data, 1};
  request.fua = transfer.fua;
  job.lane->submit(job);
}

Ending SharedDisk::finish_piece(Job& job, const Transfer& transfer) {
  Lane::wait(job);
  const Ending ending{job.request.outcome, job.request.status};
  if (ending.ok() && transfer.operation == Operation::read) {
    const std::uint64_t at =
        (job.request.range.first.value() << job.request.target->block_shift.value()) - transfer.offset;
    std::memcpy(transfer.data + at, job.buffer.data(), job.data.iov_len);
  }
  give_back(job);
  return ending;
}

// Pieces go out in order, further ones only into jobs that are free anyway, and are waited for in order: the first failure
// met is the one with the lowest offset, and nothing is sent after it.
Ending SharedDisk::transfer(const Transfer& transfer) {
  if (!aligned(Bytes(transfer.offset), Bytes(transfer.size))) return {Outcome::misaligned, {}};
  std::array<Job*, kWindow> flying{};
  std::size_t oldest = 0;
  std::size_t count = 0;
  std::uint64_t sent = 0;
  Ending ending;
  while (count != 0 || (ending.ok() && sent < transfer.size)) {
    Job* job = nullptr;
    if (ending.ok() && sent < transfer.size && count < kWindow) job = count == 0 ? &take() : try_take();
    if (job != nullptr) {
      const auto size = std::min<std::uint64_t>(transfer.size - sent, job->buffer.size());
      start_piece(*job, transfer, sent, size);
      flying[(oldest + count++) % kWindow] = job;
      sent += size;
    } else {
      const Ending piece = finish_piece(*flying[oldest], transfer);
      oldest = (oldest + 1) % kWindow;
      --count;
      if (ending.ok()) ending = piece;
    }
  }
  return ending;
}

Ending SharedDisk::read(std::span<std::byte> into, Bytes offset) {
  return transfer({Operation::read, into.data(), into.size(), offset.value(), nvme::ForceUnitAccess::no});
}

Ending SharedDisk::write(std::span<const std::byte> from, Bytes offset, nvme::ForceUnitAccess fua) {
  return transfer({Operation::write, const_cast<std::byte*>(from.data()), from.size(), offset.value(), fua});
}

// ---- commands without data

Ending SharedDisk::flush() {
  Job& job = take();
  job.request.operation = Operation::flush;
  return carry_out(job);
}

Ending SharedDisk::discard(Bytes offset, Bytes length, nvme::ForceUnitAccess fua) {
  const BlockShift shift = space().block_shift;
  const std::uint64_t mask = shift.block_size() - 1;
  const Lba first((offset.value() + mask) >> shift.value());
  const Lba end((offset + length).value() >> shift.value());
  if (first >= end) return {};  // no whole block: a discard may do nothing
  Job& job = take();
  job.range = {first, end - first};
  job.request.operation = Operation::discard;
  job.request.ranges = {&job.range, 1};
  const Ending ending = carry_out(job);
  return ending.ok() && fua == nvme::ForceUnitAccess::yes ? flush() : ending;
}

Ending SharedDisk::write_zeroes(Bytes offset, Bytes length, nvme::Deallocate deallocate, nvme::ForceUnitAccess fua) {
  if (!aligned(offset, length)) return {Outcome::misaligned, {}};
  if (length == Bytes(0)) return {};
  const BlockShift shift = space().block_shift;
  Job& job = take();
  job.request.operation = Operation::write_zeroes;
  job.request.range = {Lba(offset.value() >> shift.value()), shift.blocks(length)};
  job.request.deallocate = deallocate;
  job.request.fua = fua;
  return carry_out(job);
}

// ---- what the ending means

std::string describe(const Ending& ending) {
  return ending.outcome == Outcome::failed ? nvme::describe(ending.status) : std::string(name(ending.outcome));
}

bool same_disk(const Namespace& one, const Namespace& other) noexcept {
  return one.uuid == other.uuid && one.nguid == other.nguid && one.eui64 == other.eui64 &&
         one.block_shift.value() == other.block_shift.value();
}

}  // namespace rbt::initiator
