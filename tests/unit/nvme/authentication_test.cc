// DH-HMAC-CHAP: its messages byte by byte, its secrets, its arithmetic. What is expected comes from Python's hmac and hashlib, by the
// formulas of Base 2.0, 8.13.5, and from nvme-cli where that knows the answer.

#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include "common/auth/dh.h"
#include "common/auth/hmac.h"
#include "common/auth/secret.h"
#include "common/nvme/authentication.h"
#include "tests/unit/nvme/bytes.h"

using namespace rbt;
using namespace rbt::nvme;
using rbt::test::hex;

namespace {

constexpr const char* kSecret32 = "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
constexpr const char* kSecret32Sha256 = "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
constexpr const char* kSecret48 = "DHHC-1:02:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vcSEgBQ==:";
constexpr const char* kSecret64 =
    "DHHC-1:03:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+P4zODhA=:";

using Bytes_ = std::vector<std::byte>;

Bytes_ bytes_from(std::span<const std::byte> span) {
  return {span.begin(), span.end()};
}
Bytes_ counting(std::size_t size, unsigned first) {
  Bytes_ bytes(size);
  for (std::size_t i = 0; i < size; ++i)
    bytes[i] = static_cast<std::byte>(first + i);
  return bytes;
}
template <typename... Arguments>
Bytes_ encoded(Arguments&&... arguments) {
  Bytes_ out(kAuthBytesMax);
  out.resize(encode(out, arguments...));
  return out;
}
nvme::Nqn nqn(const char* text) {
  return *Nqn::parse(text);
}

struct Vector {
  AuthHash hash;
  const char* secret;
  const char *host_key, *host, *controller;
};
const Vector kVectors[] = {
    {AuthHash::sha256, kSecret32Sha256, "f5a557dd35cfcc01f4f60a49554fd6c1db389b3d5473d5c03b81e7057d2770d2",
     "f633f1aa75718198057b93932f9d65a5af340490d4e23522be431aacec04018f",
     "dfc47f1b6485dee15c12aa21a5b7b3e839f59bb619c3d3cd2b6b739b9b54e20b"},
    {AuthHash::sha384, kSecret48,
     "33c1f2c6f3e9ef22aa597247a0325a34036b3c65d70032f34ad8de16ec1467bd89ea22816a9d0466ac936b8ff938da26",
     "77bdd305732d8bf87782f6b98aa0a13cab3517b95dcf9930403d283f2b5afe008969650cac040d264f087973c48ad5ec",
     "2bc9c31b53409b329dbda796b110ed89fee93519a5a9d5c1857f3a35e8384bc2b156e92a2bb3e05a734eead49fced040"},
    {AuthHash::sha512, kSecret64,
     "77f2427bf32299d233b73ed78349edfe5f0a70b47de00dcc98e072d8b493bd723ec21839f9634cee3feab0d3371e4e40"
     "0380c0d937b8ff1cd00a37976057ca9e",
     "e188a10897d108e362f76829590c3eb023082dc96283c2a87a6197e692c0d29d29efb8fee82d5c27c5c4bdfe67baed9d"
     "5fb06a1607d7d442cfad2538365e3db0",
     "8b2266351c809b9cb71471cfca10c7fd99b1277532f84219bd9b5499cb00692024f0f242ac86b1224855484cc2e7ed4e"
     "d605c416702233d717c8b52f7ef9df09"},
};

/// A file of a mode, gone at its end.
struct SecretFile {
  SecretFile(const std::string& text, mode_t mode) {
    const int fd = ::mkstemp(path.data());
    REQUIRE(fd >= 0);
    REQUIRE(::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    REQUIRE(::fchmod(fd, mode) == 0);
    ::close(fd);
  }
  ~SecretFile() { ::unlink(path.c_str()); }
  std::string path = "/tmp/rbt-secret-XXXXXX";
};

}  // namespace

TEST_CASE("Authentication messages are the bytes of the specification") {
  CHECK(encoded(AuthNegotiate{.transaction = 0x0102, .hashes = 0b1110, .groups = 0b111111}) ==
        hex("00 00 0000 0201 00 01  01 00 03 06 010203 00*27 000102030405 00*24"));
  const auto challenge = counting(32, 0x10);
  const auto value = counting(256, 0);
  CHECK(
      encoded(AuthChallenge{.transaction = 5,
                            .hash = AuthHash::sha256,
                            .group = DhGroup::ffdhe2048,
                            .sequence = 0x01020304,
                            .challenge = challenge,
                            .dh_value = std::span(value).first(3)}) ==
      hex("01 01 0000 0500 20 00 01 01 0300 04030201 101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f "
          "000102"));
  CHECK(encoded(AuthReply{.transaction = 5, .sequence = 7, .response = std::span(challenge).first(2)}) ==
        hex("01 02 0000 0500 02 00 00 00 0000 07000000 1011 0000"));
  CHECK(encoded(AuthReply{.transaction = 5,
                          .sequence = 7,
                          .response = std::span(challenge).first(2),
                          .challenge = std::span(challenge).last(2),
                          .dh_value = std::span(value).first(1)}) ==
        hex("01 02 0000 0500 02 00 01 00 0100 07000000 1011 2e2f 00"));
  CHECK(encoded(AuthSuccess1{.transaction = 5, .hash = AuthHash::sha384}) == hex("01 03 0000 0500 30 00 00 00*7"));
  CHECK(encoded(AuthMessage::failure1, AuthFailed{5, AuthFault::hash_unusable}) == hex("00 f1 0000 0500 01 04"));
  CHECK(encoded(AuthMessage::failure2, AuthFailed{5, AuthFault::failed}) == hex("00 f0 0000 0500 01 01"));
  Bytes_ success2(16);
  CHECK(encode_auth_success2(success2, 5) == 16);
  CHECK(success2 == hex("01 04 0000 0500 00*10"));
  CHECK(encode_auth_success2(std::span(success2).first(15), 5) == 0);
}

TEST_CASE("Authentication commands are the bytes of the specification, and nothing but these is taken") {
  auto sqe = encode_auth_command(FabricsType::authentication_send, 72);
  CHECK(rbt::test::bytes_of(sqe) == hex("7f 40 0000 05 00*19 00*15 40 00 01 01 e9 48000000 00*16"));
  CHECK(data_direction(sqe) == Direction::to_controller);
  CHECK(data_direction(encode_auth_command(FabricsType::authentication_receive, 1)) == Direction::to_host);
  CHECK(parse_auth_command(sqe) == 72u);
  for (const std::size_t at : {41u, 42u, 43u, 44u}) {
    auto bytes = rbt::test::bytes_of(sqe);
    bytes[at] = std::byte{0};
    const auto refused = parse_auth_command(*read_wire<SubmissionQueueEntry>(bytes));
    REQUIRE_FALSE(refused);
    CHECK(refused.error() == at);
  }
  CHECK(parse_auth_command(encode_auth_command(FabricsType::authentication_send, kAuthBytesMax)));
  CHECK_FALSE(parse_auth_command(encode_auth_command(FabricsType::authentication_send, kAuthBytesMax + 1)));
}

TEST_CASE("A message comes out of its parser as it went in, whatever stands behind it, and not if a byte is missing") {
  const AuthHash hash = GENERATE(AuthHash::sha256, AuthHash::sha384, AuthHash::sha512);
  const DhGroup group = GENERATE(DhGroup::none, DhGroup::ffdhe2048, DhGroup::ffdhe8192);
  const auto challenge = counting(hash_bytes(hash), 1), response = counting(hash_bytes(hash), 101);
  const auto value = counting(dh_bytes(group), 51);
  auto bytes = encoded(AuthChallenge{3, hash, group, 9, challenge, value});
  CHECK_FALSE(parse_auth_challenge(std::span(bytes).first(bytes.size() - 1)));
  bytes.push_back(std::byte{1});
  const auto asked = parse_auth_challenge(bytes);
  REQUIRE(asked);
  CHECK((asked->hash == hash && asked->group == group && asked->sequence == 9 && asked->transaction == 3));
  CHECK((bytes_from(asked->challenge) == challenge && bytes_from(asked->dh_value) == value));

  bytes = encoded(AuthReply{3, 8, response, challenge, value});
  CHECK_FALSE(parse_auth_reply(std::span(bytes).first(bytes.size() - 1), hash, group));
  CHECK_FALSE(parse_auth_reply(bytes, hash, group == DhGroup::none ? DhGroup::ffdhe2048 : DhGroup::none));
  CHECK_FALSE(parse_auth_reply(bytes, hash == AuthHash::sha256 ? AuthHash::sha512 : AuthHash::sha256, group));
  const auto reply = parse_auth_reply(bytes, hash, group);
  REQUIRE(reply);
  CHECK((bytes_from(reply->response) == response && bytes_from(reply->challenge) == challenge &&
         bytes_from(reply->dh_value) == value && reply->sequence == 8));
  CHECK(parse_auth_reply(encoded(AuthReply{3, 0, response, {}, value}), hash, group)->challenge.empty());

  bytes = encoded(AuthSuccess1{3, hash, response});
  CHECK(bytes_from(parse_auth_success1(bytes, hash)->response) == response);
  CHECK_FALSE(parse_auth_success1(std::span(bytes).first(bytes.size() - 1), hash));
}

TEST_CASE("What no authentication message says is refused for what it is") {
  auto bytes = encoded(AuthNegotiate{.transaction = 1, .hashes = 0b1110, .groups = 1});
  const auto fault_with = [&](std::size_t at, unsigned value) {
    auto changed = bytes;
    changed[at] = static_cast<std::byte>(value);
    return parse_auth_negotiate(changed).error();
  };
  CHECK(fault_with(6, 1) == AuthFault::concatenation_mismatch);
  CHECK(fault_with(7, 0) == AuthFault::incorrect_payload);
  CHECK(fault_with(8, 2) == AuthFault::protocol_unusable);
  CHECK(fault_with(10, 31) == AuthFault::incorrect_payload);
  CHECK(fault_with(11, 255) == AuthFault::incorrect_payload);
  bytes[12] = std::byte{9};  // a hash of tomorrow
  CHECK(parse_auth_negotiate(bytes)->hashes == 0b1100);

  const auto c = counting(32, 0);
  bytes = encoded(AuthChallenge{.hash = AuthHash::sha256, .challenge = c});
  bytes[8] = std::byte{4};
  CHECK(parse_auth_challenge(bytes).error() == AuthFault::hash_unusable);
  bytes[8] = std::byte{2};  // with the length of another
  CHECK(parse_auth_challenge(bytes).error() == AuthFault::hash_unusable);
  bytes[8] = std::byte{1};
  bytes[9] = std::byte{6};
  CHECK(parse_auth_challenge(bytes).error() == AuthFault::group_unusable);
  bytes[9] = std::byte{1};  // without its value
  CHECK(parse_auth_challenge(bytes).error() == AuthFault::incorrect_payload);
  CHECK_FALSE(parse_auth_header(hex("00 00 0000 0100 00")));
  CHECK_FALSE(parse_auth_header(hex("02 00 0000 0100 0000")));
  CHECK(parse_auth_failure(hex("00 f1 0000 0100 01 63")).fault == AuthFault::failed);
}

TEST_CASE("A secret becomes its owner's key, and a challenge its answer, as the specification computes them") {
  for (const Vector& vector : kVectors) {
    INFO(name(vector.hash));
    const auto secret = auth::Secret::parse(vector.secret);
    if (!secret) FAIL(secret.error().message());
    const auto host_key = (*secret)->key_for(nqn("nqn.2024-01.example:host"));
    CHECK(bytes_from(host_key->bytes()) == hex(vector.host_key));
    const auto challenge = counting(hash_bytes(vector.hash), 0xa0);
    Bytes_ shared(256);
    for (std::size_t i = 1; i < shared.size(); i += 2)
      shared[i] = std::byte{7};
    auth::Question question{
        vector.hash, 0x0506, 0x01020304, challenge, shared, "nqn.2024-01.example:host", "nqn.2024-01.example:disk"};
    CHECK(bytes_from(auth::respond(auth::Role::host, question, host_key->bytes())->bytes()) == hex(vector.host));
    const auto other_key = (*secret)->key_for(nqn("nqn.2024-01.example:disk"));
    CHECK(bytes_from(auth::respond(auth::Role::controller, question, other_key->bytes())->bytes()) ==
          hex(vector.controller));
  }
  // untransformed, and without a group
  const auto key = (*auth::Secret::parse(kSecret32))->key_for(nqn("nqn.2024-01.example:host"));
  CHECK(bytes_from(key->bytes()) == counting(32, 0));
  const auto challenge = counting(32, 0xa0);
  const auth::Question question{
      AuthHash::sha256, 0x0506, 0x01020304, challenge, {}, "nqn.2024-01.example:host", "nqn.2024-01.example:disk"};
  CHECK(bytes_from(auth::respond(auth::Role::host, question, key->bytes())->bytes()) ==
        hex("57ed712d820f9d82db8f957a9e63bc7fa668a37f50b7adc170220725e4942f3e"));
  // nvme-cli prints the transformed key as a secret: nvme gen-dhchap-key -m 1 -l 32 -s 0001…1f -n nqn.2024-01.example:host
  const auto cli = auth::Secret::parse("DHHC-1:00:9aVX3TXPzAH09gpJVU/Wwds4mz1Uc9XAO4HnBX0ncNI48Q+r:");
  CHECK(bytes_from((*cli)->key_for(nqn("nqn.2024-01.example:host"))->bytes()) == hex(kVectors[0].host_key));
}

TEST_CASE("What is no secret is refused with what is wrong, and is not shown") {
  CHECK(auth::Secret::parse(std::string("  ") + kSecret32 + "\n"));
  const std::string good = kSecret32;
  const auto without = [&](std::size_t at, const std::string& text) {
    return std::string(good).replace(at, text.size(), text);
  };
  for (const auto& [text, word] : {std::pair<std::string, const char*>{"", "begin"},
                                   {"DHHC-1", "begin"},
                                   {without(7, "04"), "00, 01"},
                                   {without(7, "1:"), "00, 01"},
                                   {good.substr(0, good.size() - 1), "colon"},
                                   {without(20, "*"), "base64"},
                                   {without(20, "="), "base64"},
                                   {without(20, "B"), "checksum"},
                                   {"DHHC-1:00:AAAA:", "32, 48"},
                                   {"DHHC-1:00::", "base64"},
                                   {"DHHC-1:00:" + std::string(400, 'A') + ":", "long"}}) {
    const auto refused = auth::Secret::parse(text);
    REQUIRE_FALSE(refused);
    CHECK_THAT(refused.error().message(), Catch::Contains(word) && !Catch::Contains("AAECAw"));
  }
}

TEST_CASE(
    "A secret is read from a file that nobody else can read or write, or from a keyring, and never from the line "
    "itself") {
  {
    const SecretFile file(std::string(kSecret48) + "\n", 0600);
    const auto secret = auth::Secret::load(file.path);
    if (!secret) FAIL(secret.error().message());
  }
  for (const mode_t mode : {0604u, 0620u, 0644u, 0602u, 0601u}) {
    const SecretFile file(kSecret48, mode);
    const auto refused = auth::Secret::load(file.path);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().kind() == ErrorKind::permission);
    CHECK_THAT(refused.error().message(), Catch::Contains("chmod 600") && Catch::Contains(file.path));
  }
  CHECK(auth::Secret::load("/nowhere/secret").error().kind() == ErrorKind::not_found);
  CHECK(auth::Secret::load("/tmp").error().kind() == ErrorKind::invalid_argument);
  const SecretFile long_file(std::string(5000, ' '), 0600);
  CHECK_THAT(auth::Secret::load(long_file.path).error().message(), Catch::Contains("more than the 256"));
  const auto itself = auth::Secret::load(kSecret32);
  REQUIRE_FALSE(itself);
  CHECK_THAT(itself.error().message(), Catch::Contains("command lines") && !Catch::Contains("AAECAw"));
  CHECK_FALSE(auth::Secret::load("keyring:rbt-test-none-of-this-name"));
}

TEST_CASE("Two make the same Diffie-Hellman secret, in every group, and values that give it away are refused") {
  const DhGroup group =
      GENERATE(DhGroup::ffdhe2048, DhGroup::ffdhe3072, DhGroup::ffdhe4096, DhGroup::ffdhe6144, DhGroup::ffdhe8192);
  const auto one = auth::DhKey::generate(group), two = auth::DhKey::generate(group);
  REQUIRE((one && two));
  CHECK(one->public_value().size() == dh_bytes(group));
  const auto secret = one->shared_secret(two->public_value()), same_secret = two->shared_secret(one->public_value());
  REQUIRE((secret && same_secret));
  CHECK(secret->bytes().size() == dh_bytes(group));
  CHECK(auth::same(secret->bytes(), same_secret->bytes()));
  Bytes_ bad(dh_bytes(group));
  CHECK_FALSE(one->shared_secret(bad));  // 0
  bad.back() = std::byte{1};
  CHECK_FALSE(one->shared_secret(bad));
  bad.back() = std::byte{2};
  CHECK(one->shared_secret(bad));
  bad.assign(bad.size(), std::byte{0xff});  // all primes of RFC 7919 end in 64 ones: this is more
  CHECK_FALSE(one->shared_secret(bad));
  CHECK_FALSE(one->shared_secret(std::span(bad).first(bad.size() - 1)));
  CHECK_FALSE(one->shared_secret({}));
}

TEST_CASE("Answers are the same or not, and lengths count") {
  const auto bytes = counting(32, 0);
  CHECK(auth::same(bytes, bytes));
  CHECK_FALSE(auth::same(bytes, counting(32, 1)));
  CHECK_FALSE(auth::same(bytes, std::span(bytes).first(31)));
  auto moved = auth::Wiped(4);
  moved.bytes()[0] = std::byte{1};
  const auth::Wiped there(std::move(moved));
  CHECK(there.bytes()[0] == std::byte{1});
  CHECK(auth::random_sequence() != 0u);
}
