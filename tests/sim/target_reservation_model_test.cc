// Reservations beside a model of them: the rules written down a second time, and in another way.

#include <array>
#include <catch2/catch.hpp>
#include <vector>

#include "tests/sim/reservation_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::AcquireAction;
using nvme::IoOpcode;
using nvme::RegisterAction;
using nvme::ReleaseAction;
using nvme::ReservationAcquire;
using nvme::ReservationRegister;
using nvme::ReservationRelease;
using nvme::ReservationType;
using nvme::StatusCode;
using Host = ReservationRig::Host;

namespace {

struct Model {
  static constexpr std::size_t kHosts = 3;
  std::array<std::uint64_t, kHosts> keys{};  // 0: not registered
  int type = 0;
  std::size_t holder = kHosts;  // nobody
  std::uint32_t generation = 0;
  std::array<std::vector<int>, kHosts> heard;  // notices, in order

  bool all() const { return type >= 5; }
  bool holds(std::size_t host) const { return type != 0 && (all() ? keys[host] != 0 : holder == host); }
  void tell(std::size_t but, int notice, const std::array<std::uint64_t, kHosts>& whom) {
    for (std::size_t i = 0; i < kHosts; ++i)
      if (i != but && whom[i] != 0) heard[i].push_back(notice);
  }
  void drop(std::size_t host) {
    const bool held = holder == host && !all();
    keys[host] = 0;
    if (held || keys == std::array<std::uint64_t, kHosts>{}) type = 0, holder = kHosts;
  }
  StatusCode enroll(std::size_t host, int action, bool ignore, std::uint64_t current, std::uint64_t key) {
    const std::uint64_t mine = keys[host];
    const bool right = mine != 0 && (ignore || mine == current);
    if (action == 1) {
      if (!right) return StatusCode::reservation_conflict;
      const int was = type;
      drop(host);
      if (was >= 3 && type == 0) tell(host, 2, keys);
    } else {
      if (key == 0 && (action == 2 || mine == 0)) return StatusCode::invalid_field;
      const bool fine = action == 0 ? mine == 0 || mine == key : right || (mine == 0 && ignore);
      if (!fine) return StatusCode::reservation_conflict;
      keys[host] = key;
    }
    ++generation;
    return StatusCode::success;
  }
  StatusCode acquire(std::size_t host, int action, int wanted, std::uint64_t current, std::uint64_t other) {
    if (keys[host] == 0 || keys[host] != current) return StatusCode::reservation_conflict;
    if (action == 0) {
      if (type != 0) return holds(host) && type == wanted ? StatusCode::success : StatusCode::reservation_conflict;
      type = wanted, holder = host;
      return StatusCode::success;
    }
    const Model before = *this;
    const bool whole = all() && other == 0;
    const bool from_holder = type != 0 && !all() && keys[holder] == other;
    if (type != 0 && !all() && other == 0) return StatusCode::invalid_field;
    int matched = 0;
    for (std::size_t i = 0; i < kHosts; ++i) {
      if (keys[i] == 0 || !(whole || keys[i] == other)) continue;
      ++matched;
      if (!(i == host && (whole || from_holder))) drop(i);
    }
    if (matched == 0) return StatusCode::reservation_conflict;
    if (whole || from_holder) type = wanted, holder = host;
    for (std::size_t i = 0; i < kHosts; ++i)
      if (i != host && before.keys[i] != 0 && keys[i] == 0) heard[i].push_back(1);
    if (before.type != 0 && type != 0 && before.type != type) tell(host, 2, keys);
    ++generation;
    return StatusCode::success;
  }
  StatusCode release(std::size_t host, int action, int named, std::uint64_t current) {
    if (keys[host] == 0 || keys[host] != current) return StatusCode::reservation_conflict;
    if (action == 1) {
      tell(host, 3, keys);
      keys = {};
      type = 0, holder = kHosts;
      ++generation;
      return StatusCode::success;
    }
    if (!holds(host)) return StatusCode::success;
    if (named != type) return StatusCode::invalid_field;
    if (type >= 3) tell(host, 2, keys);
    type = 0, holder = kHosts;
    return StatusCode::success;
  }
  bool may(std::size_t host, bool write) const {
    if (type == 0) return true;
    const int who = holds(host) ? 2 : keys[host] != 0 ? 1 : 0;
    const Behaviour& row = kBehaviour[static_cast<std::size_t>(type - 1)];
    return (write ? row.write : row.read)[who] == 'A';
  }
};

}  // namespace

TEST_CASE("Whatever three hosts do with reservations comes to what a model says") {
  ReservationRig rig;
  const std::array<Host, Model::kHosts> hosts{rig.add_host(1), rig.add_host(2), rig.add_host(3)};
  std::uint32_t generation = 0;
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    INFO("seed " << seed);
    Random random(seed);
    const auto below = [&](std::uint64_t limit) { return static_cast<int>(random.below(limit)); };
    Model model;
    model.generation = generation;
    for (int step = 0; step < 12; ++step) {
      const std::size_t who = random.below(Model::kHosts);
      const Host& host = hosts[who];
      const auto key = [&]() -> std::uint64_t { return static_cast<std::uint64_t>(below(4)); };
      // Mostly the right one.
      const std::uint64_t current = below(8) != 0 ? model.keys[who] : key();
      const std::uint64_t other = key();
      const int type = below(6) + 1;
      StatusCode is{}, expected{};
      const int what = below(8);
      if (what < 3 || step < 3) {
        const int action = step < 3 ? 0 : below(3);
        const bool ignore = below(3) == 0;
        expected = model.enroll(who, action, ignore, current, other);
        is = rig.ask(host, ReservationRegister{.action = static_cast<RegisterAction>(action),
                                               .ignore_existing_key = ignore,
                                               .current_key = current,
                                               .new_key = other});
      } else if (what < 7) {
        const int action = below(3);
        expected = model.acquire(who, action, type, current, other);
        is = rig.ask(host, ReservationAcquire{.action = static_cast<AcquireAction>(action),
                                              .type = static_cast<ReservationType>(type),
                                              .current_key = current,
                                              .preempt_key = other});
      } else {
        const int action = below(4) == 0 ? 1 : 0;
        const int named = below(4) == 0 ? type : model.type;
        expected = model.release(who, action, named, current);
        is = rig.ask(host, ReservationRelease{.action = static_cast<ReleaseAction>(action),
                                              .type = static_cast<std::uint8_t>(named),
                                              .current_key = current});
      }
      INFO("step " << step);
      REQUIRE(is == expected);
      const std::size_t asked = random.below(Model::kHosts);
      const bool write = below(2) == 0;
      const Host& asks = hosts[asked];
      REQUIRE((rig.touch(asks, write ? IoOpcode::write : IoOpcode::read) == StatusCode::success) ==
              model.may(asked, write));
      const auto report = rig.report(asks);
      REQUIRE(report.generation == model.generation);
      REQUIRE((report.type ? static_cast<int>(*report.type) : 0) == model.type);
      std::array<std::uint64_t, Model::kHosts> keys{};
      for (const auto& each : report.entries) {
        const auto at = static_cast<std::size_t>(each.host.bytes()[1] - 1);
        keys.at(at) = each.key;
        REQUIRE(each.holds == model.holds(at));
      }
      REQUIRE(keys == model.keys);
    }
    for (std::size_t i = 0; i < hosts.size(); ++i) {
      std::vector<int> heard;
      for (auto page = rig.notice(hosts[i]); page.rnlpt != 0; page = rig.notice(hosts[i]))
        heard.push_back(page.rnlpt);
      REQUIRE(heard == model.heard[i]);
    }
    // Nothing is left for the next one.
    REQUIRE(rig.ask(hosts[0], ReservationRegister{.action = RegisterAction::replace,
                                                  .ignore_existing_key = true,
                                                  .new_key = 9}) == StatusCode::success);
    REQUIRE(rig.ask(hosts[0], ReservationRelease{.action = ReleaseAction::clear, .current_key = 9}) ==
            StatusCode::success);
    generation = rig.report(hosts[0]).generation;
    for (const Host& each : hosts)
      while (rig.notice(each).rnlpt != 0) {
      }
  }
}
