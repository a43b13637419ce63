// The monitor with its threads, real userfaultfds and real leases, over an adapter that really keeps pinned pages.

#include <sys/mman.h>
#include <sys/stat.h>

#include <cstdlib>
#include <functional>
#include <thread>

#include "common/log.h"
#include "tests/unit/pinning_adapter.h"
#include "transport/coherence/lease.h"
#include "transport/coherence/monitor.h"
#include "transport/coherence/userfault.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::transport;
using namespace rbt::transport::coherence;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kSize = 16 * 4096;

struct Silent final : UserHandler {
  void on_region_overdue(Use&) override { overdue = true; }
  void on_region_fenced(Use&) override {}
  void on_region_coherent(Use&) override {}
  bool overdue = false;
};

bool within(Duration limit, const std::function<bool()>& done) {
  const SystemClock clock;
  for (const Instant end = clock.now() + limit; !done(); std::this_thread::sleep_for(1ms))
    if (clock.now() > end) return false;
  return true;
}

std::unique_ptr<Monitor> start(const Clock& clock, Logger& logger = null_logger()) {
  auto monitor = Monitor::start(clock, logger);
  if (!monitor) FAIL(monitor.error().message());
  return std::move(*monitor);
}

enum class Kind { anonymous, memfd };

/// Memory that is mapped at one address all the time, by whatever.
struct Mapping {
  explicit Mapping(Kind k) : kind(k) {
    if (kind == Kind::memfd) {
      fd = ::memfd_create("mapped", MFD_CLOEXEC);
      REQUIRE(::ftruncate(fd, kSize) == 0);
    }
    data = map(nullptr, 0);
    std::memset(data, '.', kSize);
  }
  ~Mapping() {
    ::munmap(data, kSize);
    if (fd >= 0) ::close(fd);
  }
  std::byte* map(void* at, int flags) {
    void* const p = kind == Kind::memfd
                        ? ::mmap(at, kSize, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0)
                        : ::mmap(at, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    REQUIRE(p != MAP_FAILED);
    return static_cast<std::byte*>(p);
  }
  [[nodiscard]] MemorySpan span() const { return {.data = data, .size = kSize, .fd = fd}; }
  [[nodiscard]] std::string text(std::size_t offset, std::size_t size) const {
    return {reinterpret_cast<const char*>(data + offset), size};
  }
  Kind kind;
  int fd = -1;
  std::byte* data = nullptr;
};

struct StaleCase {
  const char* what;
  Kind kind;
  Change seen;
  std::function<void(Mapping&)> change;
};

void map_anew(Mapping& m) {
  (void)m.map(m.data, MAP_FIXED);
}

const std::vector<StaleCase>& stale_cases() {
  static const std::vector<StaleCase> cases{
      {"munmap, and the same address mapped again", Kind::anonymous, Change::unmapped,
       [](Mapping& m) {
         CHECK(::munmap(m.data, kSize) == 0);
         map_anew(m);
       }},
      {"munmap of a part, and that part mapped again", Kind::anonymous, Change::unmapped,
       [](Mapping& m) {
         CHECK(::munmap(m.data, kSize / 2) == 0);
         CHECK(::mmap(m.data, kSize / 2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
               m.data);
       }},
      {"mmap(MAP_FIXED) over it", Kind::anonymous, Change::unmapped, map_anew},
      {"madvise(MADV_DONTNEED)", Kind::anonymous, Change::discarded,
       [](Mapping& m) { CHECK(::madvise(m.data, kSize, MADV_DONTNEED) == 0); }},
      {"madvise(MADV_REMOVE) of a memfd", Kind::memfd, Change::discarded,
       [](Mapping& m) { CHECK(::madvise(m.data, kSize, MADV_REMOVE) == 0); }},
      {"mremap elsewhere, and the old address mapped again", Kind::anonymous, Change::moved,
       [](Mapping& m) {
         void* const to = ::mmap(nullptr, kSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
         CHECK(::mremap(m.data, kSize, kSize, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
         map_anew(m);
         ::munmap(to, kSize);
       }},
  };
  return cases;
}

std::unique_ptr<Region> watched(Monitor& monitor, Registration& registration, const MemorySpan& memory,
                                const Clock& clock, Duration settle) {
  auto watch = make_userfault_watch(memory, clock, {.settle = settle});
  if (!watch) FAIL(watch.error().message());
  std::vector<std::unique_ptr<Watch>> watches;
  watches.push_back(std::move(*watch));
  auto region = monitor.add(registration, std::move(watches), {.name = "memory"});
  if (!region) FAIL(region.error().message());
  return std::move(*region);
}

}  // namespace

TEST_CASE("Without the loop the adapter goes on with orphaned pages, and says success") {
  for (const StaleCase& one : stale_cases()) {
    INFO(one.what);
    Mapping mapping(one.kind);
    PinningDomain domain;
    RegisteredMemory memory(mapping.span(), RemoteAccess::none);
    REQUIRE(memory.ensure(domain));
    REQUIRE(domain.last.load()->write(0, "before"));
    REQUIRE(mapping.text(0, 6) == "before");
    one.change(mapping);
    std::memcpy(mapping.data + 100, "mine", 4);
    CHECK(domain.last.load()->write(0, "lost"));  // success
    CHECK(mapping.text(0, 4) != "lost");
    CHECK(domain.last.load()->read(100, 4) != "mine");
  }
}

TEST_CASE("With the loop nobody uses the old pages, and a later use has the new ones") {
  const SystemClock clock;
  const auto monitor = start(clock);
  for (const StaleCase& one : stale_cases()) {
    INFO(one.what);
    Mapping mapping(one.kind);
    PinningDomain domain;
    RegisteredMemory memory(mapping.span(), RemoteAccess::none);
    MemoryRegistration registration(memory);
    REQUIRE(memory.ensure(domain));
    // The changer is this thread, and has returned when it restores: nothing to wait for.
    const auto region = watched(*monitor, registration, mapping.span(), clock, 0s);
    Silent silent;
    User user(silent);
    Use use(*region, user);
    REQUIRE(region->restore());
    for (int round = 0; round < 3; ++round) {
      const Pass pass = use.enter();
      REQUIRE(pass);
      REQUIRE(domain.last.load()->write(0, "before"));
      REQUIRE(mapping.text(0, 6) == "before");
      CHECK(use.leave(pass) == Passage::clean);
      const auto key = memory.keys(domain)->lkey;
      one.change(mapping);
      CHECK_FALSE(use.enter());
      CHECK_FALSE(memory.keys(domain));
      REQUIRE(within(5s, [&] { return region->restore().has_value(); }));
      CHECK(memory.keys(domain)->lkey != key);
      std::memcpy(mapping.data + 100, "mine", 4);
      const Pass again = use.enter();
      REQUIRE(again);
      CHECK(domain.last.load()->write(0, "kept"));
      CHECK(mapping.text(0, 4) == "kept");
      CHECK(domain.last.load()->read(100, 4) == "mine");
      CHECK(use.leave(again) == Passage::clean);
    }
    CHECK(region->counters().overdue == 0);
    CHECK(region->counters().events >= 3);
  }
}

TEST_CASE("Memory that is not mapped any more is a clear error, and is used again when it is mapped") {
  const SystemClock clock;
  const auto monitor = start(clock);
  Mapping mapping(Kind::anonymous);
  PinningDomain domain;
  RegisteredMemory memory(mapping.span(), RemoteAccess::none);
  MemoryRegistration registration(memory);
  REQUIRE(memory.ensure(domain));
  const auto region = watched(*monitor, registration, mapping.span(), clock, 0s);
  REQUIRE(region->restore());
  REQUIRE(::munmap(mapping.data + kSize / 2, 4096) == 0);
  const auto restored = region->restore();
  REQUIRE_FALSE(restored);
  CHECK(restored.error().kind() == ErrorKind::not_found);
  CHECK_THAT(restored.error().message(), Catch::Contains("mapped"));
  map_anew(mapping);
  CHECK(within(5s, [&] { return region->restore().has_value(); }));
}

TEST_CASE("Pages that were discarded a moment ago are not registered yet") {
  const SystemClock clock;
  const auto monitor = start(clock);
  Mapping mapping(Kind::anonymous);
  PinningDomain domain;
  RegisteredMemory memory(mapping.span(), RemoteAccess::none);
  MemoryRegistration registration(memory);
  REQUIRE(memory.ensure(domain));
  const auto region = watched(*monitor, registration, mapping.span(), clock, 1h);
  REQUIRE(region->restore());
  REQUIRE(::madvise(mapping.data, kSize, MADV_DONTNEED) == 0);
  REQUIRE(within(5s, [&] { return region->state() == RegionState::fenced; }));
  const auto restored = region->restore();
  REQUIRE_FALSE(restored);
  CHECK(restored.error().kind() == ErrorKind::in_use);
}

TEST_CASE("A page is watched once") {
  const SystemClock clock;
  Mapping mapping(Kind::anonymous);
  auto first = make_userfault_watch(mapping.span(), clock), second = make_userfault_watch(mapping.span(), clock);
  REQUIRE((first && second));
  REQUIRE((*first)->arm());
  REQUIRE((*first)->arm());
  const auto refused = (*second)->arm();
  REQUIRE_FALSE(refused);
  CHECK_THAT(refused.error().message(), Catch::Contains("another userfaultfd"));
  first->reset();
  CHECK((*second)->arm());
}

TEST_CASE("Whoever changes the mapping with requests of its own in flight waits for the bound and no longer") {
  const SystemClock clock;
  const auto monitor = start(clock);
  Mapping mapping(Kind::anonymous);
  PinningDomain domain;
  RegisteredMemory memory(mapping.span(), RemoteAccess::none);
  MemoryRegistration registration(memory);
  REQUIRE(memory.ensure(domain));
  const auto region = watched(*monitor, registration, mapping.span(), clock, 0s);
  Silent silent;
  User user(silent);
  Use use(*region, user);
  REQUIRE(region->restore());
  const Pass pass = use.enter();
  REQUIRE(pass);
  const Instant before = clock.now();
  map_anew(mapping);  // this thread is the only one that could end the request
  const Duration waited = clock.now() - before;
  CHECK(waited >= 490ms);
  CHECK(region->counters().blocked_last <= 950ms);
  user.dispatch();
  CHECK(silent.overdue);
  CHECK(use.leave(pass) == Passage::fenced);
}

TEST_CASE("The owner changes its mapping on purpose: nobody else needs to see it") {
  const SystemClock clock;
  const auto monitor = start(clock);
  Mapping mapping(Kind::anonymous);
  PinningDomain domain;
  RegisteredMemory memory(mapping.span(), RemoteAccess::none);
  MemoryRegistration registration(memory);
  REQUIRE(memory.ensure(domain));
  auto region = monitor->add(registration, {}, {.name = "memory"});
  REQUIRE(region);
  REQUIRE((*region)->restore());
  for (int round = 0; round < 10; ++round) {
    REQUIRE((*region)->change([&] { map_anew(mapping); }));
    CHECK(domain.last.load()->write(0, "kept"));
    CHECK(mapping.text(0, 4) == "kept");
  }
}

TEST_CASE("While one thread discards pages, another that moves data through them never sees it go astray") {
  const SystemClock clock;
  const auto monitor = start(clock);
  Mapping mapping(GENERATE(Kind::anonymous, Kind::memfd));
  const int advice = mapping.kind == Kind::memfd ? MADV_REMOVE : MADV_DONTNEED;
  PinningDomain domain;
  RegisteredMemory memory(mapping.span(), RemoteAccess::none);
  MemoryRegistration registration(memory);
  REQUIRE(memory.ensure(domain));
  const auto region = watched(*monitor, registration, mapping.span(), clock, UserfaultOptions{}.settle);
  REQUIRE(region->restore());
  std::atomic<bool> stop{false};
  std::atomic<int> moved{0}, astray{0};
  std::thread worker([&] {
    Silent silent;
    User user(silent);
    Use use(*region, user);
    while (!stop) {
      const Pass pass = use.enter();
      if (!pass) {
        (void)region->restore();
        continue;
      }
      const std::string text = "data " + std::to_string(moved);
      const bool wrote = domain.last.load()->write(4096, text);
      const bool there = mapping.text(4096, text.size()) == text;
      if (use.leave(pass) == Passage::clean && !(wrote && there)) ++astray;
      ++moved;
    }
  });
  for (int round = 0; round < 10; ++round) {
    const int before = moved;
    CHECK(within(30s, [&] { return moved > before + 10; }));
    CHECK(::madvise(mapping.data, kSize, advice) == 0);
  }
  stop = true;
  worker.join();
  CHECK(astray == 0);
  CHECK(region->counters().events >= 10);
  CHECK(region->counters().overdue == 0);
}

// --- Leases -----------------------------------------------------------------------------------------------------------

namespace {

/// A file in /dev/shm, mapped and registered, as a store would have it.
struct LeasedFile {
  explicit LeasedFile(Monitor& m) : monitor(m) {
    fd = ::mkostemp(path.data(), O_CLOEXEC);
    REQUIRE(fd >= 0);
    REQUIRE(::ftruncate(fd, kSize) == 0);
    void* const p = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(p != MAP_FAILED);
    memory.emplace(MemorySpan{.data = static_cast<std::byte*>(p), .size = kSize}, RemoteAccess::none);
    REQUIRE(memory->ensure(domain));
  }
  ~LeasedFile() {
    region.reset();
    ::munmap(memory->memory().data, kSize);
    ::close(fd);
    ::unlink(path.c_str());
  }
  void lease() {
    auto watch = monitor.leases().watch(fd, path);
    REQUIRE(watch);
    std::vector<std::unique_ptr<Watch>> watches;
    watches.push_back(std::move(*watch));
    auto added = monitor.add(*registration, std::move(watches), {.name = path, .restore_by_itself = true});
    REQUIRE(added);
    region = std::move(*added);
  }
  [[nodiscard]] std::string in_file(std::size_t size) const {
    std::string text(size, '\0');
    CHECK(::pread(fd, text.data(), size, 0) == static_cast<ssize_t>(size));
    return text;
  }
  /// Another process.
  void shell(const std::string& command) const {
    const std::string line = "f=" + path + "; " + command;
    CHECK(std::system(line.c_str()) == 0);  // NOLINT(cert-env33-c)
  }
  Monitor& monitor;
  std::string path = "/dev/shm/rbt-coherence.XXXXXX";
  int fd = -1;
  PinningDomain domain;
  std::optional<RegisteredMemory> memory;
  std::optional<MemoryRegistration> registration{std::in_place, *memory};
  std::unique_ptr<Region> region;
};

// Not truncate(1): it opens with O_NONBLOCK, which breaks the lease but fails with EAGAIN.
const std::string kTruncate = "head -c 65536 /dev/zero > $f";

}  // namespace

TEST_CASE("Without a lease, whoever truncates a mapped file leaves the adapter with orphaned pages") {
  const SystemClock clock;
  const auto monitor = start(clock);
  LeasedFile file(*monitor);
  file.shell(kTruncate);
  CHECK(file.domain.last.load()->write(0, "lost"));
  CHECK(file.in_file(4) != "lost");
}

TEST_CASE("With a lease, whoever truncates or opens the file waits for the fence; both come back when it is closed") {
  const SystemClock clock;
  const auto monitor = start(clock);
  LeasedFile file(*monitor);
  file.lease();
  REQUIRE(file.region->restore());
  const std::string command = GENERATE(as<std::string>(), kTruncate, "printf hello 1<>$f", "cat $f > /dev/null");
  INFO(command);
  for (int round = 0; round < 5; ++round) {
    const auto before = file.region->counters();
    file.shell(command);
    const bool back = within(5s, [&] { return file.region->state() == RegionState::coherent; });
    REQUIRE(back);
    const auto after = file.region->counters();
    CHECK(after.events > before.events);
    CHECK(after.last_change == Change::lease_broken);
    CHECK(after.blocked_max < 1s);
    if (command[0] == 'p') CHECK(file.domain.last.load()->read(0, 5) == "hello");
    CHECK(file.domain.last.load()->write(0, "kept"));
    CHECK(file.in_file(4) == "kept");
  }
}

TEST_CASE("While somebody has the file open there is no registration, and there is one when they have closed it") {
  const SystemClock clock;
  const auto monitor = start(clock);
  LeasedFile file(*monitor);
  const int other = ::open(file.path.c_str(), O_RDWR | O_CLOEXEC);
  file.lease();
  const auto refused = file.region->restore();
  REQUIRE_FALSE(refused);
  CHECK(refused.error().kind() == ErrorKind::in_use);
  CHECK_THAT(refused.error().message(), Catch::Contains(file.path) && Catch::Contains("open"));
  file.region->restore_when_possible();
  CHECK_FALSE(within(100ms, [&] { return file.region->state() == RegionState::coherent; }));
  ::close(other);
  CHECK(within(5s, [&] { return file.region->state() == RegionState::coherent; }));
  const int again = ::open(file.path.c_str(), O_RDWR | O_CLOEXEC);  // this very process
  CHECK(file.region->state() != RegionState::coherent);
  ::close(again);
  CHECK(within(5s, [&] { return file.region->state() == RegionState::coherent; }));
}

TEST_CASE("Many leases at once each find their file") {
  const SystemClock clock;
  const auto monitor = start(clock);
  std::vector<std::unique_ptr<LeasedFile>> files;
  for (int i = 0; i < 20; ++i) {
    files.push_back(std::make_unique<LeasedFile>(*monitor));
    files.back()->lease();
    REQUIRE(files.back()->region->restore());
  }
  std::vector<std::thread> openers;
  for (const auto& file : files)
    openers.emplace_back([&path = file->path] { ::close(::open(path.c_str(), O_RDWR | O_CLOEXEC)); });
  for (std::thread& opener : openers)
    opener.join();
  for (const auto& file : files) {
    CHECK(file->region->counters().events >= 1);
    CHECK(within(5s, [&] { return file->region->state() == RegionState::coherent; }));
  }
}

TEST_CASE("What cannot be leased says why, and what would help") {
  const SystemClock clock;
  const auto monitor = start(clock);
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  auto watch = monitor->leases().watch(null, "/dev/null");
  REQUIRE(watch);
  const auto refused = (*watch)->arm();
  REQUIRE_FALSE(refused);
  CHECK(refused.error().kind() == ErrorKind::unsupported);
  CHECK_THAT(refused.error().message(), Catch::Contains("/dev/null") && Catch::Contains("file:"));
  watch->reset();
  ::close(null);
  const int reader = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  CHECK_FALSE(monitor->leases().watch(reader, "/dev/null"));
  ::close(reader);
}

TEST_CASE("Every source says what it can do here, or what is missing") {
  const SystemClock clock;
  const auto monitor = start(clock);
  const auto reports = monitor->explain();
  REQUIRE(reports.size() >= 2);
  for (const SourceReport& report : reports) {
    INFO(report.source << ": " << report.text);
    CHECK_FALSE(report.text.empty());
    if (report.source == "userfault" || report.source == "lease") CHECK(report.available);
  }
}
