#include "target/store/spec_text.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "common/log.h"
#include "common/sizes.h"

namespace rbt::target {

namespace {

constexpr std::size_t kSpecMax = 8192;  // twice PATH_MAX, for escapes

bool is_name_character(char c, bool first) noexcept {
  return (c >= 'a' && c <= 'z') || (!first && ((c >= '0' && c <= '9') || c == '-'));
}

/// The length of "name" if `text` begins with "name:".
std::optional<std::size_t> name_length(std::string_view text) noexcept {
  std::size_t length = 0;
  while (length < text.size() && is_name_character(text[length], length == 0))
    ++length;
  if (length == 0 || length == text.size() || text[length] != ':') return std::nullopt;
  return length;
}

std::string unescaped(std::string_view raw) {
  std::string text;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    const bool escape = raw[i] == '\\' && i + 1 < raw.size() && (raw[i + 1] == ',' || raw[i + 1] == '\\');
    if (escape) ++i;
    text += raw[i];
  }
  return text;
}

/// The character at which the piece that begins at `from` ends: an unescaped comma, or the end.
std::size_t piece_end(std::string_view spec, std::size_t from) noexcept {
  while (from < spec.size() && spec[from] != ',')
    from += spec[from] == '\\' ? 2 : 1;
  return std::min(from, spec.size());
}

SpecOption make_option(std::string_view raw, std::size_t at) {
  const auto equals = raw.find('=');
  if (equals == std::string_view::npos) return {{unescaped(raw), at}, std::nullopt};
  return {{unescaped(raw.substr(0, equals)), at}, SpecPiece{unescaped(raw.substr(equals + 1)), at + equals + 1}};
}

std::string known_names(const std::vector<SpecName>& known) {
  std::string names;
  for (const SpecName& name : known)
    names += fmt::format("{}{}:", names.empty() ? "" : ", ", name.name);
  return names;
}

Result<void> add_option(std::string_view spec, SpecPart& part, std::string_view raw, std::size_t at) {
  if (raw.empty()) return failure(spec_error(spec, at, "an option is expected here: key=value"));
  SpecOption option = make_option(raw, at);
  const bool twice = std::any_of(part.options.begin(), part.options.end(),
                                 [&](const SpecOption& other) { return other.key.text == option.key.text; });
  if (twice) return failure(spec_error(spec, at, fmt::format("'{}' is given twice", option.key.text)));
  part.options.push_back(std::move(option));
  return {};
}

}  // namespace

Error spec_error(std::string_view spec, std::size_t at, std::string_view what) {
  const std::string shown = printable(spec, spec.size());
  const std::size_t column = printable(spec.substr(0, at), at).size();
  return {ErrorKind::invalid_argument,
          fmt::format("store '{}': {}\n  {}\n  {:>{}}", shown, what, shown, '^', column + 1)};
}

Result<std::vector<SpecPart>> parse_spec(std::string_view spec, const std::vector<SpecName>& known) {
  if (spec.size() > kSpecMax)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("a store of {} characters: at most {} are allowed", spec.size(), kSpecMax));
  if (const auto nul = spec.find('\0'); nul != std::string_view::npos)
    return failure(spec_error(spec, nul, "a NUL is not allowed"));
  std::vector<SpecPart> parts;
  for (std::size_t at = 0; at <= spec.size();) {
    std::size_t end = piece_end(spec, at);
    const auto length = name_length(spec.substr(at, end - at));
    if (!length && parts.empty())
      return failure(
          spec_error(spec, at, fmt::format("a kind of store and a ':' come first; there are {}", known_names(known))));
    if (length) {
      const std::string_view name = spec.substr(at, *length);
      const auto found = std::find_if(known.begin(), known.end(), [&](const auto& k) { return k.name == name; });
      if (found == known.end())
        return failure(spec_error(spec, at,
                                  fmt::format("'{}:' is none of {}{}", name, known_names(known),
                                              parts.empty() ? "" : "; a ',' within a path is written '\\,'")));
      parts.push_back({{std::string(name), at}, std::nullopt, {}, end});
      at += *length + 1;
      const std::string_view rest = spec.substr(at, end - at);
      if (found->is_layer && name_length(rest)) continue;  // "stats:file:/x"
      if (found->has_argument && !(found->is_layer && rest.find('=') != std::string_view::npos)) {
        if (!rest.empty()) parts.back().argument = SpecPiece{unescaped(rest), at};
        parts.back().end = end;
        at = end + 1;
        continue;
      }
      if (at == end && end == spec.size()) break;  // "null:" and nothing else: what is missing is the store's business
    }
    if (auto added = add_option(spec, parts.back(), spec.substr(at, end - at), at); !added)
      return failure(std::move(added.error()));
    parts.back().end = end;
    at = end + 1;
  }
  return parts;
}

Error SpecReader::unknown(const SpecOption& option) const {
  return spec_error(spec_, option.key.at,
                    fmt::format("'{}' is no option of {}: {}", printable(option.key.text), part_.name.text, allowed_));
}

Error SpecReader::missing(std::string_view what) const {
  return spec_error(spec_, part_.end, fmt::format("{} is missing", what));
}

Error SpecReader::problem(const SpecOption& option, std::string_view what) const {
  return spec_error(spec_, option.value ? option.value->at : option.key.at, what);
}

Result<void> SpecReader::flag(const SpecOption& option) const {
  if (!option.value) return {};
  return failure(problem(option, fmt::format("'{}' stands alone, it takes no value", option.key.text)));
}

Result<std::string> SpecReader::value(const SpecOption& option) const {
  if (option.value && !option.value->text.empty()) return option.value->text;
  return failure(problem(option, fmt::format("'{}=' and a value are expected", option.key.text)));
}

Result<Bytes> SpecReader::size(const SpecOption& option) const {
  auto text = value(option);
  if (!text) return failure(std::move(text.error()));
  auto bytes = parse_size(*text);
  if (!bytes) return failure(problem(option, bytes.error().message()));
  if (bytes->value() == 0) return failure(problem(option, "at least one block is needed"));
  return bytes;
}

Result<Duration> SpecReader::duration(const SpecOption& option) const {
  auto text = value(option);
  if (!text) return failure(std::move(text.error()));
  auto duration = parse_duration(*text);
  if (!duration) return failure(problem(option, duration.error().message()));
  return *duration;
}

Result<BlockShift> SpecReader::block(const SpecOption& option) const {
  auto text = value(option);
  if (!text) return failure(std::move(text.error()));
  const auto bytes = parse_size(*text);
  const auto shift = bytes ? BlockShift::of(bytes->value()) : std::nullopt;
  if (!shift)
    return failure(
        problem(option, fmt::format("a block has 512, 1024, 2048 or 4096 bytes, not '{}'", printable(*text))));
  return *shift;
}

Result<std::uint64_t> SpecReader::number(const SpecOption& option, std::uint64_t least, std::uint64_t most) const {
  auto text = value(option);
  if (!text) return failure(std::move(text.error()));
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), number);
  if (error != std::errc() || end != text->data() + text->size() || number < least || number > most)
    return failure(problem(option, fmt::format("'{}' is not a number from {} to {}", printable(*text), least, most)));
  return number;
}

Result<std::size_t> SpecReader::word(const SpecOption& option, const std::vector<std::string_view>& words) const {
  auto text = value(option);
  if (!text) return failure(std::move(text.error()));
  const auto found = std::find(words.begin(), words.end(), *text);
  if (found == words.end())
    return failure(problem(option, fmt::format("'{}' is not one of {}", printable(*text), fmt::join(words, ", "))));
  return static_cast<std::size_t>(found - words.begin());
}

}  // namespace rbt::target
