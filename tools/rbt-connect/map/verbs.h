#pragma once
// The verbs that deal with mapped volumes: map, unmap, ls, stats, recover, gc. Arguments and wiring.

#include <string>
#include <string_view>
#include <vector>

namespace rbt::tools::map {

[[nodiscard]] bool is_verb(std::string_view word);
/// Lines for rbt-connect --help.
extern const std::string_view kVerbsText;
/// `words` begins with the verb. Returns the exit status.
[[nodiscard]] int run(const std::vector<std::string>& words);

}  // namespace rbt::tools::map
