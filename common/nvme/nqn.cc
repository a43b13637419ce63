#include "common/nvme/nqn.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/log.h"

namespace rbt::nvme {
namespace {

constexpr std::string_view kPrefix = "nqn.";
constexpr std::string_view kUuidPrefix = "nqn.2014-08.org.nvmexpress:uuid:";

/// What is wrong with `text` as any NQN; empty if nothing.
std::string_view objection(std::string_view text) noexcept {
  if (text.empty()) return "it is empty";
  if (text.size() > Nqn::kLengthMax) return "it is longer than 223 bytes";
  // UTF-8 is allowed, control characters are not text
  const bool is_text = std::all_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x20 && byte != 0x7f;
  });
  return is_text ? std::string_view() : "it contains a control character";
}

tl::unexpected<Error> refused(std::string_view text, std::string_view why) {
  return failure(ErrorKind::invalid_argument, fmt::format("'{}' is not an NQN: {}", printable(text), why));
}

}  // namespace

Result<Nqn> Nqn::parse(std::string_view text) {
  if (const auto why = objection(text); !why.empty()) return refused(text, why);
  if (!text.starts_with(kPrefix))
    return refused(text, "it does not begin with 'nqn.' (nqn.YYYY-MM.reverse.domain:name)");
  return Nqn(std::string(text));
}

Result<Nqn> Nqn::parse_foreign(std::string_view text) {
  if (const auto why = objection(text); !why.empty()) return refused(text, why);
  return Nqn(std::string(text));
}

std::optional<Nqn> Nqn::from_field(std::span<const char, kFieldBytes> field) {
  const auto end = std::find(field.begin(), field.end(), '\0');
  if (end == field.end()) return std::nullopt;
  const std::string_view text(field.data(), static_cast<std::size_t>(end - field.begin()));
  if (!objection(text).empty() || !text.starts_with(kPrefix)) return std::nullopt;
  return Nqn(std::string(text));
}

Nqn Nqn::from_uuid(const Uuid& uuid) {
  return Nqn(std::string(kUuidPrefix) + uuid.to_string());
}
Nqn Nqn::discovery() {
  return Nqn(std::string(kDiscoveryNqn));
}
bool Nqn::is_discovery() const noexcept {
  return text_ == kDiscoveryNqn;
}

void Nqn::store(std::span<char, kFieldBytes> field) const noexcept {
  const auto end = std::copy(text_.begin(), text_.end(), field.begin());
  std::fill(end, field.end(), '\0');
}

}  // namespace rbt::nvme
