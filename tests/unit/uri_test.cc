#include "common/uri.h"

#include <catch2/catch.hpp>

using namespace rbt;

namespace {

Uri parsed(std::string_view text) {
  auto uri = Uri::parse(text);
  INFO(text);
  if (!uri) FAIL(uri.error().message());
  return *uri;
}

std::string complaint(std::string_view text) {
  const auto uri = Uri::parse(text);
  INFO(text);
  REQUIRE_FALSE(uri);
  CHECK(uri.error().kind() == ErrorKind::invalid_argument);
  return uri.error().message();
}

/// The character of the URI that the caret of the third line stands under; '$' behind its end.
char pointed_at(std::string_view text) {
  const std::string message = complaint(text);
  const auto caret_line = message.rfind('\n') + 1;
  const auto uri_line = message.rfind('\n', caret_line - 2) + 1;
  const auto column = message.size() - 1 - caret_line;
  REQUIRE(message.back() == '^');
  const char c = message[uri_line + column];
  return c == '\n' ? '$' : c;
}

constexpr const char* kNqn = "nqn.2014-08.org.example:disk";

}  // namespace

TEST_CASE("A full RDMA address names host, port, subsystem and namespace") {
  const Uri uri = parsed("nvme+rdma://10.0.0.1:4421/nqn.2014-08.org.example:disk/7");
  CHECK(uri.scheme == Uri::Scheme::rdma);
  CHECK(uri.host == "10.0.0.1");
  CHECK(uri.port == 4421);
  CHECK(uri.nqn->text() == kNqn);
  CHECK(uri.nsid == Nsid(7));
  CHECK(uri.options.empty());
}

TEST_CASE("What may be left out has a default") {
  for (const auto* text : {"nvme+rdma://host", "nvme+rdma://host/", "NVMe+RDMA://host"}) {
    const Uri uri = parsed(text);
    CHECK(uri.host == "host");
    CHECK(uri.port == 4420);
    CHECK_FALSE(uri.nqn);
    CHECK_FALSE(uri.nsid);
    CHECK(uri.to_string() == "nvme+rdma://host");
  }
  CHECK_FALSE(parsed(std::string("nvme+rdma://host/") + kNqn).nsid);
}

TEST_CASE("IPv6 addresses stand in brackets, with a zone if need be") {
  CHECK(parsed("nvme+rdma://[fd00::1]:1234/").host == "fd00::1");
  CHECK(parsed("nvme+rdma://[fd00::1]:1234/").port == 1234);
  CHECK(parsed("nvme+rdma://[::1]").host == "::1");
  CHECK(parsed("nvme+rdma://[fe80::1%25eth0]").host == "fe80::1%eth0");
  CHECK(parsed("nvme+rdma://[fe80::1%eth0]").to_string() == "nvme+rdma://[fe80::1%25eth0]");
}

TEST_CASE("Both forms of a shared-memory address are understood") {
  const Uri with_nqn = parsed("nvme+shm:///nqn.2014-08.org.example:disk/1?socket=/run/rbt/a.sock");
  CHECK(with_nqn.scheme == Uri::Scheme::shm);
  CHECK(with_nqn.host.empty());
  CHECK(with_nqn.nsid == Nsid(1));
  CHECK(with_nqn.option("socket") == "/run/rbt/a.sock");
  const Uri without = parsed("nvme+shm://?socket=/run/rbt/a.sock");
  CHECK_FALSE(without.nqn);
  CHECK(without.option("socket") == "/run/rbt/a.sock");
}

TEST_CASE("Percent-encoding is decoded in names and values") {
  CHECK(parsed("nvme+rdma://h/nqn.2014-08.org.example%3Adisk").nqn->text() == kNqn);
  CHECK(parsed("nvme+rdma://h/nqn.a%2Fb/2").nqn->text() == "nqn.a/b");
  CHECK(parsed("nvme+shm://?socket=/tmp/a%20b%26c").option("socket") == "/tmp/a b&c");
}

TEST_CASE("A subsystem's name need not begin with nqn") {
  CHECK(parsed("nvme+rdma://h/blktests-subsystem-1/1").nqn->text() == "blktests-subsystem-1");
}

TEST_CASE("Options are kept for the tools") {
  const Uri uri = parsed("nvme+rdma://h?hostnqn=nqn.2014-08.org.example:me&queues=4&depth=64");
  CHECK(uri.option("hostnqn") == "nqn.2014-08.org.example:me");
  CHECK(uri.option("queues") == "4");
  CHECK(uri.option("depth") == "64");
  CHECK_FALSE(uri.option("hostid"));
}

TEST_CASE("A URI written out and parsed again is the same") {
  for (const auto* text : {"nvme+rdma://10.0.0.1/nqn.2014-08.org.example:disk/7", "nvme+rdma://[fd00::1]:1234",
                           "nvme+rdma://[fe80::1%25eth0]/nqn.a%2Fb%25/4294967294",
                           "nvme+rdma://a-b.c_d/x?depth=1&hostid=y%3D", "nvme+shm:///nqn.x?socket=/tmp/a%20b",
                           "nvme+shm://?socket=%3F%23", "nvme+shm://", "nvme+sim://one:1/nqn.x/1"}) {
    const Uri uri = parsed(text);
    CHECK(uri.to_string() == text);
    CHECK(parsed(uri.to_string()) == uri);
  }
}

TEST_CASE("An error shows the URI, says what is allowed and points at the place") {
  CHECK(complaint("nvme+rdma://10.0.0.1:99999/nqn.x") ==
        "nvme+rdma://10.0.0.1:99999/nqn.x: port 99999 is not 1 to 65535\n"
        "  nvme+rdma://10.0.0.1:99999/nqn.x\n"
        "                       ^");
}

TEST_CASE("Ports outside 1 to 65535 are refused") {
  for (const auto* text : {"nvme+rdma://h:0", "nvme+rdma://h:65536", "nvme+rdma://h:", "nvme+rdma://h:44x",
                           "nvme+rdma://h:-1", "nvme+rdma://h:99999999999999999999", "nvme+rdma://h:+1"})
    CHECK_THAT(complaint(text), Catch::Contains("is not 1 to 65535"));
}

TEST_CASE("Namespace identifiers that name no single namespace are refused") {
  for (const auto* text : {"nvme+rdma://h/nqn.x/0", "nvme+rdma://h/nqn.x/4294967295", "nvme+rdma://h/nqn.x/",
                           "nvme+rdma://h/nqn.x/1/2", "nvme+rdma://h/nqn.x/one"})
    CHECK_THAT(complaint(text), Catch::Contains("is not 1 to 4294967294"));
}

TEST_CASE("An unknown option is refused and the known ones are named") {
  CHECK_THAT(complaint("nvme+rdma://h?quues=4"),
             Catch::Contains("option 'quues' is not one of ctrl-secret-file, depth, group, hostid, hostnqn, "
                             "keep-alive, queues, secret-file, socket"));
  CHECK(pointed_at("nvme+rdma://h?depth=1&quues=4") == 'q');
  CHECK_THAT(complaint("nvme+rdma://h?socket=/x"), Catch::Contains("no option 'socket': it belongs to nvme+shm"));
  CHECK_THAT(complaint("nvme+rdma://h?group=disk"), Catch::Contains("no option 'group': it belongs to nvme+shm"));
  CHECK_THAT(complaint("nvme+rdma://h?depth=1&depth=2"), Catch::Contains("given twice"));
  CHECK_THAT(complaint("nvme+rdma://h?depth"), Catch::Contains("'depth=' and a value are expected"));
  CHECK_THAT(complaint("nvme+rdma://h?depth="), Catch::Contains("'depth=' and a value are expected"));
  CHECK_THAT(complaint("nvme+rdma://h?"), Catch::Contains("option '' is not one of"));
}

TEST_CASE("The caret stands under what is wrong") {
  CHECK(pointed_at("nvme+tcp://h") == 'n');
  CHECK(pointed_at("10.0.0.1") == '1');
  CHECK(pointed_at("nvme+rdma:///nqn.x") == '/');
  CHECK(pointed_at("nvme+rdma://") == '$');
  CHECK(pointed_at("nvme+rdma://ho!st") == '!');
  CHECK(pointed_at("nvme+rdma://user@host") == '@');
  CHECK(pointed_at("nvme+rdma://300.0.0.1") == '3');
  CHECK(pointed_at("nvme+rdma://fd00::1") == 'f');
  CHECK(pointed_at("nvme+rdma://[fd00::1") == '$');
  CHECK(pointed_at("nvme+rdma://[zz]") == 'z');
  CHECK(pointed_at("nvme+rdma://[::1]x") == 'x');
  CHECK(pointed_at("nvme+rdma://[fe80::1%25]:1") == ']');
  CHECK(pointed_at("nvme+shm://host/nqn.x") == 'h');
  CHECK(pointed_at("nvme+rdma://h/nqn.%zz") == '%');
  CHECK(pointed_at("nvme+rdma://h/nqn.x%2") == '%');
  CHECK(pointed_at("nvme+shm://?socket=/x%00y") == '%');
  CHECK(pointed_at("nvme+rdma://h/nqn.x#1") == '#');
  CHECK(pointed_at("nvme+rdma://h//1") == '/');
}

TEST_CASE("A URI that is not printable is shown escaped and the caret still fits") {
  const auto message = complaint("nvme+rdma://h\x1b[2J/x");
  CHECK(message.find('\x1b') == std::string::npos);
  CHECK_THAT(message, Catch::EndsWith("\n  nvme+rdma://h\\x1b[2J/x\n               ^"));
}

TEST_CASE("An NQN longer than 223 bytes is refused, a longer URI is not even shown") {
  CHECK_THAT(complaint("nvme+rdma://h/nqn." + std::string(220, 'x')), Catch::Contains("longer than 223 bytes"));
  CHECK(complaint("nvme+rdma://h/" + std::string(100'000, 'x')).size() < 100);
}
