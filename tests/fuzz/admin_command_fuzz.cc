// Get Log Page and the other admin commands; the log itself is what follows the entry.

#include <vector>

#include "common/nvme/admin_command.h"
#include "tests/fuzz/input.h"

using namespace rbt;
using namespace rbt::nvme;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto input = fuzz::bytes(data, size);
  const auto sqe = fuzz::entry(input);
  if (const auto log = parse_get_log_page(sqe)) {
    check(log->length.value() >= 4 && log->length.value() <= std::uint64_t{1} << 34, "NUMD is 32 bits, 0's based");
    check(log->offset.value() % 4 == 0, "offsets are in dwords");
    const auto again = parse_get_log_page(encode_get_log_page(*log));
    check(again && again->length == log->length && again->offset == log->offset && again->lid == log->lid &&
              again->lsp == log->lsp && again->lsi == log->lsi && again->retain == log->retain &&
              again->nsid == log->nsid && again->command_set == log->command_set,
          "Get Log Page is encoded as it was decoded");
    std::vector<std::byte> out(static_cast<std::size_t>(std::min<std::uint64_t>(log->length.value(), 4096)));
    (void)copy_log_page(fuzz::behind_entry(input), log->offset, out);
  }
  const auto identify = parse_identify(encode_identify(parse_identify(sqe)));
  check(identify.cns == parse_identify(sqe).cns, "Identify comes back");
  const auto set = parse_set_features(encode_set_features(parse_set_features(sqe)));
  check(set.value == parse_set_features(sqe).value, "Set Features comes back");
  if (const auto get = parse_get_features(sqe)) check(parse_get_features(encode_get_features(*get)).has_value(), "SEL");
  if (const auto counts = parse_queue_counts(sqe.cdw11.get()))
    check(encode_queue_counts(*counts) == sqe.cdw11.get(), "queue counts come back");
  const auto abort_command = parse_abort(sqe);
  check(encode_abort(abort_command).cdw10 == sqe.cdw10, "Abort comes back");
  return 0;
}
