#include "target/subsystem.h"

#include <fmt/format.h>

#include <algorithm>

#include "target/host.h"

namespace rbt::target {

NamespaceTotals& NamespaceTotals::operator+=(const NamespaceCounters& counters) noexcept {
  reads += counters.reads.load(std::memory_order_relaxed);
  writes += counters.writes.load(std::memory_order_relaxed);
  other += counters.other.load(std::memory_order_relaxed);
  bytes_read += counters.bytes_read.load(std::memory_order_relaxed);
  bytes_written += counters.bytes_written.load(std::memory_order_relaxed);
  errors += counters.errors.load(std::memory_order_relaxed);
  media_errors += counters.media_errors.load(std::memory_order_relaxed);
  return *this;
}

NamespaceTotals& NamespaceTotals::operator+=(const NamespaceTotals& totals) noexcept {
  reads += totals.reads;
  writes += totals.writes;
  other += totals.other;
  bytes_read += totals.bytes_read;
  bytes_written += totals.bytes_written;
  errors += totals.errors;
  media_errors += totals.media_errors;
  return *this;
}

Namespace::Namespace(Nsid nsid, const Subsystem& subsystem, std::unique_ptr<Store> store, std::size_t reactors,
                     std::uint64_t opening)
    : geometry(store->geometry()),
      nsid_(nsid),
      subsystem_(subsystem),
      store_(std::move(store)),
      reactors_(reactors),
      opening_(opening),
      counters_(std::make_unique<NamespaceCounters[]>(reactors)) {}

Namespace::~Namespace() {
  if (store_ != nullptr) static_cast<void>(take_store());
}

std::unique_ptr<Store> Namespace::take_store() noexcept {
  store_->observe(nullptr);
  return std::move(store_);
}

std::string Namespace::who() const {
  return fmt::format("namespace {} ({}) of {}", nsid_.value(), store_->spec(), subsystem_.nqn().text());
}

NamespaceTotals Namespace::totals() const noexcept {
  NamespaceTotals totals;
  for (std::size_t i = 0; i < reactors_; ++i)
    totals += counters_[i];
  return totals;
}

Subsystem::Subsystem(std::size_t index, Description description) : index_(index), description_(std::move(description)) {
  for (AllowedHost& host : description_.allowed_hosts)
    hosts_.push_back(std::make_unique<Host>(std::move(host)));
  description_.allowed_hosts.clear();
}

Subsystem::~Subsystem() = default;

const Host* Subsystem::find(const nvme::Nqn& nqn, const nvme::HostId& id) const noexcept {
  const auto found = std::find_if(hosts_.begin(), hosts_.end(), [&](const auto& host) { return host->is(nqn, id); });
  return found != hosts_.end() ? found->get() : nullptr;
}

bool Subsystem::allows(const nvme::Nqn& nqn, const nvme::HostId& id) const noexcept {
  if (find(nqn, id) != nullptr) return true;
  return description_.allow_any_host &&
         std::none_of(hosts_.begin(), hosts_.end(), [&](const auto& host) { return host->allowed.nqn == nqn; });
}

}  // namespace rbt::target
