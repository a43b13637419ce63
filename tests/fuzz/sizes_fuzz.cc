// Sizes and durations; the first eight bytes are also formatted.

#include "common/nvme/endian.h"
#include "common/sizes.h"
#include "tests/fuzz/input.h"

using namespace rbt;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto text = fuzz::text(data, size);
  if (const auto bytes = parse_size(text)) {
    const auto again = parse_size(std::to_string(bytes->value()));
    check(again && *again == *bytes, "a plain number of bytes is itself");
    check(!format_bytes(*bytes).empty(), "every size can be shown");
  }
  if (const auto duration = parse_duration(text)) {
    check(*duration >= Duration::zero(), "durations are not negative");
    check(!format_duration(*duration).empty(), "every duration can be shown");
  }
  if (const auto number = nvme::read_wire<nvme::Le64>(fuzz::bytes(data, size))) {
    const auto shown = parse_size(format_bytes(Bytes(number->get())));
    // two decimals need not come to whole bytes, but never to more than there are
    check(!shown || shown->value() <= number->get(), "sizes are rounded down");
    (void)format_duration(Duration(static_cast<Duration::rep>(number->get())));
  }
  return 0;
}
