#include "common/nvme/admin_command.h"

#include <algorithm>

#include "common/check.h"

namespace rbt::nvme {
namespace {

SubmissionQueueEntry entry(AdminOpcode opcode, Nsid nsid = Nsid(0)) noexcept {
  SubmissionQueueEntry sqe;
  sqe.opcode = static_cast<std::uint8_t>(opcode);
  sqe.nsid = nsid.value();
  return sqe;
}

constexpr std::uint32_t low_half(std::uint64_t value) noexcept {
  return static_cast<std::uint32_t>(value & 0xffffffff);
}
constexpr std::uint32_t high_half(std::uint64_t value) noexcept {
  return static_cast<std::uint32_t>(value >> 32);
}

constexpr std::uint64_t kDwordsMax = std::uint64_t{1} << 32;  // NUMD has 32 bits and is 0's based

}  // namespace

IdentifyCommand parse_identify(const SubmissionQueueEntry& sqe) noexcept {
  const std::uint32_t dw10 = sqe.cdw10.get();
  const std::uint32_t dw11 = sqe.cdw11.get();
  return {
      .nsid = sqe.namespace_id(),
      .cns = static_cast<std::uint8_t>(bits(dw10, 0, 8)),
      .cntlid = Cntlid(static_cast<std::uint16_t>(bits(dw10, 16, 16))),
      .cns_specific = static_cast<std::uint16_t>(bits(dw11, 0, 16)),
      .command_set = static_cast<std::uint8_t>(bits(dw11, 24, 8)),
  };
}

SubmissionQueueEntry encode_identify(const IdentifyCommand& command) noexcept {
  auto sqe = entry(AdminOpcode::identify, command.nsid);
  sqe.cdw10 = command.cns | std::uint32_t{command.cntlid.value()} << 16;
  sqe.cdw11 = command.cns_specific | std::uint32_t{command.command_set} << 24;
  return sqe;
}

Expected<GetLogPage> parse_get_log_page(const SubmissionQueueEntry& sqe) noexcept {
  const std::uint32_t dw10 = sqe.cdw10.get();
  const std::uint32_t dw11 = sqe.cdw11.get();
  const std::uint32_t dw14 = sqe.cdw14.get();
  const std::uint64_t offset = std::uint64_t{sqe.cdw13.get()} << 32 | sqe.cdw12.get();
  if (bits(dw14, 23, 1) != 0) return refuse(StatusCode::invalid_field);
  if (offset % 4 != 0) return refuse(StatusCode::invalid_field);
  const std::uint64_t dwords = (std::uint64_t{bits(dw11, 0, 16)} << 16 | bits(dw10, 16, 16)) + 1;
  return GetLogPage{
      .nsid = sqe.namespace_id(),
      .lid = static_cast<std::uint8_t>(bits(dw10, 0, 8)),
      .lsp = static_cast<std::uint8_t>(bits(dw10, 8, 7)),
      .lsi = static_cast<std::uint16_t>(bits(dw11, 16, 16)),
      .retain = bits(dw10, 15, 1) != 0 ? RetainEvent::yes : RetainEvent::no,
      .offset = Bytes(offset),
      .length = Bytes(dwords * 4),
      .command_set = static_cast<std::uint8_t>(bits(dw14, 24, 8)),
  };
}

SubmissionQueueEntry encode_get_log_page(const GetLogPage& command) noexcept {
  const std::uint64_t length = command.length.value();
  check(length >= 4 && length % 4 == 0 && length / 4 <= kDwordsMax, "a log page is read in dwords, 1 to 2^32");
  check(command.offset.value() % 4 == 0, "a log page offset is a multiple of 4");
  const std::uint32_t numd = static_cast<std::uint32_t>(length / 4 - 1);
  auto sqe = entry(AdminOpcode::get_log_page, command.nsid);
  sqe.cdw10 = command.lid | (command.lsp & 0x7fu) << 8 | (command.retain == RetainEvent::yes ? 1u << 15 : 0u) |
              (numd & 0xffff) << 16;
  sqe.cdw11 = numd >> 16 | std::uint32_t{command.lsi} << 16;
  sqe.cdw12 = low_half(command.offset.value());
  sqe.cdw13 = high_half(command.offset.value());
  sqe.cdw14 = std::uint32_t{command.command_set} << 24;
  return sqe;
}

bool copy_log_page(std::span<const std::byte> log, Bytes offset, std::span<std::byte> out) noexcept {
  std::fill(out.begin(), out.end(), std::byte{0});
  if (offset.value() > log.size()) return false;
  const auto rest = log.subspan(static_cast<std::size_t>(offset.value()));
  std::copy_n(rest.begin(), std::min(rest.size(), out.size()), out.begin());
  return true;
}

SetFeatures parse_set_features(const SubmissionQueueEntry& sqe) noexcept {
  const std::uint32_t dw10 = sqe.cdw10.get();
  return {
      .nsid = sqe.namespace_id(),
      .fid = static_cast<std::uint8_t>(bits(dw10, 0, 8)),
      .save = bits(dw10, 31, 1) != 0 ? SaveFeature::yes : SaveFeature::no,
      .value = sqe.cdw11.get(),
      .value2 = sqe.cdw12.get(),
  };
}

SubmissionQueueEntry encode_set_features(const SetFeatures& command) noexcept {
  auto sqe = entry(AdminOpcode::set_features, command.nsid);
  sqe.cdw10 = command.fid | (command.save == SaveFeature::yes ? 1u << 31 : 0u);
  sqe.cdw11 = command.value;
  sqe.cdw12 = command.value2;
  return sqe;
}

Expected<GetFeatures> parse_get_features(const SubmissionQueueEntry& sqe) noexcept {
  const std::uint32_t dw10 = sqe.cdw10.get();
  const std::uint32_t select = bits(dw10, 8, 3);
  if (select > 3) return refuse(StatusCode::invalid_field);
  return GetFeatures{
      .nsid = sqe.namespace_id(),
      .fid = static_cast<std::uint8_t>(bits(dw10, 0, 8)),
      .select = static_cast<FeatureSelect>(select),
      .value = sqe.cdw11.get(),
  };
}

SubmissionQueueEntry encode_get_features(const GetFeatures& command) noexcept {
  auto sqe = entry(AdminOpcode::get_features, command.nsid);
  sqe.cdw10 = command.fid | static_cast<std::uint32_t>(command.select) << 8;
  sqe.cdw11 = command.value;
  return sqe;
}

Expected<QueueCounts> parse_queue_counts(std::uint32_t dword) noexcept {
  const std::uint32_t submission = bits(dword, 0, 16);
  const std::uint32_t completion = bits(dword, 16, 16);
  if (submission == 0xffff || completion == 0xffff) return refuse(StatusCode::invalid_field);
  return QueueCounts{submission + 1, completion + 1};
}

std::uint32_t encode_queue_counts(const QueueCounts& counts) noexcept {
  check(counts.submission >= 1 && counts.submission <= 0xffff && counts.completion >= 1 && counts.completion <= 0xffff,
        "queue counts are 1 to 65535");
  return (counts.submission - 1) | (counts.completion - 1) << 16;
}

AbortCommand parse_abort(const SubmissionQueueEntry& sqe) noexcept {
  const std::uint32_t dw10 = sqe.cdw10.get();
  return {Qid(static_cast<std::uint16_t>(bits(dw10, 0, 16))), Cid(static_cast<std::uint16_t>(bits(dw10, 16, 16)))};
}

SubmissionQueueEntry encode_abort(const AbortCommand& command) noexcept {
  auto sqe = entry(AdminOpcode::abort);
  sqe.cdw10 = command.qid.value() | std::uint32_t{command.cid.value()} << 16;
  return sqe;
}

Expected<FormatCommand> parse_format(const SubmissionQueueEntry& sqe) noexcept {
  const std::uint32_t dw10 = sqe.cdw10.get();
  const std::uint32_t erase = dw10 >> 9 & 7;
  if (erase > static_cast<std::uint32_t>(Erase::cryptographic)) return refuse(StatusCode::invalid_field);
  return FormatCommand{.nsid = sqe.namespace_id(),
                       .format = static_cast<std::uint8_t>((dw10 & 0xf) | (dw10 >> 12 & 3) << 4),
                       .protection = static_cast<std::uint8_t>(dw10 >> 4 & 0x1f),
                       .erase = static_cast<Erase>(erase)};
}

SubmissionQueueEntry encode_format(const FormatCommand& command) noexcept {
  auto sqe = encode_plain(AdminOpcode::format_nvm);
  sqe.nsid = Le32(command.nsid.value());
  sqe.cdw10 = Le32((command.format & 0xfu) | (command.protection & 0x1fu) << 4 |
                   static_cast<std::uint32_t>(command.erase) << 9 | (command.format >> 4 & 3u) << 12);
  return sqe;
}

AsyncEvent parse_async_event(std::uint32_t dw0) noexcept {
  return {static_cast<std::uint8_t>(bits(dw0, 0, 3)), static_cast<std::uint8_t>(bits(dw0, 8, 8)),
          static_cast<std::uint8_t>(bits(dw0, 16, 8))};
}

std::uint32_t encode_async_event(const AsyncEvent& event) noexcept {
  return (event.type & 7u) | std::uint32_t{event.info} << 8 | std::uint32_t{event.lid} << 16;
}

SubmissionQueueEntry encode_plain(AdminOpcode opcode) noexcept {
  return entry(opcode);
}

}  // namespace rbt::nvme
