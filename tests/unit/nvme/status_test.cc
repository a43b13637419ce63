#include "common/nvme/status.h"

#include <catch2/catch.hpp>

using namespace rbt::nvme;

TEST_CASE("A status sits above the phase tag in the completion") {
  CHECK(Status().to_completion() == 0);
  CHECK(Status(StatusCode::invalid_opcode).to_completion() == 0x0002);
  CHECK(Status::permanent(StatusCode::connect_invalid_parameters).to_completion() == 0x8304);
  CHECK(Status(StatusCode::compare_failure).to_completion() == 0x050a);
}

TEST_CASE("A status survives the way through a completion, without the phase tag") {
  for (unsigned word = 0; word <= 0xffff; ++word) {
    const auto status = Status::from_completion(static_cast<std::uint16_t>(word));
    REQUIRE(status.to_completion() == (word & 0xfffe));
  }
}

TEST_CASE("Success is type and code zero, whatever the other bits say") {
  CHECK(Status().ok());
  CHECK(Status().with_more().ok());
  CHECK_FALSE(Status(StatusCode::internal_error).ok());
}

TEST_CASE("The bits around the code are told apart") {
  const auto status = Status::permanent(StatusCode::ana_transition).with_retry_delay(2).with_more();
  CHECK(status.code() == StatusCode::ana_transition);
  CHECK(status.type() == 3);
  CHECK(status.do_not_retry());
  CHECK(status.more());
  CHECK(status.retry_delay() == 2);
  CHECK(describe(status) ==
        "Asymmetric Access Transition (3/03h, retry after CRDT2, more in the error log, do not retry)");
}

TEST_CASE("Statuses have names, and numbers where they have none") {
  CHECK(describe(Status::permanent(StatusCode::invalid_field)) == "Invalid Field in Command (0/02h, do not retry)");
  CHECK(name(static_cast<StatusCode>(0x7c0)) == "status 7/c0h");
  CHECK(describe(Status()) == "Successful Completion (0/00h)");
}
