#pragma once
// The specification's data structures as libnvme declares them: Identify, log pages, discovery entries,
// status codes, feature, log and CNS identifiers. Their integers are little-endian on the wire (__le16 …):
// convert with Le<> or the helpers below. Only the header is used; nothing links libnvme.

#include <nvme/types.h>

#include <bit>

#include "common/nvme/endian.h"

namespace rbt::nvme {

/// Host integer to the little-endian field of a libnvme structure, and back.
template <std::unsigned_integral T>
[[nodiscard]] constexpr T to_le(T value) noexcept {
  return std::bit_cast<T>(Le<T>(value));
}
template <std::unsigned_integral T>
[[nodiscard]] constexpr T from_le(T field) noexcept {
  return std::bit_cast<Le<T>>(field).get();
}

static_assert(sizeof(nvme_id_ctrl) == 4096);         // Base 2.0, 5.17.2.1
static_assert(sizeof(nvme_id_ns) == 4096);           // NVM command set 1.0, 4.1.5.1
static_assert(sizeof(nvmf_connect_data) == 1024);    // Base 2.0, 6.3
static_assert(sizeof(nvmf_disc_log_entry) == 1024);  // Base 2.0, 5.16.1.23
static_assert(sizeof(nvmf_discovery_log) == 1024);
static_assert(offsetof(nvme_id_ctrl, sgls) == 536 && offsetof(nvme_id_ctrl, ioccsz) == 1792);

}  // namespace rbt::nvme
