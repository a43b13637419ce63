// A volume whose target is killed under its writers and started again: they see latency, and little more of it than the target
// was away.

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include "initiator/volume.h"
#include "tests/shm/child.h"
#include "tests/shm/scratch.h"
#include "transport/shm/fabric.h"

using namespace rbt;
using namespace rbt::test;
using namespace std::chrono_literals;
using initiator::Outcome;
using initiator::Submitted;
using initiator::Volume;

namespace {

constexpr const char* kNqn = "nqn.2026-01.io.example:killed";
constexpr std::size_t kWriters = 8;
constexpr std::uint64_t kBlocks = 1024;
constexpr std::size_t kBlockBytes = 4096;

/// Writes its own blocks again and again, each time with another number in it.
struct Writer {
  initiator::VolumeLane* lane = nullptr;
  initiator::Request request;
  std::array<std::byte, kBlockBytes> data{};
  iovec piece{};
  std::uint64_t first = 0, next = 0;
  std::uint32_t number = 0;
  std::array<std::uint32_t, kBlocks / kWriters> acknowledged{};
  // Written by the lane's thread, looked at by the test's.
  std::atomic<std::uint64_t> done{0};
  std::atomic<bool> failed{false}, stop{false}, over{false};

  /// On the lane's thread, as everything that follows.
  void start(initiator::VolumeLane& on, std::uint64_t lba) {
    lane = &on;
    first = lba;
    piece = {data.data(), data.size()};
    request.operation = initiator::Operation::write;
    request.data = {&piece, 1};
    request.context = this;
    request.done = [](initiator::Request& request_) { static_cast<Writer*>(request_.context)->on_done(); };
    submit();
  }
  void submit() {
    ++number;
    std::memcpy(data.data(), &number, sizeof number);
    std::memcpy(data.data() + kBlockBytes - sizeof number, &number, sizeof number);
    request.range = {Lba(first + next), Blocks(0)};
    if (lane->submit(request) != Submitted::accepted) failed = true;
  }
  void on_done() {
    if (request.outcome != Outcome::success) failed = true;
    acknowledged[next] = number;
    next = (next + 1) % acknowledged.size();
    ++done;
    if (stop || failed)
      over = true;
    else
      submit();
  }
};

struct Here {
  Here() {
    reactor = transport::Reactor::create(clock, null_logger()).value();
    fabric = std::move(transport::shm::Fabric::open({}, random).value());
    std::ofstream(image).close();
    std::filesystem::resize_file(image, kBlocks * kBlockBytes);
  }
  ~Here() {
    std::error_code ignored;
    std::filesystem::remove(image, ignored);
    std::filesystem::remove(image.string() + ".rbt-id", ignored);
  }
  [[nodiscard]] std::unique_ptr<Child> start_target() const {
    return std::make_unique<Child>(
        std::vector<std::string>{RBT_TARGET, "--listen", "nvme+shm://?socket=" + socket, "--subsystem", kNqn, "--store",
                                 fmt::format("file:{},block=4096", image.string()), "--log-level", "error"});
  }
  [[nodiscard]] std::unique_ptr<Volume> open(std::uint32_t lanes) {
    auto opened = Volume::open({*fabric, clock, null_logger(), random},
                               std::array{Uri::parse(fmt::format("nvme+shm:///{}/1?socket={}", kNqn, socket)).value()},
                               *reactor, {.lanes = lanes});
    if (!opened) FAIL(opened.error().message());
    return std::move(*opened);
  }

  ScratchDirectory scratch;
  std::string socket = scratch.path("socket");
  std::filesystem::path image =
      std::filesystem::current_path() / fmt::format("rbt-volume-{}.img", static_cast<int>(::getpid()));
  SystemClock clock;
  Random random{static_cast<std::uint64_t>(::getpid())};
  std::unique_ptr<transport::Reactor> reactor;
  std::unique_ptr<transport::shm::Fabric> fabric;
};

}  // namespace

TEST_CASE(
    "Ten times the target is killed and started again under two lanes on threads of their own: no request fails, and "
    "the first "
    "is done within 2 s of its return") {
  Here here;
  auto target = here.start_target();
  REQUIRE(target->says(here.socket));
  auto volume = here.open(2);
  REQUIRE(volume->lanes() == 2);
  std::array<Writer, kWriters> writers;
  for (std::size_t i = 0; i < kWriters; ++i) {
    initiator::VolumeLane& lane = volume->lane(i % 2);
    lane.reactor().post([&writer = writers[i], &lane, i] { writer.start(lane, i * (kBlocks / kWriters)); });
  }
  const auto done = [&] {
    std::uint64_t sum = 0;
    for (const Writer& writer : writers)
      sum += writer.done.load();
    return sum;
  };
  const auto pass = [&](Duration time) { (void)volume->run_until([] { return false; }, here.clock.now() + time); };

  std::string times;
  Duration longest{};
  for (int round = 1; round <= 10; ++round) {
    INFO("round " << round);
    pass(std::chrono::milliseconds(20 + here.random.below(60)));
    target->signal(SIGKILL);
    CHECK(target->wait() == -SIGKILL);
    pass(std::chrono::milliseconds(200 + here.random.below(2000)));
    CHECK(volume->state() == initiator::VolumeState::reconnecting);
    const std::uint64_t before = done();
    target = here.start_target();
    std::optional<Instant> ready;  // the thread's until it has ended
    std::atomic<bool> over{false};
    std::thread listener([&] {
      if (target->says(here.socket)) ready = here.clock.now();
      over.store(true, std::memory_order_release);
      here.reactor->wake();
    });
    CHECK(volume->run_until([&] { return over.load(std::memory_order_acquire) && done() > before; },
                            here.clock.now() + 30s));
    const Instant first = here.clock.now();
    listener.join();
    REQUIRE(ready.has_value());
    longest = std::max(longest, first - *ready);
    times += fmt::format(" {}", std::chrono::duration_cast<std::chrono::milliseconds>(first - *ready).count());
    CHECK(first - *ready < 2s);
  }
  fmt::print("from the target's return to the first request done, ms:{}\n", times);
  CHECK(volume->statistics().losses == 10);

  for (Writer& writer : writers)
    writer.stop = true;
  const auto all_over = [&] {
    return std::all_of(writers.begin(), writers.end(), [](const Writer& writer) { return writer.over.load(); });
  };
  REQUIRE(volume->run_until(all_over, here.clock.now() + 30s));
  CHECK(volume->in_flight() == 0);
  for (const Writer& writer : writers) {
    CHECK_FALSE(writer.failed);
    for (std::size_t i = 0; i < writer.acknowledged.size(); ++i) {
      std::array<std::byte, kBlockBytes> block{};
      const iovec piece{block.data(), block.size()};
      initiator::Request read;
      REQUIRE(volume->read(read, Lba(writer.first + i), {&piece, 1}) == Submitted::accepted);
      REQUIRE(volume->run_until([&] { return !read.in_flight(); }, here.clock.now() + 10s));
      std::uint32_t front = 0, back = 0;
      std::memcpy(&front, block.data(), sizeof front);
      std::memcpy(&back, block.data() + kBlockBytes - sizeof back, sizeof back);
      REQUIRE(front == writer.acknowledged[i]);
      REQUIRE(back == front);
    }
  }
}
