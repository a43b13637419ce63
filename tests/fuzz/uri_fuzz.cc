// A URI that is taken can be written out and taken again; one that is refused is shown without control characters.

#include "common/uri.h"
#include "tests/fuzz/input.h"

using namespace rbt;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto uri = Uri::parse(fuzz::text(data, size));
  if (!uri) {
    for (const char c : uri.error().message())
      check(c == '\n' || (c >= 0x20 && c <= 0x7e), "errors are printable");
    return 0;
  }
  const std::string written = uri->to_string();
  if (written.size() > Uri::kLengthMax) return 0;  // encoding may lengthen it beyond what is taken
  const auto again = Uri::parse(written);
  check(again.has_value(), "a URI that was written out is taken");
  check(*again == *uri, "and is the same");
  check(again->to_string() == written, "and is written the same");
  return 0;
}
