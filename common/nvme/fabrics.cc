#include "common/nvme/fabrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "common/check.h"

namespace rbt::nvme {
namespace {

constexpr std::uint8_t kAttributeNoFlowControl = 1u << 2;
constexpr std::uint32_t kInvalidInData = 1u << 16;

std::array<std::uint8_t, 16> host_id_bytes(const nvmf_connect_data& data) noexcept {
  std::array<std::uint8_t, 16> bytes{};
  std::copy(std::begin(data.hostid), std::end(data.hostid), bytes.begin());
  return bytes;
}

tl::unexpected<ConnectFailure> refuse_connect(StatusCode code) noexcept {
  return tl::unexpected(ConnectFailure{Status::permanent(code), 0});
}

}  // namespace

ConnectFailure invalid_connect_field(std::size_t offset_in_entry) noexcept {
  return {Status::permanent(StatusCode::connect_invalid_parameters),
          static_cast<std::uint32_t>(offset_in_entry & 0xffff)};
}

ConnectFailure invalid_connect_data(std::size_t offset_in_data) noexcept {
  return {Status::permanent(StatusCode::connect_invalid_parameters),
          kInvalidInData | static_cast<std::uint32_t>(offset_in_data & 0xffff)};
}

tl::expected<ConnectRequest, ConnectFailure> parse_connect(const SubmissionQueueEntry& sqe,
                                                           std::span<const std::byte> bytes) {
  const auto command = std::bit_cast<ConnectCommand>(sqe);
  if (command.record_format.get() != 0) return refuse_connect(StatusCode::connect_incompatible_format);
  if (bytes.size() != kConnectDataBytes) return refuse_connect(StatusCode::sgl_invalid_length);
  nvmf_connect_data data;
  std::memcpy(&data, bytes.data(), sizeof(data));

  const Qid qid(command.qid.get());
  const std::uint32_t queue_entries = std::uint32_t{command.sqsize.get()} + 1;
  const Cntlid cntlid(from_le(data.cntlid));
  // 0 is one entry: Base 2.0, 6.3 has it refused
  if (queue_entries < 2) return tl::unexpected(invalid_connect_field(offsetof(ConnectCommand, sqsize)));
  if (qid != Qid(0) && cntlid > kCntlidMax)
    return tl::unexpected(invalid_connect_data(offsetof(nvmf_connect_data, cntlid)));
  auto subsystem_nqn = Nqn::from_field(data.subsysnqn);
  if (!subsystem_nqn) return tl::unexpected(invalid_connect_data(offsetof(nvmf_connect_data, subsysnqn)));
  auto host_nqn = Nqn::from_field(data.hostnqn);
  if (!host_nqn) return tl::unexpected(invalid_connect_data(offsetof(nvmf_connect_data, hostnqn)));

  return ConnectRequest{
      .qid = qid,
      .queue_entries = queue_entries,
      .flow_control = (command.attributes & kAttributeNoFlowControl) != 0 ? SqFlowControl::off : SqFlowControl::on,
      .keep_alive = std::chrono::milliseconds(command.keep_alive_ms.get()),
      .host_id = HostId(host_id_bytes(data)),
      .cntlid = cntlid,
      .subsystem_nqn = std::move(*subsystem_nqn),
      .host_nqn = std::move(*host_nqn),
  };
}

SubmissionQueueEntry encode_connect(const ConnectRequest& request) noexcept {
  check(request.queue_entries >= 2 && request.queue_entries <= 0x10000, "a queue has 2 to 65536 entries");
  const auto keep_alive_ms = std::clamp<std::int64_t>(request.keep_alive.count(), 0, 0xffffffff);
  ConnectCommand command;
  command.qid = request.qid.value();
  command.sqsize = static_cast<std::uint16_t>(request.queue_entries - 1);
  command.attributes = request.flow_control == SqFlowControl::off ? kAttributeNoFlowControl : std::uint8_t{0};
  command.keep_alive_ms = static_cast<std::uint32_t>(keep_alive_ms);
  return std::bit_cast<SubmissionQueueEntry>(command);
}

nvmf_connect_data encode_connect_data(const ConnectRequest& request) noexcept {
  nvmf_connect_data data{};
  std::copy(request.host_id.bytes().begin(), request.host_id.bytes().end(), std::begin(data.hostid));
  data.cntlid = to_le(request.cntlid.value());
  request.subsystem_nqn.store(data.subsysnqn);
  request.host_nqn.store(data.hostnqn);
  return data;
}

ConnectResponse parse_connect_response(std::uint32_t dw0) noexcept {
  return {.cntlid = Cntlid(static_cast<std::uint16_t>(dw0 & 0xffff)),
          .authentication_required = bits(dw0, 17, 1) != 0,
          .secure_channel_required = bits(dw0, 18, 1) != 0};
}

std::uint32_t encode_connect_response(const ConnectResponse& response) noexcept {
  return response.cntlid.value() | std::uint32_t{response.authentication_required} << 17 |
         std::uint32_t{response.secure_channel_required} << 18;
}

std::string describe_invalid_connect(std::uint32_t dw0) {
  const std::uint32_t offset = dw0 & 0xffff;
  if ((dw0 & kInvalidInData) != 0) {
    switch (offset) {
      case offsetof(nvmf_connect_data, hostid): return "the host identifier in the data";
      case offsetof(nvmf_connect_data, cntlid): return "the controller identifier in the data";
      case offsetof(nvmf_connect_data, subsysnqn): return "the subsystem NQN in the data";
      case offsetof(nvmf_connect_data, hostnqn): return "the host NQN in the data";
      default: return fmt::format("byte {} of the data", offset);
    }
  }
  switch (offset) {
    case offsetof(ConnectCommand, record_format): return "the record format in the command";
    case offsetof(ConnectCommand, qid): return "the queue identifier in the command";
    case offsetof(ConnectCommand, sqsize): return "the queue size in the command";
    case offsetof(ConnectCommand, attributes): return "the connect attributes in the command";
    case offsetof(ConnectCommand, keep_alive_ms): return "the keep-alive timeout in the command";
    default: return fmt::format("byte {} of the command", offset);
  }
}

Expected<PropertyAccess> parse_property(const SubmissionQueueEntry& sqe) noexcept {
  const auto command = std::bit_cast<PropertyCommand>(sqe);
  const unsigned size = bits(command.attributes, 0, 3);
  if (size > 1) return refuse(StatusCode::invalid_field);
  PropertyAccess access{command.offset.get(), static_cast<PropertySize>(size), command.value.get()};
  if (access.size == PropertySize::four_bytes) access.value &= 0xffffffff;
  return access;
}

SubmissionQueueEntry encode_property_get(std::uint32_t offset, PropertySize size) noexcept {
  PropertyCommand command;
  command.fabrics_type = static_cast<std::uint8_t>(FabricsType::property_get);
  command.attributes = static_cast<std::uint8_t>(size);
  command.offset = offset;
  return std::bit_cast<SubmissionQueueEntry>(command);
}

SubmissionQueueEntry encode_property_set(const PropertyAccess& access) noexcept {
  PropertyCommand command;
  command.fabrics_type = static_cast<std::uint8_t>(FabricsType::property_set);
  command.attributes = static_cast<std::uint8_t>(access.size);
  command.offset = access.offset;
  command.value = access.value;
  return std::bit_cast<SubmissionQueueEntry>(command);
}

}  // namespace rbt::nvme
