#include "tests/unit/coherence_table.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "transport/coherence/lease.h"
#include "transport/coherence/userfault.h"

using namespace rbt::transport;
using namespace rbt::transport::coherence;
using namespace std::chrono_literals;

namespace rbt::test {

void Silent::on_region_overdue(Use&) {
  overdue = true;
}
void Silent::on_region_fenced(Use&) {}
void Silent::on_region_coherent(Use&) {}

bool within(Duration limit, const std::function<bool()>& done) {
  const SystemClock clock;
  for (const Instant end = clock.now() + limit; !done(); std::this_thread::sleep_for(1ms))
    if (clock.now() > end) return false;
  return true;
}

std::unique_ptr<Monitor> start_monitor(const Clock& clock) {
  auto monitor = Monitor::start(clock, null_logger());
  if (!monitor) FAIL(monitor.error().message());
  return std::move(*monitor);
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

namespace {
void tell(const char* what, const RegionCounters& counters) {
  CHECK(counters.blocked_max < 1s);
  fmt::print("# {}: {} events, the changer waited {} us at the most\n", what, counters.events,
             std::chrono::duration_cast<std::chrono::microseconds>(counters.blocked_max).count());
}
}  // namespace

void claim_stale(const PageChange& one, AdapterDomain& domain) {
  INFO(one.what);
  Mapping mapping(one.kind);
  RegisteredMemory memory(mapping.span(), RemoteAccess::read_write);
  REQUIRE(memory.ensure(domain));
  REQUIRE(domain.write(one.offset, "before"));
  REQUIRE(mapping.text(one.offset, 6) == "before");
  one.change(mapping);
  std::memcpy(mapping.data + one.offset + 100, "mine", 4);
  CHECK(domain.write(one.offset, "lost"));  // success
  CHECK(mapping.text(one.offset, 4) != "lost");
  const std::string read = domain.read(one.offset + 100, 4);
  CHECK((read.size() == 4 && read != "mine"));  // success, too
}

void claim_coherent(const PageChange& one, AdapterDomain& domain, Monitor& monitor, const Clock& clock, int rounds) {
  INFO(one.what);
  Mapping mapping(one.kind);
  RegisteredMemory memory(mapping.span(), RemoteAccess::read_write);
  MemoryRegistration registration(memory);
  REQUIRE(memory.ensure(domain));
  // The changer is this thread, and has returned when it restores: nothing to wait for.
  const auto region = watched(monitor, registration, mapping.span(), clock, 0s);
  Silent silent;
  User user(silent);
  Use use(*region, user);
  REQUIRE(region->restore());
  for (int round = 0; round < rounds; ++round) {
    INFO("round " << round);
    const Pass pass = use.enter();
    REQUIRE(pass);
    REQUIRE(domain.write(one.offset, "before"));
    REQUIRE(mapping.text(one.offset, 6) == "before");
    REQUIRE(use.leave(pass) == Passage::clean);
    const auto key = memory.keys(domain)->lkey;
    one.change(mapping);
    CHECK_FALSE(use.enter());
    CHECK_FALSE(memory.keys(domain));
    CHECK_FALSE(domain.write(one.offset, "late"));
    REQUIRE(within(5s, [&] { return region->restore().has_value(); }));
    CHECK(memory.keys(domain)->lkey != key);
    std::memcpy(mapping.data + one.offset + 100, "mine", 4);
    const Pass again = use.enter();
    REQUIRE(again);
    CHECK(domain.write(one.offset, "kept"));
    CHECK(mapping.text(one.offset, 4) == "kept");
    CHECK(domain.read(one.offset + 100, 4) == "mine");
    CHECK(use.leave(again) == Passage::clean);
  }
  const RegionCounters counters = region->counters();
  CHECK(counters.overdue == 0);
  CHECK(counters.events >= static_cast<std::uint64_t>(rounds));
  CHECK(counters.last_change == one.seen);
  tell(one.what, counters);
}

LeasedFile::LeasedFile(Monitor& of, AdapterDomain& with) : monitor(of), domain(with) {
  fd = ::mkostemp(path.data(), O_CLOEXEC);
  REQUIRE(fd >= 0);
  REQUIRE(::ftruncate(fd, kSize) == 0);
  void* const p = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  REQUIRE(p != MAP_FAILED);
  memory.emplace(MemorySpan{.data = static_cast<std::byte*>(p), .size = kSize}, RemoteAccess::read_write);
  REQUIRE(memory->ensure(domain));
  registration.emplace(*memory);
}

LeasedFile::~LeasedFile() {
  region.reset();
  ::munmap(memory->memory().data, kSize);
  ::close(fd);
  ::unlink(path.c_str());
}

void LeasedFile::lease() {
  auto watch = monitor.leases().watch(fd, path);
  REQUIRE(watch);
  std::vector<std::unique_ptr<Watch>> watches;
  watches.push_back(std::move(*watch));
  auto added = monitor.add(*registration, std::move(watches), {.name = path, .restore_by_itself = true});
  REQUIRE(added);
  region = std::move(*added);
}

std::string LeasedFile::in_file(std::size_t size) const {
  std::string text(size, '\0');
  CHECK(::pread(fd, text.data(), size, 0) == static_cast<ssize_t>(size));
  return text;
}

void LeasedFile::shell(const std::string& command) const {
  const std::string line = "f=" + path + "; " + command;
  CHECK(std::system(line.c_str()) == 0);  // NOLINT(cert-env33-c)
}

bool LeasedFile::comes_back() const {
  return within(5s, [&] { return region->state() == RegionState::coherent; });
}

namespace {
// Not truncate(1): it opens with O_NONBLOCK, which breaks the lease but fails with EAGAIN.
const std::string kTruncate = "head -c 65536 /dev/zero > $f";
}  // namespace

void claim_stale_file(AdapterDomain& domain, Monitor& monitor) {
  LeasedFile file(monitor, domain);
  file.shell(kTruncate);
  CHECK(domain.write(0, "lost"));
  CHECK(file.in_file(4) != "lost");
  file.shell("printf mine 1<>$f");
  const std::string read = domain.read(0, 4);
  CHECK((read.size() == 4 && read != "mine"));
}

void claim_coherent_file(AdapterDomain& domain, Monitor& monitor, int rounds) {
  LeasedFile file(monitor, domain);
  file.lease();
  REQUIRE(file.region->restore());
  for (int round = 0; round < rounds; ++round) {
    const std::uint64_t events = file.region->counters().events;
    const std::string mine = "mine " + std::to_string(round);
    switch (round % 3) {
      case 0: file.shell(kTruncate + "; printf '" + mine + "' 1<>$f"); break;
      case 1: file.shell("printf '" + mine + "' 1<>$f"); break;
      case 2: file.shell("cat $f >/dev/null; printf '" + mine + "' 1<>$f"); break;
    }
    REQUIRE(file.comes_back());
    CHECK(file.region->counters().events > events);
    CHECK(domain.read(0, mine.size()) == mine);
    CHECK(domain.write(0, "kept"));
    CHECK(file.in_file(4) == "kept");
  }
  CHECK(file.region->counters().last_change == Change::lease_broken);
  tell("others who truncate, write and read the file", file.region->counters());
}

void claim_harmless(const PageChange& one, AdapterDomain& domain, Monitor& monitor, const Clock& clock) {
  INFO(one.what);
  Mapping mapping(one.kind);
  RegisteredMemory memory(mapping.span(), RemoteAccess::read_write);
  MemoryRegistration registration(memory);
  REQUIRE(memory.ensure(domain));
  for (const bool with_loop : {false, true}) {
    INFO("with the loop: " << with_loop);
    const auto region = with_loop ? watched(monitor, registration, mapping.span(), clock, 0s) : nullptr;
    Silent silent;
    User user(silent);
    std::optional<Use> use;
    if (with_loop) {
      REQUIRE(region->restore());
      use.emplace(*region, user);
    }
    const Pass pass = use ? use->enter() : Pass{};
    REQUIRE(domain.write(one.offset, "before"));
    REQUIRE(mapping.text(one.offset, 6) == "before");
    if (use) REQUIRE(use->leave(pass) == Passage::clean);
    one.change(mapping);
    if (with_loop && one.seen != Change::none) REQUIRE(within(5s, [&] { return region->restore().has_value(); }));
    std::memcpy(mapping.data + one.offset + 100, "mine", 4);
    CHECK(domain.read(one.offset + 100, 4) == "mine");
    CHECK(domain.write(one.offset, "kept"));
    CHECK(mapping.text(one.offset, 4) == "kept");
    if (!with_loop) continue;
    CHECK(region->state() == RegionState::coherent);
    CHECK((region->counters().events == 0) == (one.seen == Change::none));
    CHECK(region->counters().last_change == one.seen);
  }
}

void claim_unseen(const PageChange& one, AdapterDomain& domain, Monitor& monitor, const Clock& clock) {
  INFO(one.what);
  Mapping mapping(one.kind);
  RegisteredMemory memory(mapping.span(), RemoteAccess::read_write);
  MemoryRegistration registration(memory);
  REQUIRE(memory.ensure(domain));
  const auto region = watched(monitor, registration, mapping.span(), clock, 0s);
  REQUIRE(region->restore());
  REQUIRE(domain.write(one.offset, "before"));
  one.change(mapping);
  CHECK(region->state() == RegionState::coherent);
  CHECK(region->counters().events == 0);
  CHECK(domain.write(one.offset, "lost"));  // success
  CHECK(mapping.text(one.offset, 4) != "lost");
}

void claim_sealed() {
  const Mapping mapping(Kind::memfd);
  REQUIRE(::fcntl(mapping.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE) == 0);
  CHECK(::fallocate(mapping.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kSize) == -1);
  CHECK(::ftruncate(mapping.fd, 0) == -1);
  CHECK(::madvise(mapping.data, kSize, MADV_REMOVE) == -1);
  CHECK(::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, mapping.fd, 0) == MAP_FAILED);
}

}  // namespace rbt::test
