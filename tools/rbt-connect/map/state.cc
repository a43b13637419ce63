#include "tools/rbt-connect/map/state.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "common/log.h"

namespace rbt::tools::map {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kTextMax = 4096;  // of one value: a URI is at most 2 KiB
constexpr std::size_t kEntriesMax = 64;

// Takes the members of an object one by one; the first that is not as it must be is the error.
class Reader {
 public:
  explicit Reader(const Json& json) : json_(json) {}

  void take(const char* key, std::string& into) {
    if (const Json* value = find(key, value_of<std::string>)) into = value->get<std::string>();
  }
  void take(const char* key, bool& into) {
    if (const Json* value = find(key, value_of<bool>)) into = value->get<bool>();
  }
  template <typename Number>
  requires std::is_integral_v<Number>
  void take(const char* key, Number& into) {
    const Json* value = find(key, value_of<Number>);
    if (value == nullptr) return;
    const auto number = value->get<std::uint64_t>();
    if (number > static_cast<std::uint64_t>(std::numeric_limits<Number>::max()))
      wrong(key, "is too large");
    else
      into = static_cast<Number>(number);
  }
  void take(const char* key, std::vector<std::string>& into) {
    const Json* value = find(key, [](const Json& each) { return each.is_array() && each.size() <= kEntriesMax; });
    if (value == nullptr) return;
    for (const Json& each : *value) {
      if (!value_of<std::string>(each)) return wrong(key, "is not a list of texts");
      into.push_back(each.get<std::string>());
    }
  }
  void take(const char* key, std::map<std::string, std::string>& into) {
    const Json* value = find(key, [](const Json& each) { return each.is_object() && each.size() <= kEntriesMax; });
    if (value == nullptr) return;
    for (const auto& [name, each] : value->items()) {
      if (!value_of<std::string>(each)) return wrong(key, "is not a table of texts");
      into[name] = each.get<std::string>();
    }
  }
  void wrong(const char* key, std::string_view what) {
    if (!error_) error_ = fmt::format("its \"{}\" {}", key, what);
  }
  [[nodiscard]] const std::optional<std::string>& error() const noexcept { return error_; }

 private:
  template <typename Kind>
  static bool value_of(const Json& value) {
    if constexpr (std::is_same_v<Kind, std::string>)
      return value.is_string() && value.get_ref<const std::string&>().size() <= kTextMax;
    else if constexpr (std::is_same_v<Kind, bool>)
      return value.is_boolean();
    else
      return value.is_number_unsigned();
  }
  template <typename Check>
  const Json* find(const char* key, Check&& fits) {
    const auto at = json_.find(key);
    if (at == json_.end()) {
      wrong(key, "is missing");
    } else if (!fits(*at)) {
      wrong(key, "is not what it must be");
    } else {
      return &*at;
    }
    return nullptr;
  }

  const Json& json_;
  std::optional<std::string> error_;
};

}  // namespace

std::string to_text(const State& state) {
  return Json{{"version", State::kVersion}, {"name", state.name},
              {"uris", state.uris},         {"options", state.options},
              {"via", state.via},           {"device", state.device},
              {"number", state.number},     {"mark", state.mark},
              {"queues", state.queues},     {"depth", state.depth},
              {"io_max", state.io_max},     {"read_only", state.read_only},
              {"size", state.size},         {"block_size", state.block_size},
              {"uuid", state.uuid},         {"pid", static_cast<std::uint64_t>(state.pid)},
              {"since", state.since},       {"succession", state.succession}}
             .dump(2, ' ', false, Json::error_handler_t::replace) +
         "\n";
}

Result<State> parse_state(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_object()) return failure(ErrorKind::invalid_argument, "it is not a JSON object");
  const auto version = json.find("version");
  if (version == json.end() || !version->is_number_unsigned())
    return failure(ErrorKind::invalid_argument, "it has no version");
  if (*version != static_cast<unsigned>(State::kVersion))
    return failure(ErrorKind::unsupported,
                   fmt::format("it is of version {}, this rbt-connect knows {}: use the one that mapped the volume",
                               version->dump(), State::kVersion));
  State state;
  Reader reader(json);
  reader.take("name", state.name);
  reader.take("uris", state.uris);
  reader.take("options", state.options);
  reader.take("via", state.via);
  reader.take("device", state.device);
  reader.take("number", state.number);
  reader.take("mark", state.mark);
  reader.take("queues", state.queues);
  reader.take("depth", state.depth);
  reader.take("io_max", state.io_max);
  reader.take("read_only", state.read_only);
  reader.take("size", state.size);
  reader.take("block_size", state.block_size);
  reader.take("uuid", state.uuid);
  reader.take("pid", state.pid);
  reader.take("since", state.since);
  if (!state.device.empty() && !state.device.starts_with("/dev/")) reader.wrong("device", "is not in /dev");
  if (const auto succession = json.find("succession"); succession != json.end()) state.succession = *succession;
  if (reader.error()) return failure(ErrorKind::invalid_argument, *reader.error());
  if (auto fine = check_name(state.name); !fine) return failure(std::move(fine.error()));
  return state;
}

Result<MapOptions> options_of(const State& state) {
  MapOptions options;
  options.name = state.name;
  for (const std::string& text : state.uris) {
    auto uri = parse_volume_uri(text);
    if (!uri) return failure(std::move(uri.error()));
    options.uris.push_back(std::move(*uri));
  }
  if (options.uris.empty()) return failure(ErrorKind::invalid_argument, "it has no URI");
  for (const auto& [key, value] : state.options)
    if (auto applied = apply(options, key, value); !applied) return failure(std::move(applied.error()));
  return options;
}

}  // namespace rbt::tools::map
