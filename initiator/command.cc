// The life of one command, top to bottom: submit → validate → issue (find registration → encode capsule → send) →
// on_response → settle → the request's done. Nothing here allocates.

#include "initiator/command.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"

namespace rbt::initiator {

namespace {

constexpr std::uint64_t kBlocksMax = 65536;  // of one command: NLB has 16 bits and is 0's based

bool moves_data(Operation operation) noexcept {
  return operation == Operation::read || operation == Operation::write || operation == Operation::compare;
}

// What the request's commands count: blocks, ranges, or just the one command.
std::uint64_t total(const Request& request) noexcept {
  switch (request.operation) {
    case Operation::read:
    case Operation::write:
    case Operation::compare:
    case Operation::write_zeroes: return request.range.count.value();
    case Operation::discard: return request.ranges.size();
    case Operation::flush: return 1;
  }
  return 0;
}

// How many blocks the request's iovecs hold; nothing if none, or not whole ones.
std::optional<Blocks> blocks_of(const Request& request) noexcept {
  std::uint64_t bytes = 0;
  for (const iovec& piece : request.data) {
    if (piece.iov_len > (std::uint64_t{1} << 62) - bytes) return std::nullopt;
    bytes += piece.iov_len;
  }
  const BlockShift shift = request.target->block_shift;
  if (bytes == 0 || !shift.is_multiple(bytes)) return std::nullopt;
  return shift.blocks(Bytes(bytes));
}

Outcome allowed(const Request& request) noexcept {
  const Namespace& target = *request.target;
  switch (request.operation) {
    case Operation::read:
    case Operation::flush: return Outcome::pending;
    case Operation::compare: return target.abilities.compare ? Outcome::pending : Outcome::unsupported;
    case Operation::write: return target.read_only ? Outcome::unsupported : Outcome::pending;
    case Operation::discard:
      return target.abilities.discard && !target.read_only ? Outcome::pending : Outcome::unsupported;
    case Operation::write_zeroes:
      return target.abilities.write_zeroes && !target.read_only ? Outcome::pending : Outcome::unsupported;
  }
  return Outcome::unsupported;
}

// Calls `visit(memory, size)` for the pieces that hold `bytes` of the request's data from the given place on, until it
// returns false. Returns the place behind.
struct Place {
  std::size_t piece = 0;
  std::size_t offset = 0;
};
template <typename Visitor>
Place walk(std::span<const iovec> data, Place at, std::uint64_t bytes, Visitor&& visit) {
  while (bytes != 0) {
    const iovec& piece = data[at.piece];
    const std::size_t size = std::min<std::uint64_t>(piece.iov_len - at.offset, bytes);
    if (size != 0 && !visit(static_cast<std::byte*>(piece.iov_base) + at.offset, size)) break;
    bytes -= size;
    at.offset += size;
    if (at.offset == piece.iov_len) at = {at.piece + 1, 0};
  }
  return at;
}

// Where the bytes begin if they lie in one run of memory, however many iovecs name it; else null.
std::byte* contiguous(std::span<const iovec> data, Place at, std::uint64_t bytes) noexcept {
  std::byte* begin = nullptr;
  std::byte* next = nullptr;
  bool whole = true;
  walk(data, at, bytes, [&](std::byte* memory, std::size_t size) {
    if (begin == nullptr)
      begin = memory;
    else if (memory != next)
      whole = false;
    next = memory + size;
    return whole;
  });
  return whole ? begin : nullptr;
}

nvme::IoOpcode opcode(Operation operation) noexcept {
  switch (operation) {
    case Operation::read: return nvme::IoOpcode::read;
    case Operation::write: return nvme::IoOpcode::write;
    case Operation::compare: return nvme::IoOpcode::compare;
    case Operation::flush: return nvme::IoOpcode::flush;
    case Operation::discard: return nvme::IoOpcode::dataset_management;
    case Operation::write_zeroes: return nvme::IoOpcode::write_zeroes;
  }
  return nvme::IoOpcode::flush;
}

}  // namespace

Outcome validate(Request& request) noexcept {
  const Namespace& target = *request.target;
  const auto inside = [&target](const BlockRange& range) {
    return BlockRange::checked(range.first, range.count, target.blocks).has_value();
  };
  if (const Outcome outcome = allowed(request); outcome != Outcome::pending) return outcome;
  if (request.operation == Operation::flush) return Outcome::pending;
  if (request.operation == Operation::discard) {
    if (request.ranges.empty()) return Outcome::misaligned;
    return std::all_of(request.ranges.begin(), request.ranges.end(), inside) ? Outcome::pending : Outcome::out_of_range;
  }
  if (moves_data(request.operation)) {
    const auto blocks = blocks_of(request);
    if (!blocks) return Outcome::misaligned;
    request.range.count = *blocks;
  }
  if (request.range.count == Blocks(0)) return Outcome::misaligned;
  return inside(request.range) ? Outcome::pending : Outcome::out_of_range;
}

QueuePair::Implementation::Implementation(transport::Fabric& fabric, transport::Reactor& reactor,
                                          const QueueOptions& queue, const QueuePairContext& context)
    : context_(context), queue_(fabric, reactor, [&] {
        QueueOptions options = queue;
        options.owner = this;
        return options;
      }()) {}

QueuePair::Implementation::~Implementation() {
  queue_.close();  // what is outstanding is told so while everything here still exists
  if (on_destroyed) on_destroyed();
}

Result<void> QueuePair::Implementation::prepare(Bytes buffers) {
  commands_.resize(Queue::kDepthMax);
  reachable_ = std::make_unique<transport::RegistrationView>(context_.registrations, queue_.domain(), queue_.reactor(),
                                                             [this] { on_memory_overdue(); });
  if (auto started = reachable_->start(); !started) return started;
  const transport::MemoryRegion* const bounce = queue_.pool().memory().in(queue_.domain());
  bounce_rkey_ = bounce->rkey();
  bounce_lkey_ = bounce->lkey();
  if (buffers == Bytes(0)) return {};
  auto pool =
      transport::BufferPool::create(buffers, transport::RemoteAccess::read_write, {.name = "rbt-initiator-buffers"});
  if (!pool) return rbt::failure(std::move(pool.error()));
  buffers_ = std::move(*pool);
  auto registered = buffers_->memory().ensure(queue_.domain());
  if (registered) reachable_->add_own(buffers_->memory());
  return registered;
}

// ---- submit

Submitted QueuePair::Implementation::submit(Request& request) {
  check(!request.in_flight_, "a request is submitted again only when it is done");
  check(request.target != nullptr, "a request names its namespace");
  request.outcome = validate(request);
  request.status = {};
  if (request.outcome != Outcome::pending) return Submitted::refused;
  if (!queue_.live()) return Submitted::dead;
  if (unfinished_ != nullptr) return Submitted::full;  // it came first
  request.sent_ = 0;
  request.piece_ = 0;
  request.piece_offset_ = 0;
  request.range_offset_ = 0;
  request.failed_at_ = 0;
  request.commands_ = 0;
  issue(request);
  if (request.commands_ == 0) {
    if (request.outcome == Outcome::unmapped) return Submitted::refused;
    return queue_.live() ? Submitted::full : Submitted::dead;
  }
  if (request.outcome == Outcome::pending && request.sent_ != total(request)) unfinished_ = &request;
  request.in_flight_ = true;
  ++in_flight_;
  ++counters_.requests;
  return Submitted::accepted;
}

// Sends as many commands of the request as there are slots and buffers for.
void QueuePair::Implementation::issue(Request& request) {
  const std::uint64_t all = total(request);
  while (request.sent_ != all) {
    const auto slot = queue_.take_slot();
    if (!slot) return;
    if (!issue_one(request, *slot)) return;
  }
}

// The next command of the request. False: no buffer, or the queue is not live, or its data is nowhere (then the outcome is
// set); the slot is free again.
bool QueuePair::Implementation::issue_one(Request& request, std::uint32_t slot) {
  Command& command = commands_[slot];
  command = {
      .request = &request, .position = request.sent_, .piece = request.piece_, .piece_offset = request.piece_offset_};
  nvme::SubmissionQueueEntry entry;
  Data data;
  bool encoded = true;
  switch (request.operation) {
    case Operation::read:
    case Operation::write:
    case Operation::compare: encoded = encode_transfer(request, command, entry, data); break;
    case Operation::discard: encoded = encode_discard(request, command, entry, data); break;
    case Operation::write_zeroes: encode_write_zeroes(request, entry); break;
    case Operation::flush:
      entry = nvme::encode_flush(request.target->nsid);
      request.sent_ = 1;
      break;
  }
  if (!encoded) {
    queue_.give_back(slot);
    return false;
  }
  entry.sgl = nvme::encode_data_pointer(data.pointer);
  const Duration timeout = request.timeout != Duration::zero() ? request.timeout : context_.command_timeout;
  if (!queue_.send(slot, entry, data.in_capsule, *this, queue_.reactor().clock().now() + timeout)) {
    let_go(command);
    return false;
  }
  ++request.commands_;
  ++counters_.commands;
  return true;
}

bool QueuePair::Implementation::encode_transfer(Request& request, Command& command, nvme::SubmissionQueueEntry& entry,
                                                Data& data) {
  const Namespace& target = *request.target;
  const std::uint64_t most = std::min(target.block_shift.blocks(target.transfer_max).value(), kBlocksMax);
  const std::uint64_t blocks = std::min(request.range.count.value() - request.sent_, most);
  command.bytes = blocks << target.block_shift.value();
  if (!place(request, command, data)) return false;
  entry = nvme::encode_block_command(opcode(request.operation), {.nsid = target.nsid,
                                                                 .first = request.range.first + Blocks(request.sent_),
                                                                 .count = Blocks(blocks),
                                                                 .fua = request.fua});
  const Place next = walk(request.data, {request.piece_, request.piece_offset_}, command.bytes,
                          [](std::byte*, std::size_t) { return true; });
  request.sent_ += blocks;
  request.piece_ = next.piece;
  request.piece_offset_ = next.offset;
  return true;
}

// Finds memory that the peer, or for data in the capsule our own adapter, can reach for the command's bytes.
bool QueuePair::Implementation::place(Request& request, Command& command, Data& data) {
  const auto bytes = static_cast<std::uint32_t>(command.bytes);  // at most kTransferMax
  std::byte* const memory = contiguous(request.data, {command.piece, command.piece_offset}, command.bytes);
  const bool in_capsule = request.operation != Operation::read && bytes <= context_.in_capsule_max;
  transport::Reached& reached = command.reached;
  const auto reach = memory != nullptr ? reachable_->find(memory, bytes, reached) : transport::Reach::copy;
  if (reach == transport::Reach::unmapped) {
    settle(request, request.sent_, Outcome::unmapped, {});
    return false;
  }
  // What goes out with the capsule may be sent again after the response has come (see Queue::send): then its memory must
  // still be registered, which only the queue pair's own is sure to be. 4 KiB copied are cheaper than signaling every SEND.
  bool direct = reach == transport::Reach::direct;
  if (direct && in_capsule && !reached.permanent) {
    let_go(command);
    direct = false;
  }
  if (!direct) {
    if (!take_bounce(command, bytes)) return false;
    if (request.operation != Operation::read) copy(request, command);
  }
  std::byte* const from = direct ? memory : command.bounce.data();
  if (in_capsule) {
    data.pointer = nvme::InCapsuleData{.offset = 0, .length = bytes};
    data.in_capsule = {from, bytes, direct ? reached.lkey : bounce_lkey_};
    counters_.bytes_in_capsule += bytes;
  } else {
    data.pointer = nvme::KeyedData{
        .address = reinterpret_cast<std::uint64_t>(from), .length = bytes, .key = direct ? reached.rkey : bounce_rkey_};
  }
  return true;
}

// Its memory is not the command's any more.
void QueuePair::Implementation::let_go(Command& command) noexcept {
  if (!command.bounce.empty()) queue_.pool().free(std::exchange(command.bounce, {}));
  (void)transport::RegistrationView::leave(std::exchange(command.reached, {}));
}

bool QueuePair::Implementation::take_bounce(Command& command, std::size_t size) {
  command.bounce = queue_.pool().allocate(size);
  return !command.bounce.empty();
}

void QueuePair::Implementation::copy(const Request& request, const Command& command) {
  std::byte* bounce = command.bounce.data();
  walk(request.data, {command.piece, command.piece_offset}, command.bytes, [&](std::byte* memory, std::size_t size) {
    if (request.operation == Operation::read)
      std::memcpy(memory, bounce, size);
    else
      std::memcpy(bounce, memory, size);
    bounce += size;
    return true;
  });
  counters_.bytes_bounced += command.bytes;
}

void QueuePair::Implementation::encode_write_zeroes(Request& request, nvme::SubmissionQueueEntry& entry) const {
  std::uint64_t most = kBlocksMax;
  if (context_.limits.write_zeroes_max != Bytes(0))
    most = std::clamp(request.target->block_shift.blocks(context_.limits.write_zeroes_max).value(), std::uint64_t{1},
                      most);
  const std::uint64_t blocks = std::min(request.range.count.value() - request.sent_, most);
  entry =
      nvme::encode_block_command(nvme::IoOpcode::write_zeroes, {.nsid = request.target->nsid,
                                                                .first = request.range.first + Blocks(request.sent_),
                                                                .count = Blocks(blocks),
                                                                .fua = request.fua,
                                                                .deallocate = request.deallocate});
  request.sent_ += blocks;
}

// Up to 256 ranges, each of at most 2^32 - 1 blocks, less if the controller said so. The list always goes through the
// queue's own memory.
bool QueuePair::Implementation::encode_discard(Request& request, Command& command, nvme::SubmissionQueueEntry& entry,
                                               Data& data) {
  const CommandLimits& limits = context_.limits;
  const std::size_t most = std::min<std::size_t>(limits.discard_ranges_max, 256);
  if (!take_bounce(command, most * sizeof(nvme::DatasetRangeWire))) return false;
  std::uint64_t blocks_left = limits.discard_blocks_max;
  std::uint32_t count = 0;
  while (count < most && request.sent_ < request.ranges.size() && blocks_left != 0) {
    const BlockRange& range = request.ranges[request.sent_];
    const std::uint64_t rest = range.count.value() - request.range_offset_;
    const std::uint64_t blocks = std::min({rest, std::uint64_t{limits.discard_range_blocks_max}, blocks_left});
    const auto wire = nvme::encode_dataset_range({range.first + Blocks(request.range_offset_), Blocks(blocks)});
    std::memcpy(command.bounce.data() + count * sizeof wire, &wire, sizeof wire);
    ++count;
    blocks_left -= blocks;
    request.range_offset_ += blocks;
    if (blocks == rest) {
      ++request.sent_;
      request.range_offset_ = 0;
    }
  }
  const nvme::DatasetManagement discard{
      .nsid = request.target->nsid, .ranges = count, .deallocate = nvme::Deallocate::yes};
  entry = nvme::encode_dataset_management(discard);
  data.pointer = nvme::KeyedData{.address = reinterpret_cast<std::uint64_t>(command.bounce.data()),
                                 .length = discard.data_bytes(),
                                 .key = bounce_rkey_};
  return true;
}

// ---- the answer

void QueuePair::Implementation::on_response(std::uint32_t slot, Outcome outcome,
                                            const nvme::CompletionQueueEntry& entry) {
  Command& command = commands_[slot];
  Request& request = *command.request;
  if (!transport::RegistrationView::leave(std::exchange(command.reached, {}))) {
    // The bound has passed and the mapping has changed: the answer may be about the old pages. on_memory_overdue() closes
    // the connection; this answer only came before.
    if (outcome == Outcome::success) outcome = Outcome::disconnected;
  }
  if (outcome == Outcome::success && moves_data(request.operation)) {
    if (request.operation == Operation::read && !command.bounce.empty()) copy(request, command);
    (request.operation == Operation::read ? counters_.bytes_read : counters_.bytes_written) += command.bytes;
  }
  if (!command.bounce.empty()) queue_.pool().free(std::exchange(command.bounce, {}));
  command.request = nullptr;
  --request.commands_;
  if (outcome != Outcome::success) settle(request, command.position, outcome, entry.status());
  if (request.commands_ == 0 && unfinished_ != &request) complete(request);
  go_on();
}

// The failure with the lowest LBA is the request's; nothing more of it is sent.
void QueuePair::Implementation::settle(Request& request, std::uint64_t position, Outcome outcome,
                                       nvme::Status status) noexcept {
  if (request.outcome == Outcome::pending || position < request.failed_at_) {
    request.outcome = outcome;
    request.status = status;
    request.failed_at_ = position;
  }
  if (unfinished_ == &request) unfinished_ = nullptr;
}

void QueuePair::Implementation::complete(Request& request) {
  if (request.outcome == Outcome::pending)
    request.outcome = Outcome::success;
  else
    ++counters_.errors;
  request.in_flight_ = false;
  --in_flight_;
  if (request.done != nullptr) request.done(request);  // may submit it again: not ours any more
}

// A slot, and perhaps a buffer, has come free: the request that waits for them goes on.
void QueuePair::Implementation::go_on() {
  if (unfinished_ == nullptr || !queue_.live()) return;
  Request& request = *unfinished_;
  issue(request);
  if (request.outcome != Outcome::pending) {  // it has run into unmapped memory, which settle() has noted
    if (request.commands_ == 0) complete(request);
  } else if (request.sent_ == total(request)) {
    unfinished_ = nullptr;
  }
}

// Somebody changes the mapping under requests in flight, and they have not ended in time. What the adapter does from now
// on, it does to pages that are nobody's.
void QueuePair::Implementation::on_memory_overdue() {
  queue_.fail(
      Outcome::disconnected,
      Error(ErrorKind::disconnected,
            "the memory of requests in flight was unmapped, replaced or discarded, and they did not end in the "
            "time that whoever did it waits (BufferCacheOptions::change_wait_max): the connection is closed for "
            "it; change a mapping when the requests that name it are done"));
}

void QueuePair::Implementation::on_queue_closed(Outcome outcome) {
  // Its commands, if any were outstanding, have been told: then it has been settled, and is not here any more.
  Request* const request = std::exchange(unfinished_, nullptr);
  if (request == nullptr) return;
  settle(*request, request->sent_, outcome, {});
  complete(*request);
}

QueuePairCounters QueuePair::Implementation::counters() const {
  QueuePairCounters out = counters_;
  out.transport = queue_.transport_counters();
  return out;
}

}  // namespace rbt::initiator
