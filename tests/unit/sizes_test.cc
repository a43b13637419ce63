#include "common/sizes.h"

#include <catch2/catch.hpp>

using namespace rbt;
using namespace std::chrono_literals;

namespace {

std::uint64_t bytes(std::string_view text) {
  const auto size = parse_size(text);
  INFO(text);
  REQUIRE(size);
  return size->value();
}

Duration duration(std::string_view text) {
  const auto parsed = parse_duration(text);
  INFO(text);
  REQUIRE(parsed);
  return *parsed;
}

}  // namespace

TEST_CASE("Sizes are read with and without units, all powers of 1024") {
  CHECK(bytes("0") == 0);
  CHECK(bytes("512") == 512);
  CHECK(bytes("512B") == 512);
  for (const auto* text : {"4k", "4K", "4KiB", "4kib", "4 KiB", "4096"})
    CHECK(bytes(text) == 4096);
  CHECK(bytes("64M") == 64 * kMiB);
  CHECK(bytes("1GiB") == kGiB);
  CHECK(bytes("16383P") == 16383ULL << 50);
  CHECK(bytes("18446744073709551615") == ~0ULL);
}

TEST_CASE("A fraction of a unit is exact or refused") {
  CHECK(bytes("1.5TiB") == 3 * kTiB / 2);
  CHECK(bytes("0.5k") == 512);
  CHECK(bytes("1.50G") == 3 * kGiB / 2);
  CHECK(bytes("2.000") == 2);
  CHECK(bytes("15.5E") == 31ULL << 59);
  CHECK(bytes("0.0009765625k") == 1);
  for (const auto* text : {"1.5", "0.1k", "0.00048828125k", "1.0000000000000000001k"})
    CHECK_FALSE(parse_size(text));
}

TEST_CASE("A size that does not fit 64 bits is refused") {
  for (const auto* text : {"16E", "16384P", "18446744073709551616", "99999999999999999999999k"})
    CHECK_FALSE(parse_size(text));
}

TEST_CASE("What is no size is refused, and the message says what is one") {
  for (const auto* text : {"", " ", "k", "-1", "+1", "1.", ".5k", "1 k ", "4kk", "4KiBB", "1e3", "0x10", "4  k"})
    CHECK_FALSE(parse_size(text));
  CHECK_THAT(parse_size("1GB").error().message(), Catch::Contains("powers of 1024"));
  CHECK_THAT(parse_size("\x1b[2J").error().message(), Catch::Contains("\\x1b[2J"));
}

TEST_CASE("Durations are read with their units") {
  CHECK(duration("0") == 0ns);
  CHECK(duration("7ns") == 7ns);
  CHECK(duration("250us") == 250us);
  CHECK(duration("5ms") == 5ms);
  CHECK(duration("10s") == 10s);
  CHECK(duration("1.5s") == 1500ms);
  CHECK(duration("2min") == 120s);
  CHECK(duration("2m") == 120s);
  CHECK(duration("1h") == 3600s);
  CHECK(duration("0.5 us") == 500ns);
  CHECK(duration("9223372036854775807ns") == Duration::max());
}

TEST_CASE("A duration without unit, out of range or of another form is refused") {
  for (const auto* text : {"", "5", "ms", "-5ms", "5 days", "5MS", "1.1234567s", "9223372036854775808ns", "2562047.8h",
                           "99999999999999999999h", "1.s"})
    CHECK_FALSE(parse_duration(text));
}

TEST_CASE("Sizes are written in the largest unit that they fill") {
  CHECK(format_bytes(Bytes(0)) == "0 B");
  CHECK(format_bytes(Bytes(1023)) == "1023 B");
  CHECK(format_bytes(Bytes(4096)) == "4 KiB");
  CHECK(format_bytes(Bytes(3 * kTiB / 2)) == "1.5 TiB");
  CHECK(format_bytes(Bytes(kMiB + kMiB / 100)) == "1 MiB");  // 1.0099…: rounded down
  CHECK(format_bytes(Bytes(kMiB + kMiB / 64)) == "1.01 MiB");
  CHECK(format_bytes(Bytes(~0ULL)) == "15.99 EiB");
}

TEST_CASE("A size that was written exactly is read back") {
  for (const std::uint64_t value : {0 * kKiB, kKiB / 2, 4 * kKiB, 3 * kTiB / 2, 31 * (kTiB << 19)})
    CHECK(bytes(format_bytes(Bytes(value))) == value);
}

TEST_CASE("Durations are written in the largest unit that they fill") {
  CHECK(format_duration(0ns) == "0 ns");
  CHECK(format_duration(999ns) == "999 ns");
  CHECK(format_duration(250us) == "250 us");
  CHECK(format_duration(1500ms) == "1.5 s");
  CHECK(format_duration(-5ms) == "-5 ms");
  CHECK(format_duration(90s) == "1.5 min");
  CHECK(format_duration(Duration::min()) == "-2562047.78 h");
}
