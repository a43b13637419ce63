#include "transport/coherence/monitor.h"

#include <fmt/format.h>

#include "transport/coherence/engine.h"
#include "transport/coherence/lease.h"
#include "transport/coherence/userfault.h"

namespace rbt::transport::coherence {

Monitor::Monitor(std::unique_ptr<Engine> engine) noexcept : engine_(std::move(engine)) {}
Monitor::~Monitor() = default;

Result<std::unique_ptr<Monitor>> Monitor::start(const Clock& clock, Logger& logger, const MonitorOptions& options) {
  auto engine = std::make_unique<Engine>(clock, logger, options);
  if (auto started = engine->start(); !started) return failure(std::move(started.error()));
  return std::unique_ptr<Monitor>(new Monitor(std::move(engine)));
}

Result<std::unique_ptr<Region>> Monitor::add(Registration& registration, std::vector<std::unique_ptr<Watch>> watches,
                                             RegionOptions options) {
  for (const auto& watch : watches)
    if (options.restore_by_itself && !watch->knows_the_end())
      return failure(ErrorKind::invalid_argument,
                     fmt::format("{}: cannot restore by itself: {} does not say when a change is over", options.name,
                                 watch->source()));
  std::unique_ptr<Region> region(new Region(*this, registration, std::move(watches), std::move(options)));
  if (auto added = engine_->add(*region->body_); !added) {
    region->body_.reset();
    return failure(std::move(added.error()));
  }
  return region;
}

LeaseSource& Monitor::leases() noexcept {
  return engine_->leases();
}

std::vector<SourceReport> Monitor::explain() const {
  return {explain_userfault(), explain_lease()};
}

bool Monitor::turn_watch() {
  return engine_->turn_watch(0);
}
bool Monitor::turn_fence() {
  return engine_->turn_fence();
}
bool Monitor::turn_restore() {
  return engine_->turn_restore();
}

Region::Region(Monitor& monitor, Registration& registration, std::vector<std::unique_ptr<Watch>> watches,
               RegionOptions options)
    : options_(std::move(options)), monitor_(monitor) {
  word_.fence_needed = monitor.engine().fence_needed();
  word_.value.store(RegionWord::make(0, RegionState::fenced), std::memory_order_relaxed);
  body_ = std::make_unique<RegionBody>(*this, word_, options_, registration, std::move(watches));
}

Region::~Region() {
  if (body_ != nullptr) monitor_.engine().remove(*body_);
}

Result<void> Region::restore() {
  return monitor_.engine().restore(*body_, Engine::By::owner);
}
void Region::restore_when_possible() {
  monitor_.engine().restore_when_possible(*body_);
}
Result<void> Region::invalidate() {
  return monitor_.engine().invalidate(*body_);
}
RegionCounters Region::counters() const {
  return monitor_.engine().counters(*body_);
}

}  // namespace rbt::transport::coherence
