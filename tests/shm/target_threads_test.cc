// A target with threads of its own: queues of one controller on different reactors, hosts that come and go meanwhile,
// others who ask for statistics. For ThreadSanitizer above all.

#include <algorithm>
#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <thread>

#include "common/nvme/admin_command.h"
#include "common/nvme/io_command.h"
#include "common/nvme/properties.h"
#include "common/nvme/reservation.h"
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

const nvme::Nqn kDisk = nqn("nqn.2024-01.example:disk");

class ThreadsRig {
 public:
  ThreadsRig() {
    target_fabric_ = std::move(*transport::shm::Fabric::open({}, random_));
    host_fabric_ = std::move(*transport::shm::Fabric::open({}, random_));
    host_reactor_ = std::move(*transport::Reactor::create(clock_, null_logger()));
    auto opened = target::Target::open({.clock = clock_, .logger = null_logger(), .random = random_, .reactors = 3});
    REQUIRE(opened.has_value());
    target = std::move(*opened);
    REQUIRE(target->add_subsystem(kDisk, {.allow_any_host = true}).has_value());
    REQUIRE(target->add_namespace(kDisk, make_store(random_)).has_value());
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

  std::unique_ptr<target::Store> make_store(Random& random) {
    auto store =
        target::make_store("ram:size=4MiB,block=4096", {.clock = clock_, .random = random, .logger = null_logger()});
    return store ? std::move(*store) : nullptr;
  }
  /// Any thread: what is waited for may have come true.
  void wake() {
    host_reactor_->post([] {});
  }
  // Looks again every few ms: what the target's threads have done wakes nobody here.
  bool run_until(const std::function<bool()>& done) {
    const Instant end = clock_.now() + std::chrono::seconds(30);
    while (!host_reactor_->run_until(done, clock_.now() + std::chrono::milliseconds(5)))
      if (clock_.now() >= end) return false;
    return true;
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
  Cntlid connect(RawQueue& queue, Qid qid, Cntlid cntlid, const nvme::HostId& host_id = {}) {
    const nvme::ConnectRequest request{.qid = qid,
                                       .queue_entries = 32,
                                       .host_id = host_id,
                                       .cntlid = cntlid,
                                       .subsystem_nqn = kDisk,
                                       .host_nqn = nqn("nqn.2024-01.example:host")};
    const auto data = nvme::encode_connect_data(request);
    HostMemory memory(queue.connection->domain(), sizeof data);
    std::memcpy(memory.bytes().data(), &data, sizeof data);
    auto sqe = nvme::encode_connect(request);
    sqe.sgl = memory.keyed(sizeof data);
    return nvme::parse_connect_response(execute(queue, sqe).cqe.dw0()).cntlid;
  }
  /// A host with an admin queue and `io_queues` others.
  std::vector<RawQueue*> arrive(std::uint16_t io_queues, const nvme::HostId& host_id = {}) {
    std::vector<RawQueue*> queues{&queue_up(Qid(0), Cntlid(0))};
    const Cntlid cntlid = connect(*queues[0], Qid(0), nvme::kCntlidDynamic, host_id);
    const auto enabled = nvme::Configuration{}.with_enabled(true).with_entry_size_shifts(6, 4);
    execute(*queues[0], nvme::encode_property_set({.offset = 0x14, .value = enabled.raw}));
    for (std::uint16_t qid = 1; qid <= io_queues; ++qid) {
      queues.push_back(&queue_up(Qid(qid), cntlid));
      connect(*queues.back(), Qid(qid), cntlid, host_id);
    }
    return queues;
  }
  static nvme::SubmissionQueueEntry entry(nvme::IoOpcode opcode, std::uint64_t lba, const HostMemory& memory,
                                          Nsid nsid = Nsid(1)) {
    auto sqe = nvme::encode_block_command(opcode, {.nsid = nsid, .first = Lba(lba), .count = Blocks(1)});
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

TEST_CASE("Pairs on three threads increase a counter by one each, beside writes, zeroes and Aborts") {
  ThreadsRig rig;
  const auto queues = rig.arrive(6);
  static constexpr std::uint64_t kGoal = 60;
  static constexpr std::uint64_t kCounter = 100;
  struct Pair {
    RawQueue* queue;
    std::unique_ptr<HostMemory> memory;  // what is expected, what is to be written
    std::uint64_t seen = 0, increases = 0;
    std::uint16_t first = 0, second = 0;
    std::size_t others = 0;  // answers that are to come, the first half's apart
  };
  std::vector<Pair> pairs;
  for (std::size_t i = 1; i < queues.size(); ++i)
    pairs.push_back({queues[i], std::make_unique<HostMemory>(queues[i]->connection->domain(), 2 * kBlock)});
  const auto attempt = [&](Pair& pair) {
    const std::uint64_t next = pair.seen + 1;
    std::memcpy(pair.memory->bytes().data(), &pair.seen, sizeof next);
    std::memcpy(pair.memory->bytes().data() + kBlock, &next, sizeof next);
    // Beside the counter, in the same word of the range lock.
    pair.queue->submit(ThreadsRig::entry(nvme::IoOpcode::write, kCounter + 1, *pair.memory));
    auto zeroes = nvme::encode_block_command(nvme::IoOpcode::write_zeroes,
                                             {.nsid = Nsid(1), .first = Lba(kCounter + 2), .count = Blocks(20)});
    pair.queue->submit(zeroes);
    pair.others += 3;
    auto first = ThreadsRig::entry(nvme::IoOpcode::compare, kCounter, *pair.memory);
    auto second = ThreadsRig::entry(nvme::IoOpcode::write, kCounter, *pair.memory);
    first.flags |= 1;
    second.flags |= 2;
    second.sgl = pair.memory->keyed(kBlock, kBlock);
    pair.first = pair.queue->submit(first);
    pair.second = pair.queue->submit(second);
    // Of a command that there is not, on a queue of another thread most likely.
    if (pair.seen % 8 == 0) queues[0]->submit(nvme::encode_abort({.qid = Qid(1), .cid = Cid(0xfff0)}));
  };
  for (Pair& pair : pairs)
    attempt(pair);
  CHECK(rig.run_until([&] {
    for (Pair& pair : pairs) {
      if (const auto written = pair.queue->take(pair.second)) {
        CHECK(pair.queue->take(pair.first).has_value());  // it was answered before
        if (written->status().ok()) ++pair.increases;
        --pair.others;
      }
      while (!pair.queue->responses.empty() && pair.queue->responses.front().cqe.cid.get() != pair.first) {
        CHECK(pair.queue->responses.front().status().ok());
        pair.queue->responses.pop_front();
        --pair.others;
      }
      if (pair.others == 0 && pair.seen < kGoal && ++pair.seen < kGoal) attempt(pair);
    }
    queues[0]->responses.clear();
    return std::all_of(pairs.begin(), pairs.end(), [](const Pair& pair) { return pair.seen >= kGoal; });
  }));
  std::uint64_t sum = 0, counter = 0;
  for (const Pair& pair : pairs)
    sum += pair.increases;
  CHECK(sum == kGoal);
  HostMemory memory(queues[1]->connection->domain(), kBlock);
  rig.execute(*queues[1], ThreadsRig::entry(nvme::IoOpcode::read, kCounter, memory));
  std::memcpy(&counter, memory.bytes().data(), sizeof counter);
  CHECK(counter == kGoal);
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

namespace {

/// Adds, refreshes and removes namespaces for `rounds` rounds, two of them at a time, from a thread of its own.
void change_namespaces(ThreadsRig& rig, int rounds, std::uint64_t seed, std::atomic<int>& gone) {
  Random random(seed);
  for (int round = 0; round < rounds; ++round) {
    const auto first = rig.target->add_namespace(kDisk, rig.make_store(random));
    const auto second = rig.target->add_namespace(kDisk, rig.make_store(random));
    for (const auto& nsid : {first, second}) {
      if (!nsid) continue;
      static_cast<void>(rig.target->refresh_namespace(kDisk, *nsid));
      static_cast<void>(rig.target->remove_namespace(kDisk, *nsid, [&rig, &gone](auto) {
        ++gone;
        rig.wake();
      }));
    }
  }
}

}  // namespace

TEST_CASE("Namespaces come and go by two threads while a host uses them on three others") {
  constexpr int kRounds = 60;
  ThreadsRig rig;
  const auto queues = rig.arrive(4);
  // Each queue has blocks and memory of its own: two hosts that race for a block would be a race of theirs.
  std::vector<std::unique_ptr<HostMemory>> memory;
  for (const RawQueue* queue : queues)
    memory.push_back(std::make_unique<HostMemory>(queue->connection->domain(), kBlock));
  HostMemory& log = *memory[0];
  rig.execute(*queues[0], nvme::encode_set_features({.fid = NVME_FEAT_FID_ASYNC_EVENT, .value = 0x100}));
  std::atomic<int> gone{0}, threads{2};
  std::vector<std::thread> changers;
  for (const std::uint64_t seed : {1u, 2u})
    changers.emplace_back([&rig, &gone, &threads, seed] {
      change_namespaces(rig, kRounds, seed, gone);
      --threads;
      rig.wake();
    });
  std::uint64_t served = 0, refused = 0, other = 0, events = 0, sent = 0;
  std::uint16_t event = queues[0]->submit(nvme::encode_plain(nvme::AdminOpcode::async_event_request));
  std::array<std::uint32_t, 5> outstanding{};
  const auto turn = [&](bool more) {
    for (std::size_t q = 1; q < queues.size(); ++q) {
      for (; more && outstanding[q] < 16; ++outstanding[q], ++sent)
        queues[q]->submit(ThreadsRig::entry(sent % 3 == 0 ? nvme::IoOpcode::write : nvme::IoOpcode::read,
                                            8 * q + sent % 8, *memory[q],
                                            Nsid(static_cast<std::uint32_t>(1 + sent % 5))));
      for (; !queues[q]->responses.empty(); queues[q]->responses.pop_front(), --outstanding[q]) {
        const auto code = queues[q]->responses.front().code();
        ++(code == nvme::StatusCode::success ? served : code == nvme::StatusCode::invalid_namespace ? refused : other);
      }
    }
    return std::all_of(outstanding.begin(), outstanding.end(), [](std::uint32_t each) { return each == 0; });
  };
  const auto done = [&] {
    static_cast<void>(turn(threads > 0));
    return queues[0]->take(event).has_value() || threads == 0;
  };
  while (threads > 0) {
    REQUIRE(rig.run_until(done));
    if (threads == 0) break;
    ++events;
    auto read = nvme::encode_get_log_page(
        {.nsid = nvme::kNsidAll, .lid = NVME_LOG_LID_CHANGED_NS, .length = Bytes(log.bytes().size())});
    read.sgl = log.keyed(4096);
    rig.execute(*queues[0], read);
    event = queues[0]->submit(nvme::encode_plain(nvme::AdminOpcode::async_event_request));
  }
  for (auto& changer : changers)
    changer.join();
  CHECK(rig.run_until([&] { return turn(false) && gone == 4 * kRounds; }));
  CHECK(rig.target->statistics().namespaces.size() == 1);
  CHECK(served > 0);
  CHECK(refused > 0);
  CHECK(other == 0);
  CHECK(events > 0);
}

TEST_CASE("On three threads, too, a block stays as it is from the answer to Preempt and Abort on") {
  ThreadsRig rig;
  const auto one = rig.arrive(2, nvme::HostId({1}));
  const auto two = rig.arrive(6, nvme::HostId({2}));
  HostMemory keys(one[1]->connection->domain(), 16);
  HostMemory block(one[1]->connection->domain(), kBlock);
  const auto with_keys = [&](nvme::SubmissionQueueEntry sqe, std::uint64_t first, std::uint64_t second,
                             const HostMemory& memory, std::span<std::byte> place, std::uint32_t length) {
    const auto bytes = nvme::encode_reservation_keys(first, second);
    std::copy(bytes.begin(), bytes.end(), place.begin());
    sqe.sgl = memory.keyed(length);
    return sqe;
  };
  const auto add_key = [&](RawQueue& queue, std::uint64_t key) {
    HostMemory memory(queue.connection->domain(), 16);
    rig.execute(queue, with_keys(nvme::encode_reservation_register(Nsid(1), {.new_key = key}), 0, key, memory,
                                 memory.bytes(), 16));
  };
  const auto read = [&] {
    rig.execute(*one[1], ThreadsRig::entry(nvme::IoOpcode::read, 0, block));
    return std::vector<std::byte>(block.bytes().begin(), block.bytes().end());
  };
  std::vector<std::unique_ptr<HostMemory>> data;
  for (std::size_t i = 0; i < 60; ++i) {
    data.push_back(std::make_unique<HostMemory>(two[1]->connection->domain(), kBlock));
    std::fill(data[i]->bytes().begin(), data[i]->bytes().end(), static_cast<std::byte>(i + 1));
  }
  add_key(*one[1], 1);
  for (std::size_t round = 0; round < 20; ++round) {
    add_key(*two[1], 2);
    for (std::size_t i = 0; i < data.size(); ++i)
      two[1 + i % 6]->submit(ThreadsRig::entry(nvme::IoOpcode::write, 0, *data[i]));
    rig.execute(*one[1], with_keys(nvme::encode_reservation_acquire(Nsid(1), {}), 1, 0, keys, keys.bytes(), 16));
    rig.execute(*one[1 + round % 2],
                with_keys(nvme::encode_reservation_acquire(Nsid(1), {.action = nvme::AcquireAction::preempt_and_abort}),
                          1, 2, keys, keys.bytes(), 16));
    const auto before = read();
    std::size_t answered = 0;
    CHECK(rig.run_until([&] {
      answered = 0;
      for (std::size_t i = 1; i < two.size(); ++i)
        answered += two[i]->responses.size();
      return answered == data.size();
    }));
    CHECK(read() == before);
    for (std::size_t i = 1; i < two.size(); ++i) {
      for (const Response& each : two[i]->responses)
        CHECK((each.status().ok() || each.code() == nvme::StatusCode::preempted_and_aborted ||
               each.code() == nvme::StatusCode::reservation_conflict));
      two[i]->responses.clear();
    }
    rig.execute(*one[1],
                with_keys(nvme::encode_reservation_release(Nsid(1), {.type = 1}), 1, 0, keys, keys.bytes(), 8));
  }
}

TEST_CASE("Registrations that are to persist are written by a thread that is no reactor's, one after the other") {
  ThreadsRig rig;
  const ScratchDirectory scratch;
  Random random(8);
  target::NamespaceOptions options;
  options.reservations = scratch.path("reservations");
  const auto nsid = rig.target->add_namespace(kDisk, rig.make_store(random), options);
  REQUIRE(nsid.has_value());
  std::vector<RawQueue*> queues;  // one of each of several hosts
  std::vector<std::unique_ptr<HostMemory>> keys;
  std::vector<std::uint16_t> cids;
  for (std::uint8_t host = 1; host <= 8; ++host) {
    queues.push_back(rig.arrive(1, nvme::HostId({host}))[1]);
    keys.push_back(std::make_unique<HostMemory>(queues.back()->connection->domain(), 16));
    const auto bytes = nvme::encode_reservation_keys(0, host);
    std::copy(bytes.begin(), bytes.end(), keys.back()->bytes().begin());
  }
  for (std::size_t i = 0; i < queues.size(); ++i) {
    auto sqe = nvme::encode_reservation_register(*nsid, {.persistence = nvme::ChangePersistence::on});
    sqe.sgl = keys[i]->keyed(16);
    cids.push_back(queues[i]->submit(sqe));
  }
  for (std::size_t i = 0; i < queues.size(); ++i) {
    std::optional<Response> response;
    REQUIRE(rig.run_until([&] { return (response = queues[i]->take(cids[i])).has_value(); }));
    CHECK(response->status().ok());
  }
  CHECK(std::filesystem::file_size(options.reservations) == 64 + 8 * 24 + 4);
}
