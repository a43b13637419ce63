#pragma once
// RDMA CM private data: RDMA Transport 1.0, 3.3 (figures 7 to 9). What both ends agree on before a queue pair
// exists.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <tl/expected.hpp>

#include "common/nvme/endian.h"
#include "common/units.h"

namespace rbt::nvme {

/// With CM_REQ. The CM may deliver more than 32 bytes: what follows is padding.
struct CmRequestData {
  Le16 record_format;
  Le16 qid;
  Le16 host_receive_queue_size;  ///< HRQSIZE, entries
  Le16 host_send_queue_size;     ///< HSQSIZE, entries - 1
  Le16 cntlid;                   ///< of the association, on I/O queues; peers differ on admin queues
  std::array<std::byte, 22> reserved{};
};
static_assert(sizeof(CmRequestData) == 32 && WireType<CmRequestData>);
static_assert(offsetof(CmRequestData, qid) == 2 && offsetof(CmRequestData, host_receive_queue_size) == 4);
static_assert(offsetof(CmRequestData, host_send_queue_size) == 6 && offsetof(CmRequestData, cntlid) == 8);
static_assert(offsetof(CmRequestData, reserved) == 10);

/// With CM_REP. Always sent: SPDK's host reads it without looking.
struct CmAcceptData {
  Le16 record_format;
  Le16 controller_receive_queue_size;  ///< CRQSIZE, entries
  std::array<std::byte, 28> reserved{};
};
static_assert(sizeof(CmAcceptData) == 32 && WireType<CmAcceptData>);
static_assert(offsetof(CmAcceptData, controller_receive_queue_size) == 2 && offsetof(CmAcceptData, reserved) == 4);

/// With CM_REJ, reason 28 (consumer defined).
struct CmRejectData {
  Le16 record_format;
  Le16 status;
};
static_assert(sizeof(CmRejectData) == 4 && WireType<CmRejectData>);
static_assert(offsetof(CmRejectData, status) == 2);

/// Why a connection was refused (figure 9). A peer may send values that are not listed.
enum class CmReject : std::uint16_t {
  invalid_private_data_length = 1,
  invalid_record_format = 2,
  invalid_qid = 3,
  invalid_host_send_queue_size = 4,
  invalid_host_receive_queue_size = 5,
  no_resources = 6,
  invalid_responder_resources = 7,  ///< the specification's "invalid IRD"
  invalid_initiator_depth = 8,      ///< the specification's "invalid ORD"
  invalid_controller_id = 9,
};
/// For people; "unknown reason" for a value that is not listed.
[[nodiscard]] std::string_view name(CmReject reason) noexcept;

/// CM reject reason that says "look into the private data" (InfiniBand, 12.6.7.2).
inline constexpr int kCmReasonConsumerDefined = 28;

/// What the host asks for.
struct CmRequest {
  Qid qid;
  /// Responses that the host can receive at a time, 1 to 65535: the controller's send credits.
  std::uint32_t host_receives = 0;
  /// Commands that the host may have outstanding, 2 to 65536: the controller's receives.
  std::uint32_t host_sends = 0;
  Cntlid cntlid;
};

/// Bytes of a CM_REQ. Null, short, a format other than 0, and queues without entries are refused; what this
/// controller can serve is for the caller to judge.
[[nodiscard]] tl::expected<CmRequest, CmReject> parse_cm_request(std::span<const std::byte> private_data) noexcept;
/// Numbers beyond the ranges above are a bug of the caller's.
[[nodiscard]] CmRequestData encode_cm_request(const CmRequest& request) noexcept;

/// CRQSIZE of a CM_REP: entries. Nothing if short or of another format; the kernel's host does not look
/// either.
[[nodiscard]] std::optional<std::uint16_t> parse_cm_accept(std::span<const std::byte> private_data) noexcept;
[[nodiscard]] CmAcceptData encode_cm_accept(std::uint16_t controller_receives) noexcept;

/// The status of a CM_REJ with reason 28. Nothing if short or of another format.
[[nodiscard]] std::optional<CmReject> parse_cm_reject(std::span<const std::byte> private_data) noexcept;
[[nodiscard]] CmRejectData encode_cm_reject(CmReject reason) noexcept;

}  // namespace rbt::nvme
