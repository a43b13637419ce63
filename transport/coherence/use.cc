#include "transport/coherence/use.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "common/check.h"
#include "transport/coherence/engine.h"
#include "transport/coherence/monitor.h"
#include "transport/coherence/region_body.h"

namespace rbt::transport::coherence {

User::User(UserHandler& handler) : handler_(handler), descriptor_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

User::~User() {
  check(first_ == nullptr, "a user goes after its uses");
  if (descriptor_ >= 0) ::close(descriptor_);
}

void User::ring() noexcept {
  const std::uint64_t one = 1;
  // Fails only when the counter is full, and then the descriptor is readable anyway.
  [[maybe_unused]] const auto written = ::write(descriptor_, &one, sizeof one);
}

void User::dispatch() {
  std::uint64_t rung = 0;
  [[maybe_unused]] const auto got = ::read(descriptor_, &rung, sizeof rung);
  // From the start again after every call: the handler may have changed the list, and destroyed this use. So one call
  // per use and turn, and what is left of its notices is put back.
  for (bool again = true; again;) {
    again = false;
    for (Use* use = first_; use != nullptr; use = use->next_of_user_) {
      const std::uint32_t notices = use->notices_.exchange(0, std::memory_order_acquire);
      if (notices == 0) continue;
      again = true;
      if ((notices & RegionBody::overdue) != 0) {
        use->notices_.fetch_or(notices & ~std::uint32_t{RegionBody::overdue}, std::memory_order_relaxed);
        handler_.on_region_overdue(*use);
      } else if ((notices & RegionBody::coherent) != 0) {
        handler_.on_region_coherent(*use);
      } else {
        handler_.on_region_fenced(*use);
      }
      break;
    }
  }
}

Use::Use(Region& region, User& user) : word_(region.word_), region_(region), user_(user) {
  region.monitor_.engine().attach(*region.body_, *this);
  next_of_user_ = user.first_;
  user.first_ = this;
}

Use::~Use() {
  check(in_flight() == 0, "a use of a region goes when nothing is in flight");
  for (Use** at = &user_.first_; *at != nullptr; at = &(*at)->next_of_user_)
    if (*at == this) {
      *at = next_of_user_;
      break;
    }
  region_.monitor_.engine().detach(*region_.body_, *this);
}

}  // namespace rbt::transport::coherence
