#include "transport/verbs/receive_queue.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "common/check.h"
#include "transport/verbs/errors.h"
#include "transport/verbs/work_id.h"

namespace rbt::transport::verbs {

namespace {
constexpr std::size_t kCacheLine = 64;
}

ReceiveQueue::ReceiveQueue(Device& device, Logger& logger, std::uint32_t buffer_id_base)
    : device_(device), logger_(logger), buffer_id_base_(buffer_id_base) {}

Result<std::unique_ptr<ReceiveQueue>> ReceiveQueue::create(Device& device, const PollGroupOptions& options,
                                                           std::uint32_t buffer_id_base, Logger& logger) {
  std::unique_ptr<ReceiveQueue> queue(new ReceiveQueue(device, logger, buffer_id_base));
  const std::uint32_t depth = std::min({options.receive_depth, device.limits().receives_max, kBuffersMax});
  if (depth == 0 || options.receive_size == 0)
    return failure(ErrorKind::invalid_argument, "a poll group needs at least one receive buffer of at least one byte");
  queue->stride_ = (std::size_t{options.receive_size} + kCacheLine - 1) / kCacheLine * kCacheLine;
  auto memory = SharedMemory::create(Bytes(queue->stride_ * depth), {.name = "rbt-receive"});
  if (!memory) return failure(std::move(memory.error()));
  queue->memory_ = std::move(*memory);
  auto region = device.register_memory(queue->memory_.span(), RemoteAccess::none);
  if (!region) return failure(std::move(region.error()).within(fmt::format("{} receive buffers", depth)));
  queue->region_ = std::move(*region);

  queue->buffers_.resize(depth);
  for (std::uint32_t i = 0; i < depth; ++i) {
    Buffer& buffer = queue->buffers_[i];
    buffer.segment = {.addr = reinterpret_cast<std::uintptr_t>(queue->memory_.data() + i * queue->stride_),
                      .length = options.receive_size,
                      .lkey = queue->region_->lkey()};
    buffer.request = {.wr_id = receive_work_id(i), .next = nullptr, .sg_list = &buffer.segment, .num_sge = 1};
  }
  if (auto created = queue->create_queue(); !created) return failure(std::move(created.error()));
  return queue;
}

Result<void> ReceiveQueue::create_queue() {
  ibv_srq_init_attr attributes{};
  attributes.attr.max_wr = depth();
  attributes.attr.max_sge = 1;
  queue_ = ibv_create_srq(device_.domain(), &attributes);
  if (queue_ == nullptr)
    return failure(call_failed(errno, fmt::format("ibv_create_srq for {} receives", depth()), device_.name()));
  for (Buffer& buffer : buffers_)
    if (buffer.place != Place::consumer) wait(buffer);
  flush();
  return {};
}

ReceiveQueue::~ReceiveQueue() {
  if (queue_ == nullptr) return;
  if (const int error = ibv_destroy_srq(queue_); error != 0)
    logger_.error("{}", call_failed(error, "ibv_destroy_srq", device_.name()).message());
}

ReceivedMessage ReceiveQueue::lend(std::uint32_t index, std::uint32_t bytes) noexcept {
  Buffer& buffer = buffers_[index];
  taken(buffer);
  buffer.place = Place::consumer;
  return {.bytes = {memory_.data() + index * stride_, std::min(bytes, buffer.segment.length)},
          .lkey = buffer.segment.lkey,
          .buffer_id = buffer_id_base_ + index};
}

void ReceiveQueue::release(std::uint32_t index) noexcept {
  check(index < buffers_.size() && buffers_[index].place == Place::consumer,
        "a receive buffer was released that was not lent");
  wait(buffers_[index]);
}

void ReceiveQueue::recycle(std::uint32_t index) noexcept {
  taken(buffers_[index]);
  wait(buffers_[index]);
}

void ReceiveQueue::taken(const Buffer& buffer) noexcept {
  --posted_;
  last_turn_ = std::max(last_turn_, buffer.turn);
}

std::size_t ReceiveQueue::reclaim(std::uint64_t before) noexcept {
  std::size_t reclaimed = 0;
  for (Buffer& buffer : buffers_) {
    if (buffer.place != Place::device || buffer.turn >= before) continue;
    --posted_;
    wait(buffer);
    ++reclaimed;
  }
  return reclaimed;
}

void ReceiveQueue::wait(Buffer& buffer) noexcept {
  buffer.place = Place::waiting;
  buffer.request.next = nullptr;
  if (last_waiting_ != nullptr) {
    last_waiting_->next = &buffer.request;
  } else {
    first_waiting_ = &buffer.request;
  }
  last_waiting_ = &buffer.request;
}

void ReceiveQueue::flush() {
  if (first_waiting_ == nullptr) return;
  ibv_recv_wr* refused = nullptr;
  const int error = ibv_post_srq_recv(queue_, first_waiting_, &refused);
  ibv_recv_wr* const end = error == 0 ? nullptr : refused;
  ibv_recv_wr* request = first_waiting_;
  for (; request != end; request = request->next) {
    Buffer& buffer = buffers_[receive_index(request->wr_id)];
    buffer.place = Place::device;
    buffer.turn = ++turns_;
    ++posted_;
  }
  first_waiting_ = end;  // refused ones are tried again with the next batch
  if (end == nullptr) {
    last_waiting_ = nullptr;
  } else {
    logger_.error("{}", call_failed(error, "ibv_post_srq_recv", device_.name()).message());
  }
}

Result<void> ReceiveQueue::renew() {
  if (const int error = ibv_destroy_srq(queue_); error != 0)
    return failure(call_failed(error, "ibv_destroy_srq", device_.name()));
  queue_ = nullptr;
  first_waiting_ = last_waiting_ = nullptr;
  posted_ = 0;
  return create_queue();
}

}  // namespace rbt::transport::verbs
