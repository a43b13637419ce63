#include "initiator/present/loop_device.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace rbt::initiator {

using transport::shm::Descriptor;

namespace {

// Others look for a free one, too.
constexpr int kAttempts = 16;

}  // namespace

LoopDevice::LoopDevice(std::uint32_t number, Descriptor device)
    : number_(number), path_(fmt::format("/dev/loop{}", number)), device_(std::move(device)) {}

Result<std::unique_ptr<LoopDevice>> LoopDevice::attach(const std::string& file, std::uint32_t block_size,
                                                       bool read_only) {
  const Descriptor backing(::open(file.c_str(), (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC));
  if (backing.get() < 0) return errno_failure(errno, fmt::format("opening {}", file));
  const Descriptor control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
  if (control.get() < 0 && (errno == ENOENT || errno == ENODEV || errno == ENXIO))
    return rbt::failure(ErrorKind::unsupported, "there is no /dev/loop-control: `modprobe loop`");
  if (control.get() < 0)
    return errno_failure(errno, "opening /dev/loop-control", "loop devices need root, or the group disk");
  loop_config config{};
  config.fd = static_cast<std::uint32_t>(backing.get());
  config.block_size = block_size;
  config.info.lo_flags = LO_FLAGS_DIRECT_IO | LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN;
  if (read_only) config.info.lo_flags |= LO_FLAGS_READ_ONLY;
  std::memcpy(config.info.lo_file_name, file.data(), std::min<std::size_t>(file.size(), LO_NAME_SIZE - 1));
  for (int attempt = 0;; ++attempt) {
    const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
    if (number < 0) return errno_failure(errno, "looking for a free loop device");
    const std::string path = fmt::format("/dev/loop{}", number);
    Descriptor device(::open(path.c_str(), (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC));
    if (device.get() < 0) return errno_failure(errno, fmt::format("opening {}", path), "loop devices need root");
    if (::ioctl(device.get(), LOOP_CONFIGURE, &config) == 0)
      return std::unique_ptr<LoopDevice>(new LoopDevice(static_cast<std::uint32_t>(number), std::move(device)));
    if (errno != EBUSY || attempt == kAttempts)
      return errno_failure(errno, fmt::format("attaching {} to {}", path, file),
                           "CAP_SYS_ADMIN and Linux 5.8 are needed");
  }
}

void LoopDevice::detach() noexcept {
  if (!device_.valid()) return;
  ::ioctl(device_.get(), LOOP_CLR_FD);
  device_.reset();
}

bool LoopDevice::attached() const {
  return ::access(fmt::format("/sys/block/loop{}/loop/backing_file", number_).c_str(), F_OK) == 0;
}

}  // namespace rbt::initiator
