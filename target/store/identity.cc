#include "target/store/identity.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "common/log.h"
#include "target/store/sysfs.h"

namespace rbt::target {

namespace {

constexpr const char* kAttribute = "user.rbt.uuid";
constexpr std::string_view kSidecarSuffix = ".rbt-id";
constexpr std::size_t kRecordMax = 256;

std::uint64_t mixed(std::uint64_t x) noexcept {  // splitmix64: every bit of the input reaches every bit of the output
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

/// When the file was made, which no copy can pretend; empty where the file system does not say.
struct Birth {
  std::string text;
  std::uint64_t inode = 0;
  std::string modified;
};

Birth birth_of(int fd) {
  struct statx about {};
  Birth birth;
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &about) != 0) return birth;
  const auto text = [](const statx_timestamp& t) { return fmt::format("{}.{:09}", t.tv_sec, t.tv_nsec); };
  if ((about.stx_mask & STATX_BTIME) != 0) birth.text = text(about.stx_btime);
  birth.inode = about.stx_ino;
  birth.modified = text(about.stx_mtime);
  return birth;
}

/// What is kept: "UUID", or "UUID@BIRTH" of the file it was made for.
struct Record {
  Identity identity;
  std::string birth;
};

std::optional<Record> parse_record(std::string_view text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\0'))
    text.remove_suffix(1);
  const auto at = text.find('@');
  const auto uuid = nvme::Uuid::parse(text.substr(0, at));
  if (!uuid || uuid->is_zero()) return std::nullopt;
  return Record{identity_of(*uuid), at == std::string_view::npos ? std::string() : std::string(text.substr(at + 1))};
}

std::optional<std::string> read_attribute(int fd) {
  std::array<char, kRecordMax> text{};
  const auto length = ::fgetxattr(fd, kAttribute, text.data(), text.size());
  if (length < 0) return std::nullopt;
  return std::string(text.data(), static_cast<std::size_t>(length));
}

/// PATH.rbt-id beside the file itself, not beside a link to it. Nothing for a file without a name (a memfd).
std::string sidecar_of(int fd, const std::string& path) {
  struct stat about {};
  if (::fstat(fd, &about) == 0 && about.st_nlink == 0) return {};
  std::array<char, PATH_MAX> real{};
  const bool resolved = ::realpath(path.c_str(), real.data()) != nullptr;
  return (resolved ? std::string(real.data()) : path) + std::string(kSidecarSuffix);
}

std::optional<std::string> read_sidecar(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return std::nullopt;
  std::array<char, kRecordMax> text{};
  const auto length = ::read(fd, text.data(), text.size());
  ::close(fd);
  if (length <= 0) return std::nullopt;
  return std::string(text.data(), static_cast<std::size_t>(length));
}

bool write_sidecar(const std::string& path, const std::string& text) {
  const std::string fresh = path + ".new";
  const int fd = ::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd < 0) return false;
  const std::string line = text + "\n";
  const bool written = ::write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size()) && ::fsync(fd) == 0;
  ::close(fd);
  if (written && ::rename(fresh.c_str(), path.c_str()) == 0) return true;
  ::unlink(fresh.c_str());
  return false;
}

/// Keeps the record where the file system lets us; says where, or nothing.
std::optional<std::string> keep(int fd, const std::string& sidecar, const std::string& record) {
  // fsync: a host that has seen the identity must not meet another one after a crash.
  if (::fsetxattr(fd, kAttribute, record.data(), record.size(), 0) == 0 && ::fsync(fd) == 0)
    return fmt::format("its attribute {}", kAttribute);
  if (!sidecar.empty() && write_sidecar(sidecar, record)) return sidecar;
  return std::nullopt;
}

Identity derived_from_place(int fd, const Birth& birth) {
  struct statfs system {};
  struct stat about {};
  Fingerprint fingerprint;
  fingerprint.add("rbt file");
  std::array<std::uint64_t, 1> id{};
  if (::fstatfs(fd, &system) == 0) std::memcpy(id.data(), &system.f_fsid, sizeof id);
  if (id[0] == 0 && ::fstat(fd, &about) == 0) id[0] = about.st_dev;
  return fingerprint.add(id[0]).add(birth.inode).add(birth.text.empty() ? birth.modified : birth.text).identity();
}

std::string text_of(const Identity& identity) {
  return uuid_of(identity).to_string();
}

}  // namespace

Identity identity_of(const nvme::Uuid& uuid) noexcept {
  Identity identity;
  std::memcpy(identity.data(), uuid.bytes().data(), identity.size());
  return identity;
}

nvme::Uuid uuid_of(const Identity& identity) noexcept {
  std::array<std::uint8_t, 16> bytes{};
  std::memcpy(bytes.data(), identity.data(), bytes.size());
  return nvme::Uuid(bytes);
}

Identity fresh_identity(Random& random) noexcept {
  return identity_of(nvme::Uuid::generate(random));
}

void Fingerprint::take(std::uint8_t byte) noexcept {
  constexpr std::uint64_t kPrime = 0x100000001b3;
  high_ = (high_ ^ byte) * kPrime;
  low_ = (low_ ^ byte) * kPrime;
}

Fingerprint& Fingerprint::add(std::string_view text) noexcept {
  for (const char c : text)
    take(static_cast<std::uint8_t>(c));
  take(0);
  return *this;
}

Fingerprint& Fingerprint::add(std::uint64_t number) noexcept {
  for (unsigned shift = 0; shift < 64; shift += 8)
    take(static_cast<std::uint8_t>(number >> shift));
  return *this;
}

Identity Fingerprint::identity() const noexcept {
  std::array<std::uint64_t, 2> words{mixed(high_), mixed(low_ ^ mixed(high_))};
  Identity identity;
  std::memcpy(identity.data(), words.data(), identity.size());
  identity[6] = (identity[6] & std::byte{0x0f}) | std::byte{0x80};  // version 8
  identity[8] = (identity[8] & std::byte{0x3f}) | std::byte{0x80};  // variant 1
  return identity;
}

FoundIdentity file_identity(int fd, const StoreName& name, bool read_only, const StoreEnvironment& environment) {
  const Birth birth = birth_of(fd);
  const std::string sidecar = sidecar_of(fd, name.path);
  std::string from = fmt::format("its attribute {}", kAttribute);
  auto text = read_attribute(fd);
  if (!text && !sidecar.empty()) {
    text = read_sidecar(sidecar);
    from = sidecar;
  }
  const auto record = text ? parse_record(*text) : std::nullopt;
  if (text && !record)
    environment.logger.warning("store '{}': {} holds no UUID: '{}'; it is ignored", name.text(), from,
                               printable(*text));
  const bool ours = record && (record->birth.empty() || birth.text.empty() || record->birth == birth.text);
  if (ours) return {record->identity, from};

  FoundIdentity found;
  if (read_only) {
    found = {derived_from_place(fd, birth), "its place in the file system"};
  } else {
    found.identity = fresh_identity(environment.random);
    const std::string fresh = text_of(found.identity) + (birth.text.empty() ? "" : "@" + birth.text);
    if (const auto kept = keep(fd, sidecar, fresh)) {
      found.from = *kept;
    } else {
      found = {derived_from_place(fd, birth), "its place in the file system"};
      environment.logger.warning(
          "store '{}': neither an attribute {} nor {} can be written, so its identity {} follows from its place "
          "in "
          "the file system; give uuid= to keep it when the file moves",
          name.text(), kAttribute, sidecar, text_of(found.identity));
    }
  }
  if (record)
    environment.logger.warning(
        "store '{}': {} is the identity of another file ({}), of which this is a copy or a restored backup; it "
        "goes by {} now, and hosts see a new disk; if it is to stay the old one, give uuid={}",
        name.text(), text_of(record->identity), from, text_of(found.identity), text_of(record->identity));
  return found;
}

FoundIdentity device_identity(int fd, const StoreName& name, const StoreEnvironment& environment) {
  struct stat about {};
  Fingerprint fingerprint;
  fingerprint.add("rbt device");
  const dev_t device = ::fstat(fd, &about) == 0 ? about.st_rdev : 0;
  if (const auto partition = device_attribute(device, "partition")) fingerprint.add(*partition);
  constexpr std::array<std::string_view, 9> kNames{"wwid",   "device/wwid",   "uuid",  "dm/uuid",          "md/uuid",
                                                   "serial", "device/serial", "nguid", "loop/backing_file"};
  for (const std::string_view attribute : kNames) {
    const auto value = disk_attribute(device, attribute);
    if (!value) continue;
    fingerprint.add(attribute).add(*value);
    if (const auto offset = disk_attribute(device, "loop/offset")) fingerprint.add(*offset);
    return {fingerprint.identity(), fmt::format("the device's {}", attribute)};
  }
  const auto number = fmt::format("{}:{}", major(device), minor(device));
  const FoundIdentity found{fingerprint.add(name.path).add(number).identity(), "the device's name"};
  environment.logger.warning(
      "store '{}': the device has neither serial number nor world-wide name; its identity {} follows from its "
      "name "
      "and number, which may belong to another disk after a reboot: give uuid=",
      name.text(), text_of(found.identity));
  return found;
}

}  // namespace rbt::target
