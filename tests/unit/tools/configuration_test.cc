#include "tools/rbt-target/configuration.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <fstream>

using namespace rbt;
using namespace rbt::tools;

namespace {

class File {
 public:
  explicit File(const std::string& text) {
    const int fd = mkstemp(name_.data());
    REQUIRE(fd >= 0);
    close(fd);
    std::ofstream(name_) << text;
  }
  ~File() { unlink(name_.c_str()); }
  const std::string& name() const { return name_; }

 private:
  std::string name_ = "/tmp/rbt-configuration-XXXXXX";
};

std::string complaint(const std::string& text) {
  const File file(text);
  auto read = read_configuration(file.name());
  if (!read) return read.error().message().substr(file.name().size());
  if (auto fine = validate(*read); !fine) return fine.error().message();
  return "nothing";
}

}  // namespace

TEST_CASE("A configuration file says what the command line says") {
  const File file(R"(
listen = ["nvme+rdma://10.0.0.1", "nvme+shm://?socket=/run/x"]
reactors = 2
log-level = "debug"
[limits]
queue-depth = 64
connections = 100
connections-per-host = 50
half-open = 40
half-open-per-host = 20
buffers = "8MiB"
[[subsystem]]
nqn = "nqn.2026-01.io.example:a"
allow-host = "nqn.2026-01.io.example:host"
store = ["ram:size=1GiB", "null:size=1TiB"]
[[subsystem.namespace]]
nsid = 9
store = "file:/x"
reservations = "/var/lib/x"
[[subsystem.host]]
nqn = "nqn.2026-01.io.example:other"
id = "01020304-0506-0708-090a-0b0c0d0e0f10"
namespaces = [1, 9]
[[subsystem]]
nqn = "nqn.2026-01.io.example:b"
store = "ram:size=2GiB"
)");
  auto read = read_configuration(file.name());
  if (!read) FAIL(read.error().message());
  CHECK(validate(*read));
  CHECK(read->listen.size() == 2);
  CHECK(read->reactors == 2);
  CHECK(read->log == LogLevel::debug);
  CHECK(read->limits.queue_depth_max == 64);
  CHECK(read->limits.connections_max == 100);
  CHECK(read->limits.connections_per_host == 50);
  CHECK(read->limits.half_open_max == 40);
  CHECK(read->limits.half_open_per_host == 20);
  CHECK(read->limits.buffers == Bytes(8 * kMiB));
  REQUIRE(read->subsystems.size() == 2);
  REQUIRE(read->subsystems[0].allowed_hosts.size() == 2);
  CHECK_FALSE(read->subsystems[0].allowed_hosts[0].namespaces.has_value());
  CHECK(read->subsystems[0].allowed_hosts[1].id->bytes()[15] == 0x10);
  CHECK(read->subsystems[0].allowed_hosts[1].namespaces == std::vector{Nsid(1), Nsid(9)});
  REQUIRE(read->subsystems[0].namespaces.size() == 3);
  CHECK(read->subsystems[0].namespaces[2].nsid == Nsid(9));
  CHECK(read->subsystems[0].namespaces[2].reservations == "/var/lib/x");
  CHECK(read->subsystems[1].namespaces[0].store == "ram:size=2GiB");

  Configuration typed;
  REQUIRE(add_options(typed, {{"listen", "nvme+rdma://10.0.0.1"},
                              {"subsystem", "nqn.2026-01.io.example:a"},
                              {"allow-host", "nqn.2026-01.io.example:host"},
                              {"allow-host", "nqn.2026-01.io.example:other"},
                              {"host-id", "01020304-0506-0708-090a-0b0c0d0e0f10"},
                              {"host-namespaces", "1,9"},
                              {"store", "ram:size=1GiB"},
                              {"subsystem", "nqn.2026-01.io.example:b"},
                              {"store", "ram:size=2GiB"},
                              {"reservations", "/var/lib/y"}}));
  REQUIRE(typed.subsystems.size() == 2);
  CHECK(typed.subsystems[1].namespaces[0].reservations == "/var/lib/y");
  REQUIRE(typed.subsystems[0].allowed_hosts.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    const auto &one = typed.subsystems[0].allowed_hosts[i], &other = read->subsystems[0].allowed_hosts[i];
    CHECK((one.nqn == other.nqn && one.id == other.id && one.namespaces == other.namespaces));
  }
  CHECK(typed.subsystems[1].namespaces[0].store == "ram:size=2GiB");
}

TEST_CASE("What a configuration file gets wrong is named with its line") {
  CHECK_THAT(complaint("reactors = 0\n"), Catch::StartsWith(":1: reactors must be a whole number from 1 to 256"));
  CHECK_THAT(complaint("\nlisten = 7\n"), Catch::StartsWith(":2: listen must be a string"));
  CHECK_THAT(complaint("listne = []\n"), Catch::Contains("unknown key 'listne'") && Catch::Contains("listen"));
  CHECK_THAT(complaint("a = \n"), Catch::StartsWith(":1:"));
  CHECK_THAT(complaint("[[subsystem]]\nstore = 'x'\n"), Catch::Contains("needs an nqn"));
  CHECK_THAT(complaint("[[subsystem]]\nnqn = 'disk'\n"), Catch::Contains(":1: nqn of a subsystem"));
  CHECK_THAT(complaint("listen = 'nvme+rdma://h/nqn.2026-01.x:y/1'\n"), Catch::Contains("address to listen on"));
  CHECK_THAT(complaint("limits = 3\n"), Catch::Contains("[limits]"));
  const std::string host = "[[subsystem]]\nnqn = 'nqn.2026-01.io.example:a'\n[[subsystem.host]]\n";
  CHECK_THAT(complaint(host), Catch::Contains(":3: a host needs an nqn"));
  CHECK_THAT(complaint(host + "nqn = 'nqn.2026-01.io.example:h'\nnamespaces = [0]\n"),
             Catch::Contains(":5: namespaces of a host must hold whole numbers from 1 to 4096"));
  CHECK_THAT(complaint(host + "nqn = 'nqn.2026-01.io.example:h'\nid = 'x'\n"), Catch::Contains(":5: id of a host"));
  const std::string named = host + "nqn = 'nqn.2026-01.io.example:h'\n";
  CHECK_THAT(complaint(named + "hash = 'md5'\n"), Catch::Contains(":5: hash of a host: 'md5': it is sha256"));
  CHECK_THAT(complaint(named + "dh-group = 'ffdhe1024'\n"), Catch::Contains("ffdhe2048, ffdhe3072"));
  CHECK_THAT(complaint(named + "secret-file = '/nowhere/s'\n"), Catch::Contains("/nowhere/s"));
  CHECK_THAT(complaint(""), Catch::Contains("nowhere to listen"));
  CHECK_THAT(complaint("listen = 'nvme+shm://'\n"), Catch::Contains("nothing to serve"));
  CHECK_THAT(complaint("listen = 'nvme+shm://'\n[[subsystem]]\nnqn = 'nqn.2026-01.io.example:a'\n"),
             Catch::Contains("has no namespace"));
  CHECK_THAT(complaint("listen = 'nvme+shm://'\n[[subsystem]]\nnqn = 'nqn.2026-01.io.example:a'\n"
                       "[[subsystem.namespace]]\nstore = 'x'\nreservations = '/r'\n"
                       "[[subsystem.namespace]]\nstore = 'y'\nreservations = '/r'\n"),
             Catch::Contains("two namespaces cannot be kept in one file"));
  CHECK_THAT(read_configuration("/nowhere/x.toml").error().message(), Catch::Contains("/nowhere/x.toml"));
}

TEST_CASE("An option that belongs to a subsystem needs one before it") {
  Configuration configuration;
  auto added = add_options(configuration, {{"store", "ram:size=1GiB"}});
  REQUIRE_FALSE(added);
  CHECK_THAT(added.error().message(),
             Catch::Contains("--store ram:size=1GiB") && Catch::Contains("--subsystem before it"));
  added = add_options(configuration, {{"subsystem", "nqn.2026-01.io.example:a"}, {"host-namespaces", "1"}});
  REQUIRE_FALSE(added);
  CHECK_THAT(added.error().message(), Catch::Contains("--allow-host before it"));
  REQUIRE(add_options(configuration, {{"subsystem", "nqn.2026-01.io.example:b"},
                                      {"allow-host", "nqn.2026-01.io.example:h"},
                                      {"host-hash", "sha384"},
                                      {"host-dh-group", "null"}}));
  const auto& authentication = configuration.subsystems.back().allowed_hosts.back().authentication;
  CHECK((authentication.hash == nvme::AuthHash::sha384 && authentication.group == nvme::DhGroup::none));
  // Everybody can read a command line: a secret on it is no secret, and is not shown once more.
  added =
      add_options(configuration, {{"host-secret-file", "DHHC-1:00:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:"}});
  REQUIRE_FALSE(added);
  CHECK_THAT(added.error().message(), Catch::StartsWith("--host-secret-file: ") && !Catch::Contains("AAECAw"));
}
