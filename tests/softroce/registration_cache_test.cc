// The initiator's registration cache over a device that pins pages: memory that is unmapped, replaced, moved and
// discarded between reads. First what happens without the watch, then that it does not happen with it.
#include "tests/shm/cache_rig.h"
#include "tests/softroce/verbs_under_test.h"

#include <malloc.h>

#include <cstdlib>

using namespace rbt;
using namespace rbt::test;
using initiator::BufferCacheOptions;
using initiator::Outcome;

namespace {

constexpr Place::Kinds kMostlyAnonymous{.anonymous = 6, .moved = 2};

struct Device {
  std::unique_ptr<Logger> warnings = make_stderr_logger(LogLevel::warning);
  std::unique_ptr<transport::verbs::Fabric> fabric = std::move(transport::verbs::Fabric::open(*warnings).value());
  Uri uri = [] {
    Uri out = rdma_uri(rig_address(), 4430);
    out.nqn = nvme::Nqn::parse("nqn.2024-01.io.example:cache").value();
    out.nsid = Nsid(1);
    return out;
  }();
};
struct Pair : Device, CachePair {
  explicit Pair(const BufferCacheOptions& cache) : CachePair(*fabric, *fabric, Device::uri, cache) {}
};

}  // namespace

TEST_CASE("Without the watch, data goes to pages that are nobody's, and every completion says success") {
  Pair pair({.mode = BufferCacheOptions::Mode::unwatched, .size_min = Bytes(kPage)});
  const Tally tally = churn(pair, 1, 100, kMostlyAnonymous);
  CHECK(tally.failed == 0);
  CHECK(tally.stale > 10);
  WARN(tally.stale << " of 100 reads or more were stale");
}

TEST_CASE("With the watch every read is where its pointer points, and most are not copied") {
  Pair pair({.size_min = Bytes(kPage)});
  const Tally tally = churn(pair, 2, 500, kMostlyAnonymous);
  CHECK(tally.failed == 0);
  CHECK(tally.stale == 0);
  CHECK(tally.bounced < tally.bytes / 2);
  WARN(pair.session->buffer_cache().registered << " ranges registered, " << tally.bounced * 100 / tally.bytes
                                               << " % of the data copied");
}

TEST_CASE("malloc and free at the same address, large enough for a mapping of their own") {
  Pair pair({});
  CacheHost host(pair);
  ::mallopt(M_MMAP_THRESHOLD, 128 * 1024);  // which keeps it there: it grows otherwise
  for (std::uint64_t i = 0; i < 50; ++i) {
    const std::size_t size = 1024 * 1024 - i % 7 * kPage;  // more than the heap has left over
    auto* const memory = static_cast<std::byte*>(std::malloc(size));
    REQUIRE(memory != nullptr);
    forget(memory, size);
    REQUIRE(host.read(i, memory, size) == Outcome::success);
    CHECK(holds(memory, size, i));
    std::free(memory);
  }
  CHECK(host.queue->counters().bytes_bounced == 0);
}
