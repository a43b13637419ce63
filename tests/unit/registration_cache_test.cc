// The registration cache on real mappings, watched by a real userfaultfd, in front of an adapter that only counts.
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <mutex>
#include <set>
#include <thread>

#include "tests/unit/pages.h"
#include "transport/coherence/userfault.h"
#include "transport/memory/registration_view.h"
#include "transport/memory/shared_memory.h"

using namespace rbt;
using namespace rbt::transport;
using rbt::test::kPage;
using rbt::test::Pages;
using namespace std::chrono_literals;

namespace {

#ifdef __clang__
constexpr bool kGlibcMalloc = false;  // the sanitizers bring an allocator of their own
#else
constexpr bool kGlibcMalloc = true;
#endif

/// Registers everything, but for the n-th.
class CountingDomain final : public ProtectionDomain {
 public:
  Result<std::unique_ptr<MemoryRegion>> register_memory(const MemorySpan& memory, RemoteAccess) override {
    const std::lock_guard lock(mutex_);
    if (seen_++ == fails_at) return failure(kind, "refused by the test");
    keys_.insert(++last_);
    return std::make_unique<Region>(*this, memory, last_);
  }
  std::string_view name() const noexcept override { return "counting"; }
  [[nodiscard]] std::size_t live() const {
    const std::lock_guard lock(mutex_);
    return keys_.size();
  }
  [[nodiscard]] bool valid(std::uint32_t key) const {
    const std::lock_guard lock(mutex_);
    return keys_.contains(key);
  }
  std::uint64_t fails_at = ~0ULL;
  ErrorKind kind = ErrorKind::resource;

 private:
  struct Region final : MemoryRegion {
    Region(CountingDomain& the_domain, const MemorySpan& memory, std::uint32_t key)
        : MemoryRegion(memory, key, key), domain(the_domain) {}
    ~Region() override {
      const std::lock_guard lock(domain.mutex_);
      domain.keys_.erase(lkey_);
    }
    CountingDomain& domain;
  };
  mutable std::mutex mutex_;
  std::set<std::uint32_t> keys_;
  std::uint32_t last_ = 0;
  std::uint64_t seen_ = 0;
};

class LogKeeper final : public Logger {
 public:
  LogKeeper() : Logger(LogLevel::info) {}
  std::vector<std::string> lines() const {
    const std::lock_guard lock(mutex_);
    return lines_;
  }

 private:
  void write(LogLevel, std::string message) override {
    const std::lock_guard lock(mutex_);
    lines_.push_back(std::move(message));
  }
  mutable std::mutex mutex_;
  std::vector<std::string> lines_;
};

struct Rig {
  explicit Rig(RegistrationCacheOptions options = {}) : cache(monitor.get(), with_watch(std::move(options)), log) {
    REQUIRE(cache.add_domain(domain));
    reactor = std::move(Reactor::create(clock, log).value());
    view = make_view(*reactor);
  }
  RegistrationCacheOptions with_watch(RegistrationCacheOptions options) {
    if (options.size_min == RegistrationCacheOptions{}.size_min) options.size_min = kPage;
    if (!options.make_watch)
      options.make_watch = [this](const MemorySpan& memory) { return coherence::make_userfault_watch(memory, clock); };
    return options;
  }
  [[nodiscard]] std::unique_ptr<RegistrationView> make_view(Reactor& on) {
    auto made = std::make_unique<RegistrationView>(cache, domain, on, [this] { ++overdue; });
    REQUIRE(made->start());
    return made;
  }
  /// One use, from beginning to end.
  Reach use(const Pages& pages) { return use(pages.data(), pages.size()); }
  Reach use(const std::byte* data, std::size_t size) {
    Reached reached;
    const Reach reach = view->find(data, size, reached);
    if (reach != Reach::direct) return reach;
    CHECK(domain.valid(reached.rkey));
    key = reached.rkey;
    CHECK(RegistrationView::leave(reached));
    return reach;
  }

  SystemClock clock;
  LogKeeper log;
  CountingDomain domain;
  std::unique_ptr<coherence::Monitor> monitor = std::move(coherence::Monitor::start(clock, log).value());
  RegistrationCache cache;
  std::unique_ptr<Reactor> reactor;
  std::unique_ptr<RegistrationView> view;
  std::atomic<int> overdue{0};
  std::uint32_t key = 0;
};

}  // namespace

TEST_CASE("A use registers its pages, and the next ones find them registered") {
  Rig rig;
  const Pages pages(16);
  REQUIRE(rig.use(pages) == Reach::direct);
  const auto key = rig.key;
  CHECK(rig.domain.live() == 1);
  CHECK(rig.use(pages) == Reach::direct);
  CHECK(rig.use(pages.data() + 100, 3 * kPage) == Reach::direct);
  CHECK(rig.key == key);
  CHECK(rig.cache.counters().registered == 1);
  CHECK(rig.cache.counters().bytes == pages.size());
}

TEST_CASE("What is smaller than the limit, and what malloc cuts into pieces, is copied") {
  Rig rig({.size_min = 4 * kPage});
  const Pages pages(4);
  CHECK(rig.use(pages.data(), 3 * kPage) == Reach::copy);
  if (kGlibcMalloc) {
    const std::vector<std::byte> heap(16 * kPage);  // below glibc's threshold: of the heap
    CHECK(rig.use(heap.data(), heap.size()) == Reach::copy);
    CHECK(rig.use(heap.data(), heap.size()) == Reach::copy);
  }
  CHECK(rig.domain.live() == 0);
  CHECK(rig.use(pages) == Reach::direct);
  CHECK(rig.use(pages.data(), 3 * kPage) == Reach::direct);
}

TEST_CASE("Unmapped memory is deregistered and told as such; what is mapped there next is registered anew") {
  Rig rig;
  Pages pages(8);
  REQUIRE(rig.use(pages) == Reach::direct);
  const auto key = rig.key;
  SECTION("by munmap") {
    pages.unmap();
    CHECK_FALSE(rig.domain.valid(key));
    CHECK(rig.use(pages) == Reach::unmapped);
    CHECK(rig.use(pages) == Reach::unmapped);
    pages.map_again();
  }
  SECTION("by munmap of a part") {
    REQUIRE(::munmap(pages.data() + 4 * kPage, kPage) == 0);
    CHECK_FALSE(rig.domain.valid(key));
    CHECK(rig.use(pages) == Reach::unmapped);
    pages.map_again();
  }
  SECTION("by MAP_FIXED") {
    pages.map_again();
    CHECK_FALSE(rig.domain.valid(key));
  }
  SECTION("by mremap") {
    void* const moved = ::mremap(pages.data(), pages.size(), pages.size() * 2, MREMAP_MAYMOVE);
    if (moved == pages.data()) return;  // it grew in place, which changes nothing
    CHECK_FALSE(rig.domain.valid(key));
    CHECK(rig.use(pages) == Reach::unmapped);
    CHECK(rig.use(static_cast<std::byte*>(moved), pages.size() * 2) == Reach::direct);
    ::munmap(moved, pages.size() * 2);
    pages.map_again();
  }
  CHECK(rig.use(pages) == Reach::direct);
  CHECK(rig.key != key);
  CHECK(rig.overdue == 0);
}

TEST_CASE("Discarded memory is deregistered, copied until the discarding is surely over, and then registered anew") {
  Rig rig;
  Pages pages(8);
  REQUIRE(rig.use(pages) == Reach::direct);
  const auto key = rig.key;
  REQUIRE(::madvise(pages.data() + kPage, kPage, MADV_DONTNEED) == 0);
  CHECK_FALSE(rig.domain.valid(key));
  const Instant deadline = rig.clock.now() + 10s;
  Reach reach = Reach::copy;
  while (reach == Reach::copy && rig.clock.now() < deadline) {
    reach = rig.use(pages);
    (void)rig.reactor->turn();
  }
  CHECK(reach == Reach::direct);
  CHECK(rig.key != key);
}

TEST_CASE("Whoever unmaps memory that is in use waits until the use is over") {
  Rig rig({.change_wait_max = 30s});
  Pages pages(8);
  Reached reached;
  REQUIRE(rig.view->find(pages.data(), pages.size(), reached) == Reach::direct);
  std::atomic<bool> returned{false};
  std::thread changer([&] {
    if (::mmap(pages.data(), pages.size(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != pages.data())
      std::abort();
    returned = true;
  });
  // The kernel has replaced the pages already while it keeps the caller waiting for us.
  while (rig.cache.mappings().find(reinterpret_cast<std::uintptr_t>(pages.data())).value().writable)
    std::this_thread::yield();
  CHECK_FALSE(returned);
  CHECK(rig.domain.valid(reached.rkey));
  CHECK(RegistrationView::leave(reached));
  changer.join();
  CHECK_FALSE(rig.domain.valid(reached.rkey));
  CHECK(rig.overdue == 0);
  pages.map_again();
}

TEST_CASE("A use that does not end is cut off at the bound, and its end says that it means nothing") {
  Rig rig({.change_wait_max = 100ms});
  Pages pages(8);
  Reached reached;
  REQUIRE(rig.view->find(pages.data(), pages.size(), reached) == Reach::direct);
  const Instant before = rig.clock.now();
  pages.unmap();  // the very thread that would have to end the use
  const Duration waited = rig.clock.now() - before;
  CHECK(waited >= 50ms);
  CHECK(waited < 5s);  // 100 ms and what a loaded machine adds
  CHECK_FALSE(rig.domain.valid(reached.rkey));
  REQUIRE(rig.reactor->run_until([&] { return rig.overdue != 0; }, rig.clock.now() + 10s));
  CHECK_FALSE(RegistrationView::leave(reached));
  CHECK(rig.use(pages) == Reach::unmapped);
  pages.map_again();
  CHECK(rig.use(pages) == Reach::direct);
}

TEST_CASE("Ranges that were not used for longest make way, within both limits") {
  Rig rig({.bytes_max = 32 * kPage, .regions_max = 4});
  std::vector<std::unique_ptr<Pages>> pages;
  for (int i = 0; i < 12; ++i)
    pages.push_back(std::make_unique<Pages>(i % 3 == 0 ? 16 : 2));
  for (int round = 0; round < 3; ++round)
    for (const auto& one : pages) {
      CHECK(rig.use(*one) == Reach::direct);
      CHECK(rig.domain.live() <= 4);
      CHECK(rig.cache.counters().bytes <= 32 * kPage);
    }
  CHECK(rig.cache.counters().evicted > 20);
  const Pages large(33);
  CHECK(rig.use(large) == Reach::copy);
}

TEST_CASE("Ranges in use are not taken away from those who use them") {
  Rig rig({.regions_max = 2});
  const Pages a(2), b(2), c(2);
  Reached first, second;
  REQUIRE(rig.view->find(a.data(), a.size(), first) == Reach::direct);
  REQUIRE(rig.view->find(b.data(), b.size(), second) == Reach::direct);
  CHECK(rig.use(c) == Reach::copy);
  CHECK(rig.domain.valid(first.rkey));
  CHECK(rig.domain.valid(second.rkey));
  CHECK(RegistrationView::leave(first));
  CHECK(RegistrationView::leave(second));
  bool direct = false;
  for (int i = 0; i < 100 && !direct; ++i)
    direct = rig.use(c) == Reach::direct;
  CHECK(direct);
}

TEST_CASE("A queue pair that does nothing lets go of what another one needs room for") {
  Rig rig({.regions_max = 1});
  const Pages a(2), b(2);
  REQUIRE(rig.use(a) == Reach::direct);
  auto reactor = std::move(Reactor::create(rig.clock, rig.log).value());
  const auto other = rig.make_view(*reactor);
  Reached reached;
  bool direct = false;
  for (int i = 0; i < 200 && !direct; ++i) {
    direct = other->find(b.data(), b.size(), reached) == Reach::direct;
    (void)rig.reactor->turn();
  }
  REQUIRE(direct);
  CHECK(RegistrationView::leave(reached));
  CHECK(rig.domain.live() == 1);
}

TEST_CASE("Overlapping ranges that take turns are copied, and registered only now and then") {
  Rig rig;
  const Pages pages(12);
  REQUIRE(rig.use(pages.data(), 8 * kPage) == Reach::direct);
  int direct = 0;
  for (int i = 0; i < 64; ++i) {
    direct += rig.use(pages.data() + 4 * kPage, 8 * kPage) == Reach::direct ? 1 : 0;
    direct += rig.use(pages.data(), 8 * kPage) == Reach::direct ? 1 : 0;
  }
  CHECK(direct >= 48);
  CHECK(rig.cache.counters().registered <= 1 + 128 / 8);
}

TEST_CASE("Explicit registrations are exact, last, and follow their mapping") {
  Rig rig;
  Pages pages(8);
  auto kept = rig.cache.add({pages.data() + 100, 3 * kPage});
  REQUIRE(kept);
  CHECK(rig.use(pages.data() + 100, 512) == Reach::direct);
  const auto key = rig.key;
  CHECK(rig.cache.add({pages.data(), 512}).error().kind() == ErrorKind::in_use);
  pages.map_again();
  CHECK_FALSE(rig.domain.valid(key));
  CHECK(rig.use(pages.data() + 100, 512) == Reach::direct);
  CHECK(rig.key != key);
  pages.unmap();
  CHECK(rig.use(pages.data() + 100, 512) == Reach::unmapped);
  pages.map_again();
  CHECK(rig.use(pages.data() + 100, 512) == Reach::direct);
  rig.cache.remove(*kept);
  CHECK(rig.domain.live() == 0);
  CHECK(rig.use(pages.data() + 100, 512) == Reach::copy);
  kept->reset();
}

TEST_CASE("Whichever registration is refused, the use is copied, and said so once") {
  for (std::uint64_t n = 0; n < 6; ++n) {
    CAPTURE(n);
    Rig rig;
    rig.domain.fails_at = n;
    bool refused = false;
    for (int round = 0; round < 6; ++round) {
      Pages pages(4);
      const Reach reach = rig.use(pages);
      refused |= reach == Reach::copy;
      CHECK(reach != Reach::unmapped);
    }
    CHECK(refused);
    CHECK(rig.log.lines().size() == 1);
    CHECK(rig.domain.live() == 0);
    bool direct = false;
    const Pages pages(4);
    for (int i = 0; i < 100 && !direct; ++i)
      direct = rig.use(pages) == Reach::direct;
    CHECK(direct);
  }
}

namespace {

/// A userfaultfd whose n-th arm() fails.
class Refusing final : public coherence::Watch {
 public:
  Refusing(std::unique_ptr<coherence::Watch> inner, std::uint64_t& left, ErrorKind kind)
      : inner_(std::move(inner)), left_(left), kind_(kind) {}
  std::string_view source() const noexcept override { return inner_->source(); }
  int descriptor() const noexcept override { return inner_->descriptor(); }
  bool changing() noexcept override { return inner_->changing(); }
  coherence::Change acknowledge() noexcept override { return inner_->acknowledge(); }
  Result<void> arm() override {
    if (left_-- == 0) return failure(kind_, "userfaultfd: refused by the test");
    return inner_->arm();
  }
  bool knows_the_end() const noexcept override { return inner_->knows_the_end(); }

 private:
  std::unique_ptr<coherence::Watch> inner_;
  std::uint64_t& left_;
  ErrorKind kind_;
};

}  // namespace

TEST_CASE("Where userfaultfd is refused nothing is registered, everything is copied, and one line says why") {
  const ErrorKind kind = GENERATE(ErrorKind::permission, ErrorKind::unsupported, ErrorKind::resource);
  const std::uint64_t n = GENERATE(0u, 1u, 2u);
  CAPTURE(name(kind), n);
  std::uint64_t left = n;
  const SystemClock clock;
  Rig rig({.make_watch = [&](const MemorySpan& memory) -> Result<std::unique_ptr<coherence::Watch>> {
    return std::make_unique<Refusing>(std::move(coherence::make_userfault_watch(memory, clock).value()), left, kind);
  }});
  for (std::uint64_t i = 0; i < n; ++i) {
    const Pages pages(4);
    CHECK(rig.use(pages) == Reach::direct);
  }
  const Pages pages(4);
  CHECK(rig.use(pages) == Reach::copy);
  REQUIRE(rig.log.lines().size() == 1);
  CHECK_THAT(rig.log.lines()[0], Catch::Contains("refused by the test") && Catch::Contains("copied"));
  const bool for_good = kind != ErrorKind::resource;
  Reach reach = Reach::copy;
  for (int i = 0; i < 100 && reach == Reach::copy; ++i)
    reach = rig.use(pages);
  CHECK(reach == (for_good ? Reach::copy : Reach::direct));
  CHECK(rig.log.lines().size() == 1);
}

TEST_CASE("An explicit registration that cannot be watched is registered all the same, and said so") {
  std::uint64_t left = 0;
  const SystemClock clock;
  Rig rig({.make_watch = [&](const MemorySpan& memory) -> Result<std::unique_ptr<coherence::Watch>> {
    return std::make_unique<Refusing>(std::move(coherence::make_userfault_watch(memory, clock).value()), left,
                                      ErrorKind::permission);
  }});
  const Pages pages(4);
  auto kept = rig.cache.add({pages.data(), pages.size()});
  REQUIRE(kept);
  CHECK(rig.use(pages) == Reach::direct);
  CHECK(rig.log.lines().size() == 1);
  rig.cache.remove(*kept);
}

TEST_CASE("Both ways of looking mappings up say the same") {
  const MappingTable best;
  const MappingTable text(MappingTable::Source::text);
  auto memory = SharedMemory::create(Bytes(64 * kKiB), {}).value();
  const std::vector<std::byte> heap(100);
  Pages pages(3);
  int local = 0;
  for (const void* at : std::initializer_list<const void*>{memory.data() + 5000, heap.data(), pages.data(), &local,
                                                           reinterpret_cast<const void*>(&::getpid)}) {
    const auto address = reinterpret_cast<std::uintptr_t>(at);
    const auto one = best.find(address);
    const auto two = text.find(address);
    REQUIRE((one && two));
    CHECK(one->same_as(*two));
    CHECK(one->offset == two->offset);
    CHECK(one->readable == two->readable);
    CHECK(one->brk_heap == two->brk_heap);
    CHECK(best.covering(address, 1).has_value());
  }
  const auto begin = reinterpret_cast<std::uintptr_t>(pages.data());
  pages.unmap();
  for (const MappingTable* table : {&best, &text}) {
    CHECK_FALSE(table->find(begin + kPage));
    CHECK_FALSE(table->covering(begin + kPage, 1));
    CHECK(table->find(begin + kPage, MappingTable::Miss::next).value().begin > begin);
  }
}

TEST_CASE("Memory of malloc's arenas is recognised; memory with a mapping of its own is not mistaken for it") {
  const MappingTable table;
  const auto allocators = [&](const void* at) {
    const auto address = reinterpret_cast<std::uintptr_t>(at);
    return table.allocators(table.find(address).value(), address);
  };
  const Pages pages(100);
  CHECK_FALSE(allocators(pages.data()));
  auto memory = SharedMemory::create(Bytes(kMiB), {}).value();
  CHECK_FALSE(allocators(memory.data()));
  if (!kGlibcMalloc) return;
  const std::vector<std::byte> heap(1000);
  CHECK(allocators(heap.data()));
  std::thread([&] {
    const std::vector<std::byte> of_an_arena(1000);
    CHECK(allocators(of_an_arena.data()));
  }).join();
}

TEST_CASE("The descriptor of a memfd is found among those that are open, and only then") {
  const MappingTable table;
  auto memory = SharedMemory::create(Bytes(64 * kKiB), {}).value();
  const auto mapping = table.find(reinterpret_cast<std::uintptr_t>(memory.data()));
  REQUIRE(mapping);
  CHECK((mapping->shared && mapping->writable));
  CHECK(MappingTable::descriptor_of(*mapping).valid());
  const Pages anonymous(1);
  CHECK_FALSE(
      MappingTable::descriptor_of(table.find(reinterpret_cast<std::uintptr_t>(anonymous.data())).value()).valid());
}
