#pragma once
// A target, and a host that reads into memory which comes and goes: for tests of the initiator's registration cache over
// any fabric. What a target writes must be where the caller's pointer points.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "common/random.h"
#include "initiator/initiator.h"
#include "target/target.h"
#include "transport/coherence/monitor.h"
#include "transport/memory/shared_memory.h"

namespace rbt::test {

inline constexpr std::size_t kPage = 4096;

/// A target on a thread that can be made to hold still, and a session with it. Each block of the disk says which one it is.
struct CachePair {
  /// `uri` names subsystem and namespace; the target listens there.
  CachePair(transport::Fabric& server, transport::Fabric& client, const Uri& uri,
            const initiator::BufferCacheOptions& cache);
  ~CachePair();
  CachePair(const CachePair&) = delete;
  CachePair& operator=(const CachePair&) = delete;
  /// From now on the target answers nothing.
  void hold();
  void go_on();
  [[nodiscard]] const initiator::Namespace& space() const { return session->namespaces().front(); }
  [[nodiscard]] std::uint64_t blocks() const { return space().blocks.value(); }

  SystemClock clock;
  Random random{1};
  std::unique_ptr<Logger> log =
      make_stderr_logger(std::getenv("RBT_LOG") != nullptr ? LogLevel::info : LogLevel::error);
  std::unique_ptr<transport::coherence::Monitor> monitor;
  std::unique_ptr<initiator::Session> session;

 private:
  void serve();
  void fill();
  std::unique_ptr<transport::Reactor> reactor_;
  std::unique_ptr<target::Target> target_;
  bool stop_ = false;  // the thread's
  std::atomic<bool> held_{false};
  std::thread thread_;
};

/// A queue pair for the thread that makes it.
struct CacheHost {
  explicit CacheHost(CachePair& the_pair);
  initiator::Submitted start(initiator::Request& request, std::uint64_t lba, std::byte* data, std::size_t size);
  initiator::Outcome read(std::uint64_t lba, std::byte* data, std::size_t size);
  CachePair& pair;
  std::unique_ptr<transport::Reactor> reactor;
  std::unique_ptr<initiator::QueuePair> queue;
  iovec piece{};
};

/// Makes whatever is there be none of the disk's blocks.
void forget(std::byte* data, std::size_t size);
/// Whether the blocks from `lba` on are there.
[[nodiscard]] bool holds(const std::byte* data, std::size_t size, std::uint64_t lba);

/// An allocator as programs have them: memory comes and goes at the same few addresses, now of this memfd, now of that one,
/// now anonymous.
class Place {
 public:
  struct Kinds {
    std::uint64_t anonymous = 1;  ///< of ten
    std::uint64_t moved = 1;      ///< of ten
  };
  Place(Random& random, const Kinds& kinds);
  ~Place();
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  struct Memory {
    std::byte* data;
    std::size_t size;
  };
  [[nodiscard]] Memory allocate();
  void free(const Memory& memory);

 private:
  void map(std::byte* at, std::size_t size);
  Random& random_;
  Kinds kinds_;
  std::vector<transport::SharedMemory> files_;
  std::byte* window_;
  std::byte* other_;
};

struct Tally {
  std::uint64_t stale = 0;
  std::uint64_t failed = 0;
  std::uint64_t bytes = 0;
  std::uint64_t bounced = 0;
};
/// Allocate, read, free, and again, on a queue pair of its own.
[[nodiscard]] Tally churn(CachePair& pair, std::uint64_t seed, int rounds, const Place::Kinds& kinds = {});

}  // namespace rbt::test
