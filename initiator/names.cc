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

}  // namespace rbt::initiator
