#include <fmt/format.h>
#include <fmt/ranges.h>

#include "initiator/queue_pair.h"

namespace rbt::initiator {

std::string_view name(Operation operation) noexcept {
  switch (operation) {
    case Operation::read: return "read";
    case Operation::write: return "write";
    case Operation::compare: return "compare";
    case Operation::flush: return "flush";
    case Operation::discard: return "discard";
    case Operation::write_zeroes: return "write zeroes";
  }
  return "unknown";
}

std::string_view name(Outcome outcome) noexcept {
  switch (outcome) {
    case Outcome::pending: return "pending";
    case Outcome::success: return "success";
    case Outcome::failed: return "failed";
    case Outcome::timed_out: return "timed out";
    case Outcome::disconnected: return "disconnected";
    case Outcome::aborted: return "aborted";
    case Outcome::out_of_range: return "out of range";
    case Outcome::misaligned: return "not whole blocks";
    case Outcome::unsupported: return "unsupported";
    case Outcome::unmapped: return "unmapped memory";
  }
  return "unknown";
}

std::string identity(const Namespace& disk) {
  if (!disk.uuid.is_zero()) return disk.uuid.to_string();
  if (disk.nguid != decltype(disk.nguid){}) return fmt::format("{:02x}", fmt::join(disk.nguid, ""));
  if (disk.eui64 != decltype(disk.eui64){}) return fmt::format("{:02x}", fmt::join(disk.eui64, ""));
  return "";
}

}  // namespace rbt::initiator
