#include "target/admin/reservation_notices.h"

#include <algorithm>

namespace rbt::target {

using nvme::to_le;

void ReservationNotices::note(nvme::ReservationNotice notice, Nsid nsid) {
  static_assert(NVME_FEAT_RESV_NOTIFY_REGPRE == 1 << NVME_RESV_NOTIFY_RNLPT_REGISTRATION_PREEMPTED);
  static_assert(NVME_FEAT_RESV_NOTIFY_RESREL == 1 << NVME_RESV_NOTIFY_RNLPT_RESERVATION_RELEASED);
  static_assert(NVME_FEAT_RESV_NOTIFY_RESPRE == 1 << NVME_RESV_NOTIFY_RNLPT_RESERVATION_PREEMPTED);
  if ((mask(nsid) >> static_cast<unsigned>(notice) & 1) != 0) return;
  if (pages_.size() == kPagesMax) pages_.pop_front();
  pages_.push_back({++last_, notice, nsid});
}

nvme_resv_notification_log ReservationNotices::page() const noexcept {
  nvme_resv_notification_log log{};
  if (pages_.empty()) return log;
  const Page& oldest = pages_.front();
  log.lpc = to_le(oldest.number);
  log.rnlpt = static_cast<std::uint8_t>(oldest.notice);
  log.nalp = static_cast<std::uint8_t>(std::min<std::size_t>(pages_.size() - 1, 255));
  log.nsid = to_le(oldest.nsid.value());
  return log;
}

void ReservationNotices::take() noexcept {
  if (!pages_.empty()) pages_.pop_front();
  told_ = false;
}

std::uint8_t ReservationNotices::mask(Nsid nsid) const noexcept {
  const auto found = masks_.find(nsid);
  return found != masks_.end() ? found->second : std::uint8_t{0};
}

void ReservationNotices::set_mask(Nsid nsid, std::uint8_t mask) {
  if (mask == 0)
    masks_.erase(nsid);
  else
    masks_[nsid] = mask;
}

void ReservationNotices::clear() noexcept {
  pages_.clear();
  last_ = 0;
  told_ = false;
  masks_.clear();
}

}  // namespace rbt::target
