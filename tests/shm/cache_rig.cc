#include "tests/shm/cache_rig.h"

#include <sys/mman.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <cstring>

#include "target/store/spec.h"

namespace rbt::test {

using namespace std::chrono_literals;
using initiator::Outcome;
using initiator::Request;
using initiator::Submitted;

namespace {

constexpr std::size_t kBlock = 512;
constexpr std::size_t kWindow = 64 * kPage;

// What block `lba` begins with, different for all.
std::uint64_t mark(std::uint64_t lba) {
  return (lba + 1) * 0x9e3779b97f4a7c15;
}

std::byte* reserve() {
  void* const at = ::mmap(nullptr, kWindow, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) std::abort();
  return static_cast<std::byte*>(at);
}

}  // namespace

CachePair::CachePair(transport::Fabric& server, transport::Fabric& client, const Uri& uri,
                     const initiator::BufferCacheOptions& cache)
    : monitor(std::move(transport::coherence::Monitor::start(clock, *log).value())),
      reactor_(std::move(transport::Reactor::create(clock, *log).value())),
      target_(std::move(
          target::Target::open({.clock = clock, .logger = *log, .random = random, .given_reactors = {reactor_.get()}})
              .value())) {
  REQUIRE(target_->add_subsystem(*uri.nqn, {.allow_any_host = true}));
  REQUIRE(target_->add_namespace(
      *uri.nqn,
      std::move(target::make_store("ram:size=16MiB", {.clock = clock, .random = random, .logger = *log}).value())));
  Uri listen = uri;
  listen.nqn.reset();
  listen.nsid.reset();
  REQUIRE(target_->listen(server, listen));
  REQUIRE(target_->start());
  thread_ = std::thread([this] { serve(); });
  initiator::SessionOptions options;
  options.io_queues = 4;
  options.keep_alive = 0s;
  options.connect_timeout = 60s;  // an emulated machine on a busy one
  options.command_timeout = 120s;
  options.buffer_cache = cache;
  auto connected = initiator::Session::connect({client, clock, *log, random, monitor.get()}, uri, options);
  if (!connected) {  // a constructor that throws has no destructor
    reactor_->post([this] { stop_ = true; });
    thread_.join();
    FAIL(connected.error().message());
  }
  session = std::move(*connected);
  fill();
}

CachePair::~CachePair() {
  session.reset();
  reactor_->post([this] { stop_ = true; });
  thread_.join();
}

void CachePair::serve() {
  while (!stop_) {
    (void)reactor_->run_until([this] { return stop_ || held_.load(); }, Instant::max());
    held_.wait(true);
  }
  target_->drain(0s);
  (void)reactor_->run_until([this] { return target_->drained(); }, Instant::max());
}

void CachePair::hold() {
  std::atomic<bool> done{false};
  reactor_->post([&] {
    held_ = true;
    done = true;
    done.notify_one();
  });
  done.wait(false);
}

void CachePair::go_on() {
  held_ = false;
  held_.notify_one();
}

void CachePair::fill() {
  CacheHost host(*this);
  std::vector<std::byte> data(128 * kKiB);
  const iovec piece{data.data(), data.size()};
  for (std::uint64_t lba = 0; lba < blocks(); lba += data.size() / kBlock) {
    for (std::size_t i = 0; i < data.size() / kBlock; ++i) {
      const std::uint64_t word = mark(lba + i);
      std::memcpy(data.data() + i * kBlock, &word, sizeof word);
    }
    Request request;
    REQUIRE(host.queue->write(request, space(), Lba(lba), {&piece, 1}) == Submitted::accepted);
    REQUIRE(host.queue->wait(request, clock.now() + 60s));
    REQUIRE(request.outcome == Outcome::success);
  }
}

CacheHost::CacheHost(CachePair& the_pair) : pair(the_pair) {
  reactor = std::move(transport::Reactor::create(pair.clock, *pair.log).value());
  queue = std::move(pair.session->open_queue_pair(*reactor, {.depth = 4}).value());
}

Submitted CacheHost::start(Request& request, std::uint64_t lba, std::byte* data, std::size_t size) {
  piece = {data, size};
  return queue->read(request, pair.space(), Lba(lba), {&piece, 1});
}

Outcome CacheHost::read(std::uint64_t lba, std::byte* data, std::size_t size) {
  Request request;
  if (start(request, lba, data, size) != Submitted::accepted) return request.outcome;
  if (!queue->wait(request, pair.clock.now() + 60s)) std::abort();  // it is never done
  return request.outcome;
}

void forget(std::byte* data, std::size_t size) {
  for (std::size_t i = 0; i < size; i += kBlock)
    std::memset(data + i, 0, sizeof(std::uint64_t));
}

bool holds(const std::byte* data, std::size_t size, std::uint64_t lba) {
  for (std::size_t i = 0; i < size / kBlock; ++i) {
    std::uint64_t word = 0;
    std::memcpy(&word, data + i * kBlock, sizeof word);
    if (word != mark(lba + i)) return false;
  }
  return true;
}

Place::Place(Random& random, const Kinds& kinds)
    : random_(random), kinds_(kinds), window_(reserve()), other_(reserve()) {
  for (int i = 0; i < 4; ++i)
    files_.push_back(std::move(transport::SharedMemory::create(Bytes(kWindow), {.name = "test"}).value()));
}

Place::~Place() {
  ::munmap(window_, kWindow);
  ::munmap(other_, kWindow);
}

Place::Memory Place::allocate() {
  const std::size_t size = (1 + random_.below(16)) * kPage;
  std::byte* const at = window_ + random_.below(4) * kPage;
  const std::uint64_t kind = random_.below(10);
  if (kind < kinds_.anonymous) {
    if (::mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != at) std::abort();
    return {at, size};
  }
  map(at, size);
  if (kind >= kinds_.anonymous + kinds_.moved) return {at, size};
  void* const moved = ::mremap(at, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, other_ + random_.below(4) * kPage);
  if (moved == MAP_FAILED) std::abort();
  // Any thread's mmap() may have got the hole by now: what is left of the window is given back, and another one taken.
  if (at != window_) ::munmap(window_, static_cast<std::size_t>(at - window_));
  ::munmap(at + size, kWindow - size - static_cast<std::size_t>(at - window_));
  window_ = reserve();
  return {static_cast<std::byte*>(moved), size};
}

void Place::free(const Memory& memory) {
  switch (random_.below(8)) {
    case 0: ::madvise(memory.data, memory.size, MADV_DONTNEED); break;
    case 1: break;  // the next one comes over it
    default:        // given back, and nobody else's until we take it again
      (void)::mmap(memory.data, memory.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  }
}

void Place::map(std::byte* at, std::size_t size) {
  const auto& file = files_[random_.below(files_.size())];
  const std::size_t offset = random_.below((kWindow - size) / kPage) * kPage;
  if (::mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file.span().fd, static_cast<off_t>(offset)) !=
      at)
    std::abort();
}

Tally churn(CachePair& pair, std::uint64_t seed, int rounds, const Place::Kinds& kinds) {
  Tally tally;
  CacheHost host(pair);
  Random random(seed);
  Place place(random, kinds);
  for (int i = 0; i < rounds; ++i) {
    const auto memory = place.allocate();
    const int reads = random.below(4) == 0 ? 2 : 1;
    for (int read = 0; read < reads; ++read) {
      forget(memory.data, memory.size);
      const std::uint64_t lba = random.below(pair.blocks() - memory.size / kBlock);
      if (host.read(lba, memory.data, memory.size) != Outcome::success)
        ++tally.failed;
      else if (!holds(memory.data, memory.size, lba))
        ++tally.stale;
    }
    place.free(memory);
  }
  tally.bytes = host.queue->counters().bytes_read;
  tally.bounced = host.queue->counters().bytes_bounced;
  return tally;
}

}  // namespace rbt::test
