#pragma once
// The kernel's ublk interface: <linux/ublk_cmd.h>, and what Debian 12's, of Linux 6.1, does not have yet. Names of our own, so that
// newer headers are as good.

#include <linux/ioctl.h>
#include <linux/ublk_cmd.h>

#include <cstddef>
#include <cstdint>

namespace rbt::initiator::ublk {

static_assert(sizeof(ublksrv_ctrl_cmd) == 32, "fills the command area of a 128-byte SQE from offset 48 on, in part");
static_assert(sizeof(ublksrv_ctrl_dev_info) == 64);
static_assert(sizeof(ublksrv_io_desc) == 24);
static_assert(sizeof(ublksrv_io_cmd) == 16, "the command area of a 64-byte SQE");
static_assert(sizeof(ublk_param_basic) == 32 && sizeof(ublk_param_discard) == 20);
static_assert(offsetof(ublk_params, discard) == 40);  // what newer kernels have more comes behind

/// A control command: the number that kernels before 6.4 take, and the one of all others (UBLK_F_CMD_IOCTL_ENCODE). The wrong
/// direction would be another command.
struct Control {
  std::uint32_t number;
  std::uint32_t encoded;
  const char* name;
};
[[nodiscard]] constexpr Control reads(std::uint32_t number, const char* name) noexcept {
  return {number, _IOC(_IOC_READ, std::uint32_t{'u'}, number, std::uint32_t{sizeof(ublksrv_ctrl_cmd)}), name};
}
[[nodiscard]] constexpr Control writes(std::uint32_t number, const char* name) noexcept {
  return {number, _IOC(_IOC_READ | _IOC_WRITE, std::uint32_t{'u'}, number, std::uint32_t{sizeof(ublksrv_ctrl_cmd)}),
          name};
}
inline constexpr Control kGetDevInfo = reads(0x02, "GET_DEV_INFO");
inline constexpr Control kAddDev = writes(0x04, "ADD_DEV");
inline constexpr Control kDelDev = writes(0x05, "DEL_DEV");
inline constexpr Control kStartDev = writes(0x06, "START_DEV");
inline constexpr Control kStopDev = writes(0x07, "STOP_DEV");
inline constexpr Control kSetParams = writes(0x08, "SET_PARAMS");
inline constexpr Control kGetParams = reads(0x09, "GET_PARAMS");
inline constexpr Control kStartUserRecovery = writes(0x10, "START_USER_RECOVERY");
inline constexpr Control kEndUserRecovery = writes(0x11, "END_USER_RECOVERY");
inline constexpr Control kGetFeatures = reads(0x13, "GET_FEATURES");   // Linux 6.5
inline constexpr Control kDelDevAsync = reads(0x14, "DEL_DEV_ASYNC");  // has no feature bit
inline constexpr Control kUpdateSize = writes(0x15, "UPDATE_SIZE");    // kFeatureUpdateSize
static_assert(kAddDev.encoded == 0xc0207504 && kGetDevInfo.encoded == 0x80207502);

/// The same for commands on /dev/ublkcN.
struct Io {
  std::uint32_t number;
  std::uint32_t encoded;
};
[[nodiscard]] constexpr Io io(std::uint32_t number) noexcept {
  return {number, _IOC(_IOC_READ | _IOC_WRITE, std::uint32_t{'u'}, number, std::uint32_t{sizeof(ublksrv_io_cmd)})};
}
inline constexpr Io kFetch = io(0x20);
inline constexpr Io kCommitAndFetch = io(0x21);
static_assert(kFetch.encoded == 0xc0107520);

inline constexpr std::uint64_t kFeatureRecovery = std::uint64_t{1} << 3;
inline constexpr std::uint64_t kFeatureReissue = std::uint64_t{1} << 4;
inline constexpr std::uint64_t kFeatureIoctlEncode = std::uint64_t{1} << 6;
inline constexpr std::uint64_t kFeatureUpdateSize = std::uint64_t{1} << 10;
/// Of a kernel that does not know GET_FEATURES, as far as we use them (Linux 6.1).
inline constexpr std::uint64_t kFeaturesBefore = kFeatureRecovery | kFeatureReissue;

/// ublksrv_ctrl_dev_info::ublksrv_flags, which the kernel only keeps: "rbtu", the device is one of rbt's, and DeviceOptions::tag.
inline constexpr std::uint32_t kMark = 0x75746272;
[[nodiscard]] constexpr std::uint64_t flags_of(std::uint32_t tag) noexcept {
  return std::uint64_t{tag} << 32 | kMark;
}
[[nodiscard]] constexpr bool is_ours(std::uint64_t flags) noexcept {
  return static_cast<std::uint32_t>(flags) == kMark;
}
[[nodiscard]] constexpr std::uint32_t tag_of(std::uint64_t flags) noexcept {
  return static_cast<std::uint32_t>(flags >> 32);
}

}  // namespace rbt::initiator::ublk
