#include "target/subsystem.h"

#include <algorithm>

namespace rbt::target {

NamespaceTotals& NamespaceTotals::operator+=(const NamespaceCounters& counters) noexcept {
  reads += counters.reads.load(std::memory_order_relaxed);
  writes += counters.writes.load(std::memory_order_relaxed);
  other += counters.other.load(std::memory_order_relaxed);
  bytes_read += counters.bytes_read.load(std::memory_order_relaxed);
  bytes_written += counters.bytes_written.load(std::memory_order_relaxed);
  errors += counters.errors.load(std::memory_order_relaxed);
  return *this;
}

NamespaceTotals& NamespaceTotals::operator+=(const NamespaceTotals& totals) noexcept {
  reads += totals.reads;
  writes += totals.writes;
  other += totals.other;
  bytes_read += totals.bytes_read;
  bytes_written += totals.bytes_written;
  errors += totals.errors;
  return *this;
}

Namespace::Namespace(Nsid nsid, std::size_t index, std::unique_ptr<Store> store, std::size_t reactors)
    : nsid_(nsid),
      index_(index),
      store_(std::move(store)),
      geometry_(store_->geometry()),
      reactors_(reactors),
      counters_(std::make_unique<NamespaceCounters[]>(reactors)) {}

NamespaceTotals Namespace::totals() const noexcept {
  NamespaceTotals totals;
  for (std::size_t i = 0; i < reactors_; ++i)
    totals += counters_[i];
  return totals;
}

bool Subsystem::allows(const nvme::Nqn& host) const noexcept {
  if (description_.allow_any_host) return true;
  const auto& hosts = description_.allowed_hosts;
  return std::find(hosts.begin(), hosts.end(), host) != hosts.end();
}

std::optional<Nsid> Subsystem::free_nsid() const noexcept {
  for (std::uint32_t nsid = 1; nsid <= kNsidMax; ++nsid)
    if (find(Nsid(nsid)) == nullptr) return Nsid(nsid);
  return std::nullopt;
}

bool Subsystem::has_write_cache() const noexcept {
  return std::any_of(ascending_.begin(), ascending_.end(),
                     [](const Namespace* ns) { return ns->geometry().write_cache; });
}

void Subsystem::add(std::unique_ptr<Namespace> ns) {
  const std::uint32_t nsid = ns->nsid().value();
  if (by_nsid_.size() < nsid) by_nsid_.resize(nsid, nullptr);
  by_nsid_[nsid - 1] = ns.get();
  ascending_.clear();
  for (const Namespace* each : by_nsid_)
    if (each != nullptr) ascending_.push_back(each);
  owned_.push_back(std::move(ns));
}

}  // namespace rbt::target
