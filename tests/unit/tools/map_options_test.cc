// How volumes are mapped: options, names, rbttab.
#include <catch2/catch.hpp>

#include "tools/rbt-connect/map/options.h"
#include "tools/rbt-connect/map/rbttab.h"

using namespace rbt;
using namespace rbt::tools::map;
using namespace std::chrono_literals;

namespace {

MapOptions applied(std::initializer_list<std::pair<const char*, const char*>> values) {
  MapOptions options;
  for (const auto& [key, value] : values)
    REQUIRE(apply(options, key, value));
  return options;
}

std::string refused(std::string_view key, std::string_view value) {
  MapOptions options;
  const auto result = apply(options, key, value);
  REQUIRE_FALSE(result);
  CHECK(result.error().kind() == ErrorKind::invalid_argument);
  return result.error().message();
}

std::string name_of(std::string_view uri) {
  return derived_name(Uri::parse(uri).value());
}

}  // namespace

TEST_CASE("Options that are written down are the same when they are read again") {
  const auto options = applied({{"via", "nbd"},
                                {"queues", "3"},
                                {"depth", "17"},
                                {"io-max", "64k"},
                                {"read-only", ""},
                                {"on-loss", "1.5s"},
                                {"keep-alive", "7"},
                                {"hostnqn", "nqn.2014-08.org.example:me"},
                                {"hostid", "2b52c6e4-c319-4283-b0db-54455a5c3e5e"},
                                {"timeout", "2min"}});
  MapOptions again;
  for (const auto& [key, value] : written(options))
    REQUIRE(apply(again, key, value));
  CHECK(again.via == Via::nbd);
  CHECK(again.queues == 3);
  CHECK(again.depth == 17);
  CHECK(again.io_max == Bytes(65536));
  CHECK(again.read_only);
  CHECK(again.on_loss == Duration(1500ms));
  CHECK(again.keep_alive == Duration(7s));
  CHECK(again.host.nqn->text() == "nqn.2014-08.org.example:me");
  CHECK(again.host.id->to_string() == "2b52c6e4-c319-4283-b0db-54455a5c3e5e");
  CHECK(again.timeout == Duration(2min));
  CHECK(written(again) == written(options));
  CHECK(written(MapOptions{}).empty());
}

TEST_CASE("What happens on loss: hold, fail, or a time, in seconds without a unit") {
  CHECK(applied({{"on-loss", "hold"}}).on_loss == std::nullopt);
  CHECK(applied({{"on-loss", "fail"}}).on_loss == Duration(0s));
  CHECK(applied({{"on-loss", "30"}}).on_loss == Duration(30s));
  CHECK(applied({{"on-loss", "250ms"}}).on_loss == Duration(250ms));
  CHECK(applied({{"on-loss", "30"}, {"on-loss", "hold"}}).on_loss == std::nullopt);
  for (const auto* wrong : {"-1", "never", "1.5", "99999999999999999999", "9999h"})
    CHECK_THAT(refused("on-loss", wrong), Catch::Contains("hold"));
}

TEST_CASE("A wrong option says what is allowed") {
  CHECK_THAT(refused("colour", "red"), Catch::Contains("no option 'colour'") && Catch::Contains("queues"));
  CHECK_THAT(refused("via", "magic"), Catch::Contains("auto, ublk, nbd or fuse"));
  CHECK_THAT(refused("queues", "0"), Catch::Contains("1 to 64"));
  CHECK_THAT(refused("depth", "1025"), Catch::Contains("1 to 1024"));
  CHECK_THAT(refused("io-max", "96k"), Catch::Contains("power of two"));
  CHECK_THAT(refused("io-max", "2M"), Catch::Contains("4k to 1M"));
  CHECK_THAT(refused("read-only", "perhaps"), Catch::Contains("yes or no"));
  CHECK_THAT(refused("keep-alive", "0"), Catch::Contains("more than 0"));
  CHECK_THAT(refused("depth", ""), Catch::Contains("needs a value"));
  CHECK_THAT(refused("hostid", "me"), Catch::Contains("hostid"));
}

TEST_CASE("A name is made from the NQN and the NSID") {
  CHECK(name_of("nvme+rdma://10.0.0.1/nqn.2026-01.io.example:disk/1") == "disk-1");
  CHECK(name_of("nvme+rdma://10.0.0.1/nqn.2026-01.io.example:disk") == "disk");
  CHECK(name_of("nvme+rdma://10.0.0.1/nqn.2026-01.io.example/7") == "nqn.2026-01.io.example-7");
  CHECK(name_of("nvme+rdma://10.0.0.1/nqn.2026-01.io.example:a%2Fb%20c/7") == "a-b-c-7");
  CHECK(name_of("nvme+rdma://10.0.0.1/nqn.2026-01.io.example:.../7") == "volume-7");
  const std::string longest = name_of("nvme+rdma://h/nqn.2026-01.io.example:" + std::string(150, 'x') + "/4294967294");
  CHECK(longest.size() == 60);  // room for "-99"
  CHECK(check_name(longest));
}

TEST_CASE("A name is a file's name, a unit's and a link's") {
  for (const auto* fine : {"a", "disk-1", "A.b_c-9", "0"})
    CHECK(check_name(fine));
  for (const auto* wrong : {"", ".", "..", "-x", ".hidden", "a/b", "a b", "ä", "a\n"})
    CHECK_FALSE(check_name(wrong));
  CHECK(check_name(std::string(64, 'a')));
  CHECK_FALSE(check_name(std::string(65, 'a')));
}

TEST_CASE("All paths of a volume are of one fabric") {
  const Uri rdma = Uri::parse("nvme+rdma://h/nqn.2026-01.io.example:d/1").value();
  const Uri shm = Uri::parse("nvme+shm:///nqn.2026-01.io.example:d/1").value();
  CHECK(check_paths({rdma, rdma}));
  CHECK_FALSE(check_paths({rdma, shm}));
}

TEST_CASE("A volume's URI names a subsystem") {
  CHECK(parse_volume_uri("nvme+rdma://h/nqn.2026-01.io.example:d/1"));
  CHECK(parse_volume_uri("nvme+rdma://h/nqn.2026-01.io.example:d"));
  const auto none = parse_volume_uri("nvme+rdma://h");
  REQUIRE_FALSE(none);
  CHECK_THAT(none.error().message(), Catch::Contains("discover"));
  CHECK_FALSE(parse_volume_uri("nvme+rdma://h/nqn.2014-08.org.nvmexpress.discovery"));
}

// ---- rbttab

namespace {

constexpr const char* kUri = "nvme+rdma://10.0.0.1/nqn.2026-01.io.example:disk/1";

std::string wrong_tab(const std::string& text) {
  const auto parsed = parse_rbttab("tab", text);
  REQUIRE_FALSE(parsed);
  CHECK(parsed.error().kind() == ErrorKind::invalid_argument);
  return parsed.error().message();
}

}  // namespace

TEST_CASE("rbttab: a volume a line, comments, blanks, several URIs, options") {
  const auto parsed = parse_rbttab("tab", std::string("# all of them\n\n  one\t") + kUri +
                                              "  via=ublk,queues=2,read-only # the first\n" + "two " + kUri +
                                              ",nvme+rdma://10.0.1.1/nqn.2026-01.io.example:disk/1\r\n" +
                                              "   # nothing\nthree " + kUri + " on-loss=fail");
  REQUIRE(parsed);
  REQUIRE(parsed->size() == 3);
  CHECK((*parsed)[0].name == "one");
  CHECK((*parsed)[0].via == Via::ublk);
  CHECK((*parsed)[0].queues == 2);
  CHECK((*parsed)[0].read_only);
  CHECK((*parsed)[0].uris.size() == 1);
  CHECK((*parsed)[1].name == "two");
  REQUIRE((*parsed)[1].uris.size() == 2);
  CHECK((*parsed)[1].uris[1].host == "10.0.1.1");
  CHECK((*parsed)[2].on_loss == Duration(0s));
  CHECK(parse_rbttab("tab", "")->empty());
}

TEST_CASE("rbttab: what is wrong is told with file, line, column and what is allowed") {
  CHECK_THAT(wrong_tab("# x\n-bad " + std::string(kUri)), Catch::StartsWith("tab:2:1: ") && Catch::Contains("letters"));
  CHECK_THAT(wrong_tab("name"), Catch::StartsWith("tab:1:5: ") && Catch::Contains("URI is missing"));
  CHECK_THAT(wrong_tab("name # " + std::string(kUri)), Catch::Contains("URI is missing"));
  CHECK_THAT(wrong_tab("name http://x"), Catch::StartsWith("tab:1:6: "));
  CHECK_THAT(wrong_tab("name " + std::string(kUri) + ",http://x"), Catch::StartsWith("tab:1:57: "));
  CHECK_THAT(wrong_tab("name nvme+rdma://10.0.0.1"), Catch::Contains("which subsystem"));
  CHECK_THAT(wrong_tab("name " + std::string(kUri) + " queues=2,depth=0"),
             Catch::StartsWith("tab:1:66: ") && Catch::Contains("1 to 1024"));
  CHECK_THAT(wrong_tab("name " + std::string(kUri) + " queues=2,"), Catch::StartsWith("tab:1:66: "));
  CHECK_THAT(wrong_tab("name " + std::string(kUri) + " queues=2 depth=3"),
             Catch::StartsWith("tab:1:66: ") && Catch::Contains("one field too many"));
  CHECK_THAT(wrong_tab("a " + std::string(kUri) + "\nb " + kUri + "\na " + kUri),
             Catch::StartsWith("tab:3:1: ") && Catch::Contains("line 1"));
}

TEST_CASE("rbttab: a name that is not in it is told with those that are") {
  const auto none = find_in_rbttab("/nonexistent/rbttab", "x");
  REQUIRE_FALSE(none);
  CHECK(none.error().kind() == ErrorKind::not_found);
  CHECK_THAT(none.error().message(), Catch::Contains("/nonexistent/rbttab"));
}
