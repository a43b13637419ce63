#include <catch2/catch.hpp>

#include "common/nvme/nqn.h"
#include "common/nvme/text.h"
#include "common/nvme/types.h"
#include "common/nvme/uuid.h"

using namespace rbt;
using namespace rbt::nvme;

TEST_CASE("A UUID is its text and back") {
  const auto uuid = Uuid::parse("00112233-4455-6677-8899-AABBCCDDEEFF");
  REQUIRE(uuid);
  CHECK(uuid->bytes()[0] == 0x00);
  CHECK(uuid->bytes()[15] == 0xff);
  CHECK(uuid->to_string() == "00112233-4455-6677-8899-aabbccddeeff");
  CHECK(Uuid().is_zero());
}

TEST_CASE("What is no UUID is refused with an example") {
  for (const auto* text : {"", "00112233445566778899aabbccddeeff", "00112233-4455-6677-8899-aabbccddeef",
                           "00112233-4455-6677-8899-aabbccddeefg", "00112233-4455-6677-8899-aabbccddeeff0",
                           "00112233-4455-6677-88990-abbccddeeff"})
    CHECK_FALSE(Uuid::parse(text));
  CHECK_THAT(Uuid::parse("x").error().message(), Catch::Contains("36 characters like"));
}

TEST_CASE("Generated UUIDs are version 4 and follow the seed") {
  Random one(7);
  Random same(7);
  const auto uuid = Uuid::generate(one);
  CHECK(uuid == Uuid::generate(same));
  CHECK(uuid != Uuid::generate(one));
  CHECK(uuid.to_string()[14] == '4');
  CHECK_THAT(uuid.to_string().substr(19, 1), Catch::Matches("[89ab]"));
}

TEST_CASE("An NQN fills its field with NULs and comes back") {
  const auto nqn = Nqn::parse("nqn.2014-08.org.example:disk");
  REQUIRE(nqn);
  std::array<char, 256> field;
  field.fill('x');
  nqn->store(field);
  CHECK(field[27] == 'k');
  CHECK(field[28] == '\0');
  CHECK(field[255] == '\0');
  CHECK(Nqn::from_field(field) == *nqn);
}

TEST_CASE("Our own NQNs begin with nqn, foreign subsystems' need not") {
  CHECK_THAT(Nqn::parse("disk").error().message(), Catch::Contains("does not begin with 'nqn.'"));
  CHECK(Nqn::parse_foreign("disk")->text() == "disk");
  CHECK_FALSE(Nqn::parse_foreign(""));
  CHECK_FALSE(Nqn::parse_foreign("a\nb"));
  CHECK_FALSE(Nqn::parse_foreign(std::string(224, 'x')));
  CHECK(Nqn::parse_foreign(std::string(223, 'x')));
  CHECK(Nqn::parse("nqn.2014-08.org.example:\xc3\xa4"));
}

TEST_CASE("The well-known names are the specification's") {
  CHECK(Nqn::discovery().text() == NVME_DISC_SUBSYS_NAME);
  CHECK(Nqn::discovery().is_discovery());
  const auto uuid = *Uuid::parse("00112233-4455-6677-8899-aabbccddeeff");
  CHECK(Nqn::from_uuid(uuid).text() == "nqn.2014-08.org.nvmexpress:uuid:00112233-4455-6677-8899-aabbccddeeff");
  CHECK(HostId(uuid).to_string() == uuid.to_string());
  CHECK(HostId().is_zero());
}

TEST_CASE("Text fields are padded with spaces, cut, and never more than ASCII") {
  std::array<char, 8> field{};
  set_padded(field, "rbt");
  CHECK(std::string_view(field.data(), 8) == "rbt     ");
  set_padded(field, "longer than it");
  CHECK(std::string_view(field.data(), 8) == "longer t");
  set_padded(field, "a\xc3\x1b\tz");
  CHECK(std::string_view(field.data(), 8) == "a???z   ");
}

TEST_CASE("Text fields of a peer are read without padding and without control characters") {
  const auto read = [](std::string_view text) { return get_padded(std::span(text.data(), text.size())); };
  CHECK(read("rbt     ") == "rbt");
  CHECK(read(std::string_view("rbt\0xxxx", 8)) == "rbt");
  CHECK(read(" a b ") == " a b");
  CHECK(read("\x1b[2J") == "?[2J");
  CHECK(read("        ").empty());
}
