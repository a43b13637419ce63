#include "common/nvme/access.h"

#include <array>
#include <cstddef>
#include <cstring>

#include "common/nvme/endian.h"
#include "common/nvme/types.h"

namespace rbt::nvme {

// libnvme's end in arrays without a size, which no object of C++ can have.
struct AccessLogHeader {
  Le64 changes;
  Le16 groups;
  std::array<std::byte, 6> reserved10{};
};
struct AccessGroup {
  Le32 group;
  Le32 namespaces;
  Le64 changes;
  std::uint8_t state = 0;
  std::array<std::byte, 15> reserved17{};
};
static_assert(sizeof(AccessLogHeader) == kAccessLogHeaderBytes && sizeof(AccessGroup) == kAccessGroupBytes);
static_assert(offsetof(AccessLogHeader, groups) == 8 && offsetof(AccessGroup, namespaces) == 4);
static_assert(offsetof(AccessGroup, changes) == 8 && offsetof(AccessGroup, state) == 16);
static_assert(static_cast<int>(AccessState::non_optimized) == NVME_ANA_STATE_NONOPTIMIZED);
static_assert(static_cast<int>(AccessState::persistent_loss) == NVME_ANA_STATE_PERSISTENT_LOSS);
static_assert(static_cast<int>(AccessState::change) == NVME_ANA_STATE_CHANGE);

namespace {

std::optional<AccessState> parse_state(std::uint8_t value) noexcept {
  switch (static_cast<AccessState>(value)) {
    case AccessState::optimized:
    case AccessState::non_optimized:
    case AccessState::inaccessible:
    case AccessState::persistent_loss:
    case AccessState::change: return static_cast<AccessState>(value);
  }
  return std::nullopt;
}

}  // namespace

std::string_view name(AccessState state) noexcept {
  switch (state) {
    case AccessState::optimized: return "optimized";
    case AccessState::non_optimized: return "non-optimized";
    case AccessState::inaccessible: return "inaccessible";
    case AccessState::persistent_loss: return "persistent-loss";
    case AccessState::change: return "change";
  }
  return "unknown";
}

Status access_status(AccessState state) noexcept {
  switch (state) {
    case AccessState::optimized:
    case AccessState::non_optimized: return {};
    case AccessState::inaccessible: return StatusCode::ana_inaccessible;
    case AccessState::persistent_loss: return StatusCode::ana_persistent_loss;
    case AccessState::change: return StatusCode::ana_transition;
  }
  return StatusCode::internal_path_error;
}

std::vector<std::byte> encode_access_log(const AccessLog& log) {
  const AccessLogHeader header{.changes = log.changes, .groups = std::uint16_t{1}};
  const AccessGroup group{.group = log.group,
                          .namespaces = static_cast<std::uint32_t>(log.namespaces.size()),
                          .changes = log.changes,
                          .state = static_cast<std::uint8_t>(log.state)};
  std::vector<std::byte> out(sizeof header + sizeof group + log.namespaces.size() * sizeof(Le32));
  std::memcpy(out.data(), &header, sizeof header);
  std::memcpy(out.data() + sizeof header, &group, sizeof group);
  std::byte* at = out.data() + sizeof header + sizeof group;
  for (const Nsid nsid : log.namespaces) {
    const Le32 le(nsid.value());
    std::memcpy(at, &le, sizeof le);
    at += sizeof le;
  }
  return out;
}

std::optional<AccessState> find_access_state(std::span<const std::byte> log, std::uint32_t wanted) noexcept {
  if (log.size() < kAccessLogHeaderBytes) return std::nullopt;
  AccessLogHeader header;
  std::memcpy(&header, log.data(), sizeof header);
  log = log.subspan(sizeof header);
  for (unsigned left = header.groups.get(); left != 0 && log.size() >= kAccessGroupBytes; --left) {
    AccessGroup group;
    std::memcpy(&group, log.data(), sizeof group);
    if (group.group.get() == wanted) return parse_state(group.state & 0xf);
    const std::uint64_t bytes = sizeof group + std::uint64_t{group.namespaces.get()} * sizeof(Le32);
    if (bytes > log.size()) break;
    log = log.subspan(bytes);
  }
  return std::nullopt;
}

}  // namespace rbt::nvme
