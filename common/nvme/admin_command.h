#pragma once
// Admin commands (Base 2.0, 5): fields of the entry into values, and back for the initiator. CNS, log,
// feature and event identifiers are libnvme's constants (common/nvme/types.h); whether this controller has
// them is for the target to say. Encoders leave cid and data pointer to the caller unless the command moves
// no data.

#include <cstddef>
#include <cstdint>
#include <span>

#include "common/nvme/capsule.h"
#include "common/units.h"

namespace rbt::nvme {

/// Identify (Base 2.0, 5.17): always 4096 bytes.
inline constexpr std::uint32_t kIdentifyBytes = 4096;
struct IdentifyCommand {
  Nsid nsid{};
  std::uint8_t cns = 0;  ///< NVME_IDENTIFY_CNS_*
  Cntlid cntlid{};       ///< for the lists that begin at a controller
  std::uint16_t cns_specific = 0;
  std::uint8_t command_set = 0;  ///< CSI: 0 NVM
};
[[nodiscard]] IdentifyCommand parse_identify(const SubmissionQueueEntry& sqe) noexcept;
[[nodiscard]] SubmissionQueueEntry encode_identify(const IdentifyCommand& command) noexcept;

/// Whether reading a log also acknowledges its event (RAE = 0) or not (RAE = 1).
enum class RetainEvent : std::uint8_t { no, yes };

/// Get Log Page (Base 2.0, 5.16).
struct GetLogPage {
  Nsid nsid{};
  std::uint8_t lid = 0;   ///< NVME_LOG_LID_*
  std::uint8_t lsp = 0;   ///< 7 bits, the log's own
  std::uint16_t lsi = 0;  ///< the log's own
  RetainEvent retain = RetainEvent::no;
  Bytes offset{};                ///< LPO: a multiple of 4, anything up to 2^64 - 4
  Bytes length{};                ///< 4 to 2^34: NUMD is 0's based dwords
  std::uint8_t command_set = 0;  ///< CSI
};
/// invalid_field: an offset that is not dword-aligned, or that is an index (OT = 1), which no log here
/// supports.
[[nodiscard]] Expected<GetLogPage> parse_get_log_page(const SubmissionQueueEntry& sqe) noexcept;
/// `length` not a multiple of 4 or outside the range above is a bug of the caller's, as is an unaligned
/// `offset`.
[[nodiscard]] SubmissionQueueEntry encode_get_log_page(const GetLogPage& command) noexcept;

/// Answers a Get Log Page: fills `out` with the log from `offset` on and zeroes behind its end
/// (Base 2.0, 5.16.1). False, and `out` zeroed, if `offset` lies beyond the log: for the caller to answer
/// with invalid_field.
[[nodiscard]] bool copy_log_page(std::span<const std::byte> log, Bytes offset, std::span<std::byte> out) noexcept;

enum class SaveFeature : std::uint8_t { no, yes };

/// Set Features (Base 2.0, 5.27).
struct SetFeatures {
  Nsid nsid{};
  std::uint8_t fid = 0;  ///< NVME_FEAT_FID_*
  SaveFeature save = SaveFeature::no;
  std::uint32_t value = 0;   ///< DW11
  std::uint32_t value2 = 0;  ///< DW12, which few features use
};
[[nodiscard]] SetFeatures parse_set_features(const SubmissionQueueEntry& sqe) noexcept;
[[nodiscard]] SubmissionQueueEntry encode_set_features(const SetFeatures& command) noexcept;

enum class FeatureSelect : std::uint8_t { current = 0, default_value = 1, saved = 2, supported = 3 };

/// Get Features (Base 2.0, 5.15).
struct GetFeatures {
  Nsid nsid{};
  std::uint8_t fid = 0;
  FeatureSelect select = FeatureSelect::current;
  std::uint32_t value = 0;  ///< DW11
};
/// invalid_field: a reserved SEL.
[[nodiscard]] Expected<GetFeatures> parse_get_features(const SubmissionQueueEntry& sqe) noexcept;
[[nodiscard]] SubmissionQueueEntry encode_get_features(const GetFeatures& command) noexcept;

/// DW11 and DW0 of feature 07h (Base 2.0, 5.27.1.5).
struct QueueCounts {
  std::uint32_t submission = 1;  ///< 1 to 65536: NSQR and NCQR are 0's based
  std::uint32_t completion = 1;
};
/// invalid_field: 65535 (0's based) in either place is not allowed.
[[nodiscard]] Expected<QueueCounts> parse_queue_counts(std::uint32_t dword) noexcept;
/// Counts outside 1 to 65535 are a bug of the caller's.
[[nodiscard]] std::uint32_t encode_queue_counts(const QueueCounts& counts) noexcept;

/// Abort (Base 2.0, 5.1).
struct AbortCommand {
  Qid qid;
  Cid cid;
};
[[nodiscard]] AbortCommand parse_abort(const SubmissionQueueEntry& sqe) noexcept;
[[nodiscard]] SubmissionQueueEntry encode_abort(const AbortCommand& command) noexcept;

/// What Format NVM does with what the blocks hold: nobody asks for anything, it is gone, or its key is.
enum class Erase : std::uint8_t { unsaid = 0, user_data = 1, cryptographic = 2 };
/// Format NVM (Base 2.0, 5.14; NVM 1.0, 4.1.3).
struct FormatCommand {
  Nsid nsid{};
  std::uint8_t format = 0;      ///< LBAF, 0 to 63
  std::uint8_t protection = 0;  ///< MSET, PI and PIL as they stand; 0: none
  Erase erase = Erase::unsaid;  ///< SES
};
/// invalid_field: a reserved SES.
[[nodiscard]] Expected<FormatCommand> parse_format(const SubmissionQueueEntry& sqe) noexcept;
[[nodiscard]] SubmissionQueueEntry encode_format(const FormatCommand& command) noexcept;

/// DW0 of an Asynchronous Event Request's completion (Base 2.0, 5.2).
struct AsyncEvent {
  std::uint8_t type = 0;  ///< 3 bits, NVME_AER_*
  std::uint8_t info = 0;
  std::uint8_t lid = 0;  ///< the log to read
};
[[nodiscard]] AsyncEvent parse_async_event(std::uint32_t dw0) noexcept;
[[nodiscard]] std::uint32_t encode_async_event(const AsyncEvent& event) noexcept;

/// Keep Alive, Asynchronous Event Request and their like: nothing but an opcode.
[[nodiscard]] SubmissionQueueEntry encode_plain(AdminOpcode opcode) noexcept;

}  // namespace rbt::nvme
