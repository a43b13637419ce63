#include "common/nvme/connect_private_data.h"

#include <catch2/catch.hpp>

#include "tests/unit/nvme/bytes.h"

using namespace rbt;
using namespace rbt::nvme;
using rbt::test::bytes_of;
using rbt::test::hex;

namespace {

CmReject rejection(std::string_view text) {
  const auto request = parse_cm_request(hex(text));
  REQUIRE_FALSE(request);
  return request.error();
}

}  // namespace

TEST_CASE("A connection request names queue, sizes and controller") {
  const auto bytes = hex("00 00  03 00  80 00  7f 00  34 12  00*22");
  const auto request = parse_cm_request(bytes);
  REQUIRE(request);
  CHECK(request->qid == Qid(3));
  CHECK(request->host_receives == 128);
  CHECK(request->host_sends == 128);
  CHECK(request->cntlid == Cntlid(0x1234));
  CHECK(bytes_of(encode_cm_request(*request)) == bytes);
}

TEST_CASE("The padding that the connection manager appends is ignored") {
  CHECK(parse_cm_request(hex("00 00 00 00 20 00 1f 00 00*24 ff*24")));
  CHECK(parse_cm_request(hex("00 00 00 00 20 00 1f 00 00*24 00*164")));
}

TEST_CASE("A connection request without private data, or with too little, is refused") {
  CHECK(parse_cm_request({}).error() == CmReject::invalid_private_data_length);
  for (std::size_t length = 0; length < 32; ++length) {
    const auto bytes = hex("00 00 00 00 20 00 1f 00 00*24");
    const auto request = parse_cm_request(std::span(bytes).first(length));
    CHECK(request.error() == CmReject::invalid_private_data_length);
  }
}

TEST_CASE("A connection request of another format is refused") {
  CHECK(rejection("01 00 00 00 20 00 1f 00 00*24") == CmReject::invalid_record_format);
  CHECK(rejection("00 01 00 00 20 00 1f 00 00*24") == CmReject::invalid_record_format);
}

TEST_CASE("Queues without room are refused and the largest does not wrap to none") {
  CHECK(rejection("00 00 00 00 20 00 00 00 00*24") == CmReject::invalid_host_send_queue_size);
  CHECK(rejection("00 00 00 00 00 00 1f 00 00*24") == CmReject::invalid_host_receive_queue_size);
  const auto request = parse_cm_request(hex("00 00 00 00 ff ff ff ff 00*24"));
  REQUIRE(request);
  CHECK(request->host_sends == 65536);
  CHECK(request->host_receives == 65535);
  CHECK(bytes_of(encode_cm_request(*request)) == hex("00 00 00 00 ff ff ff ff 00*24"));
}

TEST_CASE("An acceptance carries the controller's receive queue size") {
  CHECK(bytes_of(encode_cm_accept(0x0120)) == hex("00 00 20 01 00*28"));
  CHECK(parse_cm_accept(hex("00 00 20 01 00*28 00*164")) == 0x0120);
  CHECK_FALSE(parse_cm_accept(hex("00 00 20 01")));
  CHECK_FALSE(parse_cm_accept(hex("01 00 20 01 00*28")));
}

TEST_CASE("A rejection carries its reason, known or not") {
  CHECK(bytes_of(encode_cm_reject(CmReject::no_resources)) == hex("00 00 06 00"));
  CHECK(parse_cm_reject(hex("00 00 06 00 00*144")) == CmReject::no_resources);
  CHECK(name(*parse_cm_reject(hex("00 00 63 00"))) == "unknown reason");
  CHECK_FALSE(parse_cm_reject(hex("00 00 06")));
  CHECK_FALSE(parse_cm_reject(hex("01 00 06 00")));
}
