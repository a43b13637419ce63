#pragma once
// An admin queue whose controller has events to tell: asking for them, and waiting.

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "tests/sim/admin_rig.h"

namespace rbt::test {

struct EventRig : AdminRig {
  /// DW0 of the one event that is expected.
  explicit EventRig(std::uint32_t expected, RigOptions options = {})
      : AdminRig(std::move(options)), event_dw0(expected) {}
  void enable(std::uint32_t events) { require_ok(set_feature(NVME_FEAT_FID_ASYNC_EVENT, events)); }
  /// Held at the target, unless an event was due.
  std::uint16_t request_event() {
    const std::uint16_t cid = admin.submit(nvme::encode_plain(nvme::AdminOpcode::async_event_request));
    run_for(std::chrono::milliseconds(1));
    return cid;
  }
  void expect_event(std::uint16_t cid) {
    std::optional<Response> event;
    expect([&] { return (event = admin.take(cid)).has_value(); }, "the event comes");
    require_ok(*event);
    CHECK(event->cqe.dw0() == event_dw0);
  }
  bool no_event(std::uint16_t cid) {
    run_for(std::chrono::milliseconds(100));
    return !admin.take(cid).has_value();
  }

  const std::uint32_t event_dw0;
};

}  // namespace rbt::test
