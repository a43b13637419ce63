// What is known of mapped volumes: the state file, locks, what a successor must know.
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <catch2/catch.hpp>

#include <filesystem>
#include <fstream>

#include "tools/rbt-connect/map/presenters.h"
#include "tools/rbt-connect/map/state.h"
#include "tools/rbt-connect/map/succession_json.h"

using namespace rbt;
using namespace rbt::tools::map;
namespace fs = std::filesystem;

namespace {

struct Scratch {
  Scratch() {
    std::string name = (fs::temp_directory_path() / "rbt-map-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Scratch() {
    std::error_code error;
    fs::remove_all(path, error);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  fs::path path;
};

initiator::Succession a_succession() {
  initiator::Succession succession;
  succession.host_nqn = "nqn.2014-08.org.nvmexpress:uuid:2b52c6e4-c319-4283-b0db-54455a5c3e5e";
  succession.host_id = nvme::HostId({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255});
  succession.uri = "nvme+rdma://10.0.0.1/nqn.2026-01.io.example:disk/1";
  succession.association = {.instance = {9, 8, 7}, .number = ~std::uint64_t{0}};
  succession.keep_alive = std::chrono::seconds(15);
  succession.disk.uuid = nvme::Uuid({5, 4, 3});
  succession.disk.nguid = {1};
  succession.disk.eui64 = {2};
  succession.disk.block_size = 4096;
  succession.disk.blocks = Blocks(std::uint64_t{1} << 40);
  succession.memory = initiator::MemoryKind::on;
  succession.incarnation = nvme::Incarnation{.medium = {7, 7}, .losses = 3};
  return succession;
}

State a_state() {
  return {.name = "disk-1",
          .uris = {"nvme+rdma://10.0.0.1/nqn.2026-01.io.example:disk/1",
                   "nvme+rdma://10.0.1.1/nqn.2026-01.io.example:disk/1"},
          .options = {{"queues", "2"}, {"on-loss", "fail"}},
          .via = "ublk",
          .device = "/dev/ublkb3",
          .number = 3,
          .mark = "whose",
          .queues = 2,
          .depth = 128,
          .io_max = 262144,
          .read_only = true,
          .size = std::uint64_t{1} << 45,
          .block_size = 4096,
          .uuid = "d896b80c-bdd0-48e2-a494-7c950bf21b20",
          .pid = 4711,
          .since = 1796068872265,
          .succession = to_json(a_succession())};
}

}  // namespace

TEST_CASE("A state that is written is the same when it is read") {
  const State state = a_state();
  const auto again = parse_state(to_text(state));
  REQUIRE(again);
  CHECK(to_text(*again) == to_text(state));
  CHECK(again->uris == state.uris);
  CHECK(again->options == state.options);
  CHECK(again->size == state.size);
  CHECK(again->pid == state.pid);
  CHECK(again->read_only);
  const auto options = options_of(*again);
  REQUIRE(options);
  CHECK(options->name == "disk-1");
  CHECK(options->uris.size() == 2);
  CHECK(options->queues == 2);
  CHECK(options->on_loss == Duration::zero());
}

TEST_CASE("A succession that is written is the same when it is read") {
  auto succession = a_succession();
  CHECK(parse_succession(to_json(succession)).value() == succession);
  succession.incarnation.reset();
  succession.association.number = 0;
  for (const auto kind :
       {initiator::MemoryKind::off, initiator::MemoryKind::foreign, initiator::MemoryKind::not_needed}) {
    succession.memory = kind;
    CHECK(parse_succession(to_json(succession)).value() == succession);
  }
}

TEST_CASE("A state that is cut off anywhere is refused, and nothing breaks") {
  const std::string text = to_text(a_state());
  for (std::size_t size = 0; size + 2 < text.size(); ++size)
    CHECK_FALSE(parse_state(std::string_view(text).substr(0, size)));
}

TEST_CASE("A state with any member missing, or of another kind, is refused by its name") {
  const Json whole = Json::parse(to_text(a_state()));
  for (const auto& [key, value] : whole.items()) {
    if (key == "succession") continue;  // checked when it is needed
    for (const Json& wrong : {Json(), Json(-1), Json(1.5), Json(Json::array({1})), Json({{"a", 1}})}) {
      Json damaged = whole;
      damaged[key] = wrong;
      CAPTURE(damaged.dump());
      CHECK_FALSE(parse_state(damaged.dump()));
    }
    Json less = whole;
    less.erase(key);
    const auto parsed = parse_state(less.dump());
    REQUIRE_FALSE(parsed);
    CHECK_THAT(parsed.error().message(), Catch::Contains(key == "version" ? "version" : "\"" + key + "\""));
  }
  const Json succession = whole["succession"];
  for (const auto& [key, value] : succession.items()) {
    if (key == "medium") continue;  // without it there is no incarnation
    Json damaged = succession;
    damaged[key] = Json::array();
    CHECK_FALSE(parse_succession(damaged));
  }
}

TEST_CASE("A state of another version, with another's name, or of a device outside of /dev is refused") {
  Json json = Json::parse(to_text(a_state()));
  json["version"] = 2;
  const auto newer = parse_state(json.dump());
  REQUIRE_FALSE(newer);
  CHECK(newer.error().kind() == ErrorKind::unsupported);
  json = Json::parse(to_text(a_state()));
  json["device"] = "/etc/passwd";
  CHECK_FALSE(parse_state(json.dump()));
  json = Json::parse(to_text(a_state()));
  json["number"] = std::uint64_t{1} << 32;
  CHECK_FALSE(parse_state(json.dump()));
  json = Json::parse(to_text(a_state()));
  json["name"] = "../x";
  CHECK_FALSE(parse_state(json.dump()));
}

TEST_CASE("A folder keeps states that only their owner reads, replaced as a whole") {
  const Scratch scratch;
  const RunFolder folder(scratch.path / "run");
  REQUIRE(folder.prepare());
  REQUIRE(folder.prepare());
  State state = a_state();
  REQUIRE(folder.write(state));
  state.size = 7;
  REQUIRE(folder.write(state));
  CHECK(folder.read("disk-1")->size == 7);
  struct stat about {};
  REQUIRE(::stat((folder.path() / "disk-1.json").c_str(), &about) == 0);
  CHECK((about.st_mode & 0777) == 0600);
  CHECK(folder.names() == std::vector<std::string>{"disk-1"});
  std::ofstream(folder.path() / "other.json") << to_text(state);
  CHECK_FALSE(folder.read("other"));  // it is disk-1's
  folder.remove("disk-1");
  folder.remove("other");
  CHECK(folder.names().empty());
  const auto none = folder.read("disk-1");
  REQUIRE_FALSE(none);
  CHECK(none.error().kind() == ErrorKind::not_found);
}

TEST_CASE("A name is one process's, until that ends, however it does") {
  const Scratch scratch;
  const RunFolder folder(scratch.path);
  CHECK_FALSE(folder.holder("a"));
  int pipe[2];
  REQUIRE(::pipe(pipe) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const auto lock = folder.lock("a");
    static_cast<void>(::write(pipe[1], lock ? "y" : "n", 1));
    ::pause();
    ::_exit(0);
  }
  char said = 0;
  REQUIRE(::read(pipe[0], &said, 1) == 1);
  REQUIRE(said == 'y');
  CHECK(folder.holder("a") == child);
  CHECK(folder.holds(child, "a"));
  CHECK_FALSE(folder.holds(::getpid(), "a"));
  CHECK(folder.names() == std::vector<std::string>{"a"});
  const auto taken = folder.lock("a");
  REQUIRE_FALSE(taken);
  CHECK(taken.error().kind() == ErrorKind::in_use);
  CHECK_THAT(taken.error().message(), Catch::Contains(std::to_string(child)));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ::close(pipe[0]);
  ::close(pipe[1]);
  CHECK_FALSE(folder.holder("a"));
  auto mine = folder.lock("a");
  REQUIRE(mine);
  CHECK(folder.holder("a") == ::getpid());
  mine->forget();
  CHECK_FALSE(folder.holder("a"));
  CHECK(folder.lock("a"));  // a new file: the old one is nobody's business
  CHECK(fs::exists(folder.path() / "a.lock"));
  const auto kept = folder.lock("b");
  folder.sweep();
  CHECK_FALSE(fs::exists(folder.path() / "a.lock"));
  CHECK(folder.holder("b"));
}

// ---- a device whose process was killed before it could name it

namespace {

Result<std::optional<std::uint32_t>> seven_is_marked_whose(const RunFolder& /*folder*/, const State& state) {
  if (state.mark.empty()) return std::nullopt;
  if (state.mark != "whose") return failure(ErrorKind::permission, "nobody may look");
  return 7;
}
const Presenter kPresenter{.node = "/dev/ublkb", .find = seven_is_marked_whose};

}  // namespace

TEST_CASE("A state with a mark and no device is given the one that has the mark") {
  const RunFolder folder("/nowhere");
  State state{.name = "killed", .via = "ublk", .mark = "whose"};
  const auto named = name_device(folder, kPresenter, state);
  REQUIRE(named);
  CHECK(*named);
  CHECK(state.device == "/dev/ublkb7");
  CHECK(state.number == 7);
}

TEST_CASE("A state keeps the device it has, and one that never meant to make any gets none") {
  const RunFolder folder("/nowhere");
  State state = GENERATE(State{.name = "told", .device = "/dev/ublkb3", .number = 3, .mark = "whose"},
                         State{.name = "early", .device = "", .number = 0, .mark = ""});
  const std::string before = to_text(state);
  const auto named = name_device(folder, kPresenter, state);
  REQUIRE(named);
  CHECK_FALSE(*named);
  CHECK(to_text(state) == before);
}

TEST_CASE("Where devices cannot be looked at, none is taken to be there, and none not to be") {
  State state{.name = "killed", .mark = "another"};
  const auto named = name_device(RunFolder("/nowhere"), kPresenter, state);
  REQUIRE_FALSE(named);
  CHECK(named.error().kind() == ErrorKind::permission);
  CHECK(state.device.empty());
}

TEST_CASE("Marks of ublk devices differ, and an NBD device's is its disk's identity") {
  auto random = Random(1);
  initiator::Namespace disk;
  disk.uuid = nvme::Uuid({5, 4, 3});
  const Presenter& ublk = *find_presenter("ublk");
  CHECK(ublk.intend(disk, random) != ublk.intend(disk, random));
  CHECK(find_presenter("nbd")->intend(disk, random) == disk.uuid.to_string());
}
