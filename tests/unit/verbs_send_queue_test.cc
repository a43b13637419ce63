// The accounting of a send queue, against a device that only writes down what it is given.

#include <catch2/catch.hpp>
#include <deque>
#include <vector>

#include "transport/verbs/send_queue.h"
#include "transport/verbs/work_id.h"

using namespace rbt::transport;
using namespace rbt::transport::verbs;

namespace {

// Takes what ibv_post_send hands it, completes what was signaled, in order.
class RecordingDevice {
 public:
  explicit RecordingDevice(std::uint32_t capacity) : capacity_(capacity) {
    context_.ops.post_send = &RecordingDevice::post_send;
    pair_.context = &context_;
    pair_.qp_context = this;
  }
  [[nodiscard]] ibv_qp* queue_pair() { return &pair_; }

  /// Carries out everything posted: what a signaled completion covers leaves the queue. Returns completions delivered.
  std::vector<SendQueue::Retired> complete_all(SendQueue& queue) {
    std::vector<SendQueue::Retired> completions;
    while (!posted.empty()) {
      const ibv_send_wr request = posted.front();
      posted.pop_front();
      if ((request.send_flags & IBV_SEND_SIGNALED) == 0) continue;
      SendQueue::Retired retired;
      REQUIRE(queue.complete(send_ring_index(request.wr_id), retired));
      occupied_ = static_cast<std::uint32_t>(posted.size());
      if (retired.wanted) completions.push_back(retired);
    }
    return completions;
  }

  std::deque<ibv_send_wr> posted;
  unsigned calls = 0;

 private:
  static int post_send(ibv_qp* pair, ibv_send_wr* request, ibv_send_wr** refused) {
    auto& self = *static_cast<RecordingDevice*>(pair->qp_context);
    ++self.calls;
    for (; request != nullptr; request = request->next) {
      if (self.occupied_ == self.capacity_) {
        *refused = request;
        return ENOMEM;
      }
      ++self.occupied_;
      self.posted.push_back(*request);
    }
    return 0;
  }
  std::uint32_t capacity_;
  std::uint32_t occupied_ = 0;  // until a signaled completion, also of what was carried out long ago
  ibv_context context_{};
  ibv_qp pair_{};
};

constexpr std::uint64_t kConnection = 42;

struct Fixture {
  explicit Fixture(std::uint32_t depth, std::uint32_t segments_max = 4)
      : queue(kConnection, {.depth = depth, .segments_max = segments_max, .inline_max = 64}), device(queue.capacity()) {
    queue.connect(device.queue_pair());
  }
  [[nodiscard]] PostResult post(bool signaled, std::size_t count = 1, std::uint64_t wr_id = 0) {
    std::vector<WorkRequest> requests(count);
    for (WorkRequest& request : requests) {
      request.signaled = signaled;
      request.wr_id = wr_id++;
      request.segments = {&segment, 1};
    }
    return queue.post(requests);
  }
  std::byte data[64]{};
  Segment segment{data, sizeof data, 7};
  SendQueue queue;
  RecordingDevice device;
};

}  // namespace

TEST_CASE("A send queue takes exactly as many requests as its depth until one completes") {
  for (const std::uint32_t depth : {1U, 2U, 3U, 4U, 5U, 64U, 128U, 1000U}) {
    Fixture f(depth);
    for (std::uint32_t i = 0; i < depth; ++i)
      REQUIRE(f.post(true) == PostResult::posted);
    CHECK(f.post(true) == PostResult::full);
    f.queue.flush();
    CHECK(f.queue.error() == 0);
    CHECK(f.device.complete_all(f.queue).size() == depth);
    CHECK(f.post(true, depth) == PostResult::posted);
  }
}

TEST_CASE("A consumer that signals nothing never wedges the queue, whatever the batch") {
  for (const std::uint32_t depth : {1U, 2U, 3U, 4U, 7U, 8U, 33U, 128U, 200U})
    for (std::uint32_t batch = 1; batch <= depth; batch = batch * 2 + 1) {
      Fixture f(depth);
      for (int round = 0; round < 1000; ++round) {
        INFO("depth " << depth << ", batches of " << batch << ", round " << round);
        if (f.post(false, batch) == PostResult::full) {
          f.queue.flush();
          REQUIRE(f.device.complete_all(f.queue).empty());
          REQUIRE(f.post(false, batch) == PostResult::posted);
        }
        f.queue.flush();
        REQUIRE(f.queue.error() == 0);
      }
    }
}

TEST_CASE("Completions come back with the consumer's number and kind, and cover what was not signaled") {
  Fixture f(16);
  std::vector<WorkRequest> requests(3);
  requests[0] = {.opcode = Opcode::rdma_write,
                 .signaled = false,
                 .rkey = 5,
                 .remote_address = 1000,
                 .wr_id = 100,
                 .segments = {&f.segment, 1}};
  requests[1] = {.opcode = Opcode::rdma_read,
                 .signaled = true,
                 .rkey = 6,
                 .remote_address = 2000,
                 .wr_id = 101,
                 .segments = {&f.segment, 1}};
  requests[2] = {
      .opcode = Opcode::send_with_invalidate, .signaled = true, .rkey = 9, .wr_id = 102, .segments = {&f.segment, 1}};
  REQUIRE(f.queue.post(requests) == PostResult::posted);
  CHECK(f.device.calls == 0);
  f.queue.flush();
  CHECK(f.device.calls == 1);
  REQUIRE(f.device.posted.size() == 3);
  CHECK(f.device.posted[0].opcode == IBV_WR_RDMA_WRITE);
  CHECK(f.device.posted[0].wr.rdma.remote_addr == 1000);
  CHECK(f.device.posted[0].wr.rdma.rkey == 5);
  CHECK((f.device.posted[0].send_flags & IBV_SEND_SIGNALED) == 0);
  CHECK(f.device.posted[1].opcode == IBV_WR_RDMA_READ);
  CHECK(f.device.posted[2].opcode == IBV_WR_SEND_WITH_INV);
  CHECK(f.device.posted[2].invalidate_rkey == 9);
  CHECK(send_connection(f.device.posted[2].wr_id) == kConnection);
  const auto completions = f.device.complete_all(f.queue);
  REQUIRE(completions.size() == 2);
  CHECK(completions[0].wr_id == 101);
  CHECK(completions[0].type == Completion::Type::rdma_read);
  CHECK(completions[1].wr_id == 102);
  CHECK(completions[1].type == Completion::Type::send);
}

TEST_CASE("Copied data may change as soon as post() has returned") {
  Fixture f(4);
  f.data[0] = std::byte{1};
  const WorkRequest request{.copy_data = true, .segments = {&f.segment, 1}};
  REQUIRE(f.queue.post({&request, 1}) == PostResult::posted);
  f.data[0] = std::byte{2};
  f.queue.flush();
  REQUIRE(f.device.posted.size() == 1);
  CHECK((f.device.posted[0].send_flags & IBV_SEND_INLINE) != 0);
  CHECK(*reinterpret_cast<const std::byte*>(f.device.posted[0].sg_list->addr) == std::byte{1});
}

TEST_CASE("A batch with more segments than a chain holds is handed over in parts, none lost") {
  Fixture f(8, 16);
  const std::vector<Segment> segments(16, f.segment);
  std::vector<WorkRequest> requests(8);
  for (WorkRequest& request : requests)
    request.segments = segments;
  REQUIRE(f.queue.post(requests) == PostResult::posted);
  f.queue.flush();
  CHECK(f.device.calls > 1);
  CHECK(f.device.posted.size() == 8);
  CHECK(f.device.complete_all(f.queue).size() == 8);
}

TEST_CASE("Requests posted before the peer is ready wait") {
  SendQueue queue(kConnection, {.depth = 4, .segments_max = 4, .inline_max = 64});
  RecordingDevice device(queue.capacity());
  Segment segment;
  const WorkRequest request{.segments = {&segment, 1}};
  REQUIRE(queue.post({&request, 1}) == PostResult::posted);
  queue.flush();
  CHECK(device.calls == 0);
  queue.connect(device.queue_pair());
  queue.flush();
  CHECK(device.posted.size() == 1);
}

TEST_CASE("A completion of a request that is not outstanding is not believed") {
  Fixture f(4);
  SendQueue::Retired retired;
  CHECK_FALSE(f.queue.complete(0, retired));
  REQUIRE(f.post(true) == PostResult::posted);
  CHECK_FALSE(f.queue.complete(1, retired));
  CHECK_FALSE(f.queue.complete(kRingMax - 1, retired));
  CHECK(f.queue.complete(0, retired));
}
