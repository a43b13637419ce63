// The monitor with its threads, real userfaultfds and real leases, over an adapter that really keeps pinned pages.

#include <sys/mman.h>
#include <sys/stat.h>

#include <deque>
#include <thread>

#include "common/log.h"
#include "tests/unit/coherence_table.h"
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

void map_anew(Mapping& mapping) {
  (void)mapping.map(mapping.data, kSize, MAP_FIXED);
}

/// Huge pages must be reserved by root, which is for the rig.
template <typename Claim>
void each(const std::vector<PageChange>& changes, Claim&& claim) {
  for (const PageChange& one : changes)
    if (one.kind != Kind::hugetlb) claim(one);
}

}  // namespace

TEST_CASE("Without the loop the adapter goes on with orphaned pages, and says success") {
  PinningDomain domain;
  each(stale_changes(), [&](const PageChange& one) { claim_stale(one, domain); });
}

TEST_CASE("With the loop nobody uses the old pages, and a later use has the new ones") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
  PinningDomain domain;
  each(stale_changes(), [&](const PageChange& one) { claim_coherent(one, domain, *monitor, clock, 20); });
}

TEST_CASE("What leaves the pages in place leaves the adapter with them, with the loop and without") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
  PinningDomain domain;
  each(harmless_changes(), [&](const PageChange& one) { claim_harmless(one, domain, *monitor, clock); });
}

TEST_CASE("Memory that is not mapped any more is a clear error, and is used again when it is mapped") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
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
  const auto monitor = start_monitor(clock);
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

namespace {

/// madvise() by another thread, up to its return.
void advise(Watch& watch, const Mapping& mapping, int advice) {
  std::thread changer([&] {
    if (::madvise(mapping.data + 4096, 4096, advice) != 0) std::abort();
  });
  CHECK(within(30s, [&] { return watch.changing(); }));
  CHECK(watch.acknowledge() == Change::discarded);
  changer.join();
}

}  // namespace

// MADV_FREE announces that it discards and leaves the pages: as a madvise() does whose thread does not get to run.
TEST_CASE("Pages that were to be discarded and are still there are not registered, up to a bound") {
  ManualClock clock;
  Mapping mapping(Kind::anonymous);
  auto watch = make_userfault_watch(mapping.span(), clock, {.settle = 100ms}).value();
  REQUIRE(watch->arm());
  advise(*watch, mapping, MADV_FREE);
  clock.advance(99ms);
  CHECK_FALSE(watch->arm());
  clock.advance(1ms);
  const bool marks = !watch->arm();
  if (!marks) WARN("this kernel has no PAGEMAP_SCAN: only the time counts");
  SECTION("which are gone later") {
    advise(*watch, mapping, MADV_DONTNEED);
    clock.advance(99ms);
    CHECK_FALSE(watch->arm());
    clock.advance(1ms);
    CHECK(watch->arm());
  }
  SECTION("which are written to") {
    mapping.data[4096] = std::byte{1};
    CHECK(watch->arm());
  }
  SECTION("which stay") {
    clock.advance(899ms);
    CHECK(watch->arm().has_value() == !marks);
    clock.advance(1ms);
    CHECK(watch->arm());
  }
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
  const auto monitor = start_monitor(clock);
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
  const auto monitor = start_monitor(clock);
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
    CHECK(domain.write(0, "kept"));
    CHECK(mapping.text(0, 4) == "kept");
  }
}

TEST_CASE("While one thread discards pages, another that moves data through them never sees it go astray") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
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
      const bool wrote = domain.write(4096, text);
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

TEST_CASE("Without a lease, whoever truncates a mapped file leaves the adapter with orphaned pages") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
  PinningDomain domain;
  claim_stale_file(domain, *monitor);
}

TEST_CASE("With a lease, whoever truncates or opens the file waits for the fence; both come back when it is closed") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
  PinningDomain domain;
  claim_coherent_file(domain, *monitor, 15);
}

TEST_CASE("What is done through a descriptor is seen by nobody") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
  PinningDomain domain;
  each(unseen_changes(), [&](const PageChange& one) { claim_unseen(one, domain, *monitor, clock); });
}

TEST_CASE("Nobody can punch, truncate or map for writing what is sealed") {
  claim_sealed();
}

TEST_CASE("While somebody has the file open there is no registration, and there is one when they have closed it") {
  const SystemClock clock;
  const auto monitor = start_monitor(clock);
  PinningDomain domain;
  LeasedFile file(*monitor, domain);
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
  const auto monitor = start_monitor(clock);
  std::deque<PinningDomain> domains;
  std::vector<std::unique_ptr<LeasedFile>> files;
  for (int i = 0; i < 20; ++i) {
    files.push_back(std::make_unique<LeasedFile>(*monitor, domains.emplace_back()));
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
  const auto monitor = start_monitor(clock);
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
  const auto monitor = start_monitor(clock);
  const auto reports = monitor->explain();
  REQUIRE(reports.size() >= 2);
  for (const SourceReport& report : reports) {
    INFO(report.source << ": " << report.text);
    CHECK_FALSE(report.text.empty());
    if (report.source == "userfault" || report.source == "lease") CHECK(report.available);
  }
}
