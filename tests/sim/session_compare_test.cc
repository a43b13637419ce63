// The initiator's Compare against the target's.

#include <catch2/catch.hpp>
#include <chrono>

#include "initiator/initiator.h"
#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using initiator::Outcome;
using initiator::Submitted;

TEST_CASE("A queue pair's Compare tells equal blocks from others, from registered memory and from any") {
  TargetRig rig({.store = "ram:size=16MiB,block=4096"});
  auto reactor =
      std::move(transport::Reactor::create(rig.network.clock(), null_logger(), {.waiter = &rig.network}).value());
  const Uri uri = *Uri::parse(std::string("nvme+sim://target/") + kSubsystem);
  {
    auto session = std::move(
        initiator::Session::connect({rig.network.fabric("host"), rig.network.clock(), null_logger(), rig.random}, uri,
                                    {.management = reactor.get()})
            .value());
    auto queue = std::move(session->open_queue_pair(*reactor, {.depth = 8, .buffers = Bytes(4 * kMiB)}).value());
    const initiator::Namespace& space = **session->find(Nsid(1));
    CHECK(space.abilities.compare);
    auto any = some_bytes(300 * 4096, 1);  // two commands
    auto own = queue->buffers()->allocate(any.size());
    std::copy(any.begin(), any.end(), own.begin());
    const auto outcome = [&](auto call, std::span<std::byte> data) {
      initiator::Request request;
      bool done = false;
      request.context = &done;
      request.done = [](initiator::Request& each) { *static_cast<bool*>(each.context) = true; };
      const iovec piece{data.data(), data.size()};
      REQUIRE(call(request, piece) == Submitted::accepted);
      REQUIRE(reactor->run_until([&] { return done; }, rig.network.clock().now() + std::chrono::seconds(10)));
      if (request.outcome == Outcome::failed) return request.status.code();
      CHECK(request.outcome == Outcome::success);
      return nvme::StatusCode::success;
    };
    const auto write = [&](initiator::Request& request, const iovec& piece) {
      return queue->write(request, space, Lba(7), {&piece, 1});
    };
    const auto compare = [&](initiator::Request& request, const iovec& piece) {
      return queue->compare(request, space, Lba(7), {&piece, 1});
    };
    const std::span<std::byte> mine = own.first(any.size());
    REQUIRE(outcome(write, mine) == nvme::StatusCode::success);
    CHECK(outcome(compare, any) == nvme::StatusCode::success);
    CHECK(outcome(compare, mine) == nvme::StatusCode::success);
    any.back() ^= std::byte{1};
    mine.front() ^= std::byte{1};
    CHECK(outcome(compare, any) == nvme::StatusCode::compare_failure);
    CHECK(outcome(compare, mine) == nvme::StatusCode::compare_failure);
  }
}
