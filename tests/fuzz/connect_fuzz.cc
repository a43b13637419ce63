// Connect: command and 1024 bytes of data; Property Get and Set share the entry.

#include <cstring>

#include "common/nvme/fabrics.h"
#include "tests/fuzz/input.h"

using namespace rbt;
using namespace rbt::nvme;

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto input = fuzz::bytes(data, size);
  const auto sqe = fuzz::entry(input);
  if (const auto access = parse_property(sqe)) {
    const auto again = parse_property(encode_property_set(*access));
    check(again && again->offset == access->offset && again->value == access->value, "properties come back");
  }
  const auto request = parse_connect(sqe, fuzz::behind_entry(input));
  if (!request) {
    check(!request.error().status.ok(), "a refusal is an error");
    check(!describe_invalid_connect(request.error().dw0).empty(), "and points somewhere");
    return 0;
  }
  check(request->queue_entries >= 2 && request->queue_entries <= 65536, "queue size");
  check(request->subsystem_nqn.text().size() <= 223 && request->host_nqn.text().size() <= 223, "NQN length");
  const auto connect_data = encode_connect_data(*request);
  const auto again = parse_connect(encode_connect(*request), std::as_bytes(std::span(&connect_data, 1)));
  check(again && again->qid == request->qid && again->queue_entries == request->queue_entries &&
            again->keep_alive == request->keep_alive && again->host_id == request->host_id &&
            again->cntlid == request->cntlid && again->subsystem_nqn == request->subsystem_nqn &&
            again->host_nqn == request->host_nqn && again->flow_control == request->flow_control,
        "a Connect is encoded as it was decoded");
  return 0;
}
