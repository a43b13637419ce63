#pragma once
// A host on a subsystem's list, as the target knows it while it runs.

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "target/hosts.h"
#include "target/namespace_table.h"

namespace rbt::target {

/// Which NSIDs a host sees: a bit each. Thread-safe; every command looks, nobody waits (relaxed: a command that still sees the
/// old bit has come a moment earlier).
class NamespaceMask {
 public:
  /// None: all.
  explicit NamespaceMask(const std::optional<std::vector<Nsid>>& shown) noexcept;
  [[nodiscard]] bool shows(Nsid nsid) const noexcept {
    const std::uint32_t bit = nsid.value() - 1;  // NSID 0 wraps to a number beyond all
    return bit < Subsystem::kNsidMax && (words_[bit / 64].load(std::memory_order_relaxed) >> (bit % 64) & 1) != 0;
  }
  /// Returns those that are shown now and were not, or the other way; ascending. One caller at a time.
  std::vector<Nsid> show(const std::optional<std::vector<Nsid>>& shown);

 private:
  static constexpr std::size_t kWords = Subsystem::kNsidMax / 64;
  using Words = std::array<std::uint64_t, kWords>;
  static Words words_of(const std::optional<std::vector<Nsid>>& shown) noexcept;
  std::array<std::atomic<std::uint64_t>, kWords> words_;
};

/// Lives as long as its subsystem.
struct Host {
  explicit Host(AllowedHost host) : allowed(std::move(host)), mask(allowed.namespaces) {}
  [[nodiscard]] bool is(const nvme::Nqn& nqn, const nvme::HostId& id) const noexcept {
    return allowed.nqn == nqn && (!allowed.id || *allowed.id == id);
  }
  const AllowedHost allowed;
  NamespaceMask mask;
};

/// The namespaces of a subsystem that one host sees, as its reactor serves them. A value; what it refers to outlives it.
class NamespaceView {
 public:
  NamespaceView() noexcept = default;
  /// `mask` null: all.
  NamespaceView(const NamespaceTable& table, const NamespaceMask* mask) noexcept : table_(&table), mask_(mask) {}
  /// Null if there is none, or none to be seen.
  [[nodiscard]] ServedNamespace* find(Nsid nsid) const noexcept { return shows(nsid) ? table_->find(nsid) : nullptr; }
  /// The first one above `nsid`; null if there is none.
  [[nodiscard]] ServedNamespace* after(Nsid nsid) const noexcept {
    ServedNamespace* next = table_->after(nsid);
    while (next != nullptr && !shows(next->nsid()))
      next = table_->after(next->nsid());
    return next;
  }

 private:
  [[nodiscard]] bool shows(Nsid nsid) const noexcept { return mask_ == nullptr || mask_->shows(nsid); }
  const NamespaceTable* table_ = nullptr;
  const NamespaceMask* mask_ = nullptr;
};

}  // namespace rbt::target
