#pragma once
// Work requests and their completions, in the words of verbs (ibv_post_send(3), ibv_poll_cq(3)).

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "transport/memory_region.h"

namespace rbt::transport {

enum class Opcode : std::uint8_t { send, send_with_invalidate, rdma_read, rdma_write };

/// One work request. `segments` needs to live only until post() has returned; the memory they name, longer (see above).
struct WorkRequest {
  Opcode opcode = Opcode::send;
  bool signaled = true;    ///< completes with a Completion even when it succeeds
  bool copy_data = false;  ///< the data (at most limits().inline_max bytes) is copied by post(): IBV_SEND_INLINE
  std::uint32_t rkey = 0;  ///< RDMA: the peer's region; send_with_invalidate: the key to invalidate
  std::uint64_t remote_address = 0;  ///< RDMA only
  std::uint64_t wr_id = 0;           ///< the consumer's; comes back in the Completion
  std::span<const Segment> segments{};
};

enum class [[nodiscard]] PostResult : std::uint8_t{
    posted,  ///< queued; goes out at the end of this reactor turn at the latest
    full,    ///< the send queue has no room for all of them; none was taken; try again after a completion
    dead,    ///< the connection is closing; none was taken
};

enum class CompletionStatus : std::uint8_t {
  success,
  flushed,              ///< the connection went to the error state before this request was carried out
  local_error,          ///< bad lkey or length: our own defect
  remote_access_error,  ///< the peer's key, bounds or rights did not allow it
  remote_error,         ///< the peer could not carry it out (a SEND larger than its receive buffer, …)
  retry_exceeded,       ///< the peer does not acknowledge
  rnr_retry_exceeded,   ///< the peer has no receive buffer
};
[[nodiscard]] std::string_view name(CompletionStatus status) noexcept;

/// A receive buffer of the poll group, lent to the consumer until PollGroup::release().
struct ReceivedMessage {
  std::span<std::byte> bytes;  ///< exactly what was received; registered (`lkey`), writable by nobody else
  std::uint32_t lkey = 0;
  std::uint32_t buffer_id = 0;  ///< for release()
};

class ConnectionHandler;

struct Completion {
  enum class Type : std::uint8_t { receive, send, rdma_read, rdma_write };
  ConnectionHandler* handler = nullptr;  ///< whose connection; static_cast to the consumer's own type
  Type type = Type::send;
  CompletionStatus status = CompletionStatus::success;
  std::uint64_t wr_id = 0;                        ///< not for receives
  ReceivedMessage message;                        ///< receives that succeeded only
  std::optional<std::uint32_t> invalidated_rkey;  ///< receives: the peer invalidated this key of ours
};

}  // namespace rbt::transport
