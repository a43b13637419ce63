#pragma once
// Who uses a block device: the question before it is taken away.

#include <sys/types.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace rbt::tools::map {

/// What is looked at; tests make a machine up.
struct Looking {
  std::filesystem::path root = "/";
  std::vector<pid_t> except{};  ///< processes that have it open by right: the volume's own
  /// Also ask the kernel whether anybody has claimed it, by opening it. Not of a device whose process is dead: that may wait.
  bool open = true;
};

/// One line each, for a person: "mounted on /mnt", "dm-0 is made of it", "process 123 (fio) has it open". Partitions count. A
/// process that may not look into others' /proc sees no openers of theirs. Empty: nobody.
[[nodiscard]] std::vector<std::string> users_of(std::string_view device, const Looking& looking);
/// Whether `users` may be udev's only, which looks at every device that was written to: it goes by itself in a moment.
[[nodiscard]] bool passing(const std::vector<std::string>& users);
/// "/dev/ublkb0 is in use: it is mounted on /mnt, process 12 (fio) has it open": at most ten of them.
[[nodiscard]] std::string in_use_text(std::string_view device, const std::vector<std::string>& users);

}  // namespace rbt::tools::map
