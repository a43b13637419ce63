// CM private data of all three messages.

#include "common/nvme/connect_private_data.h"
#include "tests/fuzz/input.h"

using namespace rbt;
using namespace rbt::nvme;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto input = fuzz::bytes(data, size);
  if (const auto request = parse_cm_request(input)) {
    check(request->host_sends >= 2 && request->host_receives >= 1, "queues have room");
    const auto encoded = encode_cm_request(*request);
    check(std::memcmp(&encoded, data, 10) == 0, "a request is encoded as it was decoded");
  }
  if (const auto receives = parse_cm_accept(input)) {
    const auto encoded = encode_cm_accept(*receives);
    check(std::memcmp(&encoded, data, 4) == 0, "an acceptance is encoded as it was decoded");
  }
  if (const auto reason = parse_cm_reject(input)) check(!name(*reason).empty(), "every reason can be shown");
  return 0;
}
