#pragma once
// Who a store is. A host takes two disks with one identity for one disk, and a disk with a new identity for a new disk;
// so an identity is kept with what it belongs to, and a copy does not inherit it. See docs/stores.md.

#include <string>
#include <string_view>

#include "common/nvme/uuid.h"
#include "common/random.h"
#include "common/result.h"
#include "target/store/spec.h"
#include "target/store/store.h"

namespace rbt::target {

[[nodiscard]] Identity identity_of(const nvme::Uuid& uuid) noexcept;
[[nodiscard]] nvme::Uuid uuid_of(const Identity& identity) noexcept;
[[nodiscard]] Identity fresh_identity(Random& random) noexcept;

/// An identity that follows from what is added, and from nothing else: a UUID of version 8 (RFC 9562, 5.8).
class Fingerprint {
 public:
  Fingerprint& add(std::string_view text) noexcept;
  Fingerprint& add(std::uint64_t number) noexcept;
  [[nodiscard]] Identity identity() const noexcept;

 private:
  void take(std::uint8_t byte) noexcept;
  std::uint64_t high_ = 0xcbf29ce484222325;  // FNV-1a, twice with different starts
  std::uint64_t low_ = 0x84222325cbf29ce4;
};

/// What is served, and how: for messages, "file:/srv/disk.img".
struct StoreName {
  std::string scheme = "file";
  std::string path;
  [[nodiscard]] std::string text() const { return scheme + ":" + path; }
};

struct FoundIdentity {
  Identity identity{};
  std::string from;  ///< for the log: "its attribute user.rbt.uuid"
};

/// The identity of the regular file `fd`: out of its attribute user.rbt.uuid or the file PATH.rbt-id, made and kept there
/// if it has none yet. A record that was copied along with another file's contents is not believed. What cannot keep
/// one (`read_only`, or a place that takes no record) gets one that follows from file system, inode and birth.
[[nodiscard]] FoundIdentity file_identity(int fd, const StoreName& name, bool read_only,
                                          const StoreEnvironment& environment);

/// The identity of a block device: follows from its serial number or world-wide name, or, with a warning, from its name.
[[nodiscard]] FoundIdentity device_identity(int fd, const StoreName& name, const StoreEnvironment& environment);

}  // namespace rbt::target
