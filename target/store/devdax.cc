// Persistent memory as a character device (Documentation/ABI/testing/sysfs-bus-dax of Linux).

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>

#include "common/sizes.h"
#include "target/store/file_medium.h"
#include "target/store/identity.h"
#include "target/store/sysfs.h"

namespace rbt::target {

namespace {

/// Follows from the namespace's UUID, which ndctl gave it and its labels keep; else from where it lies in memory.
FoundIdentity dax_identity(dev_t device, const StoreName& name, const StoreEnvironment& environment) {
  Fingerprint fingerprint;
  fingerprint.add("rbt devdax");
  if (const auto uuid = character_device_attribute(device, "../uuid"))
    return {fingerprint.add(*uuid).identity(), "its namespace's UUID"};
  const auto place = character_device_attribute(device, "resource").value_or(name.path);
  const FoundIdentity found{fingerprint.add(place).identity(), "its place in memory"};
  environment.logger.warning(
      "store '{}': its namespace has no UUID; its identity {} follows from where it lies in memory ({}): give uuid=",
      name.text(), uuid_of(found.identity).to_string(), place);
  return found;
}

}  // namespace

Result<FileMedium> FileMedium::open_devdax(const FileOptions& options, const StoreEnvironment& environment) {
  FileMedium medium(options);
  const std::string what = fmt::format("store '{}': opening it", medium.name_.text());
  medium.fd_ = ::open(options.name.path.c_str(), (options.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY);
  if (medium.fd_ < 0) return errno_failure(errno, what, "let this user read and write it");
  if (auto done = medium.lock(options, environment); !done) return failure(std::move(done.error()));
  struct stat about {};
  if (::fstat(medium.fd_, &about) != 0) return errno_failure(errno, what);
  const auto size_text = character_device_attribute(about.st_rdev, "size");
  const auto size = size_text ? parse_size(*size_text) : Result<Bytes>(Bytes(0));
  if (!size || size->value() == 0)
    return failure(ErrorKind::unsupported, fmt::format("{}: /sys/dev/char/{}:{}/size does not tell how large it is",
                                                       what, major(about.st_rdev), minor(about.st_rdev)));
  medium.device_ = about.st_rdev;
  medium.fixed_size_ = size->value();
  medium.alignment_ = 1;
  Geometry& geometry = medium.geometry_;
  geometry.read_only = options.read_only;
  geometry.block_shift = options.block_shift.value_or(BlockShift());
  geometry.blocks = geometry.block_shift.blocks(*size);  // a multiple of its alignment of at least 4 KiB
  geometry.optimal_io = geometry.block_shift.blocks(Bytes(4096));
  geometry.discard_granularity = geometry.optimal_io;
  FoundIdentity found{options.identity.value_or(Identity{}), "uuid="};
  if (!options.identity) found = dax_identity(about.st_rdev, medium.name_, environment);
  medium.identity_ = found.identity;
  environment.logger.info("store '{}': {} blocks of {}{}, persistent memory, identity {} out of {}",
                          medium.name_.text(), geometry.blocks.value(), geometry.block_shift.block_size(),
                          geometry.read_only ? ", read-only" : "", uuid_of(medium.identity_).to_string(), found.from);
  return medium;
}

}  // namespace rbt::target
