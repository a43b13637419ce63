#include "initiator/queue_pair.h"

#include "initiator/command.h"

namespace rbt::initiator {

QueuePair::QueuePair(std::unique_ptr<Implementation> implementation) noexcept
    : implementation_(std::move(implementation)) {}
QueuePair::~QueuePair() = default;

Submitted QueuePair::submit(Request& request) {
  return implementation_->submit(request);
}

Submitted QueuePair::read(Request& request, const Namespace& from, Lba first, std::span<const iovec> data) {
  request.operation = Operation::read;
  request.target = &from;
  request.range = {first, Blocks(0)};
  request.data = data;
  request.fua = nvme::ForceUnitAccess::no;
  return submit(request);
}

Submitted QueuePair::write(Request& request, const Namespace& to, Lba first, std::span<const iovec> data,
                           nvme::ForceUnitAccess fua) {
  request.operation = Operation::write;
  request.target = &to;
  request.range = {first, Blocks(0)};
  request.data = data;
  request.fua = fua;
  return submit(request);
}

Submitted QueuePair::compare(Request& request, const Namespace& with, Lba first, std::span<const iovec> data) {
  request.operation = Operation::compare;
  request.target = &with;
  request.range = {first, Blocks(0)};
  request.data = data;
  request.fua = nvme::ForceUnitAccess::no;
  return submit(request);
}

Submitted QueuePair::flush(Request& request, const Namespace& of) {
  request.operation = Operation::flush;
  request.target = &of;
  return submit(request);
}

Submitted QueuePair::discard(Request& request, const Namespace& in, std::span<const BlockRange> ranges) {
  request.operation = Operation::discard;
  request.target = &in;
  request.ranges = ranges;
  return submit(request);
}

Submitted QueuePair::write_zeroes(Request& request, const Namespace& in, BlockRange range, nvme::Deallocate deallocate,
                                  nvme::ForceUnitAccess fua) {
  request.operation = Operation::write_zeroes;
  request.target = &in;
  request.range = range;
  request.deallocate = deallocate;
  request.fua = fua;
  return submit(request);
}

bool QueuePair::wait(const Request& request, Instant deadline) {
  return implementation_->queue().reactor().run_until([&request] { return !request.in_flight(); }, deadline);
}

transport::BufferPool* QueuePair::buffers() noexcept {
  return implementation_->buffers();
}
bool QueuePair::live() const noexcept {
  return implementation_->queue().live();
}
const Error* QueuePair::failure() const noexcept {
  return implementation_->queue().failure();
}
std::uint32_t QueuePair::depth() const noexcept {
  return implementation_->queue().depth();
}
std::uint32_t QueuePair::in_flight() const noexcept {
  return implementation_->in_flight();
}
Qid QueuePair::qid() const noexcept {
  return implementation_->queue().qid();
}
QueuePairCounters QueuePair::counters() const {
  return implementation_->counters();
}

}  // namespace rbt::initiator
