#pragma once
// What `ls` and `stats` print: tables for people, JSON for programs.

#include <string>
#include <vector>

#include "tools/rbt-connect/describe.h"
#include "tools/rbt-connect/map/control.h"
#include "tools/rbt-connect/map/state.h"
#include "tools/rbt-connect/map/world.h"

namespace rbt::tools::map {

/// One volume, as far as it can be known now.
struct Row {
  State volume{};
  /// What its process says (live, lost, reconnecting, fenced, failed), or without one that answers: starting, unresponsive,
  /// dead (the device waits for `recover`), gone (`gc` clears up).
  std::string state{};
  std::string note{};
  Json status{};  ///< status_of(); null without a process that answers
};

struct Look {
  std::vector<Row> rows{};
  std::vector<Error> errors{};  ///< states that cannot be read
};
/// All volumes, asked at once; each has a second to answer.
[[nodiscard]] Look look(const RunFolder& folder, const Clock& clock);
/// One of them. Error: not_found, or what reading its state says.
[[nodiscard]] Result<Row> look_at(const RunFolder& folder, const Clock& clock, std::string_view name);

[[nodiscard]] std::string describe(const std::vector<Row>& rows, Format format);
/// All that is known of one.
[[nodiscard]] std::string describe_statistics(const Row& row, Format format);

/// The volume that `word` names: its name, its device, or a link to that. Error: not_found, with those there are.
[[nodiscard]] Result<std::string> resolve(const RunFolder& folder, std::string_view word);

}  // namespace rbt::tools::map
