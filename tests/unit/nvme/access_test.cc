#include "common/nvme/access.h"

#include <catch2/catch.hpp>
#include <cstring>

using namespace rbt;
using namespace rbt::nvme;

namespace {

constexpr std::array kStates = {AccessState::optimized, AccessState::non_optimized, AccessState::inaccessible,
                                AccessState::persistent_loss, AccessState::change};

std::vector<std::byte> two_groups() {
  auto log = encode_access_log(
      {.changes = 7, .group = 3, .state = AccessState::inaccessible, .namespaces = {Nsid(1), Nsid(5)}});
  const auto more = encode_access_log({.changes = 7, .group = 9, .state = AccessState::change, .namespaces = {}});
  log.insert(log.end(), more.begin() + kAccessLogHeaderBytes, more.end());
  log[8] = std::byte{2};
  return log;
}

}  // namespace

TEST_CASE("An access log has its fields where the specification has them") {
  const auto log = encode_access_log(
      {.changes = 0x0102, .group = 0x0304, .state = AccessState::non_optimized, .namespaces = {Nsid(0x0506)}});
  std::vector<std::byte> golden(16 + 32 + 4);
  golden[0] = std::byte{2}, golden[1] = std::byte{1};                               // CHGC
  golden[8] = std::byte{1};                                                         // NAGD
  golden[16] = std::byte{4}, golden[17] = std::byte{3}, golden[20] = std::byte{1};  // AGID, NNV
  golden[24] = std::byte{2}, golden[25] = std::byte{1}, golden[32] = std::byte{2};  // CHGC, state
  golden[48] = std::byte{6}, golden[49] = std::byte{5};
  CHECK(log == golden);
}

TEST_CASE("A group is found among others, with and without their namespaces") {
  CHECK(find_access_state(two_groups(), 3) == AccessState::inaccessible);
  CHECK(find_access_state(two_groups(), 9) == AccessState::change);
  CHECK_FALSE(find_access_state(two_groups(), 4));
}

TEST_CASE("A log that ends too early, or claims what it does not have, says nothing of what is not there") {
  const auto whole = two_groups();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    INFO(size);
    const auto cut = std::span(whole).first(size);
    CHECK(find_access_state(cut, 3).has_value() == (size >= 48));
    CHECK_FALSE(find_access_state(cut, 9));
  }
  auto liar = whole;
  std::fill(liar.begin() + 20, liar.begin() + 24, std::byte{0xff});  // namespaces of the first group
  CHECK_FALSE(find_access_state(liar, 9));
  liar[32] = std::byte{5};  // no state
  CHECK_FALSE(find_access_state(liar, 3));
}

TEST_CASE("States in which nothing can be done have a path related status each, and none says never") {
  for (const AccessState state : kStates) {
    INFO(name(state));
    const Status status = access_status(state);
    CHECK(status.ok() == (state == AccessState::optimized || state == AccessState::non_optimized));
    CHECK((status.ok() || status.type() == 3));
    CHECK_FALSE(status.do_not_retry());
  }
}
