// What a store costs per I/O of 4 KiB, by kind of store, way to the kernel and depth. The file lies in $TMPDIR or the
// current directory, that of `map` in /dev/shm; `cached` reads and writes the page cache, `direct` the disk, `nbd` the memory of an nbdkit beside it. Random offsets in 64 MiB, seeded.

#include <benchmark/benchmark.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "target/store/convert_image.h"
#include "target/store/spec.h"
#include "target/store/store_request.h"
#include "target/store/thread_engine.h"
#include "target/store/uring_engine.h"
#include "transport/coherence/monitor.h"
#include "transport/memory/buffer_pool.h"
#include "transport/reactor/reactor.h"

namespace {

using namespace rbt;
using namespace rbt::target;

constexpr std::uint64_t kSize = 64 * kMiB;

/// What an I/O looks like.
struct Shape {
  std::uint64_t block = 4096;
  std::uint64_t bytes = 4096;
  std::uint32_t path_mtu = 0;  // smaller than `block`: ram in place goes by way of a buffer
};

/// One request that begins again as soon as it has ended.
class Runner final : public StoreRequest {
 public:
  void start(StoreQueue& queue, Intent intent, Random& random, const Shape& shape) {
    queue_ = &queue;
    random_ = &random;
    shape_ = shape;
    lease_.intent = intent;
    lease_.path_mtu = shape.path_mtu;
    next();
  }
  void on_store_done(StoreStatus status) override {
    if (status != StoreStatus::ok) failed = true;
    if (lease_.intent == Intent::write && !committing_) {
      committing_ = true;
      const Progress progress = queue_->commit(lease_, Durability::cached, *this);
      if (progress.pending) return;
    }
    finish();
  }
  /// Begins the next I/O if the last one has ended.
  void next() {
    busy = true;
    lease_.range = {Lba(random_->below(kSize / shape_.bytes) * (shape_.bytes / shape_.block)),
                    Blocks(shape_.bytes / shape_.block)};
    committing_ = false;
    const Progress progress = queue_->acquire(lease_, *this);
    if (!progress.pending) on_store_done(progress.status);
  }
  bool busy = false;
  bool failed = false;

 private:
  void finish() {
    queue_->release(lease_);
    busy = false;
  }
  StoreQueue* queue_ = nullptr;
  Random* random_ = nullptr;
  Shape shape_;
  Lease lease_;
  bool committing_ = false;
};

void run(benchmark::State& state, const std::string& spec, IoEngineFactory* io, Intent intent, const Shape& shape) {
  SystemClock clock;
  Random random(1);
  auto monitor = transport::coherence::Monitor::start(clock, null_logger());  // for leases of files on tmpfs
  auto reactor = transport::Reactor::create(clock, null_logger()).value();
  auto buffers = transport::BufferPool::create(Bytes(8 * kMiB), transport::RemoteAccess::none, {}).value();
  auto store = make_store(spec, {clock, random, null_logger(), io, monitor ? monitor->get() : nullptr});
  if (!store) return state.SkipWithError(store.error().message().c_str());
  auto queue = (*store)->open_queue({*reactor, *buffers}).value();
  std::vector<Runner> runners(static_cast<std::size_t>(state.range(0)));
  for (Runner& runner : runners)
    runner.start(*queue, intent, random, shape);
  std::uint64_t ended = 0;  // that no iteration has counted yet
  for (auto _ : state) {    // one I/O each
    while (ended == 0) {
      reactor->turn();
      for (Runner& runner : runners) {
        if (runner.busy) continue;
        ++ended;
        runner.next();
      }
    }
    --ended;
  }
  bool failed = false;
  for (Runner& runner : runners) {
    while (runner.busy)
      reactor->turn();
    failed |= runner.failed;
  }
  if (failed) state.SkipWithError("an I/O failed");
  state.SetItemsProcessed(state.iterations());
}

/// A file with data in it.
class Image {
 public:
  explicit Image(const std::string& parent) : path_(parent + "/bench-store-XXXXXX") {
    const int fd = ::mkstemp(path_.data());
    std::vector<std::byte> data(kMiB);
    Random(2).fill(data);
    for (std::uint64_t at = 0; at < kSize; at += data.size())
      if (::write(fd, data.data(), data.size()) != static_cast<ssize_t>(data.size())) ::abort();
    ::fsync(fd);
    ::close(fd);
  }
  ~Image() { ::unlink(path_.c_str()); }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// The same as a shadow image on tmpfs.
class ShadowImage final : private ConvertObserver {
 public:
  explicit ShadowImage(const Image& plain) : path_(plain.path() + ".shadow") {
    SystemClock clock;
    Random random(1);
    if (!convert_image({.from = plain.path(), .to = path_, .block_shift = BlockShift::of(4096)},
                       {.clock = clock, .random = random, .logger = null_logger()}, *this))
      ::abort();
  }
  ~ShadowImage() override { ::unlink(path_.c_str()); }
  ShadowImage(const ShadowImage&) = delete;
  ShadowImage& operator=(const ShadowImage&) = delete;
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  bool on_converted(Bytes, Bytes) override { return true; }
  std::string path_;
};

/// Everything has been done at the next turn, and nothing is: what remains is what rbt costs.
class NothingFactory final : public IoEngineFactory {
 public:
  Result<std::unique_ptr<IoEngine>> open(transport::Reactor& reactor, transport::BufferPool&) override {
    return std::make_unique<Engine>(reactor);
  }
  [[nodiscard]] std::string_view name() const noexcept override { return "nothing"; }

 private:
  struct Engine final : IoEngine {
    explicit Engine(transport::Reactor& r) : reactor(r) {}
    std::unique_ptr<IoQueue> open(int, IoHandler& handler) override {
      return std::make_unique<Queue>(reactor, handler);
    }
    transport::Reactor& reactor;
  };
  struct Queue final : IoQueue, transport::Source {
    Queue(transport::Reactor& r, IoHandler& h) : reactor(r), handler(h) { reactor.add(*this); }
    ~Queue() override { reactor.remove(*this); }
    void submit(IoOperation& operation) override { operations.push(operation); }
    std::size_t poll() override {
      std::size_t done = 0;
      for (RecordQueue<IoOperation> now = std::exchange(operations, {}); !now.empty(); ++done) {
        IoOperation& operation = now.pop();
        handler.on_io_done(operation, static_cast<std::int64_t>(operation.length));
      }
      return done;
    }
    bool arm() override { return operations.empty(); }
    transport::Reactor& reactor;
    IoHandler& handler;
    RecordQueue<IoOperation> operations;
  };
};

/// nbdkit, serving memory on a Unix socket.
class NbdServer {
 public:
  explicit NbdServer(std::string socket) : socket_(std::move(socket)), pid_(::fork()) {
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::execlp("nbdkit", "nbdkit", "-f", "-U", socket_.c_str(), "memory", "64M", nullptr);
    ::_exit(127);
  }
  ~NbdServer() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::unlink(socket_.c_str());
  }
  NbdServer(const NbdServer&) = delete;
  NbdServer& operator=(const NbdServer&) = delete;
  /// False: there is none.
  [[nodiscard]] bool listens() const {
    for (int i = 0; i < 1000; ++i) {
      if (::access(socket_.c_str(), F_OK) == 0) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

 private:
  std::string socket_;
  ::pid_t pid_;
};

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  const char* const parent = ::getenv("TMPDIR");
  const Image image(parent != nullptr ? parent : ".");
  const Image memory("/dev/shm");
  const ShadowImage shadow(memory);
  const std::string map = "map:" + memory.path() + ",block=4096";
  const std::string map_shadow = "map:" + shadow.path() + ",atomic=shadow";
  const std::string socket = image.path() + ".nbd";
  const NbdServer server(socket);
  static ThreadFactory threads;
  static NothingFactory nothing;
  auto unfixed_factory = UringFactory::probe(FixedBuffers::never);  // for what registered buffers are worth
  IoEngineFactory* const unfixed = unfixed_factory ? &*unfixed_factory : nullptr;
  struct Way {
    const char* name;
    std::string spec;
    IoEngineFactory* io;
    Shape shape = {};
  };
  const std::string file = "file:" + image.path() + ",block=4096,";
  std::vector<Way> ways{{"ram", "ram:size=64MiB,block=4096,atomic=in-place", nullptr},
                        {"ram/shadow", "ram:size=64MiB,block=4096,atomic=shadow", nullptr},
                        {"ram/staged", "ram:size=64MiB,block=4096", nullptr, {4096, 4096, 1024}},
                        {"ram/4KiB-of-512", "ram:size=64MiB,atomic=in-place", nullptr, {512, 4096}},
                        {"ram/shadow/4KiB-of-512", "ram:size=64MiB,atomic=shadow", nullptr, {512, 4096}},
                        {"ram/128KiB", "ram:size=64MiB,block=4096,atomic=in-place", nullptr, {4096, 131072}},
                        {"ram/shadow/128KiB", "ram:size=64MiB,block=4096,atomic=shadow", nullptr, {4096, 131072}},
                        {"ram/128KiB-of-512", "ram:size=64MiB,atomic=in-place", nullptr, {512, 131072}},
                        {"ram/shadow/128KiB-of-512", "ram:size=64MiB,atomic=shadow", nullptr, {512, 131072}},
                        {"map", map, nullptr, {4096, 4096, 4096}},
                        {"map/staged", map, nullptr, {4096, 4096, 1024}},
                        {"map/shadow", map_shadow, nullptr, {4096, 4096, 1024}},
                        {"map/128KiB", map, nullptr, {4096, 131072, 4096}},
                        {"map/staged/128KiB", map, nullptr, {4096, 131072, 1024}},
                        {"map/shadow/128KiB", map_shadow, nullptr, {4096, 131072, 1024}},
                        {"null", "null:size=64MiB,block=4096", nullptr},
                        {"file/nothing", file + "direct=off", &nothing},
                        {"file/io_uring/cached", file + "direct=off", nullptr},
                        {"file/threads/cached", file + "direct=off", &threads},
                        {"file/io_uring/direct", file + "direct=auto", nullptr},
                        {"file/threads/direct", file + "direct=auto", &threads},
                        {"file/unfixed/cached", file + "direct=off", unfixed},
                        {"file/unfixed/direct", file + "direct=auto", unfixed}};
  if (server.listens()) ways.push_back({"nbd", "nbd:nbd+unix:///?socket=" + socket + ",block=4096", nullptr});
  for (const Way& way : ways)
    for (const Intent intent : {Intent::read, Intent::write})
      benchmark::RegisterBenchmark(
          (std::string(way.name) + (intent == Intent::read ? "/read" : "/write")).c_str(),
          [&way, intent](benchmark::State& state) { run(state, way.spec, way.io, intent, way.shape); })
          ->Arg(1)
          ->Arg(32)
          ->UseRealTime();
  benchmark::RunSpecifiedBenchmarks();
}
