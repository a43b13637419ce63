#include "tools/rbt-connect/map/listing.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "common/sizes.h"
#include "tools/rbt-connect/map/presenters.h"

namespace rbt::tools::map {

namespace {

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& each : words)
    text += (text.empty() ? "" : " ") + each;
  return text;
}

// What every volume is described by; `stats` adds its status.
Json json_of(const Row& row) {
  const State& volume = row.volume;
  Json json{{"name", volume.name}};
  json["uri"] = volume.uris.empty() ? "" : volume.uris.front();
  if (row.status.is_object() && row.status.value("path", Json()).is_string()) json["uri"] = row.status["path"];
  json["device"] = volume.device;
  json["via"] = volume.via;
  json["pid"] = volume.pid;
  json["state"] = row.state;
  json["note"] = row.note;
  json["uris"] = volume.uris;
  json["size"] = volume.size;
  json["block_size"] = volume.block_size;
  json["read_only"] = volume.read_only;
  json["uuid"] = volume.uuid;
  json["queues"] = volume.queues;
  json["depth"] = volume.depth;
  json["io_max"] = volume.io_max;
  json["options"] = volume.options;
  json["since"] = volume.since;
  return json;
}

constexpr int kTableColumns = 7;
using Line = std::array<std::string, kTableColumns>;

std::string table(const std::vector<Line>& lines) {
  std::array<std::size_t, kTableColumns> widths{};
  for (const Line& line : lines)
    for (std::size_t i = 0; i < line.size(); ++i)
      widths[i] = std::max(widths[i], line[i].size());
  std::string text;
  for (const Line& line : lines) {
    for (std::size_t i = 0; i + 1 < line.size(); ++i)
      text += fmt::format("{:<{}}  ", line[i], widths[i]);
    text += line.back() + "\n";
  }
  return text;
}

std::uint64_t number(const Json& json, const char* key) {
  const auto at = json.find(key);
  return at != json.end() && at->is_number_unsigned() ? at->get<std::uint64_t>() : 0;
}
std::string text(const Json& json, const char* key) {
  const auto at = json.find(key);
  return at != json.end() && at->is_string() ? printable(at->get<std::string>(), 2048) : "";
}
std::string duration(const Json& json, const char* key) {
  return format_duration(std::chrono::milliseconds(number(json, key)));
}

std::string counted(std::uint64_t count, std::string_view what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

// How long the longest took is known when it is over.
std::string losses(const Json& status) {
  const std::uint64_t count = number(status, "losses");
  if (count == 0) return "never";
  const std::string longest = number(status, "longest_loss_ms") == 0
                                  ? ""
                                  : fmt::format(", at most for {}", duration(status, "longest_loss_ms"));
  return fmt::format("{}{}; {} to connect again", count == 1 ? "once" : fmt::format("{} times", count), longest,
                     counted(number(status, "attempts"), "attempt"));
}

// What status_of() has one word for. Other versions may have others.
std::string fence(const std::string& word) {
  if (word == "target") return "by the target";
  if (word == "keep_alive") return "by waiting for twice the keep-alive timeout: not one of rbt's targets";
  return word;
}

std::string kept(const Json& status) {
  const std::string word = text(status, "memory");
  if (word == "not_needed") return "nothing is kept: the disk has no volatile write cache";
  if (word == "foreign") return "nothing is kept: this target does not tell what it has lost";
  if (word == "off") return "nothing is kept";
  return fmt::format("{} kept, {} flush{} of its own", format_bytes(Bytes(number(status, "unflushed_bytes"))),
                     number(status, "flushes"), number(status, "flushes") == 1 ? "" : "es");
}

std::string traffic_table(const Json& requests) {
  std::string lines = fmt::format("{:<9}{:>12}{:>12}{:>8}{:>11}{:>11}{:>11}{:>11}{:>11}\n", "", "requests", "bytes",
                                  "errors", "p50 us", "p90 us", "p99 us", "p99.9 us", "max us");
  for (const auto& [kind, each] : requests.items()) {
    if (!each.is_object()) continue;
    const Json latency = each.value("latency_us", Json::object());
    lines += fmt::format("{:<9}{:>12}{:>12}{:>8}", kind, number(each, "requests"),
                         format_bytes(Bytes(number(each, "bytes"))), number(each, "errors"));
    for (const auto* key : {"p50", "p90", "p99", "p99_9", "max"}) {
      const Json value = latency.is_object() ? latency.value(key, Json()) : Json();
      lines += value.is_number() && number(each, "requests") != 0 ? fmt::format("{:>11.1f}", value.get<double>())
                                                                  : fmt::format("{:>11}", "-");
    }
    lines += "\n";
  }
  return lines;
}

// Of a volume whose process has ended, or does not say anything (yet).
void judge(const RunFolder& folder, Row& row) {
  const State& volume = row.volume;
  if (folder.holder(volume.name)) {
    row.state = volume.device.empty() ? "starting" : "unresponsive";
    if (!volume.device.empty()) row.note = "its process does not answer; rbt-connect unmap --force ends it";
    return;
  }
  const Presenter* const presenter = find_presenter(volume.via);
  if (volume.device.empty() || presenter == nullptr || !presenter->exists(volume)) {
    row.state = "gone";
    row.note = "its process has ended and left a note: rbt-connect gc";
  } else if (presenter->recoverable) {
    row.state = "dead";
    row.note = fmt::format("its process has ended, requests wait: rbt-connect recover {}", volume.name);
  } else {
    row.state = "dead";
    row.note = "its process has ended: rbt-connect gc, then map it again";
  }
}

}  // namespace

Look look(const RunFolder& folder, const Clock& clock) {
  Look found;
  std::vector<std::optional<Asked>> asked;
  for (const std::string& name : folder.names()) {
    auto state = folder.read(name);
    if (!state && state.error().kind() == ErrorKind::not_found) {
      state = State{.name = name};  // its process is at its beginning, or at its end
      if (const auto pid = folder.holder(name)) state->pid = *pid;
    }
    if (!state) {
      found.errors.push_back(std::move(state.error()));
      continue;
    }
    found.rows.push_back({.volume = std::move(*state)});
    auto sent = Asked::send(folder.control(name), {{"version", 1}, {"command", "status"}});
    asked.emplace_back();
    if (sent) asked.back().emplace(std::move(*sent));
  }
  const Instant deadline = clock.now() + std::chrono::seconds(1);
  for (std::size_t i = 0; i < found.rows.size(); ++i) {
    Row& row = found.rows[i];
    auto answer = asked[i] ? asked[i]->answer(clock, deadline) : Result<Json>(failure(ErrorKind::not_found, ""));
    const Json status = answer ? answer->value("status", Json()) : Json();
    if (!status.is_object()) {
      judge(folder, row);
      continue;
    }
    row.status = status;
    row.state = text(status, "state");
    row.note = text(status, "note");
    if (row.note.empty()) row.note = text(status, "reason");
  }
  return found;
}

Result<Row> look_at(const RunFolder& folder, const Clock& clock, std::string_view name) {
  if (auto state = folder.read(name); !state) return failure(std::move(state.error()));
  for (Row& row : look(folder, clock).rows)
    if (row.volume.name == name) return std::move(row);
  return failure(ErrorKind::not_found, fmt::format("'{}' has just been unmapped", printable(name, 80)));
}

std::string describe(const std::vector<Row>& rows, Format format) {
  if (format == Format::json) {
    Json json{{"version", 1}, {"volumes", Json::array()}};
    for (const Row& row : rows)
      json["volumes"].push_back(json_of(row));
    return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  }
  if (rows.empty()) return "";
  std::vector<Line> lines{{"NAME", "STATE", "DEVICE", "SIZE", "VIA", "PID", "URI"}};
  std::string notes;
  for (const Row& row : rows) {
    const State& volume = row.volume;
    const std::string path = row.status.is_object() ? text(row.status, "path") : "";
    lines.push_back({volume.name, row.state, volume.device.empty() ? "-" : volume.device,
                     volume.size == 0 ? "-" : format_bytes(Bytes(volume.size)), volume.via.empty() ? "-" : volume.via,
                     std::to_string(volume.pid), path.empty() ? printable(joined(volume.uris), 2048) : path});
    if (!row.note.empty()) notes += fmt::format("{}: {}\n", volume.name, row.note);
  }
  return table(lines) + notes;
}

std::string describe_statistics(const Row& row, Format format) {
  Json json{{"version", 1}, {"volume", json_of(row)}};
  json["volume"]["status"] = row.status;
  if (format == Format::json) return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  const State& volume = row.volume;
  std::string lines;
  const auto line = [&](std::string_view key, const std::string& value) {
    lines += fmt::format("{:<16} {}\n", key, value);
  };
  line("name", volume.name);
  line("device", fmt::format("{} ({}), {}, blocks of {}{}", volume.device, volume.via, format_bytes(Bytes(volume.size)),
                             volume.block_size, volume.read_only ? ", read-only" : ""));
  line("state", row.state + (row.note.empty() ? "" : ": " + row.note));
  line("process", std::to_string(volume.pid));
  line("queues", fmt::format("{} of {} requests, up to {} each", volume.queues, volume.depth,
                             format_bytes(Bytes(volume.io_max))));
  if (!row.status.is_object()) {
    line("paths", joined(volume.uris));
    return lines;
  }
  const Json& status = row.status;
  line("path", text(status, "path"));
  line("up", duration(status, "uptime_ms"));
  line("in flight", std::to_string(number(status, "in_flight")));
  line("path lost", losses(status));
  line("sent again", counted(number(status, "reissued"), "request") + ", " +
                         counted(number(status, "rewritten"), "write") + " that a target had forgotten");
  line("fence", fence(text(status, "fence")));
  line("unflushed", kept(status));
  if (const Json requests = status.value("requests", Json()); requests.is_object()) lines += traffic_table(requests);
  return lines;
}

Result<std::string> resolve(const RunFolder& folder, std::string_view word) {
  const auto names = folder.names();
  if (!word.starts_with('/')) {
    if (std::find(names.begin(), names.end(), word) != names.end()) return std::string(word);
  } else {
    std::error_code error;
    const std::string path = std::filesystem::weakly_canonical(std::filesystem::path(word), error).string();
    std::optional<Error> denied;
    for (const std::string& name : names) {
      auto state = folder.read(name);
      if (state && !state->device.empty() && (state->device == word || state->device == path)) return name;
      if (!state && state.error().kind() == ErrorKind::permission) denied = std::move(state.error());
    }
    if (denied) return failure(std::move(*denied));  // it might be that one
  }
  return failure(ErrorKind::not_found, fmt::format("'{}' is no mapped volume: there {}", printable(word, 80),
                                                   names.empty() ? "is none" : "are " + joined(names)));
}

}  // namespace rbt::tools::map
