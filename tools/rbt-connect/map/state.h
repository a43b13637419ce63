#pragma once
// What is known of the mapped volumes of this machine: one folder, and per volume a few files in it. docs/mapping.md has what
// outlives whom.
//
//   NAME.lock  held by the volume's process for its life, its pid within
//   NAME.json  the State, replaced as a whole
//   NAME.sock  where the process answers (control.h)
//   NAME.log   what it has to say, if there is no journal

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/result.h"
#include "tools/rbt-connect/map/options.h"

namespace rbt::tools::map {

/// Of one volume: enough for a successor of its process to take the device over.
struct State {
  static constexpr int kVersion = 1;

  std::string name{};
  std::vector<std::string> uris{};
  std::map<std::string, std::string> options{};  ///< written()
  std::string via{};                             ///< how it is presented: "ublk", "nbd", "fuse"
  std::string device{};                          ///< "/dev/ublkb0"; empty: nobody has been told of one yet
  std::uint32_t number = 0;                      ///< initiator::Device::number()
  std::string mark{};                            ///< by which it is told from others: Presenter::intend(), mark()
  std::uint32_t queues = 0;                      ///< of the device, as they came out
  std::uint32_t depth = 0;
  std::uint64_t io_max = 0;
  bool read_only = false;
  std::uint64_t size = 0;  ///< bytes, as the device has it
  std::uint32_t block_size = 0;
  std::string uuid{};       ///< of the namespace: its UUID, else NGUID, else EUI-64, in hexadecimal; empty: it has none
  pid_t pid = 0;            ///< of the last process
  std::uint64_t since = 0;  ///< when it was mapped: milliseconds since 1970, UTC
  nlohmann::ordered_json succession{};  ///< what the volume's successor must know (succession.h); null: nothing
};

[[nodiscard]] std::string to_text(const State& state);
/// Error: invalid_argument or unsupported (of another version), with what is wrong; nothing is believed that was not checked.
[[nodiscard]] Result<State> parse_state(std::string_view text);
/// The options as they were given to map. Error: as apply() and parse_volume_uri() have it.
[[nodiscard]] Result<MapOptions> options_of(const State& state);

/// A volume's name, taken. Given back by the destructor, or by the process's end.
class NameLock {
 public:
  NameLock(NameLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}
  NameLock(const NameLock&) = delete;
  NameLock& operator=(const NameLock&) = delete;
  NameLock& operator=(NameLock&&) = delete;
  ~NameLock();
  /// Removes the file, too: nothing of the volume is left.
  void forget() noexcept;

 private:
  friend class RunFolder;
  NameLock(int fd, std::filesystem::path path) noexcept : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::filesystem::path path_;
};

class RunFolder {
 public:
  /// RBT_RUN_DIR, or /run/rbt.
  [[nodiscard]] static RunFolder chosen();
  explicit RunFolder(std::filesystem::path path) : path_(std::move(path)) {}

  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] std::filesystem::path control(std::string_view name) const { return file(name, ".sock"); }
  [[nodiscard]] std::filesystem::path log(std::string_view name) const { return file(name, ".log"); }

  /// Makes the folder. Error: permission, io.
  [[nodiscard]] Result<void> prepare() const;
  /// Error: in_use (with the pid that has it), permission, io.
  [[nodiscard]] Result<NameLock> lock(std::string_view name) const;
  /// The process that has the name; nothing: there is none.
  [[nodiscard]] std::optional<pid_t> holder(std::string_view name) const;
  /// Whether that process really has the lock file open: before it is killed.
  [[nodiscard]] bool holds(pid_t pid, std::string_view name) const;

  [[nodiscard]] Result<void> write(const State& state) const;
  /// Error: not_found, or what parse_state() says.
  [[nodiscard]] Result<State> read(std::string_view name) const;
  /// Names with a state or a held lock, sorted.
  [[nodiscard]] std::vector<std::string> names() const;
  /// Removes locks that nobody has, of names without a state.
  void sweep() const;
  /// All files but the lock. Nobody has the name but the caller.
  void remove(std::string_view name) const noexcept;

 private:
  [[nodiscard]] std::filesystem::path file(std::string_view name, std::string_view ending) const;
  std::filesystem::path path_;
};

}  // namespace rbt::tools::map
