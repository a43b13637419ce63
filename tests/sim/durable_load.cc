#include "tests/sim/durable_load.h"

#include <fmt/format.h>

#include <algorithm>

#include "tests/sim/tags.h"

namespace rbt::test {

using namespace std::chrono_literals;
using initiator::Operation;
using initiator::Outcome;
using initiator::Submitted;

DurableLoad::DurableLoad(transport::Reactor& reactor, Random& random, std::uint64_t blocks)
    : reactor_(reactor), random_(random), model_(blocks), last_(blocks) {
  arena_ = transport::SharedMemory::create(Bytes(kWorkers * kWorkerBytes), {}).value();
  for (std::size_t i = 0; i < kWorkers; ++i) {
    workers_[i].load = this;
    workers_[i].memory = std::span(arena_.data(), arena_.size()).subspan(i * kWorkerBytes, kWorkerBytes);
    workers_[i].request.context = &workers_[i];
    workers_[i].request.done = [](initiator::Request& request) {
      auto& worker = *static_cast<Worker*>(request.context);
      worker.load->finish(worker);
    };
  }
}

void DurableLoad::fail(std::string what) {
  if (!failed()) failure_ = std::move(what);
}

bool DurableLoad::idle() const {
  return std::none_of(workers_.begin(), workers_.end(), [](const Worker& worker) { return worker.busy; });
}

void DurableLoad::attach(initiator::QueuePair& queue, const initiator::Namespace& space) {
  queue_ = &queue;
  space_ = &space;
  believing_ = false;  // the model does not know yet what may be read
  Worker& worker = workers_.front();
  for (std::uint64_t first = 0; first < model_.size() && !failed(); first += kTransferBlocks) {
    worker.range = {Lba(first), Blocks(std::min(kTransferBlocks, model_.size() - first))};
    worker.piece = {worker.memory.data(), worker.range.count.value() * block_size()};
    worker.busy = true;
    if (queue_->read(worker.request, *space_, worker.range.first, {&worker.piece, 1}) != Submitted::accepted)
      return fail("a read is not accepted");
    if (!reactor_.run_until([this] { return idle(); }, reactor_.clock().now() + 30s) ||
        worker.request.outcome != Outcome::success)
      return fail("a read of the disk that is up again is not answered");
    compare(worker);
  }
  unknown -= std::min(unknown, (model_.size() + kTransferBlocks - 1) / kTransferBlocks);  // these were no requests
  believing_ = true;
}

/// What the disk has is what it was told to keep.
void DurableLoad::compare(const Worker& worker) {
  for (std::uint64_t block = worker.range.first.value(); block < worker.range.end().value(); ++block) {
    const std::size_t at = (block - worker.range.first.value()) * block_size();
    const auto tag = tag_of(worker.memory.subspan(at, block_size()));
    if (!tag) return fail(fmt::format("block {} came back torn", block));
    if (!model_.may_survive(block, *tag))
      return fail(fmt::format("block {} came back with {}; written were:{}", block, *tag, model_.history(block)));
    if (*tag != last_[block]) ++lost;
    last_[block] = *tag;
    model_.came_back(block, *tag);
  }
}

void DurableLoad::run(Instant end) {
  while (!failed() && queue_->live() && reactor_.clock().now() < end) {
    Moment oldest = moment_;
    for (Worker& worker : workers_) {
      if (!worker.busy) submit(worker);
      if (worker.busy) oldest = std::min(oldest, worker.began);
    }
    model_.set_oldest_read(oldest);
    const Moment before = moment_;
    (void)reactor_.run_until([&] { return moment_ != before; }, end);
  }
}

void DurableLoad::detach() {
  if (!reactor_.run_until([this] { return idle(); }, reactor_.clock().now() + 30s))
    fail("a request to a dead target is never done");
  queue_ = nullptr;
}

void DurableLoad::submit(Worker& worker) {
  constexpr std::array kChoices = {Operation::read,         Operation::read,    Operation::write,
                                   Operation::write,        Operation::write,   Operation::write,
                                   Operation::write_zeroes, Operation::discard, Operation::flush};
  const Operation operation = kChoices.at(random_.below(kChoices.size()));
  const std::uint64_t blocks = 1 + random_.below(kTransferBlocks);
  worker.range = {Lba(random_.below(model_.size() - blocks + 1)), Blocks(blocks)};
  worker.piece = {worker.memory.data(), blocks * block_size()};
  worker.tag = operation == Operation::write ? next_tag_++ : 0;
  worker.durable = random_.once_in(4);
  worker.began = ++moment_;
  if (operation == Operation::write)
    for (std::uint64_t i = 0; i < blocks; ++i)
      put_tag(worker.memory.subspan(i * block_size(), block_size()), worker.tag);
  const Submitted submitted = submit_chosen(worker, operation);
  if (submitted == Submitted::refused) fail(fmt::format("a proper {} was refused", name(operation)));
  if (submitted != Submitted::accepted) return;
  requests.fetch_add(1, std::memory_order_relaxed);
  worker.busy = true;
  if (operation != Operation::read && operation != Operation::flush)
    for (std::uint64_t i = 0; i < blocks; ++i)
      model_.begin_write(worker.range.first.value() + i, worker.tag, worker.began);
}

Submitted DurableLoad::submit_chosen(Worker& worker, Operation operation) {
  const auto fua = worker.durable ? nvme::ForceUnitAccess::yes : nvme::ForceUnitAccess::no;
  initiator::Request& request = worker.request;
  switch (operation) {
    case Operation::read: return queue_->read(request, *space_, worker.range.first, {&worker.piece, 1});
    case Operation::write: return queue_->write(request, *space_, worker.range.first, {&worker.piece, 1}, fua);
    case Operation::write_zeroes:
      return queue_->write_zeroes(request, *space_, worker.range, nvme::Deallocate::no, fua);
    case Operation::discard: return queue_->discard(request, *space_, {&worker.range, 1});
    case Operation::flush: return queue_->flush(request, *space_);
    case Operation::compare: break;
  }
  return Submitted::refused;
}

void DurableLoad::finish(Worker& worker) {
  worker.busy = false;
  ++moment_;
  const initiator::Request& request = worker.request;
  if (!believing_ || request.outcome == Outcome::disconnected) {
    ++unknown;
    return;
  }
  if (request.outcome != Outcome::success)
    return fail(
        fmt::format("{}: {} {}", name(request.operation), name(request.outcome), nvme::describe(request.status)));
  using Lasts = DurabilityModel::Lasts;
  switch (request.operation) {
    case Operation::read: return check_read(worker);
    case Operation::flush: return model_.flushed(worker.began);
    case Operation::discard:
    case Operation::write:
    case Operation::write_zeroes: break;
    case Operation::compare: return;
  }
  const bool discard = request.operation == Operation::discard;
  const Lasts lasts = discard ? Lasts::maybe : worker.durable || credulous_ ? Lasts::yes : Lasts::no;
  for (std::uint64_t block = worker.range.first.value(); block < worker.range.end().value(); ++block) {
    model_.end_write(block, worker.tag, worker.began, lasts, moment_);
    last_[block] = worker.tag;
  }
}

void DurableLoad::check_read(const Worker& worker) {
  for (std::uint64_t block = worker.range.first.value(); block < worker.range.end().value(); ++block) {
    const std::size_t at = (block - worker.range.first.value()) * block_size();
    const auto tag = tag_of(worker.memory.subspan(at, block_size()));
    if (!tag) return fail(fmt::format("block {} is torn", block));
    if (!model_.may_read(block, *tag, worker.began))
      return fail(fmt::format("block {} reads {}; written were:{}", block, *tag, model_.history(block)));
  }
}

}  // namespace rbt::test
