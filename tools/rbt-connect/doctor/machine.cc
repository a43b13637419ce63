#include "tools/rbt-connect/doctor/machine.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <fstream>
#include <system_error>

#include "common/result.h"

namespace rbt::tools::doctor {

namespace {

constexpr std::size_t kContentsMax = 64 * 1024;
constexpr std::size_t kLineMax = 4096;

// Closes it at once: whether it opens is all that is asked.
int error_of(long descriptor) {
  if (descriptor < 0) return errno;
  ::close(static_cast<int>(descriptor));
  return 0;
}

// Whether a line of the file names the module's file: kernel/drivers/block/nbd.ko.xz, whichever dash it is spelt with.
bool lists(const std::filesystem::path& file, std::string_view module) {
  std::ifstream stream(file);
  std::string line;
  while (std::getline(stream, line)) {
    if (line.size() > kLineMax) continue;
    std::string path = line.substr(0, line.find(':'));
    std::replace(path.begin(), path.end(), '-', '_');
    const auto slash = path.rfind('/');
    const std::string_view name = std::string_view(path).substr(slash == std::string::npos ? 0 : slash + 1);
    if (name.starts_with(module) && name.substr(module.size()).starts_with(".ko")) return true;
  }
  return false;
}

}  // namespace

Machine this_machine() {
  Machine machine;
  io_uring_params parameters{};
  machine.io_uring_error = error_of(::syscall(SYS_io_uring_setup, 1, &parameters));
  machine.userfaultfd_error = error_of(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
  return machine;
}

std::filesystem::path below(const Machine& machine, std::string_view path) {
  return machine.root / path.substr(1);
}

bool exists(const Machine& machine, std::string_view path) {
  std::error_code error;
  return std::filesystem::exists(below(machine, path), error);
}

std::optional<std::string> contents(const Machine& machine, std::string_view path) {
  std::ifstream stream(below(machine, path));
  if (!stream) return std::nullopt;
  std::string text(kContentsMax, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (stream.bad()) return std::nullopt;
  text.resize(static_cast<std::size_t>(stream.gcount()));
  return text;
}

int open_error(const Machine& machine, std::string_view path) {
  return error_of(::open(below(machine, path).c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
}

std::string kernel_release(const Machine& machine) {
  const auto text = contents(machine, "/proc/sys/kernel/osrelease");
  if (!text) return "unknown";
  return printable(text->substr(0, text->find('\n')), 64);
}

Module find_module(const Machine& machine, std::string_view module) {
  if (exists(machine, fmt::format("/sys/module/{}", module))) return Module::present;
  const std::string folder = fmt::format("/lib/modules/{}", kernel_release(machine));
  if (!exists(machine, folder)) return Module::hidden;
  if (lists(below(machine, folder + "/modules.builtin"), module)) return Module::present;
  if (lists(below(machine, folder + "/modules.dep"), module)) return Module::loadable;
  return Module::absent;
}

std::string without(const Machine& machine, std::string_view module) {
  const std::string release = kernel_release(machine);
  if (find_module(machine, module) == Module::hidden)
    return fmt::format("{} is not loaded, and there is no /lib/modules/{} to look for it", module, release);
  return fmt::format("Linux {} has no module {}", release, module);
}

bool has(const Machine& machine, Capability capability) {
  const auto status = contents(machine, "/proc/self/status").value_or("");
  const auto at = status.find("CapEff:\t");
  if (at == std::string::npos) return false;
  std::uint64_t bits = 0;
  const char* const digits = status.data() + at + 8;
  const auto [end, error] = std::from_chars(digits, status.data() + status.size(), bits, 16);
  return error == std::errc() && (bits >> static_cast<unsigned>(capability) & 1) != 0;
}

DeviceState examine_device(const Machine& machine, const Device& device) {
  const int error = open_error(machine, device.path);
  if (error == 0) return {true, fmt::format("{} opens", device.path), ""};
  if (error != ENOENT && error != ENXIO && error != ENODEV)
    return {false, fmt::format("{}: {}", device.path, Error::from_errno(error, "opening it").message()),
            error == EACCES || error == EPERM ? "run it as root, or with access to that file (in a container: --device)"
                                              : "look at the file, and at what dmesg says of its driver"};
  switch (find_module(machine, device.module)) {
    case Module::present:
      return {false, fmt::format("{} is in the kernel, {} is not there", device.module, device.path),
              fmt::format("in a container: --device {}; else see that /dev is a devtmpfs", device.path)};
    case Module::loadable:
      return {false, fmt::format("{} is not loaded", device.module), fmt::format("modprobe {}", device.module)};
    case Module::hidden:
      return {false, without(machine, device.module),
              fmt::format("in a container: modprobe {} outside; else {}", device.module, device.package)};
    case Module::absent: break;
  }
  return {false, without(machine, device.module), std::string(device.package)};
}

}  // namespace rbt::tools::doctor
