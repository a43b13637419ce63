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
  VolumeOptions volume = options.volume;
  volume.requests = options.requests;
  // All data lies in the jobs' buffers: bounce memory is for the ranges of discards only.
  volume.queue = {.depth = options.requests, .buffers = Bytes(options.requests * kPiece), .bounce = Bytes(2 * kMiB)};
  volume.on_state = [&mine = *disk, theirs = std::move(options.volume.on_state)](VolumeState state, const Error* why) {
    mine.follow(state, why);
    if (theirs) theirs(state, why);
  };
  volume.on_change = [&mine = *disk, theirs = std::move(options.volume.on_change)](DiskChange change) {
    mine.look();
    if (theirs) theirs(change);
  };
  auto lane = Lane::open(environment, uri, volume);
  if (!lane) return rbt::failure(std::move(lane.error()));
  disk->lane_ = std::move(*lane);
  disk->look();
  for (Job& job : std::span(disk->jobs_).first(options.requests))
    job.buffer = disk->lane_->volume().buffers()->allocate(kPiece);
  disk->free_.store(~std::uint64_t{0} >> (kRequestsMax - options.requests), std::memory_order_release);
  disk->lane_->start();
  return disk;
}

SharedDisk::~SharedDisk() = default;

void SharedDisk::follow(VolumeState state, const Error* why) {
  if (state != VolumeState::failed) return;
  const std::lock_guard lock(failure_mutex_);
  failure_ = *why;
}

void SharedDisk::look() {
  space_.store(&looks_.emplace_back(lane_->volume().disk()), std::memory_order_release);
}

std::optional<Error> SharedDisk::failure() const {
  const std::lock_guard lock(failure_mutex_);
  return failure_;
}

Remains SharedDisk::remains() const {
  const Volume& volume = lane_->volume();
  return {.succession = volume.succession(), .unflushed = volume.statistics().unflushed != 0};
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
  lane_->submit(job);
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
  const BlockShift shift = space().block_shift;
  Request& request = job.request;
  job.data = {job.buffer.data(), size};
  request.operation = transfer.operation;
  request.range = {Lba((transfer.offset + at) >> shift.value()), shift.blocks(Bytes(size))};
  request.data = {&job.data, 1};
  request.fua = transfer.fua;
  lane_->submit(job);
}

Ending SharedDisk::finish_piece(Job& job, const Transfer& transfer) {
  Lane::wait(job);
  const Ending ending{job.request.outcome, job.request.status};
  if (ending.ok() && transfer.operation == Operation::read) {
    const std::uint64_t at = (job.request.range.first.value() << space().block_shift.value()) - transfer.offset;
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

}  // namespace rbt::initiator
