// A target whose memory is exchanged under it while it serves: for each row of the table of stale cases (docs/coherence.md)
// a namespace of 2 MiB that lives in such memory, in the order of stale_changes().
//
//   changing_target URI NQN watched|unwatched     serves; says "ready", then obeys until the end of its input
//     change NSID         makes its change once, and puts back what was written; says "changed NSID"
//     storm COUNT         COUNT changes of each namespace, in turn; says what it counted, then "calm"
//     mark NSID           writes 4 KiB of "o" at 128 KiB, as the memory's owner; says "marked NSID"
//     dump NSID PATH      what the owner sees goes to a file; says "dumped NSID"
//
// A change loses what is in the memory; so each completed write is also kept elsewhere, from where the owner fills the new
// pages, while no request is in flight, before it registers them. What the host was writing when the owner began is lost
// with the pages, and answered so that the host sends it again.

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <iostream>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>
#include <thread>

#include "common/check.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "target/store/identity.h"
#include "target/store/region_use.h"
#include "target/store/store_request.h"
#include "target/target.h"
#include "tests/unit/page_changes.h"
#include "transport/coherence/monitor.h"
#include "transport/coherence/userfault.h"
#include "transport/verbs/fabric.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::transport::coherence;
using namespace std::chrono_literals;
using rbt::test::PageChange;

namespace {

void say(const std::string& text) {
  std::printf("%s\n", text.c_str());
  std::fflush(stdout);
}

/// The memory of one namespace, and who watches it.
struct Memory {
  Memory(const PageChange& the_change, Monitor* monitor, const Clock& clock) : change(the_change) {
    if (monitor == nullptr) return;
    std::vector<std::unique_ptr<Watch>> watches;
    watches.push_back(make_userfault_watch(mapping.span(), clock, {.settle = 0s}).value());  // who changes restores
    region = monitor
                 ->add(registration, std::move(watches),
                       {.name = change.what, .drain_max = 20s, .acknowledge_max = 30s})  // an emulated machine
                 .value();
    check(region->restore().has_value(), "the memory is registered");
  }
  void exchange() {
    begin(true);
    change.change(mapping);
    std::memcpy(mapping.data, kept.data(), kept.size());
    begin(false);
    for (int attempt = 0; region != nullptr && !region->restore(); ++attempt) {
      check(attempt < 10'000, "the memory is registered again");
      std::this_thread::sleep_for(1ms);
    }
  }
  void mark() {
    constexpr std::size_t kAt = 128 * kKiB;
    std::memset(mapping.data + kAt, 'o', 4096);
    std::memset(kept.data() + kAt, 'o', 4096);
  }
  /// Keeps what has been written; false while the owner changes the mapping: the CPU sees other pages by now, or none.
  bool keep(std::size_t offset, std::size_t size) {
    const std::lock_guard lock(mutex);
    if (changing) return false;
    std::memcpy(kept.data() + offset, mapping.data + offset, size);
    return true;
  }
  bool is_changing() {
    const std::lock_guard lock(mutex);
    return changing;
  }
  void begin(bool now_changing) {
    const std::lock_guard lock(mutex);
    changing = now_changing;
  }
  const PageChange& change;
  std::mutex mutex;  // guards changing, and kept while it is false
  bool changing = false;
  test::Mapping mapping{change.kind, test::kHugeSize};
  std::vector<std::byte> kept{test::kHugeSize};
  transport::RegisteredMemory registered{mapping.span(), transport::RemoteAccess::none};
  MemoryRegistration registration{registered};
  std::unique_ptr<Region> region;
};

/// Leases are the memory itself. While it is not coherent, they wait.
class ChangingQueue final : public StoreQueue, private RegionObserver {
 public:
  static Result<std::unique_ptr<StoreQueue>> open(Memory& memory, const StoreQueueContext& context) {
    std::unique_ptr<ChangingQueue> queue(new ChangingQueue(memory));
    auto use = RegionUse::open(memory.region.get(), context.reactor, queue.get());
    if (!use) return failure(std::move(use.error()));
    queue->use_ = std::move(*use);
    return std::unique_ptr<StoreQueue>(std::move(queue));
  }
  Progress acquire(Lease& lease, StoreRequest& request) override {
    if (take(lease)) return Progress::done();
    auto& waiting = StoreRequestAccess::make<Waiting>(request);
    waiting.lease = &lease;
    waiting.request = &request;
    waiting_.push(waiting);
    return Progress::later();
  }
  Progress commit(Lease& lease, Durability, StoreRequest&) override {
    const bool kept = memory_.keep(lease.token, bytes(lease));
    const bool clean = leave(lease) == Passage::clean;
    return Progress::done(kept && clean ? StoreStatus::ok : StoreStatus::unavailable);
  }
  void release(Lease& lease) noexcept override {
    if (lease.pass != 0) (void)leave(lease);
  }
  Progress flush(StoreRequest&) override { return Progress::done(); }
  Progress discard(std::span<const BlockRange>, StoreRequest&) override { return Progress::done(); }
  Progress write_zeroes(BlockRange, Deallocate, Durability, StoreRequest&) override {
    return Progress::done(StoreStatus::unsupported);
  }

 private:
  struct Waiting {
    Waiting* next;
    Lease* lease;
    StoreRequest* request;
  };
  explicit ChangingQueue(Memory& memory) : memory_(memory) {}
  static std::size_t bytes(const Lease& lease) { return lease.range.count.value() * 4096; }
  bool take(Lease& lease) {
    // Until the region hears of it, keep() would refuse every write, and a host does not send one again for ever.
    if (memory_.region != nullptr && memory_.is_changing()) return false;
    const Pass pass = use_->enter();
    if (!pass) return false;
    const auto keys = memory_.registered.keys(*lease.domain);
    if (!keys) {
      (void)use_->leave(pass);
      return false;
    }
    lease.pass = pass.word + 1;
    lease.token = lease.range.first.value() * 4096;
    lease.few[0] = {memory_.mapping.data + lease.token, static_cast<std::uint32_t>(bytes(lease)), keys->lkey};
    lease.segments = {lease.few.data(), 1};
    return true;
  }
  Passage leave(Lease& lease) { return use_->leave({std::exchange(lease.pass, 0) - 1, true}); }
  void on_region_changed(RegionState state) override {
    if (state != RegionState::coherent) return;
    RecordQueue<Waiting> ready;
    ready.take(waiting_);
    while (!ready.empty()) {
      Waiting& waiting = ready.pop();
      if (take(*waiting.lease))
        waiting.request->on_store_done(StoreStatus::ok);
      else
        waiting_.push(waiting);
    }
  }
  Memory& memory_;
  std::unique_ptr<RegionUse> use_;
  RecordQueue<Waiting> waiting_;
};

class ChangingStore final : public Store {
 public:
  ChangingStore(Memory& memory, Random& random) : memory_(memory), identity_(fresh_identity(random)) {}
  Geometry geometry() const override {
    Geometry geometry;
    geometry.block_shift = *BlockShift::of(4096);
    geometry.blocks = Blocks(test::kHugeSize / 4096);
    geometry.write_zeroes = Ability::none;
    return geometry;
  }
  const Identity& identity() const noexcept override { return identity_; }
  const std::string& spec() const noexcept override { return spec_; }
  Result<void> prepare(transport::ProtectionDomain& domain, std::uint32_t) override {
    return memory_.registered.ensure(domain);
  }
  Result<std::unique_ptr<StoreQueue>> open_queue(const StoreQueueContext& context) override {
    return ChangingQueue::open(memory_, context);
  }

 private:
  Memory& memory_;
  Identity identity_;
  std::string spec_ = memory_.change.what;
};

void storm(std::deque<Memory>& memories, int count) {
  for (int round = 0; round < count; ++round)
    for (Memory& memory : memories)
      memory.exchange();
  for (const Memory& memory : memories) {
    const RegionCounters counters = memory.region->counters();
    say(fmt::format("# {}: {} events, {} overdue, the changer waited {} us at the most", memory.change.what,
                    counters.events, counters.overdue,
                    std::chrono::duration_cast<std::chrono::microseconds>(counters.blocked_max).count()));
  }
  say("calm");
}

void obey(std::deque<Memory>& memories, const std::string& line) {
  std::istringstream words(line);
  std::string verb, path;
  std::size_t number = 0;
  words >> verb >> number >> path;
  if (verb == "storm") return storm(memories, static_cast<int>(number));
  check(number >= 1 && number <= memories.size(), "a namespace that there is");
  Memory& memory = memories[number - 1];
  if (verb == "change") {
    memory.exchange();
    say(fmt::format("changed {}", number));
  } else if (verb == "mark") {
    memory.mark();
    say(fmt::format("marked {}", number));
  } else if (verb == "dump") {
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(memory.mapping.data), static_cast<std::streamsize>(memory.mapping.size));
    say(fmt::format("dumped {}", number));
  }
}

Result<void> serve(const Uri& uri, const nvme::Nqn& nqn, bool watched) {
  const SystemClock clock;
  auto random = Random::from_entropy();
  const auto logger = make_stderr_logger(LogLevel::info);
  auto fabric = transport::verbs::Fabric::open(*logger);
  if (!fabric) return failure(std::move(fabric.error()));
  auto monitor = Monitor::start(clock, *logger);
  if (!monitor) return failure(std::move(monitor.error()));
  std::deque<Memory> memories;
  for (const PageChange& change : test::stale_changes())
    memories.emplace_back(change, watched ? monitor->get() : nullptr, clock);
  auto target = Target::open({.clock = clock, .logger = *logger, .random = random});
  if (!target) return failure(std::move(target.error()));
  if (auto added = (*target)->add_subsystem(nqn, {.allow_any_host = true}); !added) return added;
  for (Memory& memory : memories)
    if (auto added = (*target)->add_namespace(nqn, std::make_unique<ChangingStore>(memory, random)); !added)
      return failure(std::move(added.error()));
  if (auto listening = (*target)->listen(**fabric, uri); !listening) return failure(std::move(listening.error()));
  if (auto started = (*target)->start(); !started) return started;
  say(fmt::format("serves {}", memories.size()));
  say("ready");
  for (std::string line; std::getline(std::cin, line);)
    obey(memories, line);
  (*target)->stop();
  target->reset();
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: changing_target URI NQN watched|unwatched\n");
    return 2;
  }
  const auto uri = Uri::parse(argv[1]);
  const auto nqn = nvme::Nqn::parse(argv[2]);
  if (!uri || !nqn) return 2;
  if (auto served = serve(*uri, *nqn, std::string(argv[3]) == "watched"); !served) {
    say("error: " + served.error().message());
    return 1;
  }
  return 0;
}
