#pragma once
// One queue pair's way into a RegistrationCache: looked up without a lock, without allocating, with one load to learn
// that nothing has changed and a store and a load per use.

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "transport/coherence/use.h"
#include "transport/memory/registration_cache.h"
#include "transport/reactor/reactor.h"

namespace rbt::transport {

/// What became of a lookup.
enum class [[nodiscard]] Reach : std::uint8_t{
    direct,    ///< the peer can reach it: Reached says how
    copy,      ///< it cannot: through memory that it can
    unmapped,  ///< nothing is mapped there
};

/// A use of reachable memory, until RegistrationView::leave().
struct Reached {
  std::uint32_t lkey = 0;
  std::uint32_t rkey = 0;
  bool permanent = false;         ///< the view's own memory: registered for as long as the connection
  coherence::Use* use = nullptr;  ///< null: nobody watches it
  coherence::Pass pass;
};

/// Belongs to one thread, its reactor's. Allocates only when the cache has changed, or on a miss.
class RegistrationView final : coherence::UserHandler {
 public:
  /// `on_overdue`: a mapping changes under requests that are in flight and do not end: close the connection. On the
  /// reactor's thread.
  RegistrationView(RegistrationCache& cache, ProtectionDomain& domain, Reactor& reactor,
                   std::function<void()> on_overdue);
  /// Nothing is in use.
  ~RegistrationView() override;
  RegistrationView(const RegistrationView&) = delete;
  RegistrationView& operator=(const RegistrationView&) = delete;

  /// Begins to listen for what the monitor has to say.
  [[nodiscard]] Result<void> start();
  /// Memory of the queue pair's own; before the first find().
  void add_own(RegisteredMemory& memory);
  /// All of [data, data + size) in one run.
  Reach find(const void* data, std::size_t size, Reached& out);
  /// False: the mapping changed while it was in use; what completions said about the data means nothing.
  [[nodiscard]] static bool leave(const Reached& reached) noexcept {
    return reached.use == nullptr || reached.use->leave(reached.pass) == coherence::Passage::clean;
  }

  /// Any thread: drops, soon, what the cache does not list any more.
  void ask_to_let_go();

 private:
  struct Slot {
    const std::byte* begin = nullptr;
    const std::byte* end = nullptr;
    std::shared_ptr<CachedRegion> region;  // null: own
    std::unique_ptr<coherence::Use> use;   // made at the first use
    std::uint64_t epoch = 0;               // of the region when the keys were read
    std::uint32_t lkey = 0;
    std::uint32_t rkey = 0;
    bool keyed = false;
  };
  /// A mapping of which is known that it cannot be registered: looked at again now and then, for mappings change.
  struct Hopeless {
    Mapping mapping;
    std::uint32_t uses = 0;
  };

  void on_region_overdue(coherence::Use& use) override;
  void on_region_fenced(coherence::Use& use) override;
  void on_region_coherent(coherence::Use&) override {}

  [[nodiscard]] Slot* lookup(const std::byte* data, std::size_t size) noexcept;
  [[nodiscard]] bool enter(Slot& slot, Reached& out);
  [[nodiscard]] bool load_keys(Slot& slot);
  Reach miss(const std::byte* data, std::size_t size, bool known, Reached& out);
  [[nodiscard]] bool hopeless(const std::byte* data, std::size_t size, Reach& reach);
  void refresh();

  RegistrationCache& cache_;
  ProtectionDomain& domain_;
  Reactor& reactor_;
  std::function<void()> on_overdue_;
  coherence::User user_;
  bool watched_ = false;
  std::uint64_t generation_ = 0;
  std::vector<Slot> own_;
  std::vector<Slot> sorted_;
  std::vector<Slot> leaving_;  // not listed any more, still in use
  std::vector<std::shared_ptr<CachedRegion>> listed_;
  std::array<Hopeless, 8> hopeless_{};
  std::size_t next_hopeless_ = 0;
  std::uint32_t pause_ = 0;                  // misses to be copied without trying: there was no room, or no permission
  std::shared_ptr<RegistrationView*> self_;  // for tasks on their way to the reactor; null inside once we are gone
  std::atomic<bool> asked_{false};
};

}  // namespace rbt::transport
