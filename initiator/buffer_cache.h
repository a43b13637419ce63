#pragma once
// What a session does with the caller's memory that was not registered explicitly. docs/embedding.md has the whole story.

#include <chrono>
#include <cstdint>

#include "common/units.h"

namespace rbt::initiator {

/// The session's cache of registrations of the caller's memory, with Environment::monitor. docs/embedding.md.
struct BufferCacheOptions {
  enum class Mode : std::uint8_t {
    on,
    off,       ///< what is not registered explicitly is copied
    unwatched  ///< nobody looks: only for programs that never change a mapping they have used (and to show what happens)
  } mode = Mode::on;
  Bytes bytes{kGiB};  ///< registered (and pinned) at a time, without explicit ones; what is idle makes way
  std::uint32_t regions =
      64;  ///< the same in ranges, each with a userfaultfd; over shm 256 memfds per connection are the end
  Bytes size_min{64 *
                 kKiB};  ///< of a command's data that is registered for its own sake; smaller: copied, unless it hits
  /// How long munmap() and its like wait at most for requests in flight on that memory. Then their connection is closed
  /// and they fail with Outcome::disconnected. A little more than half of it is for the requests, the rest for the fence.
  Duration change_wait_max = std::chrono::milliseconds(900);
};

struct BufferCacheCounters {
  std::uint64_t registered = 0;  ///< ranges registered by a use, again after a change, too
  std::uint64_t refused = 0;     ///< uses that were large enough, and were copied
  std::uint64_t evicted = 0;     ///< ranges that made way
  std::uint64_t regions = 0;     ///< now, explicit ones too
  std::uint64_t bytes = 0;       ///< now, explicit ones too
};

}  // namespace rbt::initiator
