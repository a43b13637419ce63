// Whatever stands in rbttab: volumes with names and paths, or an error that says where.

#include "tests/fuzz/input.h"
#include "tools/rbt-connect/map/rbttab.h"

using namespace rbt;
using namespace rbt::tools::map;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto volumes = parse_rbttab("rbttab", fuzz::text(data, size));
  if (!volumes) {
    check(volumes.error().message().starts_with("rbttab:"), "an error says where");
    return 0;
  }
  for (const MapOptions& each : *volumes) {
    check(check_name(each.name).has_value(), "a volume has a name");
    check(!each.uris.empty(), "and a path");
  }
  return 0;
}
