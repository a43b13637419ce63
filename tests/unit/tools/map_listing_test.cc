// What `ls` and `stats` print, and what `auto` comes to.
#include <catch2/catch.hpp>

#include "tools/rbt-connect/map/listing.h"
#include "tools/rbt-connect/map/presenters.h"

using namespace rbt;
using namespace rbt::tools;
using namespace rbt::tools::map;
using Catch::Matchers::Contains;

namespace {

std::vector<Row> two_rows() {
  std::vector<Row> rows(2);
  rows[0].volume = {.name = "disk-1",
                    .uris = {"nvme+rdma://10.0.0.1/nqn.2026-01.io.example:disk/1",
                             "nvme+rdma://10.0.1.1/nqn.2026-01.io.example:disk/1"},
                    .options = {{"queues", "2"}},
                    .via = "ublk",
                    .device = "/dev/ublkb0",
                    .queues = 2,
                    .depth = 128,
                    .io_max = 262144,
                    .size = std::uint64_t{3} << 29,
                    .block_size = 512,
                    .uuid = "d896b80c-bdd0-48e2-a494-7c950bf21b20",
                    .pid = 4711,
                    .since = 1796068872265};
  rows[0].state = "reconnecting";
  rows[0].note = "nobody listens";
  rows[0].status = {{"path", "nvme+rdma://10.0.1.1/nqn.2026-01.io.example:disk/1"}};
  rows[1].volume.name = "b";
  rows[1].volume.pid = 5;
  rows[1].state = "starting";
  return rows;
}

}  // namespace

TEST_CASE("ls for people: a line each, what is to be said behind") {
  CHECK(describe(two_rows(), Format::table) ==
        "NAME    STATE         DEVICE       SIZE     VIA   PID   URI\n"
        "disk-1  reconnecting  /dev/ublkb0  1.5 GiB  ublk  4711  nvme+rdma://10.0.1.1/nqn.2026-01.io.example:disk/1\n"
        "b       starting      -            -        -     5     \n"
        "disk-1: nobody listens\n");
  CHECK(describe(std::vector<Row>(), Format::table).empty());
}

TEST_CASE("ls for programs: version 1") {
  CHECK(Json::parse(describe({two_rows()[0]}, Format::json)) == Json::parse(R"({"version": 1, "volumes": [{
    "name": "disk-1", "uri": "nvme+rdma://10.0.1.1/nqn.2026-01.io.example:disk/1", "device": "/dev/ublkb0", "via": "ublk",
    "pid": 4711, "state": "reconnecting", "note": "nobody listens",
    "uris": ["nvme+rdma://10.0.0.1/nqn.2026-01.io.example:disk/1", "nvme+rdma://10.0.1.1/nqn.2026-01.io.example:disk/1"],
    "size": 1610612736, "block_size": 512, "read_only": false, "uuid": "d896b80c-bdd0-48e2-a494-7c950bf21b20", "queues": 2,
    "depth": 128, "io_max": 262144, "options": {"queues": "2"}, "since": 1796068872265}]})"));
  CHECK(Json::parse(describe(std::vector<Row>(), Format::json)) == Json::parse(R"({"version": 1, "volumes": []})"));
}

TEST_CASE("stats of a process that answers nonsense, or nothing, are what is known without it") {
  Row row = two_rows()[0];
  for (const Json& status :
       {Json(), Json::object(),
        Json::parse(R"({"path": 7, "losses": -1, "requests": {"read": 3, "write": {"latency_us": []}}})"),
        Json::parse(R"({"requests": [1, 2]})")}) {
    row.status = status;
    CHECK_THAT(describe_statistics(row, Format::table), Contains("/dev/ublkb0"));
    CHECK(Json::parse(describe_statistics(row, Format::json))["volume"]["name"] == "disk-1");
  }
}

TEST_CASE("stats for people: numbers with their words, and a dash where nothing was measured") {
  Row row = two_rows()[0];
  row.status = Json::parse(R"({"path": "nvme+rdma://10.0.1.1/x/1", "uptime_ms": 13000, "in_flight": 0, "losses": 1,
      "longest_loss_ms": 0, "attempts": 5, "reissued": 1, "rewritten": 0, "fence": "keep_alive", "memory": "not_needed",
      "requests": {"read": {"requests": 0, "bytes": 0, "errors": 0, "latency_us": {"p50": 0}},
                   "write": {"requests": 2, "bytes": 8192, "errors": 0, "latency_us": {"p50": 81.92}}}})");
  const std::string said = describe_statistics(row, Format::table);
  CHECK_THAT(said, Contains("path lost        once; 5 attempts to connect again\n"));
  CHECK_THAT(said, Contains("sent again       1 request, 0 writes that a target had forgotten\n"));
  CHECK_THAT(said, Contains("fence            by waiting"));
  CHECK_THAT(said, Contains("unflushed        nothing is kept: the disk has no volatile write cache\n"));
  CHECK_THAT(said, Contains("read                0         0 B       0          -          -"));
  CHECK_THAT(said, Contains("write               2       8 KiB       0       81.9          -"));
  row.status["losses"] = 2U;
  row.status["longest_loss_ms"] = 1500U;
  row.status["memory"] = "on";
  row.status["flushes"] = 1U;
  const std::string later = describe_statistics(row, Format::table);
  CHECK_THAT(later, Contains("path lost        2 times, at most for 1.5"));
  CHECK_THAT(later, Contains("unflushed        0 B kept, 1 flush of its own\n"));
}

// ---- auto

namespace {

doctor::Finding good(const doctor::Machine& /*machine*/) {
  return {.subject = "good", .verdict = doctor::Verdict::good};
}
doctor::Finding partial(const doctor::Machine& /*machine*/) {
  return {
      .subject = "partial", .verdict = doctor::Verdict::partial, .seen = "half of it", .remedy = "get the other half"};
}
doctor::Finding missing(const doctor::Machine& /*machine*/) {
  return {.subject = "missing", .verdict = doctor::Verdict::missing, .seen = "none of it", .remedy = "get it"};
}
Presenter presenter(Via via, doctor::Finding (*examine)(const doctor::Machine&)) {
  return {.via = via, .recoverable = true, .modules = {}, .examine = examine};
}

}  // namespace

TEST_CASE("auto takes what works, in order, and says what it has skipped and why") {
  const std::vector all{presenter(Via::ublk, missing), presenter(Via::nbd, good), presenter(Via::fuse, good)};
  const auto choice = choose(Via::automatic, all, {.root = "/nonexistent"});
  REQUIRE(choice);
  REQUIRE(choice->candidates.size() == 2);
  CHECK(choice->candidates[0]->via == Via::nbd);
  CHECK(choice->candidates[1]->via == Via::fuse);
  CHECK(choice->skipped == std::vector<std::string>{"ublk: none of it -> get it"});
}

TEST_CASE("What nobody would have tried is not excused") {
  const std::vector all{presenter(Via::ublk, good), presenter(Via::nbd, missing), presenter(Via::fuse, partial)};
  const auto choice = choose(Via::automatic, all, {.root = "/nonexistent"});
  REQUIRE(choice);
  CHECK(choice->candidates.size() == 1);
  CHECK(choice->skipped.empty());
}

TEST_CASE("The way that was asked for is the only one") {
  const std::vector all{presenter(Via::ublk, good), presenter(Via::nbd, missing), presenter(Via::fuse, good)};
  const auto choice = choose(Via::nbd, all, {.root = "/nonexistent"});
  REQUIRE_FALSE(choice);
  CHECK(choice.error().message() == "nbd: none of it -> get it");
  CHECK(choose(Via::fuse, all, {.root = "/nonexistent"})->candidates.front()->via == Via::fuse);
}

TEST_CASE("If nothing works, all of it is told with its remedy") {
  const std::vector all{presenter(Via::ublk, missing), presenter(Via::fuse, partial)};
  const auto choice = choose(Via::automatic, all, {.root = "/nonexistent"});
  REQUIRE_FALSE(choice);
  CHECK(choice.error().kind() == ErrorKind::permission);  // nobody here has CAP_SYS_ADMIN
  CHECK_THAT(choice.error().message(),
             Contains("ublk: none of it -> get it") && Contains("fuse: half of it -> get the other half"));
}

TEST_CASE("The presenters are ublk, NBD and FUSE, in this order") {
  std::string names;
  for (const Presenter& each : presenters())
    names += std::string(name(each.via)) + " ";
  CHECK(names == "ublk nbd fuse ");
  CHECK(find_presenter("nbd")->via == Via::nbd);
  CHECK(find_presenter("auto") == nullptr);
}
