// Who uses a device: on a machine of files.
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>

#include "tools/rbt-connect/map/busy.h"

using namespace rbt::tools::map;
using Catch::Matchers::Contains;
namespace fs = std::filesystem;

namespace {

/// Nothing on it but /dev/ublkb0, 259:0, with one partition, 259:1.
class MadeUp {
 public:
  MadeUp() {
    std::string path = "/tmp/rbt-busy-XXXXXX";
    REQUIRE(::mkdtemp(path.data()) != nullptr);
    root = path;
    file("sys/block/ublkb0/dev", "259:0\n");
    file("sys/block/ublkb0/ublkb0p1/dev", "259:1\n");
    file("sys/block/ublkb0/ublkb0p1/partition", "1\n");
    fs::create_directories(root / "sys/block/ublkb0/holders");
    fs::create_directories(root / "sys/block/ublkb0/ublkb0p1/holders");
    file("sys/block/ublkb1/dev", "259:2\n");
    file("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 1 0 -2\n");
    process(1, "systemd", "mnt:[1]", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
  }
  ~MadeUp() {
    std::error_code ignored;
    fs::remove_all(root, ignored);
  }
  MadeUp(const MadeUp&) = delete;
  MadeUp& operator=(const MadeUp&) = delete;

  void file(const std::string& path, const std::string& text) {
    fs::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  }
  void link(const std::string& path, const std::string& to) {
    fs::create_directories((root / path).parent_path());
    fs::create_symlink(to, root / path);
  }
  void process(int pid, const std::string& name, const std::string& world, const std::string& mounts) {
    const std::string folder = "proc/" + std::to_string(pid);
    file(folder + "/comm", name + "\n");
    file(folder + "/mountinfo", mounts);
    link(folder + "/ns/mnt", world);
    fs::create_directories(root / folder / "fd");
  }
  void opens(int pid, const std::string& path) { link("proc/" + std::to_string(pid) + "/fd/3", path); }
  std::vector<std::string> users(std::vector<pid_t> except = {}) const {
    return users_of("/dev/ublkb0", {.root = root, .except = std::move(except), .open = false});
  }
  std::string text() const { return in_use_text("/dev/ublkb0", users()); }

  fs::path root;
};

}  // namespace

TEST_CASE("A device that nobody uses has no users") {
  MadeUp made;
  made.process(70, "other", "mnt:[1]", "");
  made.opens(70, "/dev/ublkb1");
  CHECK(made.users().empty());
}

TEST_CASE("A mount is found in any mount namespace, once, by its device's number or name") {
  MadeUp made;
  made.process(70, "a", "mnt:[2]", "23 1 259:0 / /mnt rw - ext4 /dev/ublkb0 rw\n");
  made.process(71, "b", "mnt:[3]", "24 1 259:0 / /mnt rw - ext4 /dev/ublkb0 rw\n");
  CHECK(made.users() == std::vector<std::string>{"it is mounted on /mnt"});
  made.process(72, "c", "mnt:[4]", "25 1 0:40 / /vol rw,relatime shared:1 - btrfs /dev/ublkb0p1 rw\n");
  CHECK(made.users().size() == 2);
  CHECK_THAT(made.text(), Contains("/dev/ublkb0 is in use: it is mounted on /mnt, it is mounted on /vol"));
}

TEST_CASE("What is made of it is named, partitions count") {
  MadeUp made;
  fs::create_directories(made.root / "sys/block/ublkb0/ublkb0p1/holders/dm-0");
  made.file("sys/block/dm-0/dm/name", "vg-data\n");
  made.file("sys/block/loop3/loop/backing_file", "/dev/ublkb0p1\n");
  CHECK_THAT(made.text(), Contains("dm-0 (vg-data) is made of it") && Contains("loop3 is made of it"));
}

TEST_CASE("Swap space is in use") {
  MadeUp made;
  made.file("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/ublkb0p1   partition\t1 0 -2\n");
  CHECK(made.users() == std::vector<std::string>{"/dev/ublkb0p1 is swap space"});
}

TEST_CASE("A process that has it open is named, but for those who have by right") {
  MadeUp made;
  made.process(70, "fio\x1b[2J", "mnt:[1]", "");
  made.opens(70, "/dev/ublkb0");
  CHECK(made.users() == std::vector<std::string>{"process 70 (fio\\x1b[2J) has it open"});
  CHECK(made.users({70}).empty());
  CHECK_FALSE(passing(made.users()));
}

TEST_CASE("udev looks and goes again") {
  MadeUp made;
  made.process(80, "(udev-worker)", "mnt:[1]", "");
  made.opens(80, "/dev/ublkb0");
  CHECK(passing(made.users()));
  made.process(81, "cp", "mnt:[1]", "");
  made.opens(81, "/dev/ublkb0");
  CHECK_FALSE(passing(made.users()));
  CHECK_FALSE(passing({}));
}

TEST_CASE("Not everybody is named if there are many") {
  const std::vector<std::string> many(30, "somebody");
  CHECK_THAT(in_use_text("/dev/x", many), Contains("and 20 more"));
}
