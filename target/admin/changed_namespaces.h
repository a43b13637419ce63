#pragma once
// What one host has to learn about namespaces: the Changed Namespace List log page (Base 2.0, 5.16.1.5) and the
// asynchronous event that calls for it (5.2). Pure: no I/O.

#include <array>
#include <cstdint>
#include <vector>

#include "common/nvme/endian.h"
#include "common/units.h"

namespace rbt::target {

/// Belongs to its controller's home reactor.
class ChangedNamespaces {
 public:
  /// Of the log page; more changes than that are "many": FFFFFFFFh alone.
  static constexpr std::size_t kEntries = 1024;
  using Page = std::array<nvme::Le32, kEntries>;

  /// `nsid` has come, gone or changed since the host read the log.
  void note(Nsid nsid);
  /// An event has to be sent, as soon as the host wants events and has a request for one here.
  [[nodiscard]] bool event_due() const noexcept { return !quiet() && !told_; }
  /// The event has been sent: there is no other until the log has been read.
  void set_told() noexcept { told_ = true; }

  /// In ascending order, zeroes behind; FFFFFFFFh and nothing else if they are too many.
  [[nodiscard]] Page page() const noexcept;
  /// The host has read the log and did not ask for it to be retained; or it starts anew.
  void clear() noexcept;

 private:
  [[nodiscard]] bool quiet() const noexcept { return changed_.empty() && !many_; }
  std::vector<Nsid> changed_;  // ascending
  bool many_ = false;
  bool told_ = false;
};

}  // namespace rbt::target
