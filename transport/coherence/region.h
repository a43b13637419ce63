#pragma once
// A region: registered memory whose pages somebody may exchange under the adapter. MR de-coherence is what happens
// then without this: the adapter goes on with pages that are nobody's any more, and every completion says success.
//
//   event -> quiesce -> fence -> acknowledge -> restore -> resume
//
// quiesce: no request may begin (Use::enter), those in flight end, at most RegionOptions::drain_max; then the users are
// told to close their connections. fence: deregister. acknowledge: whoever changes the mapping goes on; until then it is
// blocked, at most RegionOptions::acknowledge_max. restore: watch and register the same addresses again, with new keys.
// docs/coherence.md has the why, and what cannot be seen.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/result.h"
#include "transport/coherence/use.h"
#include "transport/coherence/watch.h"
#include "transport/memory/registered_memory.h"

namespace rbt::transport::coherence {

class Monitor;
struct RegionBody;

[[nodiscard]] std::string_view name(RegionState state) noexcept;

/// What a region deregisters and registers again. Never called twice at a time; from the monitor's threads and from those
/// that call Region::restore().
class Registration {
 public:
  virtual ~Registration() = default;
  /// When it has returned without an error, no adapter can reach the old pages any more. Also called after a restore()
  /// that came too late or failed: undoing nothing is fine. Should not allocate or take locks that are held during
  /// allocation (watch.h says why); if it blocks, acknowledge_max is the end of it, and of the region.
  [[nodiscard]] virtual Result<void> fence() = 0;
  /// Registers everything again, with new keys. The place, too, to look first if the memory is still what it should be
  /// (the file's size). All or nothing. `in_use`: to be tried again later.
  [[nodiscard]] virtual Result<void> restore() = 0;
};

/// The usual one: a RegisteredMemory, in all the domains that it knows.
class MemoryRegistration final : public Registration {
 public:
  explicit MemoryRegistration(RegisteredMemory& memory) noexcept : memory_(memory) {}
  [[nodiscard]] Result<void> fence() override;
  [[nodiscard]] Result<void> restore() override;

 private:
  RegisteredMemory& memory_;
};

struct RegionOptions {
  std::string name;                                           ///< for messages
  Duration drain_max = std::chrono::milliseconds(500);        ///< for requests in flight, from the event on
  Duration acknowledge_max = std::chrono::milliseconds(900);  ///< for all until the acknowledgement, from the event on
  bool restore_by_itself = false;                             ///< needs watches that all know the end of a change
  Duration restore_retry = std::chrono::milliseconds(10);     ///< first pause between attempts, doubles up to …
  Duration restore_retry_max = std::chrono::milliseconds(500);  ///< … this
};

/// Snapshot of what has happened, for statistics and tests.
struct RegionCounters {
  std::uint64_t events = 0;           ///< times it left `coherent`
  std::uint64_t overdue = 0;          ///< users told to close their connections
  std::uint64_t fences_failed = 0;    ///< fence() failed, or did not answer within acknowledge_max
  std::uint64_t restores = 0;         ///< times it came back to `coherent`
  std::uint64_t restores_failed = 0;  ///< attempts that failed
  Duration blocked_last{};            ///< event to acknowledgement: how long the changer waited for us
  Duration blocked_max{};
  Change last_change = Change::none;
};

/// Made by Monitor::add(), not registered (`fenced`) until restore(). Thread-safe.
class Region {
 public:
  /// Fences, lets everybody go on, and forgets it. After its Uses. Waits for a fence or restore that is under way.
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  [[nodiscard]] RegionState state() const noexcept {
    return RegionWord::state(word_.value.load(std::memory_order_acquire));
  }
  /// Watches and registers, on the caller's thread, which takes as long as registering takes; fine if it is coherent
  /// already. Never from whoever handles an event. The caller must know that the change is over: registering while
  /// madvise() still runs pins the pages that it is about to drop. What Watch::arm() knows of that, it refuses (`in_use`:
  /// take the copying path and try again). Errors: of arm() and Registration::restore(); `unsupported` once it is gone.
  [[nodiscard]] Result<void> restore();
  /// restore(), on a thread of the monitor, again and again until it succeeds or fails for good; then the users hear of
  /// it. Only with restore_by_itself. For a region that could not be registered when it was made.
  void restore_when_possible();
  /// For the owner that is about to change the mapping itself: returns when the region is fenced, or an error: then it
  /// is gone. Takes drain_max at most, plus the time to deregister, acknowledge_max in all. Not from a thread whose own
  /// requests are in flight on it, unless their connections may be lost. Then change the mapping, then restore(); it does
  /// not restore by itself before that. Threads::manual: only begins, and says `timed_out`.
  [[nodiscard]] Result<void> invalidate();
  /// invalidate(), `mapping_change()`, restore().
  template <typename MappingChange>
  [[nodiscard]] Result<void> change(MappingChange&& mapping_change) {
    if (auto fenced = invalidate(); !fenced) return fenced;
    mapping_change();
    return restore();
  }

  [[nodiscard]] RegionCounters counters() const;
  [[nodiscard]] const RegionOptions& options() const noexcept { return options_; }

 private:
  friend class Monitor;
  friend class Use;
  Region(Monitor& monitor, Registration& registration, std::vector<std::unique_ptr<Watch>> watches,
         RegionOptions options);

  RegionWord word_;
  RegionOptions options_;
  Monitor& monitor_;
  std::unique_ptr<RegionBody> body_;
};

}  // namespace rbt::transport::coherence
