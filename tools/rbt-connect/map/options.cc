#include "tools/rbt-connect/map/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "common/log.h"
#include "common/sizes.h"
#include "tools/program/options.h"

namespace rbt::tools::map {

namespace {

constexpr std::size_t kNameMax = 64;
constexpr Duration kPatienceMax = std::chrono::hours(24 * 365);

bool fits_into_a_name(char c) noexcept {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}
bool begins_a_name(char c) noexcept {
  return fits_into_a_name(c) && c != '.' && c != '_' && c != '-';
}

// Seconds without a unit are what people write where other tools have them so.
Result<Duration> parse_seconds(std::string_view key, std::string_view text, bool zero) {
  const bool bare = !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  auto parsed = parse_duration(bare ? std::string(text) + "s" : std::string(text));
  if (!parsed || *parsed < Duration::zero() || (!zero && *parsed == Duration::zero()) || *parsed > kPatienceMax)
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("{} '{}': seconds, or a duration with its unit (30, 1.5s, 2min), {} a year, are expected", key,
                    printable(text, 40), zero ? "up to" : "more than 0 and up to"));
  return parsed;
}

Result<void> apply_on_loss(MapOptions& options, std::string_view value) {
  if (value == "hold") {
    options.on_loss.reset();
  } else if (value == "fail") {
    options.on_loss = Duration::zero();
  } else {
    auto patience = parse_seconds("on-loss", value, true);
    if (!patience)
      return failure(
          ErrorKind::invalid_argument,
          fmt::format("on-loss '{}': it is hold (requests wait as long as it takes), fail (they fail at once) or "
                      "how long they wait until they fail: seconds, or a duration (30, 1.5s, 2min)",
                      printable(value, 40)));
    options.on_loss = *patience;
  }
  return {};
}

Result<void> apply_flag(bool& flag, std::string_view key, std::string_view value) {
  if (!value.empty() && value != "yes" && value != "no")
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{}={}: it has no value, or yes or no", key, printable(value, 40)));
  flag = value != "no";
  return {};
}

Result<void> apply_io_max(MapOptions& options, std::string_view value) {
  auto size = parse_size(value);
  if (!size || size->value() < 4 * kKiB || size->value() > kMiB || !std::has_single_bit(size->value()))
    return failure(ErrorKind::invalid_argument,
                   fmt::format("io-max '{}': a power of two from 4k to 1M is expected", printable(value, 40)));
  options.io_max = *size;
  return {};
}

Result<void> apply_host(MapOptions& options, std::string_view key, std::string_view value) {
  if (key == "hostnqn") {
    auto nqn = nvme::Nqn::parse(value);
    if (!nqn) return failure(std::move(nqn.error()).within(key));
    options.host.nqn = *nqn;
    return {};
  }
  auto id = nvme::Uuid::parse(value);
  if (!id) return failure(std::move(id.error()).within(key));
  options.host.id = nvme::HostId(id->bytes());
  return {};
}

std::string seconds_text(Duration duration) {
  const auto whole = std::chrono::duration_cast<std::chrono::seconds>(duration);
  if (whole == duration) return fmt::format("{}s", whole.count());
  return fmt::format("{}ns", duration.count());
}

}  // namespace

std::string_view name(Via via) noexcept {
  switch (via) {
    case Via::automatic: return "auto";
    case Via::ublk: return "ublk";
    case Via::nbd: return "nbd";
    case Via::fuse: return "fuse";
  }
  return "unknown";
}

Result<Via> parse_via(std::string_view text) {
  for (const Via via : {Via::automatic, Via::ublk, Via::nbd, Via::fuse})
    if (text == name(via)) return via;
  return failure(ErrorKind::invalid_argument,
                 fmt::format("via '{}': it is auto, ublk, nbd or fuse", printable(text, 40)));
}

const std::vector<Key>& keys() {
  static const std::vector<Key> all{
      {"via", "WAY", "how the device is made: auto (default: the first that works of the others), ublk, nbd or fuse"},
      {"queues", "N", "hardware queues of the device, 1 to 64 (default: 1)"},
      {"depth", "N", "requests at a time and queue, 1 to 1024 (default: 128)"},
      {"io-max", "SIZE", "largest request of the kernel's, a power of two from 4k to 1M (default: 256k)"},
      {"read-only", "", "the device refuses writes"},
      {"on-loss", "WHAT",
       "when the target is gone: hold (default: requests wait), fail (they fail at once), or the seconds they wait "
       "until they fail"},
      {"keep-alive", "SECONDS", "how soon a silent target is given up (default: 15)"},
      {"hostnqn", "NQN", "who we say we are (default: made from the host ID)"},
      {"hostid", "UUID", "our host ID (default: random)"},
      {"timeout", "DURATION", "for connecting the first time (default: 10s)"},
  };
  return all;
}

Result<void> apply(MapOptions& options, std::string_view key, std::string_view value) {
  const auto& all = keys();
  const auto known = std::find_if(all.begin(), all.end(), [&](const Key& each) { return key == each.name; });
  if (known == all.end()) {
    std::string names;
    for (const Key& each : all)
      names += fmt::format("{}{}", names.empty() ? "" : ", ", each.name);
    return failure(ErrorKind::invalid_argument, fmt::format("no option '{}': there are {}", printable(key, 40), names));
  }
  if (*known->value != '\0' && value.empty())
    return failure(ErrorKind::invalid_argument, fmt::format("{} needs a value: {}={}", key, key, known->value));
  if (key == "via") {
    auto via = parse_via(value);
    if (!via) return failure(std::move(via.error()));
    options.via = *via;
  } else if (key == "queues" || key == "depth") {
    auto number = parse_number(key, value, 1, key == "queues" ? 64 : 1024);
    if (!number) return failure(std::move(number.error()));
    (key == "queues" ? options.queues : options.depth) = *number;
  } else if (key == "io-max") {
    return apply_io_max(options, value);
  } else if (key == "read-only") {
    return apply_flag(options.read_only, key, value);
  } else if (key == "on-loss") {
    return apply_on_loss(options, value);
  } else if (key == "keep-alive" || key == "timeout") {
    auto duration = parse_seconds(key, value, false);
    if (!duration) return failure(std::move(duration.error()));
    if (key == "timeout")
      options.timeout = *duration;
    else
      options.keep_alive = *duration;
  } else {
    return apply_host(options, key, value);
  }
  return {};
}

std::map<std::string, std::string> written(const MapOptions& options) {
  const MapOptions defaults;
  std::map<std::string, std::string> values;
  if (options.via != defaults.via) values["via"] = name(options.via);
  if (options.queues != defaults.queues) values["queues"] = std::to_string(options.queues);
  if (options.depth != defaults.depth) values["depth"] = std::to_string(options.depth);
  if (options.io_max != defaults.io_max) values["io-max"] = std::to_string(options.io_max.value());
  if (options.read_only) values["read-only"] = "yes";
  if (options.on_loss)
    values["on-loss"] = *options.on_loss == Duration::zero() ? "fail" : seconds_text(*options.on_loss);
  if (options.keep_alive) values["keep-alive"] = seconds_text(*options.keep_alive);
  if (options.host.nqn) values["hostnqn"] = options.host.nqn->text();
  if (options.host.id) values["hostid"] = options.host.id->to_string();
  if (options.timeout != defaults.timeout) values["timeout"] = seconds_text(options.timeout);
  return values;
}

Result<void> check_paths(const std::vector<Uri>& uris) {
  for (const Uri& each : uris)
    if (each.scheme != uris.front().scheme)
      return failure(ErrorKind::invalid_argument, fmt::format("{} and {}: all paths of a volume are of one fabric",
                                                              uris.front().to_string(), each.to_string()));
  return {};
}

Result<Uri> parse_volume_uri(std::string_view text) {
  auto uri = Uri::parse(text);
  if (!uri) return uri;
  if (!uri->nqn || uri->nqn->is_discovery())
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("{}: which subsystem? A volume is {}/NQN/NSID; rbt-connect discover lists what a target has",
                    uri->to_string(), uri->scheme == Uri::Scheme::shm ? "nvme+shm://" : "nvme+rdma://HOST"));
  return uri;
}

Result<void> check_name(std::string_view name) {
  if (!name.empty() && name.size() <= kNameMax && begins_a_name(name.front()) &&
      std::all_of(name.begin(), name.end(), fits_into_a_name))
    return {};
  return failure(
      ErrorKind::invalid_argument,
      fmt::format("'{}' cannot be a volume's name: 1 to {} letters, digits, '.', '_' and '-', the first of them "
                  "a letter or a digit",
                  printable(name, 80), kNameMax));
}

std::string derived_name(const Uri& uri) {
  const std::string& nqn = uri.nqn ? uri.nqn->text() : uri.host;
  const auto colon = nqn.find_last_of(':');
  std::string text = colon == std::string::npos || colon + 1 == nqn.size() ? nqn : nqn.substr(colon + 1);
  for (char& c : text)
    if (!fits_into_a_name(c)) c = '-';
  text.erase(0, static_cast<std::size_t>(std::find_if(text.begin(), text.end(), begins_a_name) - text.begin()));
  if (text.empty()) text = "volume";
  const std::string number = uri.nsid ? fmt::format("-{}", uri.nsid->value()) : "";
  constexpr std::size_t kSuffix = 4;  // room for what makes it unique
  return text.substr(0, kNameMax - kSuffix - number.size()) + number;
}

}  // namespace rbt::tools::map
