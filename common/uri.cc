#include "common/uri.h"

#include <arpa/inet.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "common/log.h"

namespace rbt {
namespace {

constexpr std::array<std::string_view, 9> kKeys{"ctrl-secret-file", "depth",  "group",       "hostid", "hostnqn",
                                                "keep-alive",       "queues", "secret-file", "socket"};
constexpr std::array<std::string_view, 2> kShmKeys{"group", "socket"};
constexpr std::size_t kHostNameMax = 253;  // RFC 1123

constexpr bool is_digit(char c) noexcept {
  return c >= '0' && c <= '9';
}
constexpr bool is_unreserved(char c) noexcept {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '-' || c == '.' || c == '_' ||
         c == '~';
}
constexpr bool is_host_char(char c) noexcept {
  return is_unreserved(c) && c != '~';
}

std::string encode(std::string_view text, std::string_view also_plain) {
  std::string encoded;
  for (const char c : text) {
    if (is_unreserved(c) || also_plain.find(c) != std::string_view::npos)
      encoded += c;
    else
      encoded += fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return encoded;
}

bool is_address(int family, const std::string& text) noexcept {
  std::array<std::byte, sizeof(in6_addr)> address{};
  return inet_pton(family, text.c_str(), address.data()) == 1;
}

/// A piece of the URI that remembers where it stands, so that an error can point at it.
struct Piece {
  std::string_view text;
  std::size_t at = 0;

  [[nodiscard]] bool empty() const noexcept { return text.empty(); }
  [[nodiscard]] std::size_t end() const noexcept { return at + text.size(); }
  [[nodiscard]] Piece from(std::size_t skip) const noexcept { return {text.substr(skip), at + skip}; }
  [[nodiscard]] Piece first(std::size_t count) const noexcept { return {text.substr(0, count), at}; }
};

/// What stands before and after the first of `separators`; all of it and nothing if there is none.
struct Split {
  Piece before;
  std::optional<Piece> after;
};
Split split(Piece piece, std::string_view separators) noexcept {
  const auto position = piece.text.find_first_of(separators);
  if (position == std::string_view::npos) return {piece, std::nullopt};
  return {piece.first(position), piece.from(position + 1)};
}

using Problem = tl::unexpected<Error>;

class Parser {
 public:
  explicit Parser(std::string_view text) noexcept : text_(text) {}

  Result<Uri> run() {
    if (text_.size() > Uri::kLengthMax)
      return failure(ErrorKind::invalid_argument,
                     fmt::format("a URI of {} bytes: at most {} are allowed", text_.size(), Uri::kLengthMax));
    const auto strange =
        std::find_if(text_.begin(), text_.end(), [](char c) { return c < 0x21 || c > 0x7e || c == '#'; });
    if (strange != text_.end())
      return problem(static_cast<std::size_t>(strange - text_.begin()),
                     "this character is not allowed here: write it as % and two hexadecimal digits");
    return scheme()
        .and_then([&](Piece rest) { return authority(rest); })
        .and_then([&](Piece rest) { return path(rest); })
        .and_then([&](std::optional<Piece> rest) { return query(rest); })
        .map([&] { return std::move(uri_); });
  }

 private:
  [[nodiscard]] Problem problem(std::size_t at, std::string_view what) const {
    const auto shown = printable(text_, text_.size());
    const auto column = printable(text_.substr(0, at), at).size();
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{}: {}\n  {}\n  {:>{}}", shown, what, shown, '^', column + 1));
  }

  /// Returns what follows "://".
  Result<Piece> scheme() {
    const auto end = text_.find("://");
    if (end == std::string_view::npos)
      return problem(0, "not a URI: nvme+rdma://HOST[:PORT][/NQN[/NSID]] or nvme+shm://[/NQN[/NSID]]?socket=PATH");
    std::string lower(text_.substr(0, end));
    std::transform(lower.begin(), lower.end(), lower.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
    for (const auto scheme : {Uri::Scheme::rdma, Uri::Scheme::shm, Uri::Scheme::sim}) {
      if (lower != name(scheme)) continue;
      uri_.scheme = scheme;
      return Piece{text_, 0}.from(end + 3);
    }
    return problem(0, fmt::format("scheme '{}' is not nvme+rdma or nvme+shm", text_.substr(0, end)));
  }

  /// Returns what follows host and port: empty, or beginning with '/' or '?'.
  Result<Piece> authority(Piece piece) {
    const auto end = std::min(piece.text.find_first_of("/?"), piece.text.size());
    const Piece whole = piece.first(end);
    if (uri_.scheme == Uri::Scheme::shm) {
      uri_.port = 0;
      if (!whole.empty())
        return problem(whole.at, "nvme+shm has no host: nvme+shm:///NQN/NSID?socket=PATH or nvme+shm://?socket=PATH");
      return piece.from(end);
    }
    if (whole.empty()) return problem(whole.at, "the host is missing: a name, an IPv4 address or an [IPv6 address]");
    auto host = whole.text.front() == '[' ? bracketed_host(whole) : plain_host(whole);
    return std::move(host).and_then([&](std::optional<Piece> digits) { return port(digits); }).map([&] {
      return piece.from(end);
    });
  }

  /// Returns what follows the ':' behind the host.
  Result<std::optional<Piece>> plain_host(Piece whole) {
    const auto [host, digits] = split(whole, ":");
    if (host.empty()) return problem(host.at, "the host is missing: a name, an IPv4 address or an [IPv6 address]");
    if (digits && digits->text.find(':') != std::string_view::npos)
      return problem(host.at, "an IPv6 address stands in brackets: [fd00::1]");
    const auto bad = std::find_if_not(host.text.begin(), host.text.end(), is_host_char);
    if (bad != host.text.end())
      return problem(host.at + static_cast<std::size_t>(bad - host.text.begin()),
                     "a host name consists of letters, digits, '-', '.' and '_'");
    if (host.text.size() > kHostNameMax) return problem(host.at, "a host name has at most 253 characters");
    uri_.host = std::string(host.text);
    const bool numeric =
        std::all_of(host.text.begin(), host.text.end(), [](char c) { return is_digit(c) || c == '.'; });
    if (numeric && !is_address(AF_INET, uri_.host))
      return problem(host.at, "not an IPv4 address: four numbers from 0 to 255");
    return digits;
  }

  Result<std::optional<Piece>> bracketed_host(Piece whole) {
    const auto [inside, behind] = split(whole.from(1), "]");
    if (!behind) return problem(whole.end(), "the ']' behind the IPv6 address is missing");
    // RFC 6874: the zone follows "%25"; a bare '%' is what people type
    const auto [address, zone] = split(inside, "%");
    if (!is_address(AF_INET6, std::string(address.text))) return problem(address.at, "not an IPv6 address");
    uri_.host = std::string(address.text);
    if (zone) {
      const Piece zone_name = zone->text.starts_with("25") ? zone->from(2) : *zone;
      if (zone_name.empty() || !std::all_of(zone_name.text.begin(), zone_name.text.end(), is_unreserved))
        return problem(zone_name.at, "an interface name is expected: [fe80::1%25eth0]");
      uri_.host += '%';
      uri_.host += zone_name.text;
    }
    if (behind->empty()) return std::nullopt;
    if (behind->text.front() != ':') return problem(behind->at, "':' and a port, '/' or '?' may follow the address");
    return behind->from(1);
  }

  Result<void> port(std::optional<Piece> digits) {
    if (!digits) return {};
    const auto value = number(*digits, 0xffff);
    if (!value) return problem(digits->at, fmt::format("port {} is not 1 to 65535", digits->text));
    uri_.port = static_cast<std::uint16_t>(*value);
    return {};
  }

  /// 1 to `max`, digits only.
  static std::optional<std::uint64_t> number(Piece digits, std::uint64_t max) noexcept {
    std::uint64_t value = 0;
    const char* end = digits.text.data() + digits.text.size();
    const auto [stop, error] = std::from_chars(digits.text.data(), end, value);
    if (error != std::errc() || stop != end || value == 0 || value > max) return std::nullopt;
    return value;
  }

  /// Returns the query, if there is one.
  Result<std::optional<Piece>> path(Piece piece) {
    const auto [whole, rest] = split(piece, "?");
    if (whole.text.size() <= 1) return rest;  // "" and "/"
    const auto [nqn_piece, nsid_piece] = split(whole.from(1), "/");
    auto decoded = decode(nqn_piece);
    if (!decoded) return tl::unexpected(std::move(decoded.error()));
    auto nqn = nvme::Nqn::parse_foreign(*decoded);
    if (!nqn) return problem(nqn_piece.at, nqn.error().message());
    uri_.nqn = std::move(*nqn);
    if (nsid_piece) {
      const auto value = number(*nsid_piece, Uri::kNsidMax);
      if (!value)
        return problem(nsid_piece->at,
                       fmt::format("namespace identifier '{}' is not 1 to {}; a '/' in an NQN is written %2F",
                                   nsid_piece->text, Uri::kNsidMax));
      uri_.nsid = Nsid(static_cast<std::uint32_t>(*value));
    }
    return rest;
  }

  Result<void> query(std::optional<Piece> rest) {
    while (rest) {
      const auto [pair, next] = split(*rest, "&");
      if (auto added = option(pair); !added) return added;
      rest = next;
    }
    return {};
  }

  Result<void> option(Piece pair) {
    const auto [key, value] = split(pair, "=");
    const std::string_view key_text = key.text;
    if (std::find(kKeys.begin(), kKeys.end(), key_text) == kKeys.end())
      return problem(key.at, fmt::format("option '{}' is not one of {}", key_text, fmt::join(kKeys, ", ")));
    if (std::find(kShmKeys.begin(), kShmKeys.end(), key_text) != kShmKeys.end() && uri_.scheme != Uri::Scheme::shm)
      return problem(key.at, fmt::format("{} has no option '{}': it belongs to nvme+shm", name(uri_.scheme), key_text));
    if (!value || value->empty()) return problem(key.end(), fmt::format("'{}=' and a value are expected", key_text));
    auto decoded = decode(*value);
    if (!decoded) return tl::unexpected(std::move(decoded.error()));
    if (!uri_.options.emplace(key_text, std::move(*decoded)).second)
      return problem(key.at, fmt::format("option '{}' is given twice", key_text));
    return {};
  }

  Result<std::string> decode(Piece piece) const {
    std::string decoded;
    for (std::size_t i = 0; i < piece.text.size(); ++i) {
      if (piece.text[i] != '%') {
        decoded += piece.text[i];
        continue;
      }
      unsigned value = 0;
      const auto digits = piece.text.substr(i + 1, 2);
      const char* end = digits.data() + digits.size();
      const auto [stop, error] = std::from_chars(digits.data(), end, value, 16);
      if (digits.size() != 2 || error != std::errc() || stop != end)
        return problem(piece.at + i, "'%' is followed by two hexadecimal digits");
      if (value == 0) return problem(piece.at + i, "a NUL is not allowed");
      decoded += static_cast<char>(value);
      i += 2;
    }
    return decoded;
  }

  std::string_view text_;
  Uri uri_;
};

}  // namespace

std::string_view name(Uri::Scheme scheme) noexcept {
  switch (scheme) {
    case Uri::Scheme::rdma: return "nvme+rdma";
    case Uri::Scheme::shm: return "nvme+shm";
    case Uri::Scheme::sim: return "nvme+sim";
  }
  return {};
}

Result<Uri> Uri::parse(std::string_view text) {
  return Parser(text).run();
}

std::string Uri::to_string() const {
  std::string text = fmt::format("{}://", name(scheme));
  if (scheme != Scheme::shm) {
    if (host.find(':') != std::string::npos) {
      const auto zone = host.find('%');
      text += '[' + host.substr(0, zone);
      if (zone != std::string::npos) text += "%25" + host.substr(zone + 1);
      text += ']';
    } else {
      text += host;
    }
    if (port != kNvmeRdmaPort) text += fmt::format(":{}", port);
  }
  if (nqn) text += '/' + encode(nqn->text(), ":");
  if (nqn && nsid) text += fmt::format("/{}", nsid->value());
  char separator = '?';
  for (const auto& [key, value] : options) {
    text += fmt::format("{}{}={}", separator, key, encode(value, ":/"));
    separator = '&';
  }
  return text;
}

std::optional<std::string_view> Uri::option(std::string_view key) const {
  const auto found = options.find(key);
  if (found == options.end()) return std::nullopt;
  return found->second;
}

}  // namespace rbt
