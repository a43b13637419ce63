#pragma once
// One reactor's way into a coherence region (transport/coherence/region.h), or into memory that needs none.

#include <optional>

#include "target/store/store.h"
#include "transport/coherence/region.h"
#include "transport/coherence/use.h"
#include "transport/reactor/reactor.h"

namespace rbt::target {

/// Told what becomes of the region. The reactor's thread.
class RegionObserver {
 public:
  virtual ~RegionObserver() = default;
  virtual void on_region_changed(transport::coherence::RegionState state) = 0;
};

/// The reactor's thread. Nothing in flight at its end.
class RegionUse final : private transport::coherence::UserHandler {
 public:
  /// `region`: null for memory that nobody can take away. `observer` may be null.
  [[nodiscard]] static Result<std::unique_ptr<RegionUse>> open(transport::coherence::Region* region,
                                                               transport::Reactor& reactor, RegionObserver* observer);
  ~RegionUse() override;

  /// Granted: the memory may be touched, and its keys hold, until leave().
  [[nodiscard]] transport::coherence::Pass enter() noexcept {
    return use_ ? use_->enter() : transport::coherence::Pass{0, true};
  }
  transport::coherence::Passage leave(transport::coherence::Pass pass) noexcept {
    return use_ ? use_->leave(pass) : transport::coherence::Passage::clean;
  }

 private:
  RegionUse(transport::Reactor& reactor, RegionObserver* observer) noexcept;
  void on_region_overdue(transport::coherence::Use& use) override;
  void on_region_fenced(transport::coherence::Use& use) override;
  void on_region_coherent(transport::coherence::Use& use) override;
  void tell(transport::coherence::RegionState state);

  transport::Reactor& reactor_;
  RegionObserver* observer_;
  std::optional<transport::coherence::User> user_;
  std::optional<transport::coherence::Use> use_;
};

}  // namespace rbt::target
