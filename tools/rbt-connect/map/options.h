#pragma once
// How a volume is mapped. One table of keys, for the command line (--queues 2), rbttab (queues=2) and the state file.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "common/units.h"
#include "common/uri.h"
#include "initiator/initiator.h"

namespace rbt::tools::map {

/// Which way a block device is made. `automatic`: the first of the others that this machine can.
enum class Via : std::uint8_t { automatic, ublk, nbd, fuse };
[[nodiscard]] std::string_view name(Via via) noexcept;
[[nodiscard]] Result<Via> parse_via(std::string_view text);

struct MapOptions {
  std::string name{};       ///< empty: made from the URI (derived_name)
  std::vector<Uri> uris{};  ///< paths to one namespace
  Via via = Via::automatic;
  std::uint32_t queues = 1;
  std::uint32_t depth = 128;
  Bytes io_max{256 * kKiB};
  bool read_only = false;
  std::optional<Duration> on_loss{};     ///< how long without a path until requests fail; none: never, 0: at once
  std::optional<Duration> keep_alive{};  ///< none: the session's own default
  initiator::HostOptions host{};
  Duration timeout = std::chrono::seconds(10);  ///< for connecting the first time
};

/// The keys, the placeholder of each one's value (empty: a flag) and what it is for.
struct Key {
  const char* name;
  const char* value;
  const char* purpose;
};
[[nodiscard]] const std::vector<Key>& keys();

/// Sets one key. A flag's value is empty, or "yes" or "no". Error: invalid_argument, with what is allowed.
[[nodiscard]] Result<void> apply(MapOptions& options, std::string_view key, std::string_view value);
/// What apply() makes the same options of; keys at their defaults are left out. Without name and URIs.
[[nodiscard]] std::map<std::string, std::string> written(const MapOptions& options);

/// That the paths can be of one volume. Error: invalid_argument.
[[nodiscard]] Result<void> check_paths(const std::vector<Uri>& uris);
/// One URI of a namespace: what `map` takes. Error: invalid_argument (no NQN).
[[nodiscard]] Result<Uri> parse_volume_uri(std::string_view text);

/// A volume's name is a file's, a unit's and a link's: letters, digits, '.', '_' and '-', first a letter or a digit, at most 64.
[[nodiscard]] Result<void> check_name(std::string_view name);
/// "disk-1" of "…/nqn.2026-01.io.example:disk/1"; it may be taken.
[[nodiscard]] std::string derived_name(const Uri& uri);

}  // namespace rbt::tools::map
