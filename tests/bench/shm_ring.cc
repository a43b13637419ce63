// shm_ring [SECONDS]: what the shm fabric costs against the least that two processes can do. Prints, does not judge.
//
//   bare    two cache lines that two processes write in turns, and a memcpy: one 64-byte capsule there, 4 KiB into the
//           sender's memory and 16 bytes back; no checks, no keys, no connection
//   fabric  the same through transport/shm: a capsule there, one RDMA WRITE of 4 KiB and a response back in one post
//
// at depth 1 and 32, in alternating runs of the same length, median and range over all runs.

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/log.h"
#include "common/uri.h"
#include "transport/memory/shared_memory.h"
#include "transport/shm/fabric.h"

using namespace rbt;
using namespace rbt::transport;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kTransfer = 4096;
constexpr std::uint32_t kDepthMax = 32;
constexpr int kRuns = 7;

template <typename T>
T must(Result<T> result) {
  if (!result) {
    std::fprintf(stderr, "shm_ring: %s\n", result.error().message().c_str());
    std::exit(1);
  }
  return std::move(*result);
}

struct Capsule {
  std::uint32_t slot = 0;
  std::uint32_t rkey = 0;
  std::uint64_t address = 0;
  std::array<std::byte, 48> rest{};
};
static_assert(sizeof(Capsule) == 64);

// ---- The least: a mailbox of one line and its payload per slot and direction.

struct alignas(128) BareSlot {
  std::atomic<std::uint32_t> there{0};
  Capsule capsule;
};
struct alignas(128) BareAnswer {
  std::atomic<std::uint32_t> back{0};
  std::array<std::byte, 16> response{};
};
struct BareShared {
  std::array<BareSlot, kDepthMax> slots;
  std::array<BareAnswer, kDepthMax> answers;
  std::array<std::array<std::byte, kTransfer>, kDepthMax> memory;
};

void run_bare_server(BareShared& shared) {
  std::vector<std::byte> store(kTransfer * kDepthMax, std::byte{7});
  std::array<std::uint32_t, kDepthMax> seen{};
  while (true) {
    for (std::uint32_t i = 0; i < kDepthMax; ++i) {
      const std::uint32_t now = shared.slots[i].there.load(std::memory_order_acquire);
      if (now == seen[i]) continue;
      seen[i] = now;
      const Capsule capsule = shared.slots[i].capsule;
      std::memcpy(shared.memory[capsule.slot % kDepthMax].data(), store.data() + i * kTransfer, kTransfer);
      shared.answers[i].back.store(now, std::memory_order_release);
    }
  }
}

double run_bare_client(BareShared& shared, std::uint32_t depth, Duration time, const Clock& clock) {
  std::array<std::uint32_t, kDepthMax> sent{};
  for (std::uint32_t i = 0; i < kDepthMax; ++i)
    sent[i] = shared.slots[i].there.load();
  const auto submit = [&](std::uint32_t i) {
    shared.slots[i].capsule.slot = i;
    shared.slots[i].there.store(++sent[i], std::memory_order_release);
  };
  for (std::uint32_t i = 0; i < depth; ++i)
    submit(i);
  const Instant start = clock.now();
  std::uint64_t count = 0;
  while (true) {
    for (std::uint32_t i = 0; i < depth; ++i) {
      if (shared.answers[i].back.load(std::memory_order_acquire) != sent[i]) continue;
      submit(i);
      ++count;
    }
    if ((count & 1023) == 0 && clock.now() - start >= time) break;
  }
  const auto took = std::chrono::duration<double>(clock.now() - start).count();
  for (std::uint32_t i = 0; i < depth; ++i)
    while (shared.answers[i].back.load(std::memory_order_acquire) != sent[i]) {
    }
  return static_cast<double>(count) / took;
}

// ---- The fabric.

struct Process {
  SystemClock clock;
  Random random = Random::from_entropy();
  std::unique_ptr<Reactor> reactor = must(Reactor::create(clock, null_logger()));
  std::unique_ptr<shm::Fabric> fabric = must(shm::Fabric::open({}, random));
};

class Server final : public CompletionHandler, public ListenerHandler, public ConnectionHandler {
 public:
  explicit Server(const Uri& uri)
      : memory_(must(SharedMemory::create(Bytes(kTransfer * kDepthMax), {.populate = true}))),
        region_(must(process_.fabric->domain().register_memory(memory_.span(), RemoteAccess::none))),
        group_(must(process_.fabric->open_poll_group(*process_.reactor, {}, *this))),
        listener_(must(group_->listen(uri, {}, *this))) {}
  void run() { process_.reactor->run(); }
  void on_request(std::unique_ptr<ConnectionRequest> request) override {
    connection_ = must(group_->accept(std::move(request), {}, *this));
  }
  void on_listener_failed(const Error&) override {}
  void on_established(std::span<const std::byte>) override {}
  void on_disconnected(const Disconnect&) override { connection_->close(); }
  void on_closed() override { connection_ = nullptr; }
  void on_completions(std::span<const Completion> batch) override {
    for (const Completion& completion : batch) {
      if (completion.type != Completion::Type::receive) continue;
      Capsule capsule;
      std::memcpy(&capsule, completion.message.bytes.data(), sizeof capsule);
      group_->release(completion.message.buffer_id);
      std::memcpy(response_.data(), &capsule.slot, sizeof capsule.slot);
      const Segment data{memory_.data() + capsule.slot % kDepthMax * kTransfer, kTransfer, region_->lkey()};
      const Segment answer{response_.data(), static_cast<std::uint32_t>(response_.size()), 0};
      const std::array requests{WorkRequest{.opcode = Opcode::rdma_write,
                                            .signaled = false,
                                            .rkey = capsule.rkey,
                                            .remote_address = capsule.address,
                                            .segments = {&data, 1}},
                                WorkRequest{.opcode = Opcode::send, .copy_data = true, .segments = {&answer, 1}}};
      if (connection_->post(requests) != PostResult::posted) std::exit(1);
    }
  }

 private:
  Process process_;
  SharedMemory memory_;
  std::unique_ptr<MemoryRegion> region_;
  std::unique_ptr<PollGroup> group_;
  std::unique_ptr<Listener> listener_;
  Connection* connection_ = nullptr;
  std::array<std::byte, 16> response_{};
};

class Client final : public CompletionHandler, public ConnectionHandler {
 public:
  explicit Client(const Uri& uri)
      : memory_(must(SharedMemory::create(Bytes(kTransfer * kDepthMax), {.populate = true}))),
        region_(must(process_.fabric->domain().register_memory(memory_.span(), RemoteAccess::write))),
        group_(must(process_.fabric->open_poll_group(*process_.reactor, {}, *this))),
        connection_(must(group_->connect(uri, {}, *this))) {
    if (!process_.reactor->run_until([this] { return established_; }, process_.clock.now() + 5s)) std::exit(1);
  }
  ~Client() override {
    connection_->close();
    (void)process_.reactor->run_until([this] { return closed_; }, process_.clock.now() + 5s);
  }
  double run(std::uint32_t depth, Duration time) {
    count_ = 0;
    stopping_ = false;
    for (std::uint32_t slot = 0; slot < depth; ++slot)
      submit(slot);
    in_flight_ = depth;
    const Instant start = process_.clock.now();
    while (process_.reactor->now() - start < time)
      process_.reactor->turn();
    const auto took = std::chrono::duration<double>(process_.clock.now() - start).count();
    const auto count = static_cast<double>(count_);
    stopping_ = true;
    while (in_flight_ != 0)
      process_.reactor->turn();
    return count / took;
  }
  void on_established(std::span<const std::byte>) override { established_ = true; }
  void on_disconnected(const Disconnect& disconnect) override {
    std::fprintf(stderr, "shm_ring: %s\n", disconnect.error.message().c_str());
    std::exit(1);
  }
  void on_closed() override { closed_ = true; }
  void on_completions(std::span<const Completion> batch) override {
    for (const Completion& completion : batch) {
      if (completion.type != Completion::Type::receive) continue;
      std::uint32_t slot = 0;
      std::memcpy(&slot, completion.message.bytes.data(), sizeof slot);
      group_->release(completion.message.buffer_id);
      ++count_;
      if (stopping_)
        --in_flight_;
      else
        submit(slot % kDepthMax);
    }
  }

 private:
  void submit(std::uint32_t slot) {
    Capsule capsule;
    capsule.slot = slot;
    capsule.rkey = region_->rkey();
    capsule.address = reinterpret_cast<std::uintptr_t>(memory_.data() + slot * kTransfer);
    const Segment segment{reinterpret_cast<std::byte*>(&capsule), sizeof capsule, 0};
    const WorkRequest send{.copy_data = true, .segments = {&segment, 1}};
    if (connection_->post({&send, 1}) != PostResult::posted) std::exit(1);
  }
  Process process_;
  SharedMemory memory_;
  std::unique_ptr<MemoryRegion> region_;
  std::unique_ptr<PollGroup> group_;
  Connection* connection_;
  std::uint64_t count_ = 0;
  std::uint32_t in_flight_ = 0;
  bool established_ = false;
  bool closed_ = false;
  bool stopping_ = false;
};

// ---- Both, in turns.

pid_t start(const std::function<void()>& body) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  body();
  ::_exit(0);
}

void end(pid_t child) {
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
}

struct Row {
  std::vector<double> rates;
  void print(const char* name, std::uint32_t depth) {
    std::sort(rates.begin(), rates.end());
    const double median = rates[rates.size() / 2];
    std::printf("%-8s %5u %12.0f %12.0f %12.0f %10.3f\n", name, depth, median, rates.front(), rates.back(),
                1e6 * depth / median);
  }
  [[nodiscard]] double median() const { return rates[rates.size() / 2]; }
};

double run_bare(BareShared& shared, std::uint32_t depth, Duration time, const Clock& clock) {
  const pid_t server = start([&] { run_bare_server(shared); });
  const double rate = run_bare_client(shared, depth, time, clock);
  end(server);
  return rate;
}

double run_fabric(const std::string& directory, std::uint32_t depth, Duration time) {
  Uri uri;
  uri.scheme = Uri::Scheme::shm;
  uri.options["socket"] = directory + "/ring.sock";
  std::array<int, 2> ready{};
  if (::pipe(ready.data()) != 0) std::exit(1);
  const pid_t server = start([&] {
    Server target(uri);
    if (::write(ready[1], "r", 1) != 1) return;
    target.run();
  });
  char byte = 0;
  if (::read(ready[0], &byte, 1) != 1) std::exit(1);
  ::close(ready[0]);
  ::close(ready[1]);
  double rate = 0;
  {
    Client client(uri);
    rate = client.run(depth, time);
  }
  end(server);
  return rate;
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? std::atof(argv[1]) : 5.0;
  if (!(seconds > 0 && seconds <= 600)) {
    std::fprintf(stderr, "usage: shm_ring [SECONDS (up to 600, all runs together)]\n");
    return 2;
  }
  const auto time = std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds / (4 * kRuns)));
  void* const mapping =
      ::mmap(nullptr, sizeof(BareShared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (mapping == MAP_FAILED) return 1;
  auto* const shared = new (mapping) BareShared();
  std::string directory = "/tmp/rbt-shm-ring-XXXXXX";
  if (::mkdtemp(directory.data()) == nullptr) return 1;

  utsname system{};
  ::uname(&system);
  std::printf("%s %s, %u CPUs; %d runs of %.0f ms each, alternating; 64 B there, 4 KiB + 16 B back\n", system.sysname,
              system.release, std::thread::hardware_concurrency(), kRuns,
              std::chrono::duration<double, std::milli>(time).count());
  std::printf("%-8s %5s %12s %12s %12s %10s\n", "", "depth", "per s", "min", "max", "us each");
  const SystemClock clock;
  for (const std::uint32_t depth : {1u, kDepthMax}) {
    Row bare, fabric;
    for (int run = 0; run < kRuns; ++run) {
      bare.rates.push_back(run_bare(*shared, depth, time, clock));
      fabric.rates.push_back(run_fabric(directory, depth, time));
    }
    bare.print("bare", depth);
    fabric.print("fabric", depth);
    std::printf("%-8s %5u %12.2f\n", "ratio", depth, fabric.median() / bare.median());
  }
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);
  return 0;
}
