// A file that says it keeps reservations, as it is and under a right checksum; and what a target says of them.

#include <boost/crc.hpp>
#include <cstring>
#include <vector>

#include "common/nvme/endian.h"
#include "common/nvme/reservation.h"
#include "target/reservation/image.h"
#include "tests/fuzz/input.h"

using namespace rbt;
using namespace rbt::target;

namespace {

void image(std::span<const std::byte> input) {
  const auto parsed = parse_reservation_image(input);
  if (!parsed) return check(!parsed.error().message().empty(), "a refusal has a reason");
  check(parse_reservation_image(encode_reservation_image(*parsed)) == *parsed, "what is accepted is what is written");
  const auto& state = parsed->state;
  check(state.registrants.size() <= ReservationState::kRegistrantsMax, "there are not too many");
  bool held = false;
  for (const auto& each : state.registrants)
    held = held || state.holds(each.host);
  check(held == state.type.has_value(), "what is reserved is held by a registrant");
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto input = fuzz::bytes(data, size);
  image(input);
  std::vector<std::byte> checked(input.begin(), input.end());
  boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> crc;
  crc.process_bytes(checked.data(), checked.size());
  const nvme::Le32 checksum(crc.checksum());
  checked.resize(checked.size() + sizeof checksum);
  std::memcpy(&checked[input.size()], &checksum, sizeof checksum);
  image(checked);
  if (const auto status = nvme::parse_reservation_status(input))
    check(nvme::parse_reservation_status(nvme::encode_reservation_status(*status)) == *status,
          "a report reads as it was");
  return 0;
}
