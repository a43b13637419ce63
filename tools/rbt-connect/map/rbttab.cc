#include "tools/rbt-connect/map/rbttab.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "common/log.h"

namespace rbt::tools::map {

namespace {

constexpr std::size_t kFileMax = 1 << 20;

// A piece of a line and where it begins, counted from 1.
struct Piece {
  std::string_view text;
  std::size_t column;
};

std::vector<Piece> split(Piece whole, std::string_view separators, bool empty_ones) {
  std::vector<Piece> pieces;
  std::size_t at = 0;
  while (at <= whole.text.size()) {
    const std::size_t end = std::min(whole.text.find_first_of(separators, at), whole.text.size());
    if (end > at || empty_ones) pieces.push_back({whole.text.substr(at, end - at), whole.column + at});
    at = end + 1;
  }
  return pieces;
}

// One line of the file.
class Line {
 public:
  Line(std::string_view file, std::size_t number) : file_(file), number_(number) {}

  [[nodiscard]] tl::unexpected<Error> wrong(std::size_t column, std::string_view what) const {
    return failure(ErrorKind::invalid_argument, fmt::format("{}:{}:{}: {}", file_, number_, column, what));
  }

  [[nodiscard]] Result<MapOptions> parse(const std::vector<Piece>& fields) const {
    MapOptions options;
    if (auto fine = check_name(fields[0].text); !fine) return wrong(fields[0].column, fine.error().message());
    options.name = fields[0].text;
    if (fields.size() < 2)
      return wrong(fields[0].column + fields[0].text.size(),
                   "a line is NAME URI[,URI...] [OPTION,...]: the URI is missing");
    if (fields.size() > 3)
      return wrong(
          fields[3].column,
          fmt::format("'{}' is one field too many: a line is NAME URI[,URI...] [OPTION,...], with no blanks within",
                      printable(fields[3].text, 40)));
    for (const Piece& each : split(fields[1], ",", true)) {
      auto uri = parse_volume_uri(each.text);
      if (!uri) return wrong(each.column, uri.error().message());
      options.uris.push_back(std::move(*uri));
    }
    if (auto fine = check_paths(options.uris); !fine) return wrong(fields[1].column, fine.error().message());
    if (fields.size() == 3)
      for (const Piece& each : split(fields[2], ",", true)) {
        const std::size_t equals = std::min(each.text.find('='), each.text.size());
        const std::string_view value = each.text.substr(std::min(equals + 1, each.text.size()));
        if (auto applied = apply(options, each.text.substr(0, equals), value); !applied)
          return wrong(each.column, applied.error().message());
      }
    return options;
  }

 private:
  std::string_view file_;
  std::size_t number_;
};

}  // namespace

std::filesystem::path rbttab_path() {
  const char* const chosen = std::getenv("RBT_TAB");  // NOLINT(concurrency-mt-unsafe): nobody sets it
  return chosen != nullptr && *chosen != '\0' ? chosen : "/etc/rbt/rbttab";
}

Result<std::vector<MapOptions>> parse_rbttab(std::string_view file, std::string_view text) {
  std::vector<MapOptions> all;
  std::vector<std::size_t> at_line;
  std::size_t number = 0;
  for (const Piece& whole : split({text, 1}, "\n", true)) {
    const Line line(file, ++number);
    auto fields = split({whole.text, 1}, " \t\r", false);
    fields.erase(std::find_if(fields.begin(), fields.end(), [](const Piece& each) { return each.text.front() == '#'; }),
                 fields.end());
    if (fields.empty()) continue;
    auto options = line.parse(fields);
    if (!options) return failure(std::move(options.error()));
    for (std::size_t i = 0; i < all.size(); ++i)
      if (all[i].name == options->name)
        return line.wrong(fields[0].column,
                          fmt::format("'{}' is in line {} already: a name is one volume's", options->name, at_line[i]));
    all.push_back(std::move(*options));
    at_line.push_back(number);
  }
  return all;
}

Result<std::vector<MapOptions>> read_rbttab(const std::filesystem::path& file) {
  std::ifstream stream(file);
  if (!stream)
    return errno_failure(errno, fmt::format("opening {}", file.string()),
                         "it has one volume a line: NAME URI[,URI...] [OPTION,...]");
  std::string text(kFileMax + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (stream.bad()) return failure(ErrorKind::io, fmt::format("{} cannot be read", file.string()));
  text.resize(static_cast<std::size_t>(stream.gcount()));
  if (text.size() > kFileMax)
    return failure(ErrorKind::invalid_argument, fmt::format("{} is larger than {} bytes", file.string(), kFileMax));
  return parse_rbttab(file.string(), text);
}

Result<MapOptions> find_in_rbttab(const std::filesystem::path& file, std::string_view name) {
  auto all = read_rbttab(file);
  if (!all) return failure(std::move(all.error()));
  std::string names;
  for (auto& each : *all) {
    if (each.name == name) return std::move(each);
    names += (names.empty() ? "" : ", ") + each.name;
  }
  return failure(ErrorKind::not_found, fmt::format("'{}' is not in {}: there {}", printable(name, 80), file.string(),
                                                   names.empty() ? "is nothing" : "are " + names));
}

}  // namespace rbt::tools::map
