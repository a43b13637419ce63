#pragma once
// Questions that several concerns ask of a machine's files.

#include <optional>
#include <string>
#include <string_view>

#include "tools/rbt-connect/doctor/doctor.h"

namespace rbt::tools::doctor {

/// `path` is absolute, as on the machine itself.
[[nodiscard]] std::filesystem::path below(const Machine& machine, std::string_view path);
[[nodiscard]] bool exists(const Machine& machine, std::string_view path);
/// The first 64 KiB; nothing if it cannot be read.
[[nodiscard]] std::optional<std::string> contents(const Machine& machine, std::string_view path);
/// errno of opening it for reading and writing; 0: it opens.
[[nodiscard]] int open_error(const Machine& machine, std::string_view path);

/// "6.12.95-amd64"; "unknown" if it is not told.
[[nodiscard]] std::string kernel_release(const Machine& machine);

enum class Module : std::uint8_t {
  present,   ///< loaded, or part of the kernel
  loadable,  ///< modprobe would find it
  absent,    ///< not among this kernel's modules
  hidden,    ///< not loaded, and this kernel's modules are not to be seen: a container, or a kernel without any
};
/// `module` with underscores: "nvme_rdma".
[[nodiscard]] Module find_module(const Machine& machine, std::string_view module);

/// "Linux 6.1.0-13-amd64 has no module nbd", for one that is absent or hidden.
[[nodiscard]] std::string without(const Machine& machine, std::string_view module);

/// Numbers of linux/capability.h.
enum class Capability : unsigned { ipc_lock = 14, sys_admin = 21 };
/// Whether this process has it: /proc/self/status.
[[nodiscard]] bool has(const Machine& machine, Capability capability);

/// A device that a module makes, and that we must be able to open.
struct Device {
  std::string_view path;
  std::string_view module;
  std::string_view package;  ///< where an absent module comes from
};
struct DeviceState {
  bool usable = false;
  std::string seen{};
  std::string remedy{};
};
[[nodiscard]] DeviceState examine_device(const Machine& machine, const Device& device);

}  // namespace rbt::tools::doctor
