// A state file that is taken can be written out and taken again, and so can what is in it; one that is refused says why, printably.

#include "tests/fuzz/input.h"
#include "tools/rbt-connect/map/state.h"
#include "tools/rbt-connect/map/succession_json.h"

using namespace rbt;
using namespace rbt::tools::map;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto state = parse_state(fuzz::text(data, size));
  if (!state) return 0;
  const std::string written = to_text(*state);
  const auto again = parse_state(written);
  check(again.has_value(), "a state that was written out is taken");
  check(to_text(*again) == written, "and is the same");
  if (const auto options = options_of(*state)) {
    MapOptions same;
    for (const auto& [key, value] : tools::map::written(*options))
      check(apply(same, key, value).has_value(), "options that were written out are taken");
    check(tools::map::written(same) == tools::map::written(*options), "and are the same");
  }
  if (const auto succession = parse_succession(state->succession))
    check(parse_succession(to_json(*succession)).value() == *succession,
          "a succession that was written out is the same");
  return 0;
}
