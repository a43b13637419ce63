#pragma once
// What one host has to learn about reservations: the Reservation Notification log page (Base 2.0, 5.16.1.22), the event that
// calls for it, and feature 82h that silences it. Pure: no I/O.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>

#include "common/nvme/reservation.h"
#include "common/nvme/types.h"
#include "common/units.h"

namespace rbt::target {

/// Belongs to its controller's home reactor.
class ReservationNotices {
 public:
  /// More than these that are not read: the oldest are lost, and their numbers show it.
  static constexpr std::size_t kPagesMax = 64;
  static constexpr std::uint8_t kMaskBits =
      NVME_FEAT_RESV_NOTIFY_REGPRE | NVME_FEAT_RESV_NOTIFY_RESREL | NVME_FEAT_RESV_NOTIFY_RESPRE;

  /// Unless it is masked.
  void note(nvme::ReservationNotice notice, Nsid nsid);
  [[nodiscard]] bool event_due() const noexcept { return !pages_.empty() && !told_; }
  /// The event has been sent: there is no other until a page has been read.
  void set_told() noexcept { told_ = true; }
  /// The oldest page; zeroes if there is none.
  [[nodiscard]] nvme_resv_notification_log page() const noexcept;
  /// The host has read it, and did not ask for it to be retained.
  void take() noexcept;
  [[nodiscard]] std::uint8_t mask(Nsid nsid) const noexcept;
  void set_mask(Nsid nsid, std::uint8_t mask);
  /// The host starts anew.
  void clear() noexcept;

 private:
  struct Page {
    std::uint64_t number;  // LPC
    nvme::ReservationNotice notice;
    Nsid nsid;
  };
  std::deque<Page> pages_;
  std::uint64_t last_ = 0;  // number that was given
  bool told_ = false;
  std::map<Nsid, std::uint8_t> masks_;  // those that are not 0
};

}  // namespace rbt::target
