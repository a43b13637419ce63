#include "common/nvme/connect_private_data.h"

#include "common/check.h"

namespace rbt::nvme {

std::string_view name(CmReject reason) noexcept {
  switch (reason) {
    case CmReject::invalid_private_data_length: return "invalid private data length";
    case CmReject::invalid_record_format: return "invalid record format";
    case CmReject::invalid_qid: return "invalid queue identifier";
    case CmReject::invalid_host_send_queue_size: return "invalid host send queue size";
    case CmReject::invalid_host_receive_queue_size: return "invalid host receive queue size";
    case CmReject::no_resources: return "no resources";
    case CmReject::invalid_responder_resources: return "invalid inbound read depth (IRD)";
    case CmReject::invalid_initiator_depth: return "invalid outbound read depth (ORD)";
    case CmReject::invalid_controller_id: return "invalid controller identifier";
  }
  return "unknown reason";
}

tl::expected<CmRequest, CmReject> parse_cm_request(std::span<const std::byte> private_data) noexcept {
  const auto data = read_wire<CmRequestData>(private_data);
  if (!data) return tl::unexpected(CmReject::invalid_private_data_length);
  if (data->record_format.get() != 0) return tl::unexpected(CmReject::invalid_record_format);
  const std::uint32_t host_sends = std::uint32_t{data->host_send_queue_size.get()} + 1;
  const std::uint32_t host_receives = data->host_receive_queue_size.get();
  if (host_sends < 2) return tl::unexpected(CmReject::invalid_host_send_queue_size);
  if (host_receives == 0) return tl::unexpected(CmReject::invalid_host_receive_queue_size);
  return CmRequest{Qid(data->qid.get()), host_receives, host_sends, Cntlid(data->cntlid.get())};
}

CmRequestData encode_cm_request(const CmRequest& request) noexcept {
  check(request.host_receives >= 1 && request.host_receives <= 0xffff, "HRQSIZE is 1 to 65535");
  check(request.host_sends >= 2 && request.host_sends <= 0x10000, "HSQSIZE is 2 to 65536 entries");
  CmRequestData data;
  data.qid = request.qid.value();
  data.host_receive_queue_size = static_cast<std::uint16_t>(request.host_receives);
  data.host_send_queue_size = static_cast<std::uint16_t>(request.host_sends - 1);
  data.cntlid = request.cntlid.value();
  return data;
}

std::optional<std::uint16_t> parse_cm_accept(std::span<const std::byte> private_data) noexcept {
  const auto data = read_wire<CmAcceptData>(private_data);
  if (!data || data->record_format.get() != 0) return std::nullopt;
  return data->controller_receive_queue_size.get();
}

CmAcceptData encode_cm_accept(std::uint16_t controller_receives) noexcept {
  CmAcceptData data;
  data.controller_receive_queue_size = controller_receives;
  return data;
}

std::optional<CmReject> parse_cm_reject(std::span<const std::byte> private_data) noexcept {
  const auto data = read_wire<CmRejectData>(private_data);
  if (!data || data->record_format.get() != 0) return std::nullopt;
  return static_cast<CmReject>(data->status.get());
}

CmRejectData encode_cm_reject(CmReject reason) noexcept {
  CmRejectData data;
  data.status = static_cast<std::uint16_t>(reason);
  return data;
}

}  // namespace rbt::nvme
