// A target with threads of its own: queues of one controller on different reactors, hosts that come and go meanwhile,
// others who ask for statistics. For ThreadSanitizer above all.

#include <atomic>
#include <catch2/catch.hpp>
#include <cstring>
#include <thread>

#include "common/nvme/admin_command.h"
#include "common/nvme/io_command.h"
#include "common/nvme/properties.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "tests/shm/scratch.h"
#include "tests/sim/raw_host.h"
#include "transport/shm/fabric.h"

using namespace rbt;
using namespace rbt::test;

namespace {

constexpr std::uint32_t kBlock = 4096;

nvme::Nqn nqn(const char* text) {
  return *nvme::Nqn::parse(text);
}

class ThreadsRig {
 public:
  ThreadsRig() {
    target_fabric_ = std::move(*transport::shm::Fabric::open({}, random_));
    host_fabric_ = std::move(*transport::shm::Fabric::open({}, random_));
    host_reactor_ = std::move(*transport::Reactor::create(clock_, null_logger()));
    auto opened = target::Target::open({.clock = clock_, .logger = null_logger(), .random = random_, .reactors = 3});
    REQUIRE(opened.has_value());
    target = std::move(*opened);
    REQUIRE(target->add_subsystem(nqn("nqn.2024-01.example:disk"), {.allow_any_host = true}).has_value());
    auto store =
        target::make_store("ram:size=4MiB,block=4096", {.clock = clock_, .random = random_, .logger = null_logger()});
    REQUIRE(store.has_value());
    REQUIRE(target->add_namespace(nqn("nqn.2024-01.example:disk"), std::move(*store)).has_value());
    uri_ = *Uri::parse("nvme+shm://?socket=" + scratch_.path("target.sock"));
    REQUIRE(target->listen(*target_fabric_, uri_).has_value());
    REQUIRE(target->start().has_value());
    host = std::make_unique<RawHost>(*host_fabric_, *host_reactor_);
  }
  ~ThreadsRig() {
    host->close_all();
    CHECK(run_until([&] { return host->connections() == 0; }));
    target->stop();
    CHECK(target->drained());
    host.reset();
    target.reset();
  }

  bool run_until(const std::function<bool()>& done) {
    return host_reactor_->run_until(done, clock_.now() + std::chrono::seconds(30));
  }
  RawQueue& queue_up(Qid qid, Cntlid cntlid) {
    RawQueue& queue = host->connect(uri_, qid, 32, cntlid);
    REQUIRE(run_until([&] { return queue.established || queue.ended(); }));
    REQUIRE(queue.established);
    return queue;
  }
  Response execute(RawQueue& queue, const nvme::SubmissionQueueEntry& sqe) {
    const std::uint16_t cid = queue.submit(sqe);
    std::optional<Response> response;
    REQUIRE(run_until([&] { return (response = queue.take(cid)).has_value() || queue.ended(); }));
    REQUIRE(response.has_value());
    REQUIRE(response->status().ok());
    return *response;
  }
  Cntlid connect(RawQueue& queue, Qid qid, Cntlid cntlid) {
    const nvme::ConnectRequest request{.qid = qid,
                                       .queue_entries = 32,
                                       .host_id = {},
                                       .cntlid = cntlid,
                                       .subsystem_nqn = nqn("nqn.2024-01.example:disk"),
                                       .host_nqn = nqn("nqn.2024-01.example:host")};
    const auto data = nvme::encode_connect_data(request);
    HostMemory memory(queue.connection->domain(), sizeof data);
    std::memcpy(memory.bytes().data(), &data, sizeof data);
    auto sqe = nvme::encode_connect(request);
    sqe.sgl = memory.keyed(sizeof data);
    return nvme::parse_connect_response(execute(queue, sqe).cqe.dw0()).cntlid;
  }
  /// A host with an admin queue and `io_queues` others.
  std::vector<RawQueue*> arrive(std::uint16_t io_queues) {
    std::vector<RawQueue*> queues{&queue_up(Qid(0), Cntlid(0))};
    const Cntlid cntlid = connect(*queues[0], Qid(0), nvme::kCntlidDynamic);
    const auto enabled = nvme::Configuration{}.with_enabled(true).with_entry_size_shifts(6, 4);
    execute(*queues[0], nvme::encode_property_set({.offset = 0x14, .value = enabled.raw}));
    for (std::uint16_t qid = 1; qid <= io_queues; ++qid) {
      queues.push_back(&queue_up(Qid(qid), cntlid));
      connect(*queues.back(), Qid(qid), cntlid);
    }
    return queues;
  }
  static nvme::SubmissionQueueEntry entry(nvme::IoOpcode opcode, std::uint64_t lba, const HostMemory& memory) {
    auto sqe = nvme::encode_block_command(opcode, {.nsid = Nsid(1), .first = Lba(lba), .count = Blocks(1)});
    sqe.sgl = memory.keyed(kBlock);
    return sqe;
  }

 private:
  ScratchDirectory scratch_;
  SystemClock clock_;
  Random random_{5};
  std::unique_ptr<transport::shm::Fabric> target_fabric_, host_fabric_;
  std::unique_ptr<transport::Reactor> host_reactor_;
  Uri uri_;

 public:
  std::unique_ptr<target::Target> target;
  std::unique_ptr<RawHost> host;
};

}  // namespace

TEST_CASE("Hosts come and go on three threads while a fourth asks for statistics") {
  ThreadsRig rig;
  std::atomic<bool> done{false};
  std::thread asker([&] {
    while (!done)
      static_cast<void>(rig.target->statistics());
  });
  for (int round = 0; round < 6; ++round) {
    const auto queues = rig.arrive(4);
    HostMemory memory(queues[1]->connection->domain(), kBlock);
    for (std::uint64_t i = 0; i < 40; ++i)
      queues[1 + i % 4]->submit(
          ThreadsRig::entry(i % 3 == 0 ? nvme::IoOpcode::write : nvme::IoOpcode::read, i % 8, memory));
    if (round % 2 == 0)
      CHECK(rig.run_until([&] {
        std::size_t answered = 0;
        for (const RawQueue* queue : queues)
          answered += queue->responses.size();
        return answered == 40;
      }));
    // by its admin queue, by an I/O queue, or all at once
    if (round % 3 == 0) queues[0]->connection->close();
    if (round % 3 == 1) queues[2]->connection->close();
    if (round % 3 == 2) rig.host->close_all();
    rig.host->close_all();
    CHECK(rig.run_until([&] { return rig.host->connections() == 0; }));
  }
  done = true;
  asker.join();
  CHECK(rig.run_until([&] { return rig.target->statistics().connections() == 0; }));
  const auto statistics = rig.target->statistics();
  CHECK(statistics.controllers == 0);
  for (const auto& reactor : statistics.reactors)
    CHECK(reactor.buffers_free == reactor.buffers_size);
}

TEST_CASE("A target that is drained under load says goodbye to everybody and stops") {
  ThreadsRig rig;
  const auto one = rig.arrive(3), two = rig.arrive(3);
  HostMemory memory(one[1]->connection->domain(), kBlock);
  for (std::uint64_t i = 0; i < 60; ++i)
    one[1 + i % 3]->submit(ThreadsRig::entry(nvme::IoOpcode::read, i % 8, memory));
  rig.target->drain(std::chrono::seconds(5));
  CHECK(rig.run_until([&] { return rig.target->drained(); }));
  for (const auto& queues : {one, two})
    for (const RawQueue* queue : queues)
      CHECK(rig.run_until([&] { return queue->ended(); }));
  rig.target->stop();
}
