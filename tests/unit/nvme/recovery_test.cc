#include "common/nvme/recovery.h"

#include <catch2/catch.hpp>
#include <vector>

using namespace rbt;
using namespace rbt::nvme;

namespace {

const RecoveryInfo kInfo{.association = {.instance = {1, 2, 3}, .number = 0x1122334455667788},
                         .incarnation = {.medium = {9, 8, 7}, .losses = 5}};

std::vector<std::byte> page() {
  const RecoveryLog log = encode_recovery_log(kInfo);
  const auto bytes = wire_bytes(log);
  return {bytes.begin(), bytes.end()};
}

}  // namespace

TEST_CASE("A recovery log comes back as it was written") {
  const auto info = parse_recovery_log(page());
  REQUIRE(info);
  CHECK(info->association == kInfo.association);
  CHECK(info->incarnation == kInfo.incarnation);
}

TEST_CASE("Another vendor's page, another version and a page cut short are no recovery log") {
  CHECK_FALSE(parse_recovery_log(std::vector<std::byte>(128)));
  CHECK_FALSE(parse_recovery_log({}));
  for (const std::size_t damaged : {0u, 3u, 15u, 16u, 17u}) {
    auto bytes = page();
    bytes[damaged] ^= std::byte{1};
    INFO(damaged);
    CHECK_FALSE(parse_recovery_log(bytes));
  }
  const auto whole = page();
  for (std::size_t size = 0; size < 128; ++size)
    CHECK_FALSE(parse_recovery_log(std::span(whole).first(size)));
}

TEST_CASE("A fence names an association, and moves no data") {
  const auto sqe = encode_fence(kInfo.association);
  CHECK(sqe.opcode == 0xc0);
  CHECK(data_direction(sqe) == Direction::none);
  CHECK(sqe.cdw10.get() == 0x55667788);
  CHECK(sqe.cdw11.get() == 0x11223344);
  CHECK(parse_fence(sqe) == kInfo.association);
}
