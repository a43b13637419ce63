// rbt-target killed with SIGKILL at random moments, under a writer that keeps account of what was promised: whatever was
// acknowledged with FUA, or before a Flush that was acknowledged, is there when the next one serves the same store; every
// block is whole; and nobody's answers contradict each other meanwhile.

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>

#include "tests/shm/child.h"
#include "tests/shm/scratch.h"
#include "tests/sim/durable_load.h"
#include "tests/unit/nbd_servers.h"
#include "transport/shm/fabric.h"

using namespace rbt;
using namespace rbt::test;
using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t kBlocks = 256;  // of 4 KiB
constexpr const char* kNqn = "nqn.2026-01.io.example:killed";

std::uint64_t seed() {
  const char* const given = std::getenv("RBT_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 0) : static_cast<std::uint64_t>(::getpid());
}

/// A file of whole zero blocks in the build tree, where O_DIRECT works, or elsewhere.
struct Image {
  explicit Image(const std::filesystem::path& folder)
      : path(folder / fmt::format("rbt-kill-{}-{}.img", ::getpid(), next++)) {
    std::ofstream(path).close();
    std::filesystem::resize_file(path, kBlocks * 4096);
  }
  ~Image() {
    std::error_code ignored;
    std::filesystem::remove(path, ignored);
    std::filesystem::remove(path.string() + ".rbt-id", ignored);
  }
  Image(const Image&) = delete;
  Image& operator=(const Image&) = delete;
  static inline int next = 0;
  std::filesystem::path path;
};

/// One store, one target after the other.
class Killing {
 public:
  Killing(std::string store, bool trusting) : store_(std::move(store)) {
    reactor_ = transport::Reactor::create(clock_, null_logger()).value();
    fabric_ = std::move(transport::shm::Fabric::open({}, random_).value());
    load = std::make_unique<DurableLoad>(*reactor_, random_, kBlocks);
    if (trusting) load->believe_everything();
  }

  /// One life and its end.
  void round() {
    before_life();
    const std::string socket = scratch_.path("socket");
    Child target({RBT_TARGET, "--listen", "nvme+shm://?socket=" + socket, "--subsystem", kNqn, "--store", store_,
                  "--log-level", "error"});
    REQUIRE(target.says(socket));
    {
      const auto uri = Uri::parse(fmt::format("nvme+shm:///{}/1?socket={}", kNqn, socket)).value();
      auto session =
          initiator::Session::connect({*fabric_, clock_, null_logger(), random_}, uri, {.management = reactor_.get()});
      if (!session) FAIL(session.error().message());
      auto queue = (*session)->open_queue_pair(*reactor_, {.depth = 8, .bounce = Bytes(kMiB)});
      if (!queue) FAIL(queue.error().message());
      load->attach(**queue, **(*session)->find(Nsid(1)));
      // From a thread of its own: a moment that neither side chooses, while requests come and go. Three times of four not before
      // there have been some: on a busy machine a short life has none.
      const auto life = Duration(random_.below(kLifeMax.count()));
      const std::uint64_t before = load->requests + (++lives_ % 4 != 0 ? kRequestsLeast : 0);
      std::thread killer([this, &target, life, before] {
        const Instant deadline = clock_.now() + kPatience;
        while (load->requests.load(std::memory_order_relaxed) < before && clock_.now() < deadline)
          std::this_thread::sleep_for(1ms);
        std::this_thread::sleep_for(life);
        target.signal(SIGKILL);
      });
      load->run(clock_.now() + 2 * kPatience);
      killer.join();
      load->detach();  // what was answered before it died counts
    }
    CHECK(target.wait() == -SIGKILL);
  }

  /// What has to be waited for between two targets.
  std::function<void()> before_life = [] {};

  /// Until a promise is broken, at most `rounds` times.
  void rounds(int count) {
    for (int i = 0; i < count && !load->failed(); ++i)
      round();
  }

 private:
  static constexpr Duration kLifeMax = 60ms;
  static constexpr std::uint64_t kRequestsLeast = 32;
  static constexpr Duration kPatience = 30s;
  std::string store_;
  ScratchDirectory scratch_;
  SystemClock clock_;
  Random random_{seed()};
  int lives_ = 0;
  std::unique_ptr<transport::Reactor> reactor_;
  std::unique_ptr<transport::shm::Fabric> fabric_;

 public:
  std::unique_ptr<DurableLoad> load;
};

/// Sanitizers stretch a round; what is claimed is the same.
constexpr int kRounds = RBT_KILL_ROUNDS;

void survives(
    const std::string& store, const std::function<void()>& before_life = [] {}) {
  INFO("store " << store << ", RBT_SEED=" << seed());
  Killing killing(store, false);
  killing.before_life = before_life;
  killing.rounds(kRounds);
  CHECK(killing.load->failure() == "");
  // A kill that cuts nothing off shows nothing.
  CHECK(killing.load->unknown >= static_cast<std::uint64_t>(kRounds));
  CHECK(killing.load->requests > static_cast<std::uint64_t>(kRounds) * 20);
  fmt::print("{}: {} kills, {} requests, {} cut off, {} blocks came back other than last answered\n", store, kRounds,
             killing.load->requests.load(), killing.load->unknown, killing.load->lost);
}

}  // namespace

TEST_CASE("A file behind O_DIRECT keeps its promises when the target is killed") {
  const Image image(std::filesystem::current_path());
  survives(fmt::format("file:{},block=4096,direct=on", image.path.string()));
}

TEST_CASE("A file behind the page cache keeps its promises when the target is killed") {
  const Image image(std::filesystem::current_path());
  survives(fmt::format("file:{},block=4096,direct=off", image.path.string()));
}

TEST_CASE("A mapped file on tmpfs keeps its promises when the target is killed") {
  const Image image("/dev/shm");
  survives(fmt::format("map:{},block=4096", image.path.string()));
}

// A server goes on with what it had received when its client died, and nothing in NBD asks it whether it is done: a target
// that starts again at once may meet the last writes of the one before. So the next one starts when the server is alone.
TEST_CASE("What an NBD server serves keeps its promises when the target is killed and the server lives on") {
  const ScratchDirectory scratch;
  const std::string socket = scratch.path("nbd");
  const Image image(std::filesystem::current_path());
  const std::string store = "nbd:nbd+unix:///?socket=" + socket + ",block=4096";
  using Server = target::test::NbdServerProcess;
  SECTION("nbdkit") {
    // One thread: with several, nbdkit 1.32.5 can abort when its client dies ("raw_send_socket: Assertion `sock >= 0'").
    const Server server(socket, Server::nbdkit(socket, {"--threads=1", "file", image.path.string()}));
    survives(store, [&] { server.wait_until_alone(); });
  }
  SECTION("qemu-nbd, with a cache that is flushed when the host says so") {
    const Server server(socket,
                        {"qemu-nbd", "-t", "-e", "8", "-f", "raw", "--discard=unmap", "-k", socket, image.path});
    survives(store + ",writes=cached", [&] { server.wait_until_alone(); });
  }
}

TEST_CASE("A shadow image on tmpfs keeps its promises when the target is killed") {
  const Image plain("/dev/shm");
  const Image image("/dev/shm");
  std::filesystem::remove(image.path);  // a conversion overwrites nothing
  Child convert(
      {RBT_TARGET, "--convert-image", plain.path.string(), image.path.string(), "--to", "shadow", "--block", "4096"});
  REQUIRE(convert.wait() == 0);
  survives(fmt::format("map:{},atomic=shadow", image.path.string()));
}

TEST_CASE("drop-unflushed over a file keeps its promises when the target is killed, and nothing else") {
  const Image image(std::filesystem::current_path());
  survives(fmt::format("drop-unflushed:file:{},block=4096", image.path.string()));
  // Who takes every acknowledged write for durable is disappointed: this test can fail.
  const Image another(std::filesystem::current_path());
  Killing trusting(fmt::format("drop-unflushed:file:{},block=4096", another.path.string()), true);
  trusting.rounds(20);
  CHECK(trusting.load->failure().find("came back with") != std::string::npos);
}
