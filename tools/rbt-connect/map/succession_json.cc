#include "tools/rbt-connect/map/succession_json.h"

#include <fmt/format.h>

#include <charconv>
#include <span>

namespace rbt::tools::map {

namespace {

using initiator::MemoryKind;

constexpr std::array kMemoryKinds{std::pair{MemoryKind::on, "on"}, std::pair{MemoryKind::not_needed, "not_needed"},
                                  std::pair{MemoryKind::foreign, "foreign"}, std::pair{MemoryKind::off, "off"}};

std::string hexadecimal(std::span<const std::uint8_t> bytes) {
  std::string text;
  for (const std::uint8_t byte : bytes)
    text += fmt::format("{:02x}", byte);
  return text;
}

// Takes the members of an object one by one; what is not as it must be is noted, and wrong from then on.
class Reader {
 public:
  explicit Reader(const Json& json) : json_(json) {}

  void bytes(const char* key, std::span<std::uint8_t> into) {
    const std::string text = this->text(key);
    bool fine = text.size() == into.size() * 2;
    for (std::size_t i = 0; fine && i < into.size(); ++i) {
      const char* const digits = text.data() + i * 2;
      const auto [end, error] = std::from_chars(digits, digits + 2, into[i], 16);
      fine = error == std::errc() && end == digits + 2;
    }
    if (!fine) wrong(key);
  }
  std::string text(const char* key) {
    const auto at = json_.find(key);
    if (at != json_.end() && at->is_string()) return at->get<std::string>();
    wrong(key);
    return {};
  }
  std::uint64_t number(const char* key, std::uint64_t most = ~std::uint64_t{0}) {
    const auto at = json_.find(key);
    if (at != json_.end() && at->is_number_unsigned() && at->get<std::uint64_t>() <= most)
      return at->get<std::uint64_t>();
    wrong(key);
    return 0;
  }
  [[nodiscard]] bool has(const char* key) const { return json_.contains(key); }
  void wrong(const char* key) {
    if (error_.empty()) error_ = fmt::format("its succession's \"{}\" is not what it must be", key);
  }
  [[nodiscard]] const std::string& error() const noexcept { return error_; }

 private:
  const Json& json_;
  std::string error_;
};

}  // namespace

Json to_json(const initiator::Succession& succession) {
  Json json{{"host_nqn", succession.host_nqn},
            {"host_id", hexadecimal(succession.host_id.bytes())},
            {"uri", succession.uri},
            {"instance", hexadecimal(succession.association.instance)},
            {"association", succession.association.number},
            {"keep_alive_ns", static_cast<std::uint64_t>(succession.keep_alive.count())},
            {"uuid", hexadecimal(succession.disk.uuid.bytes())},
            {"nguid", hexadecimal(succession.disk.nguid)},
            {"eui64", hexadecimal(succession.disk.eui64)},
            {"block_size", succession.disk.block_size},
            {"blocks", succession.disk.blocks.value()}};
  for (const auto& [kind, word] : kMemoryKinds)
    if (kind == succession.memory) json["memory"] = word;
  if (succession.incarnation) {
    json["medium"] = hexadecimal(succession.incarnation->medium);
    json["losses"] = succession.incarnation->losses;
  }
  return json;
}

Result<initiator::Succession> parse_succession(const Json& json) {
  if (!json.is_object()) return failure(ErrorKind::invalid_argument, "its succession is missing");
  initiator::Succession succession;
  Reader reader(json);
  succession.host_nqn = reader.text("host_nqn");
  if (!nvme::Nqn::parse(succession.host_nqn)) reader.wrong("host_nqn");
  std::array<std::uint8_t, 16> sixteen{};
  reader.bytes("host_id", sixteen);
  succession.host_id = nvme::HostId(sixteen);
  if (succession.host_id.is_zero()) reader.wrong("host_id");
  succession.uri = reader.text("uri");
  reader.bytes("instance", succession.association.instance);
  succession.association.number = reader.number("association");
  succession.keep_alive = Duration(reader.number("keep_alive_ns", ~std::uint64_t{0} >> 1));
  reader.bytes("uuid", sixteen);
  succession.disk.uuid = nvme::Uuid(sixteen);
  reader.bytes("nguid", succession.disk.nguid);
  reader.bytes("eui64", succession.disk.eui64);
  succession.disk.block_size = static_cast<std::uint32_t>(reader.number("block_size", ~std::uint32_t{0}));
  succession.disk.blocks = Blocks(reader.number("blocks"));
  const std::string memory = reader.text("memory");
  bool known = false;
  for (const auto& [kind, word] : kMemoryKinds)
    if (memory == word) {
      succession.memory = kind;
      known = true;
    }
  if (!known) reader.wrong("memory");
  if (reader.has("medium")) {
    nvme::Incarnation incarnation;
    reader.bytes("medium", incarnation.medium);
    incarnation.losses = reader.number("losses");
    succession.incarnation = incarnation;
  }
  if (!reader.error().empty()) return failure(ErrorKind::invalid_argument, reader.error());
  return succession;
}

}  // namespace rbt::tools::map
