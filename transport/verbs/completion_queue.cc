#include "transport/verbs/completion_queue.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "transport/verbs/errors.h"

namespace rbt::transport::verbs {

namespace {
constexpr std::uint32_t kSendsFirst = 1024;  // of the first queue: eight connections of the usual depth
constexpr unsigned kAcknowledgeBatch = 64;   // each acknowledgement takes a lock
}  // namespace

CompletionQueues::CompletionQueues(Device& device, std::uint32_t receives, int vector, Logger& logger)
    : device_(device), logger_(logger), receives_(receives), vector_(vector) {}

Result<std::unique_ptr<CompletionQueues>> CompletionQueues::create(Device& device, std::uint32_t receives, int vector,
                                                                   Logger& logger) {
  std::unique_ptr<CompletionQueues> queues(new CompletionQueues(device, receives, vector, logger));
  queues->channel_ = ibv_create_comp_channel(device.context());
  if (queues->channel_ == nullptr) return failure(call_failed(errno, "ibv_create_comp_channel", device.name()));
  const int flags = ::fcntl(queues->channel_->fd, F_GETFL);
  if (flags < 0 || ::fcntl(queues->channel_->fd, F_SETFL, flags | O_NONBLOCK) != 0)
    return failure(call_failed(errno, "fcntl of the completion channel", device.name()));
  return queues;
}

CompletionQueues::~CompletionQueues() {
  for (const auto& queue : queues_) {
    if (queue->unacknowledged != 0) ibv_ack_cq_events(queue->handle, queue->unacknowledged);
    if (const int error = ibv_destroy_cq(queue->handle); error != 0)
      logger_.error("{}", call_failed(error, "ibv_destroy_cq", device_.name()).message());
  }
  if (channel_ != nullptr) ibv_destroy_comp_channel(channel_);
}

Result<void> CompletionQueues::add(std::uint32_t entries) {
  auto queue = std::make_unique<Queue>();
  queue->handle = ibv_create_cq(device_.context(), static_cast<int>(entries), queue.get(), channel_,
                                vector_ % std::max(device_.context()->num_comp_vectors, 1));
  if (queue->handle == nullptr)
    return failure(call_failed(errno, fmt::format("ibv_create_cq with {} entries", entries), device_.name()));
  queue->entries = static_cast<std::uint32_t>(queue->handle->cqe);
  queues_.push_back(std::move(queue));
  return {};
}

bool CompletionQueues::grow(Queue& queue, std::uint32_t entries) noexcept {
  const std::uint32_t limit = device_.limits().completions_max;
  if (entries > limit) return false;
  const std::uint32_t wanted = std::min(limit, std::max(entries, 2 * queue.entries));
  if (ibv_resize_cq(queue.handle, static_cast<int>(wanted)) != 0)
    return false;  // not every device can: a second queue then
  queue.entries = static_cast<std::uint32_t>(queue.handle->cqe);
  return queue.entries >= entries;
}

Result<ibv_cq*> CompletionQueues::reserve(std::uint32_t entries) {
  const std::uint32_t limit = device_.limits().completions_max;
  const auto needed = [&](const Queue& queue) { return receives_ + queue.reserved + entries; };
  for (const bool growing : {false, true})
    for (const auto& queue : queues_)
      if (needed(*queue) <= queue->entries || (growing && grow(*queue, needed(*queue)))) {
        queue->reserved += entries;
        return queue->handle;
      }
  if (std::uint64_t{receives_} + entries > limit)
    return failure(
        ErrorKind::resource,
        fmt::format("{} allows {} entries in a completion queue; {} receive buffers and {} send requests need "
                    "{}: take a smaller queue depth",
                    device_.name(), limit, receives_, entries, std::uint64_t{receives_} + entries));
  if (auto added = add(std::min(limit, receives_ + std::max(entries, kSendsFirst))); !added)
    return failure(std::move(added.error()));
  Queue& queue = *queues_.back();
  if (needed(queue) > queue.entries)
    return failure(ErrorKind::resource, fmt::format("{} made a completion queue of {} entries where {} are needed",
                                                    device_.name(), queue.entries, needed(queue)));
  queue.reserved += entries;
  return queue.handle;
}

void CompletionQueues::unreserve(ibv_cq* queue, std::uint32_t entries) noexcept {
  static_cast<Queue*>(queue->cq_context)->reserved -= entries;
}

std::size_t CompletionQueues::poll(std::span<ibv_wc> completions) noexcept {
  for (std::size_t tried = 0; tried < queues_.size(); ++tried) {
    const std::size_t current = next_;
    next_ = next_ + 1 >= queues_.size() ? 0 : next_ + 1;
    const int count = ibv_poll_cq(queues_[current]->handle, static_cast<int>(completions.size()), completions.data());
    if (count > 0) return static_cast<std::size_t>(count);
    if (count < 0) logger_.error("{}", call_failed(-count, "ibv_poll_cq", device_.name()).message());
  }
  return 0;
}

bool CompletionQueues::arm() noexcept {
  bool all = true;
  for (const auto& queue : queues_) {
    if (queue->armed) continue;  // its event has not come, or still makes the descriptor readable
    queue->armed = ibv_req_notify_cq(queue->handle, 0) == 0;
    all = all && queue->armed;
  }
  return all;
}

std::size_t CompletionQueues::take_events() noexcept {
  std::size_t taken = 0;
  ibv_cq* handle = nullptr;
  void* context = nullptr;
  while (ibv_get_cq_event(channel_, &handle, &context) == 0) {
    auto& queue = *static_cast<Queue*>(context);
    queue.armed = false;
    ++taken;
    if (++queue.unacknowledged >= kAcknowledgeBatch) {
      ibv_ack_cq_events(queue.handle, queue.unacknowledged);
      queue.unacknowledged = 0;
    }
  }
  return taken;
}

}  // namespace rbt::transport::verbs
