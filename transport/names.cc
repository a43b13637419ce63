#include "transport/work.h"

namespace rbt::transport {

std::string_view name(CompletionStatus status) noexcept {
  switch (status) {
    case CompletionStatus::success: return "success";
    case CompletionStatus::flushed: return "flushed";
    case CompletionStatus::local_error: return "local protection or length error";
    case CompletionStatus::remote_access_error: return "remote access error";
    case CompletionStatus::remote_error: return "remote operation error";
    case CompletionStatus::retry_exceeded: return "no acknowledgement (retry count exceeded)";
    case CompletionStatus::rnr_retry_exceeded: return "peer had no receive buffer (RNR retry count exceeded)";
  }
  return "unknown";
}

}  // namespace rbt::transport
