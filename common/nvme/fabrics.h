#pragma once
// Fabrics commands: Connect (Base 2.0, 6.3), Property Get and Set (6.5, 6.6). The properties are in
// properties.h.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <tl/expected.hpp>

#include "common/nvme/capsule.h"
#include "common/nvme/nqn.h"
#include "common/nvme/types.h"

namespace rbt::nvme {

/// A submission queue entry with type 01h; the data are nvmf_connect_data.
struct ConnectCommand {
  std::uint8_t opcode = kFabricsOpcode;
  std::uint8_t flags = kFlagsSgl;
  Le16 cid;
  std::uint8_t fabrics_type = static_cast<std::uint8_t>(FabricsType::connect);
  std::array<std::byte, 19> reserved5{};
  SglDescriptor sgl;
  Le16 record_format;
  Le16 qid;
  Le16 sqsize;                  ///< entries - 1
  std::uint8_t attributes = 0;  ///< CATTR
  std::byte reserved47{};
  Le32 keep_alive_ms;  ///< KATO, of the admin queue
  std::array<std::byte, 12> reserved52{};
};
static_assert(sizeof(ConnectCommand) == 64 && WireType<ConnectCommand>);
static_assert(offsetof(ConnectCommand, fabrics_type) == 4 && offsetof(ConnectCommand, sgl) == 24);
static_assert(offsetof(ConnectCommand, record_format) == 40 && offsetof(ConnectCommand, qid) == 42);
static_assert(offsetof(ConnectCommand, sqsize) == 44 && offsetof(ConnectCommand, attributes) == 46);
static_assert(offsetof(ConnectCommand, keep_alive_ms) == 48 && offsetof(ConnectCommand, reserved52) == 52);
static_assert(offsetof(nvmf_connect_data, cntlid) == 16 && offsetof(nvmf_connect_data, subsysnqn) == 256);
static_assert(offsetof(nvmf_connect_data, hostnqn) == 512);

inline constexpr std::uint32_t kConnectDataBytes = sizeof(nvmf_connect_data);
inline constexpr Cntlid kCntlidDynamic{0xffff};    ///< admin queue: any controller
inline constexpr Cntlid kCntlidAnyStatic{0xfffe};  ///< admin queue: any controller of the static model
inline constexpr Cntlid kCntlidMax{0xffef};        ///< F0h and more are reserved

/// Whether the host wants SQHD in completions (CATTR bit 2).
enum class SqFlowControl : std::uint8_t { on, off };

/// What a host asks for with Connect.
struct ConnectRequest {
  Qid qid;
  std::uint32_t queue_entries = 0;  ///< 2 to 65536; MQES is for the controller to check
  SqFlowControl flow_control = SqFlowControl::on;
  std::chrono::milliseconds keep_alive{0};  ///< 0: off. Admin queue only; 0 to 2^32 - 1 ms
  HostId host_id;
  /// I/O queues: 0 to kCntlidMax. Admin queue: also kCntlidDynamic, kCntlidAnyStatic or another reserved
  /// value.
  Cntlid cntlid;
  Nqn subsystem_nqn;
  Nqn host_nqn;
};

/// How a Connect fails: the status and, for invalid parameters, where (DW0 of the completion).
struct ConnectFailure {
  Status status;
  std::uint32_t dw0 = 0;
};
/// connect_invalid_parameters, pointing at byte `offset` of the entry or of the data (Base 2.0, 6.3, figure
/// "Connect Response – Connect Invalid Parameters"): the kernel's host prints what it points at.
[[nodiscard]] ConnectFailure invalid_connect_field(std::size_t offset_in_entry) noexcept;
[[nodiscard]] ConnectFailure invalid_connect_data(std::size_t offset_in_data) noexcept;

/// `sqe` has opcode 7Fh and type 01h; `data` is what its data pointer yielded. Data of a length other than
/// 1024 bytes is sgl_invalid_length, another record format connect_incompatible_format.
[[nodiscard]] tl::expected<ConnectRequest, ConnectFailure> parse_connect(const SubmissionQueueEntry& sqe,
                                                                         std::span<const std::byte> data);

/// For the initiator: the entry, without cid and data pointer, and its data.
[[nodiscard]] SubmissionQueueEntry encode_connect(const ConnectRequest& request) noexcept;
[[nodiscard]] nvmf_connect_data encode_connect_data(const ConnectRequest& request) noexcept;

/// DW0 of a successful Connect.
struct ConnectResponse {
  Cntlid cntlid;
  bool authentication_required = false;  ///< ATR, bit 17
  bool secure_channel_required = false;  ///< ASCR, bit 18
};
[[nodiscard]] ConnectResponse parse_connect_response(std::uint32_t dw0) noexcept;
[[nodiscard]] std::uint32_t encode_connect_response(const ConnectResponse& response) noexcept;

/// For people: where DW0 of a failed Connect (status connect_invalid_parameters) points, "the subsystem NQN
/// in the data".
[[nodiscard]] std::string describe_invalid_connect(std::uint32_t dw0);

enum class PropertySize : std::uint8_t { four_bytes = 0, eight_bytes = 1 };

/// Property Get (no value) or Set.
struct PropertyCommand {
  std::uint8_t opcode = kFabricsOpcode;
  std::uint8_t flags = kFlagsSgl;
  Le16 cid;
  std::uint8_t fabrics_type = 0;
  std::array<std::byte, 19> reserved5{};
  SglDescriptor sgl;            ///< reserved here, yet Linux's target wants "no data" in it
  std::uint8_t attributes = 0;  ///< bits 2:0: 0 four bytes, 1 eight bytes
  std::array<std::byte, 3> reserved41{};
  Le32 offset;
  Le64 value;
  std::array<std::byte, 8> reserved56{};
};
static_assert(sizeof(PropertyCommand) == 64 && WireType<PropertyCommand>);
static_assert(offsetof(PropertyCommand, fabrics_type) == 4 && offsetof(PropertyCommand, sgl) == 24);
static_assert(offsetof(PropertyCommand, attributes) == 40);
static_assert(offsetof(PropertyCommand, offset) == 44 && offsetof(PropertyCommand, value) == 48);

struct PropertyAccess {
  std::uint32_t offset = 0;
  PropertySize size = PropertySize::four_bytes;
  std::uint64_t value = 0;  ///< Set only; fits `size`: what a host puts above four bytes is dropped
};

/// Sizes other than 4 and 8 are invalid_field. Whether the property exists with that size: properties.h.
[[nodiscard]] Expected<PropertyAccess> parse_property(const SubmissionQueueEntry& sqe) noexcept;
/// For the initiator, without cid.
[[nodiscard]] SubmissionQueueEntry encode_property_get(std::uint32_t offset, PropertySize size) noexcept;
[[nodiscard]] SubmissionQueueEntry encode_property_set(const PropertyAccess& access) noexcept;

}  // namespace rbt::nvme
