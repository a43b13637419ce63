#pragma once
// What a source of change events is to one region: how it hears that somebody changes what lies under it, and how it
// lets that somebody go on. userfault.h and lease.h make them; the owner's own calls need none.

#include <cstdint>
#include <string>
#include <string_view>

#include "common/result.h"

namespace rbt::transport::coherence {

/// What happened to the memory or file under a region, as far as its source can tell.
enum class Change : std::uint8_t {
  none,          ///< nothing that concerns the region
  unmapped,      ///< munmap, mmap(MAP_FIXED) over it, mremap that shrinks: already done when we hear of it
  discarded,     ///< madvise DONTNEED, REMOVE, FREE: begins when we acknowledge
  moved,         ///< mremap to another address: already done
  lease_broken,  ///< somebody opens the file, or truncates it by its path: goes on when we acknowledge
  by_owner,      ///< Region::invalidate()
};
[[nodiscard]] std::string_view name(Change change) noexcept;

/// One region's watch of one source. Belongs to its region. Each call says which thread makes it; no two at once, but
/// that arm() may run beside changing() and acknowledge().
///
/// The monitor's thread must not wait for anybody who may be waiting for it. Whoever changes a mapping may hold any lock
/// of the process, malloc's for one: so changing() and acknowledge() take no such lock, allocate nothing, log nothing and
/// change no mapping. (Reading and writing watched memory is harmless: no source catches faults.)
class Watch {
 public:
  virtual ~Watch() = default;
  /// "userfault", "lease": for messages.
  [[nodiscard]] virtual std::string_view source() const noexcept = 0;
  /// Becomes readable when changing() may have become true. The same for the life of the watch.
  [[nodiscard]] virtual int descriptor() const noexcept = 0;
  /// Monitor's thread. Has somebody begun a change that was not acknowledged? Lets nobody go on.
  [[nodiscard]] virtual bool changing() noexcept = 0;
  /// Monitor's thread. Lets everybody who waits go on. Says what they did; for several, the one that matters most.
  virtual Change acknowledge() noexcept = 0;
  /// The thread that restores. From now on changes are heard of (again). Called before the memory is registered, so that
  /// nothing can be missed in between. Errors: `in_use` the cause has not gone away yet (try again later); `not_found`
  /// nothing is mapped there; `unsupported`, `permission` with what would enable it.
  [[nodiscard]] virtual Result<void> arm() = 0;
  /// True if arm() itself says `in_use` until the change is over for certain, so that it can be tried again and again
  /// without anybody's help. A lease can; userfaultfd says when a change begins and never when it ends.
  [[nodiscard]] virtual bool knows_the_end() const noexcept = 0;
};

/// Whether a source can be had in this process, on this kernel: for `rbt-target --explain` and the log.
struct SourceReport {
  std::string_view source;
  bool available = false;
  std::string text;  ///< what it does here; or what is missing, seen how, and what would enable it
};

}  // namespace rbt::transport::coherence
