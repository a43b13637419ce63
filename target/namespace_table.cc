#include "target/namespace_table.h"

#include <algorithm>

#include "common/check.h"
#include "target/reactor_context.h"

namespace rbt::target {

ServedNamespace::ServedNamespace(Namespace& shared, ReactorContext& reactor)
    : shared_(shared), reactor_(reactor), counters_(shared.counters(reactor.index())), geometry_(shared.geometry) {}

Result<void> ServedNamespace::prepare(const Reach& reach) {
  if (auto prepared = shared_.store().prepare(*reach.domain, reach.path_mtu); !prepared)
    return failure(std::move(prepared.error()).within(shared_.who()));
  if (queue_ != nullptr) return {};
  auto opened = shared_.store().open_queue(reactor_.store_queue_context());
  if (!opened) return failure(std::move(opened.error()).within(shared_.who()));
  queue_ = std::move(*opened);
  return {};
}

void ServedNamespace::last_left() noexcept {
  reactor_.release_later(*this);
}

namespace {

template <typename Pointers>
auto position(Pointers& ascending, Nsid nsid) noexcept {
  return std::lower_bound(ascending.begin(), ascending.end(), nsid,
                          [](const auto& each, Nsid wanted) { return each->nsid() < wanted; });
}

}  // namespace

ServedNamespace* NamespaceTable::after(Nsid nsid) const noexcept {
  const auto found = std::upper_bound(ascending_.begin(), ascending_.end(), nsid,
                                      [](Nsid wanted, const auto& each) { return wanted < each->nsid(); });
  return found != ascending_.end() ? found->get() : nullptr;
}

bool NamespaceTable::has_write_cache() const noexcept {
  return std::any_of(ascending_.begin(), ascending_.end(), [](const auto& ns) { return ns->geometry().write_cache; });
}

Result<void> NamespaceTable::prepare(const Reach& reach) {
  if (std::find(reaches_.begin(), reaches_.end(), reach) != reaches_.end()) return {};
  for (const auto& ns : ascending_)
    if (auto prepared = ns->prepare(reach); !prepared) return prepared;
  reaches_.push_back(reach);
  return {};
}

Result<void> NamespaceTable::add(std::unique_ptr<ServedNamespace> ns) {
  const std::uint32_t nsid = ns->nsid().value();
  check(find(ns->nsid()) == nullptr, "a namespace is added where none is");
  for (const Reach& reach : reaches_)
    if (auto prepared = ns->prepare(reach); !prepared) return prepared;
  if (by_nsid_.size() < nsid) by_nsid_.resize(nsid, nullptr);
  by_nsid_[nsid - 1] = ns.get();
  ascending_.insert(position(ascending_, ns->nsid()), std::move(ns));
  return {};
}

std::unique_ptr<ServedNamespace> NamespaceTable::take(Nsid nsid) noexcept {
  if (find(nsid) == nullptr) return nullptr;
  by_nsid_[nsid.value() - 1] = nullptr;
  const auto found = position(ascending_, nsid);
  auto taken = std::move(*found);
  ascending_.erase(found);
  return taken;
}

}  // namespace rbt::target
