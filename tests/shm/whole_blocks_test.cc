// A block is whole for everybody, whatever lies below: several connections, each on a thread of its own at both ends, read
// and write a few blocks of a disk that promises nothing by itself.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <thread>
#include <utility>
#include <vector>

#include "initiator/initiator.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "tests/shm/scratch.h"
#include "tests/sim/tags.h"
#include "transport/shm/fabric.h"

using namespace rbt;
using namespace rbt::test;
using namespace std::chrono_literals;
using initiator::Outcome;
using initiator::Request;
using initiator::Submitted;

namespace {

constexpr std::uint64_t kBlock = 4096;
constexpr std::uint64_t kBlocks = 4;  // few, so that commands meet
constexpr std::size_t kDepth = 4;     // per connection
constexpr std::uint16_t kConnections = 3;

struct Disk {
  explicit Disk(const std::string& spec) {
    server = std::move(transport::shm::Fabric::open({}, random).value());
    client = std::move(transport::shm::Fabric::open({}, random).value());
    uri = Uri::parse("nvme+shm:///nqn.2024-01.io.example:whole/1?socket=" + scratch.path("socket")).value();
    target = std::move(
        target::Target::open({.clock = clock, .logger = null_logger(), .random = random, .reactors = 2}).value());
    REQUIRE(target->add_subsystem(*uri.nqn, {.allow_any_host = true}));
    auto store = target::make_store(spec, {.clock = clock, .random = random, .logger = null_logger()});
    if (!store) FAIL(store.error().message());
    REQUIRE(target->add_namespace(*uri.nqn, std::move(*store)));
    Uri listen = uri;
    listen.nqn.reset();
    listen.nsid.reset();
    REQUIRE(target->listen(*server, listen));
    REQUIRE(target->start());
    auto connected =
        initiator::Session::connect({*client, clock, null_logger(), random}, uri, {.io_queues = kConnections});
    if (!connected) FAIL(connected.error().message());
    session = std::move(*connected);
  }
  ScratchDirectory scratch;
  SystemClock clock;
  Random random{1};
  std::unique_ptr<transport::shm::Fabric> server;
  std::unique_ptr<transport::shm::Fabric> client;
  Uri uri;
  std::unique_ptr<target::Target> target;
  std::unique_ptr<initiator::Session> session;
};

/// One connection: as many requests as that at a time, half of them writes of blocks that carry one number each.
class Side {
 public:
  Side(Disk& disk, std::uint64_t number)
      : disk_(disk), random_(number), reactor_(transport::Reactor::create(disk.clock, null_logger()).value()) {
    queue_ = std::move(disk.session->open_queue_pair(*reactor_, {.depth = 16, .bounce = Bytes(kMiB)}).value());
    for (Worker& worker : workers_) {
      worker.side = this;
      worker.request.context = &worker;
      worker.request.done = [](Request& request) {
        auto& each = *static_cast<Worker*>(request.context);
        each.side->finish(each);
      };
    }
  }
  void run(int requests) {
    while (requests > 0) {
      for (Worker& worker : workers_) {
        if (worker.busy) continue;
        submit(worker);
        --requests;
      }
      if (!reactor_->run_until([this] { return std::exchange(finished_, false); }, disk_.clock.now() + 30s))
        return fail();
    }
    if (!reactor_->run_until([this] { return idle(); }, disk_.clock.now() + 30s)) fail();
  }
  int torn = 0;
  int failed = 0;

 private:
  struct Worker {
    Side* side = nullptr;
    Request request{};
    std::array<std::byte, kBlocks * kBlock> memory{};
    iovec piece{};
    bool writes = false;
    bool busy = false;
  };
  [[nodiscard]] bool idle() const {
    return std::none_of(workers_.begin(), workers_.end(), [](const Worker& worker) { return worker.busy; });
  }
  void fail() { ++failed; }
  void submit(Worker& worker) {
    const std::uint64_t blocks = 1 + random_.below(kBlocks);
    const Lba first(random_.below(kBlocks - blocks + 1));
    worker.writes = random_.once_in(2);
    worker.piece = {worker.memory.data(), blocks * kBlock};
    if (worker.writes) put_tag(std::span(worker.memory).first(blocks * kBlock), random_());
    const auto& space = disk_.session->namespaces().front();
    const auto submitted = worker.writes ? queue_->write(worker.request, space, first, {&worker.piece, 1})
                                         : queue_->read(worker.request, space, first, {&worker.piece, 1});
    worker.busy = submitted == Submitted::accepted;
    if (!worker.busy) fail();
  }
  void finish(Worker& worker) {
    worker.busy = false;
    finished_ = true;
    if (worker.request.outcome != Outcome::success) return fail();
    if (worker.writes) return;
    for (std::size_t at = 0; at < worker.piece.iov_len; at += kBlock)
      torn += tag_of(std::span(worker.memory).subspan(at, kBlock)) ? 0 : 1;
  }

  Disk& disk_;
  Random random_;
  std::unique_ptr<transport::Reactor> reactor_;
  std::unique_ptr<initiator::QueuePair> queue_;
  std::array<Worker, kDepth> workers_;
  bool finished_ = false;
};

/// Requests of each connection.
constexpr int kRequests = RBT_WHOLE_BLOCK_REQUESTS;

void whole(const std::string& spec) {
  Disk disk(spec);
  std::array<int, kConnections> torn{};
  std::array<int, kConnections> failed{};
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kConnections; ++i)
    threads.emplace_back([&, i] {
      Side side(disk, i + 1);
      side.run(kRequests);
      torn.at(i) = side.torn;
      failed.at(i) = side.failed;
    });
  for (std::thread& thread : threads)
    thread.join();
  for (std::size_t i = 0; i < kConnections; ++i) {
    CHECK(torn.at(i) == 0);
    CHECK(failed.at(i) == 0);
  }
}

struct Image {
  Image() : path(std::filesystem::current_path() / ("rbt-whole-" + std::to_string(::getpid()) + ".img")) {
    std::ofstream(path).close();
    std::filesystem::resize_file(path, 64 * kBlock);
  }
  ~Image() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
    std::filesystem::remove(path.string() + ".rbt-id", ignored);
  }
  std::filesystem::path path;
};

}  // namespace

TEST_CASE("Blocks of a file behind the page cache are whole for everybody who reads and writes them at once") {
  const Image image;
  whole("file:" + image.path.string() + ",block=4096,direct=off");
}
