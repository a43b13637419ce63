// What a target says about itself: the first bytes choose the structure, the rest is it (zeroes behind its end).

#include <cstring>

#include "common/nvme/access.h"
#include "initiator/identify.h"
#include "tests/fuzz/input.h"

using namespace rbt;
using namespace rbt::initiator;

namespace {

template <typename T>
T filled(std::span<const std::byte> input) {
  T out{};
  if (!input.empty()) std::memcpy(static_cast<void*>(&out), input.data(), std::min(input.size(), sizeof out));
  return out;
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  auto input = fuzz::bytes(data, size);
  if (input.size() < 9) return 0;
  const auto kind = std::to_integer<unsigned>(input[0]) % 6;
  nvme::Capabilities capabilities;
  std::memcpy(&capabilities.raw, input.data() + 1, sizeof capabilities.raw);
  input = input.subspan(9);
  if (kind == 0) {
    const auto id = filled<nvme_id_ctrl>(input);
    IdentifyContext context{.capabilities = capabilities,
                            .version = {},
                            .cntlid = Cntlid(nvme::from_le(id.cntlid)),
                            .subsystem_nqn = "",
                            .in_capsule_preferred = 4096};
    if (const auto info = parse_identify_controller(id, context)) {
      check(info->transfer_max >= Bytes(4096) && info->transfer_max <= Bytes(kTransferMax), "MDTS is bounded");
      check(info->in_capsule_max <= 4096, "so is IOCCSZ");
    }
  } else if (kind == 1) {
    const auto limits = parse_command_limits(filled<nvme_id_ctrl_nvm>(input), capabilities);
    check(limits.discard_ranges_max >= 1 && limits.discard_ranges_max <= 256 && limits.discard_range_blocks_max != 0,
          "limits let something through");
  } else if (kind == 2) {
    std::vector<Nsid> ids;
    (void)parse_namespace_list(filled<nvme_ns_list>(input), Nsid(3), ids);
    for (std::size_t i = 0; i < ids.size(); ++i)
      check(ids[i] > (i == 0 ? Nsid(3) : ids[i - 1]), "the list ascends");
  } else if (kind == 3) {
    if (const auto space = parse_identify_namespace(filled<nvme_id_ns>(input), Nsid(1), {}))
      check(space->block_shift.bytes(space->blocks).has_value(), "the size fits");
  } else if (kind == 4) {
    Namespace space;
    (void)parse_namespace_descriptors(input, space);
  } else {
    (void)nvme::find_access_state(input, 1);
  }
  return 0;
}
