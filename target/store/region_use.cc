#include "target/store/region_use.h"

#include <sys/epoll.h>

namespace rbt::target {

using transport::coherence::RegionState;
using transport::coherence::Use;

RegionUse::RegionUse(transport::Reactor& reactor, RegionObserver* observer) noexcept
    : reactor_(reactor), observer_(observer) {}

Result<std::unique_ptr<RegionUse>> RegionUse::open(transport::coherence::Region* region, transport::Reactor& reactor,
                                                   RegionObserver* observer) {
  std::unique_ptr<RegionUse> made(new RegionUse(reactor, observer));
  if (region == nullptr) return made;
  transport::coherence::UserHandler& handler = *made;
  made->user_.emplace(handler);
  made->use_.emplace(*region, *made->user_);
  auto* const user = &*made->user_;
  auto watched = reactor.watch(user->descriptor(), EPOLLIN, [user](std::uint32_t) { user->dispatch(); });
  if (!watched) return failure(std::move(watched.error()));
  return made;
}

RegionUse::~RegionUse() {
  if (user_) reactor_.unwatch(user_->descriptor());
}

// The adapter refuses the old keys from the fence on, which ends the connections that still use them; and what the CPU
// or an adapter did before is not believed: leave() says so to whoever commits.
void RegionUse::on_region_overdue(Use&) {
  tell(RegionState::quiescing);
}
void RegionUse::on_region_fenced(Use&) {
  tell(RegionState::fenced);
}
void RegionUse::on_region_coherent(Use&) {
  tell(RegionState::coherent);
}

void RegionUse::tell(RegionState state) {
  if (observer_ != nullptr) observer_->on_region_changed(state);
}

}  // namespace rbt::target
