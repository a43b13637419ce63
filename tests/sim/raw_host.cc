#include "tests/sim/raw_host.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>

namespace rbt::test {

using namespace transport;

HostMemory::HostMemory(ProtectionDomain& domain, std::size_t size, RemoteAccess access) : size_(size) {
  auto memory = SharedMemory::create(Bytes(size), {.name = "raw-host"});
  REQUIRE(memory.has_value());
  memory_ = std::move(*memory);
  MemorySpan span = memory_.span();
  span.size = size;
  auto region = domain.register_memory(span, access);
  REQUIRE(region.has_value());
  region_ = std::move(*region);
}

nvme::SglDescriptor HostMemory::keyed(std::uint32_t length, std::uint32_t offset,
                                      nvme::RemoteInvalidate invalidate) const {
  return nvme::encode_data_pointer(nvme::KeyedData{address() + offset, length, rkey(), invalidate});
}

void RawQueue::on_established(std::span<const std::byte> data) {
  established = true;
  private_data.assign(data.begin(), data.end());
}

void RawQueue::on_disconnected(const Disconnect& disconnect) {
  disconnected = true;
  reason = disconnect.reason;
  if (!established) private_data.assign(disconnect.private_data.begin(), disconnect.private_data.end());
}

void RawQueue::on_closed() {
  closed = true;
  connection = nullptr;
}

bool RawQueue::send(std::span<const std::byte> message) {
  if (connection == nullptr) return false;
  if (!sends_) {
    sends_ = std::make_unique<HostMemory>(connection->domain(), kSlots * kMessageMax, RemoteAccess::none);
    for (std::uint32_t i = kSlots; i-- > 0;)
      free_slots_.push_back(i);
  }
  REQUIRE(message.size() <= kMessageMax);
  REQUIRE_FALSE(free_slots_.empty());
  const std::uint32_t slot = free_slots_.back();
  std::byte* const place = sends_->bytes().data() + slot * kMessageMax;
  std::copy(message.begin(), message.end(), place);
  free_slots_.pop_back();
  unsent_.emplace_back(slot, static_cast<std::uint32_t>(message.size()));
  return post_unsent();
}

bool RawQueue::post_unsent() {
  while (!unsent_.empty()) {
    const auto [slot, length] = unsent_.front();
    const Segment segment{sends_->bytes().data() + slot * kMessageMax, length, sends_->lkey()};
    WorkRequest request;
    request.wr_id = slot;
    request.segments = {&segment, length == 0 ? 0u : 1u};
    const PostResult result = connection->post({&request, 1});
    if (result != PostResult::posted) return result == PostResult::full;
    unsent_.pop_front();
  }
  return true;
}

std::uint16_t RawQueue::submit(nvme::SubmissionQueueEntry sqe, std::span<const std::byte> in_capsule) {
  if (sqe.cid.get() == 0) sqe.cid = next_cid_++;
  std::vector<std::byte> message(sizeof sqe + in_capsule.size());
  std::memcpy(message.data(), &sqe, sizeof sqe);
  std::copy(in_capsule.begin(), in_capsule.end(), message.begin() + sizeof sqe);
  send(message);
  return sqe.cid.get();
}

std::optional<Response> RawQueue::take(std::uint16_t cid) {
  const auto found = std::find_if(responses.begin(), responses.end(),
                                  [&](const Response& response) { return response.cqe.cid.get() == cid; });
  if (found == responses.end()) return std::nullopt;
  const Response response = *found;
  responses.erase(found);
  return response;
}

void RawQueue::on_completion(const Completion& completion) {
  if (completion.status != CompletionStatus::success) {
    failed = true;
    return;
  }
  if (completion.type != Completion::Type::receive) {
    free_slots_.push_back(static_cast<std::uint32_t>(completion.wr_id));
    if (connection != nullptr) post_unsent();
    return;
  }
  const auto cqe = nvme::parse_response_capsule(completion.message.bytes);
  if (cqe && completion.message.bytes.size() == sizeof *cqe) {
    responses.push_back({*cqe, completion.invalidated_rkey});
  } else {
    ++malformed;
  }
}

RawHost::RawHost(Fabric& fabric, Reactor& reactor) {
  auto group = fabric.open_poll_group(reactor, {.receive_depth = 1024, .receive_size = 64}, *this);
  REQUIRE(group.has_value());
  group_ = std::move(*group);
}

RawHost::~RawHost() = default;

void RawHost::on_completions(std::span<const Completion> batch) {
  for (const Completion& completion : batch) {
    static_cast<RawQueue*>(completion.handler)->on_completion(completion);
    if (completion.type == Completion::Type::receive && completion.status == CompletionStatus::success)
      group_->release(completion.message.buffer_id);
  }
}

RawQueue& RawHost::connect(const Uri& address, std::span<const std::byte> private_data, std::uint32_t incoming_reads) {
  RawQueue& queue = *queues_.emplace_back(std::make_unique<RawQueue>());
  ConnectOptions options;
  options.private_data = private_data;
  options.incoming_reads = incoming_reads;
  options.send_depth = 1024;
  auto connection = group_->connect(address, options, queue);
  REQUIRE(connection.has_value());
  queue.connection = *connection;
  return queue;
}

RawQueue& RawHost::connect(const Uri& address, Qid qid, std::uint32_t entries, Cntlid cntlid) {
  const auto data =
      nvme::encode_cm_request({.qid = qid, .host_receives = entries, .host_sends = entries, .cntlid = cntlid});
  return connect(address, nvme::wire_bytes(data));
}

void RawHost::close_all() {
  for (const auto& queue : queues_)
    if (queue->connection != nullptr) queue->connection->close();
}

}  // namespace rbt::test
