#pragma once
// What a store needs around it, and its operations as plain calls that wait for their end.

#include <atomic>
#include <catch2/catch.hpp>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/log.h"
#include "common/random.h"
#include "target/store/spec.h"
#include "target/store/store.h"
#include "transport/memory/buffer_pool.h"
#include "transport/reactor/reactor.h"

namespace rbt::target::test {

/// Keeps what was logged. Thread-safe, as loggers are.
class Journal final : public Logger {
 public:
  Journal() : Logger(LogLevel::debug) {}
  [[nodiscard]] std::size_t count(std::string_view text) const {
    const std::lock_guard lock(mutex_);
    std::size_t found = 0;
    for (const auto& line : lines_)
      found += line.find(text) != std::string::npos ? 1U : 0U;
    return found;
  }

 private:
  void write(LogLevel, std::string message) override {
    const std::lock_guard lock(mutex_);
    lines_.push_back(std::move(message));
  }
  mutable std::mutex mutex_;
  std::vector<std::string> lines_;
};

/// Gives every region a key of its own.
class KeyDomain final : public transport::ProtectionDomain {
 public:
  Result<std::unique_ptr<transport::MemoryRegion>> register_memory(const transport::MemorySpan& memory,
                                                                   transport::RemoteAccess access) override {
    if (refuse) return failure(ErrorKind::resource, "RLIMIT_MEMLOCK is 64 KiB");
    last_access = access;
    last_span = memory;
    ++registrations;
    return std::make_unique<Region>(memory, ++last_key);
  }
  [[nodiscard]] bool uses_landings() const noexcept override { return lands; }
  [[nodiscard]] std::string_view name() const noexcept override { return "keys"; }

  bool refuse = false;
  bool lands = false;
  std::uint32_t last_key = 0;
  transport::MemorySpan last_span;
  int registrations = 0;
  transport::RemoteAccess last_access = transport::RemoteAccess::read_write;

 private:
  struct Region final : transport::MemoryRegion {
    Region(const transport::MemorySpan& span, std::uint32_t key) : MemoryRegion(span, key, key) {}
  };
};

/// A request that remembers how it ended.
class Waited final : public StoreRequest {
 public:
  void on_store_done(StoreStatus ended) override {
    ++calls;
    status = ended;
    if (then) then();
  }
  /// What the operation returned.
  void began(Progress progress) {
    CHECK(calls == 0);  // never before the call has returned
    if (!progress.pending) on_store_done(progress.status);
  }
  [[nodiscard]] bool done() const noexcept { return calls != 0; }
  int calls = 0;
  StoreStatus status = StoreStatus::unavailable;
  std::function<void()> then;
};

/// Counts what it is told.
struct CountingObserver final : StoreObserver {
  void on_geometry_changed() noexcept override { ++calls; }
  std::atomic<int> calls{0};
};

inline std::vector<std::byte> pattern(std::size_t size, std::uint64_t seed) {
  std::vector<std::byte> bytes(size);
  Random(seed).fill(bytes);
  return bytes;
}

/// One reactor, its buffers, one protection domain; stores and queues on top. SystemClock: the kernel's I/O takes real time.
class StoreRig {
 public:
  explicit StoreRig(Bytes pool_size = Bytes(8 * kMiB)) {
    reactor_ = transport::Reactor::create(clock, journal).value();
    buffers_ = transport::BufferPool::create(pool_size, transport::RemoteAccess::none, {}).value();
    REQUIRE(buffers_->memory().ensure(domain));
  }
  ~StoreRig() {
    queue.reset();
    store.reset();
    CHECK(buffers_->free_bytes() == buffers_->size());  // every buffer came back
  }

  [[nodiscard]] StoreEnvironment environment() { return {clock, random, journal, io, monitor}; }
  [[nodiscard]] Result<std::unique_ptr<Store>> try_open(const std::string& spec) {
    return make_store(spec, environment());
  }
  [[nodiscard]] std::string open_error(const std::string& spec) {
    const auto opened = try_open(spec);
    REQUIRE_FALSE(opened);
    return opened.error().message();
  }
  void open(const std::string& spec) {
    auto opened = try_open(spec);
    INFO((opened ? std::string() : opened.error().message()));
    REQUIRE(opened);
    store = std::move(*opened);
    REQUIRE(store->prepare(domain, 0));
    queue = open_queue();
  }
  void close() {
    queue.reset();
    store.reset();
  }
  [[nodiscard]] std::unique_ptr<StoreQueue> open_queue() {
    auto opened = store->open_queue({*reactor_, *buffers_});
    INFO((opened ? std::string() : opened.error().message()));
    REQUIRE(opened);
    return std::move(*opened);
  }

  void run_until(const std::function<bool()>& done) {
    REQUIRE(reactor_->run_until(done, clock.now() + std::chrono::seconds(30)));
  }
  StoreStatus finish(const std::function<Progress(StoreRequest&)>& operation) {
    Waited request;
    request.began(operation(request));
    run_until([&] { return request.done(); });
    CHECK(request.calls == 1);
    return request.status;
  }

  [[nodiscard]] static BlockRange range(std::uint64_t first, std::uint64_t count) {
    return {Lba(first), Blocks(count)};
  }
  [[nodiscard]] Lease lease(BlockRange over, Intent intent) {
    Lease made;
    made.domain = &domain;
    made.range = over;
    made.intent = intent;
    return made;
  }
  StoreStatus acquire(Lease& made) {
    return finish([&](StoreRequest& request) { return queue->acquire(made, request); });
  }
  [[nodiscard]] static std::vector<std::byte> contents(const Lease& made) {
    std::vector<std::byte> bytes;
    for (const auto& segment : made.segments)
      bytes.insert(bytes.end(), segment.data, segment.data + segment.length);
    return bytes;
  }
  static void fill(const Lease& made, std::span<const std::byte> bytes) {
    std::size_t at = 0;
    for (const auto& segment : made.segments) {
      std::memcpy(segment.data, bytes.data() + at, segment.length);
      at += segment.length;
    }
    REQUIRE(at == bytes.size());
  }

  /// In pieces of what the store takes at a time.
  StoreStatus write(std::uint64_t lba, std::span<const std::byte> bytes, Durability durability = Durability::cached) {
    const Geometry geometry = store->geometry();
    const auto max = geometry.transfer_max.value();
    while (bytes.size() > max) {
      if (const auto status = write(lba, bytes.first(max), durability); status != StoreStatus::ok) return status;
      bytes = bytes.subspan(max);
      lba += max >> geometry.block_shift.value();
    }
    const auto blocks = bytes.size() >> geometry.block_shift.value();
    Lease made = lease(range(lba, blocks), Intent::write);
    if (const auto status = acquire(made); status != StoreStatus::ok) return status;
    fill(made, bytes);
    const auto status = finish([&](StoreRequest& request) { return queue->commit(made, durability, request); });
    queue->release(made);
    return status;
  }
  StoreStatus read(std::uint64_t lba, std::uint64_t blocks, std::vector<std::byte>& bytes) {
    const Geometry geometry = store->geometry();
    const auto max = geometry.block_shift.blocks(geometry.transfer_max).value();
    bytes.clear();
    for (; blocks > 0; lba += std::min(max, blocks), blocks -= std::min(max, blocks)) {
      Lease made = lease(range(lba, std::min(max, blocks)), Intent::read);
      if (const auto status = acquire(made); status != StoreStatus::ok) return status;
      const auto piece = contents(made);
      bytes.insert(bytes.end(), piece.begin(), piece.end());
      queue->release(made);
    }
    return StoreStatus::ok;
  }
  [[nodiscard]] std::vector<std::byte> must_read(std::uint64_t lba, std::uint64_t blocks) {
    std::vector<std::byte> bytes;
    REQUIRE(read(lba, blocks, bytes) == StoreStatus::ok);
    return bytes;
  }
  StoreStatus flush() {
    return finish([&](StoreRequest& request) { return queue->flush(request); });
  }
  StoreStatus discard(std::vector<BlockRange> ranges) {
    return finish([&](StoreRequest& request) { return queue->discard(ranges, request); });
  }
  StoreStatus write_zeroes(BlockRange over, StoreQueue::Deallocate deallocate = StoreQueue::Deallocate::no,
                           Durability durability = Durability::cached) {
    return finish([&](StoreRequest& request) { return queue->write_zeroes(over, deallocate, durability, request); });
  }

  SystemClock clock;
  Random random{1};
  Journal journal;
  KeyDomain domain;
  IoEngineFactory* io = nullptr;
  transport::coherence::Monitor* monitor = nullptr;
  [[nodiscard]] transport::Reactor& reactor() { return *reactor_; }
  [[nodiscard]] transport::BufferPool& buffers() { return *buffers_; }

 private:
  std::unique_ptr<transport::Reactor> reactor_;
  std::unique_ptr<transport::BufferPool> buffers_;

 public:  // destroyed first
  std::unique_ptr<Store> store;
  std::unique_ptr<StoreQueue> queue;
};

}  // namespace rbt::target::test
