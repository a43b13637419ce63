// Sessions as programs have them: real threads, a management thread of the session's own, target and host over shared
// memory. What the protocol does is tested over sim; this is about threads.
#include <atomic>
#include <catch2/catch.hpp>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "initiator/initiator.h"
#include "scratch.h"
#include "target/store/spec.h"
#include "target/target.h"
#include "transport/shm/fabric.h"

using namespace rbt;
using namespace rbt::test;
using namespace std::chrono_literals;
using Catch::Matchers::Contains;
using initiator::Outcome;
using initiator::Request;
using initiator::SessionState;
using initiator::Submitted;

namespace {

struct Pair {
  explicit Pair(const target::SubsystemOptions& options = {.allow_any_host = true}) {
    server = std::move(transport::shm::Fabric::open({}, random).value());
    client = std::move(transport::shm::Fabric::open({}, random).value());
    uri = Uri::parse("nvme+shm:///nqn.2024-01.io.example:threads/1?socket=" + scratch.path("socket")).value();
    target = std::move(
        target::Target::open({.clock = clock, .logger = null_logger(), .random = random, .reactors = 2}).value());
    REQUIRE(target->add_subsystem(*uri.nqn, options));
    REQUIRE(target->add_namespace(
        *uri.nqn,
        std::move(target::make_store("ram:size=32MiB", {.clock = clock, .random = random, .logger = null_logger()})
                      .value())));
    Uri listen = uri;
    listen.nqn.reset();
    listen.nsid.reset();
    REQUIRE(target->listen(*server, listen));
    REQUIRE(target->start());
  }
  [[nodiscard]] std::unique_ptr<initiator::Session> connect(initiator::SessionOptions options = {}) {
    options.io_queues = 4;
    auto session = initiator::Session::connect({*client, clock, null_logger(), random}, uri, options);
    if (!session) FAIL(session.error().message());
    return std::move(*session);
  }
  ScratchDirectory scratch;
  SystemClock clock;
  Random random{1};
  std::unique_ptr<transport::shm::Fabric> server;
  std::unique_ptr<transport::shm::Fabric> client;
  Uri uri;
  std::unique_ptr<target::Target> target;
};

/// What one thread does with a queue pair of its own: writes and reads back its share of the disk until told to stop or
/// until the connection is lost. Returns the number of requests that went well; nothing if data were wrong.
std::optional<int> hammer(Pair& pair, initiator::Session& session, std::uint64_t share, int rounds,
                          const std::atomic<bool>& stop) {
  auto reactor = transport::Reactor::create(pair.clock, null_logger()).value();
  auto queue = session.open_queue_pair(*reactor, {.depth = 16, .buffers = Bytes(2 * kMiB)});
  if (!queue) return std::nullopt;
  const initiator::Namespace& space = session.namespaces().front();
  const auto pooled = (*queue)->buffers()->allocate(64 * kKiB);
  std::vector<std::byte> foreign(64 * kKiB);
  const iovec out{foreign.data(), foreign.size()};
  const iovec in{pooled.data(), pooled.size()};
  Random random(share + 1);
  Request request;
  int good = 0;
  const auto carry_out = [&](Submitted submitted) {
    if (submitted != Submitted::accepted) return false;
    if (!(*queue)->wait(request, pair.clock.now() + 30s)) std::abort();  // a request that is never done
    return request.outcome == Outcome::success;
  };
  for (int i = 0; i < rounds && !stop.load(); ++i) {
    random.fill(foreign);
    const Lba first(share * 16384 + random.below(16384 - 128));
    if (!carry_out((*queue)->write(request, space, first, {&out, 1}))) break;
    if (!carry_out((*queue)->read(request, space, first, {&in, 1}))) break;
    if (!std::equal(foreign.begin(), foreign.end(), pooled.begin())) return std::nullopt;
    good += 2;
  }
  (*queue)->buffers()->free(pooled);
  return good;
}

}  // namespace

TEST_CASE("Queue pairs of several threads work side by side while others ask the session things") {
  Pair pair;
  const auto session = pair.connect({.keep_alive = 1s});
  const std::atomic<bool> never{false};
  std::atomic<int> good{0};
  std::vector<std::thread> threads;
  for (std::uint64_t share = 0; share < 3; ++share)
    threads.emplace_back([&, share] { good += hammer(pair, *session, share, 100, never).value_or(-100'000); });
  for (int i = 0; i < 50; ++i) {
    nvme_id_ctrl data{};
    const auto answer = session->admin(nvme::encode_identify({.cns = 1}), std::as_writable_bytes(std::span(&data, 1)));
    REQUIRE(answer);
    CHECK(answer->status().ok());
    auto memory = transport::SharedMemory::create(Bytes(64 * kKiB), {}).value();
    CHECK(session->register_buffer(memory.span()).has_value());
    CHECK(session->state() == SessionState::live);
  }
  for (auto& thread : threads)
    thread.join();
  CHECK(good == 600);
}

TEST_CASE("A keep-alive thread of the session's own keeps an idle session for many times its timeout") {
  Pair pair;
  const auto session = pair.connect({.keep_alive = 500ms});
  std::this_thread::sleep_for(2500ms);  // real time is what this is about
  CHECK(session->state() == SessionState::live);
  const auto reactor = transport::Reactor::create(pair.clock, null_logger()).value();
  CHECK(session->open_queue_pair(*reactor, {}).has_value());
}

TEST_CASE("When the target ends, every thread hears of it, and the session says why") {
  Pair pair;
  std::mutex mutex;
  std::condition_variable wake;
  std::string lost;
  const auto session = pair.connect({.on_lost = [&](const Error& error) {
    const std::lock_guard lock(mutex);
    lost = error.message();
    wake.notify_all();
  }});
  const std::atomic<bool> never{false};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (std::uint64_t share = 0; share < 2; ++share)
    threads.emplace_back([&, share] {
      if (!hammer(pair, *session, share, 1'000'000'000, never)) ++wrong;
    });
  std::this_thread::sleep_for(50ms);  // lets them get going; any other moment is as good
  pair.target->stop();
  for (auto& thread : threads)
    thread.join();
  CHECK(wrong == 0);
  std::unique_lock lock(mutex);
  REQUIRE(wake.wait_for(lock, 10s, [&] { return !lost.empty(); }));
  CHECK_THAT(lost, Contains("admin queue of nvme+shm"));
  CHECK(session->state() == SessionState::lost);
  CHECK(session->failure()->message() == lost);
  CHECK_FALSE(session->admin(nvme::encode_plain(nvme::AdminOpcode::keep_alive), {}).has_value());
}

TEST_CASE("Threads of hosts authenticate themselves at once, while a thread of the target's own does the arithmetic") {
  const auto secret = auth::Secret::parse("DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:").value();
  const auto host = nvme::Nqn::parse("nqn.2024-01.io.example:host").value();
  std::atomic<int> wrong = 0;
  {
    Pair pair(
        {.allowed_hosts = {
             {.nqn = host,
              .authentication = {.secret = secret, .controller_secret = secret, .group = nvme::DhGroup::ffdhe2048}}}});
    const initiator::SessionOptions options{.host = {.nqn = host, .secret = secret, .controller_secret = secret},
                                            .io_queues = 1};
    const auto come_in = [&](std::uint64_t seed) {
      Random random(seed);
      const auto reactor = std::move(transport::Reactor::create(pair.clock, null_logger()).value());
      auto session = initiator::Session::connect({*pair.client, pair.clock, null_logger(), random}, pair.uri, options);
      if (!session) return false;
      auto queue = (*session)->open_queue_pair(*reactor, {});
      return queue && (*session)->authenticate() && (*session)->authenticate(queue->get());
    };
    const auto all_at_once = [&] {
      std::vector<std::thread> threads;
      for (std::uint64_t i = 0; i < 3; ++i)
        threads.emplace_back([&, i] {
          if (!come_in(i)) ++wrong;
        });
      return threads;
    };
    for (auto& thread : all_at_once())
      thread.join();
    CHECK(wrong == 0);
    auto late = all_at_once();  // in the middle of whatever they have got to
    pair.target->stop();
    for (auto& thread : late)
      thread.join();
  }
}

TEST_CASE("The target's discovery log is read over shared memory, too") {
  Pair pair;
  Uri uri = pair.uri;
  uri.nqn.reset();
  uri.nsid.reset();
  const auto log = initiator::discover({*pair.client, pair.clock, null_logger(), pair.random}, uri, {});
  if (!log) FAIL(log.error().message());
  CHECK(std::any_of(log->entries.begin(), log->entries.end(),
                    [](const auto& entry) { return entry.subsystem_nqn == "nqn.2024-01.io.example:threads"; }));
}

TEST_CASE("A reactor that was told to stop still lets its queue pair go") {
  Pair pair;
  const auto session = pair.connect();
  const auto reactor = std::move(transport::Reactor::create(pair.clock, null_logger()).value());
  auto queue = std::move(session->open_queue_pair(*reactor, {}).value());
  std::vector<std::byte> memory(kMiB);
  const iovec piece{memory.data(), memory.size()};
  Request request;
  REQUIRE(queue->read(request, session->namespaces().front(), Lba(0), {&piece, 1}) == Submitted::accepted);
  reactor->stop();
  queue.reset();
  CHECK_FALSE(request.in_flight());
}
