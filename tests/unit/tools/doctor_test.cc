#include <sys/stat.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tools/rbt-connect/doctor/machine.h"

using namespace rbt::tools;
using namespace rbt::tools::doctor;
using Catch::Matchers::Contains;

namespace {

/// A machine of files: nothing on it but what a test puts there.
class MadeUp {
 public:
  MadeUp() {
    std::string path = "/tmp/rbt-doctor-XXXXXX";
    REQUIRE(::mkdtemp(path.data()) != nullptr);
    machine.root = path;
    file("/proc/sys/kernel/osrelease", "6.12.95-test\n");
    file("/proc/self/status", "Name:\tx\nCapEff:\t0000000000000000\n");
  }
  ~MadeUp() {
    std::error_code ignored;
    std::filesystem::remove_all(machine.root, ignored);
  }
  MadeUp(const MadeUp&) = delete;
  MadeUp& operator=(const MadeUp&) = delete;
  void file(const std::string& path, const std::string& text = "") {
    std::filesystem::create_directories(below(machine, path).parent_path());
    std::ofstream(below(machine, path)) << text;
  }
  void modules(const std::string& loadable, const std::string& builtin = "") {
    file("/lib/modules/6.12.95-test/modules.dep", loadable);
    file("/lib/modules/6.12.95-test/modules.builtin", builtin);
  }
  void root() { file("/proc/self/status", "CapEff:\t000001ffffffffff\n"); }
  Machine machine;
};

}  // namespace

TEST_CASE("A module is present, loadable, absent, or nobody can tell") {
  MadeUp made;
  CHECK(find_module(made.machine, "nbd") == Module::hidden);
  CHECK_THAT(without(made.machine, "nbd"), Contains("there is no /lib/modules/6.12.95-test"));
  made.modules(
      "kernel/drivers/block/nbd.ko.xz: kernel/x.ko\nkernel/drivers/nvme/host/nvme-rdma.ko: kernel/y/ublk_drv.ko\n",
      "kernel/drivers/block/loop.ko\n");
  CHECK(find_module(made.machine, "nbd") == Module::loadable);
  CHECK(find_module(made.machine, "nvme_rdma") == Module::loadable);
  CHECK(find_module(made.machine, "loop") == Module::present);
  CHECK(find_module(made.machine, "ublk_drv") == Module::absent);  // only what somebody depends on
  CHECK(find_module(made.machine, "nb") == Module::absent);
  CHECK_THAT(without(made.machine, "ublk_drv"), Contains("Linux 6.12.95-test has no module ublk_drv"));
  made.file("/sys/module/ublk_drv/refcnt");
  CHECK(find_module(made.machine, "ublk_drv") == Module::present);
}

TEST_CASE("ublk: each thing in the way has its own remedy") {
  MadeUp made;
  made.modules("");
  CHECK(examine_ublk(made.machine).verdict == Verdict::missing);
  CHECK_THAT(examine_ublk(made.machine).remedy, Contains("bookworm-backports"));
  made.modules("kernel/drivers/block/ublk_drv.ko.xz:\n");
  CHECK(examine_ublk(made.machine).remedy == "modprobe ublk_drv");
  made.file("/sys/module/ublk_drv/refcnt");
  CHECK_THAT(examine_ublk(made.machine).remedy, Contains("--device /dev/ublk-control"));
  made.file("/dev/ublk-control");
  CHECK(examine_ublk(made.machine).remedy == "run it as root");
  made.root();
  CHECK(examine_ublk(made.machine).verdict == Verdict::good);
  CHECK(examine_ublk(made.machine).remedy.empty());
  made.machine.io_uring_error = EPERM;
  CHECK(examine_ublk(made.machine).verdict == Verdict::missing);
  CHECK(examine_ublk(made.machine).remedy == "see io_uring");
}

TEST_CASE("nbd and fuse: a kernel without one may have the other") {
  MadeUp made;
  made.root();
  made.modules("kernel/fs/fuse/fuse.ko:\nkernel/drivers/block/loop.ko:\n");
  CHECK_THAT(examine_nbd(made.machine).seen, Contains("has no module nbd"));
  CHECK(examine_fuse(made.machine).remedy == "modprobe fuse");
  made.file("/dev/fuse");
  CHECK_THAT(examine_fuse(made.machine).remedy, Contains("libnbd-bin"));
  made.file("/usr/bin/nbdfuse");
  CHECK(examine_fuse(made.machine).verdict == Verdict::partial);
  CHECK(examine_fuse(made.machine).remedy == "modprobe loop");
  made.file("/dev/loop-control");
  CHECK(examine_fuse(made.machine).verdict == Verdict::good);
  made.file("/dev/nbd0");
  CHECK(examine_nbd(made.machine).verdict == Verdict::good);
}

TEST_CASE("A device that is there and does not open is not said to be missing") {
  MadeUp made;
  made.root();
  std::filesystem::create_directories(below(made.machine, "/dev/nbd0"));  // a directory does not open for writing
  const Finding found = examine_nbd(made.machine);
  CHECK(found.verdict == Verdict::missing);
  CHECK_THAT(found.seen, Contains("/dev/nbd0") && Contains("EISDIR"));
  CHECK_FALSE(found.remedy.empty());
}

TEST_CASE("nbdkit and its plugin are two things") {
  MadeUp made;
  CHECK(examine_nbdkit(made.machine).verdict == Verdict::missing);
  made.file("/usr/bin/nbdkit");
  CHECK(examine_nbdkit(made.machine).verdict == Verdict::partial);
  made.file("/usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-rbt-plugin.so");
  CHECK(examine_nbdkit(made.machine).verdict == Verdict::good);
}

TEST_CASE("rdma: no device, a port that is down, no access, and all well") {
  MadeUp made;
  made.modules("kernel/drivers/infiniband/sw/rxe/rdma_rxe.ko.xz:\nkernel/drivers/nvme/host/nvme-rdma.ko.xz:\n");
  CHECK_THAT(examine_rdma(made.machine).remedy, Contains("modprobe rdma_rxe && rdma link add rxe0"));
  CHECK(examine_kernel_host(made.machine).remedy == "modprobe nvme_rdma");
  made.file("/sys/module/rdma_rxe/refcnt");
  CHECK_THAT(examine_rdma(made.machine).remedy, Contains("rdma link add rxe0") && !Contains("modprobe"));
  made.file("/sys/class/infiniband/rxe0/ports/1/state", "1: DOWN\n");
  CHECK_THAT(examine_rdma(made.machine).remedy, Contains("modprobe rdma_ucm"));
  made.file("/dev/infiniband/rdma_cm");
  CHECK(examine_rdma(made.machine).seen == "rxe0 port 1 DOWN");
  CHECK_THAT(examine_rdma(made.machine).remedy, Contains("no port is ACTIVE"));
  made.file("/sys/class/infiniband/rxe1/ports/1/state", "4: ACTIVE\n");
  CHECK(examine_rdma(made.machine).verdict == Verdict::good);
  CHECK(examine_rdma(made.machine).seen == "rxe0 port 1 DOWN, rxe1 port 1 ACTIVE");
  made.modules("");
  made.file("/sys/module/nvme_rdma/refcnt");
  CHECK(examine_kernel_host(made.machine).verdict == Verdict::good);
}

TEST_CASE("memlock: the soft limit counts, unless a capability or `unlimited` says that none does") {
  MadeUp made;
  CHECK(examine_memlock(made.machine).seen == "RLIMIT_MEMLOCK is not told");
  CHECK(examine_memlock(made.machine).verdict == Verdict::partial);
  const auto limit = [&](const std::string& soft) {
    made.file("/proc/self/limits", "Limit   Soft Limit  Hard Limit  Units\nMax locked memory         " + soft +
                                       "              unlimited            bytes     \n");
    return examine_memlock(made.machine);
  };
  CHECK(limit("8388608").seen == "RLIMIT_MEMLOCK is 8 MiB");
  CHECK_THAT(limit("8388608").remedy, Contains("64 MiB") && Contains("LimitMEMLOCK="));
  CHECK(limit("67108864").verdict == Verdict::good);
  CHECK(limit("unlimited").verdict == Verdict::good);
  CHECK(limit("nonsense").verdict == Verdict::partial);
  made.root();
  CHECK(limit("8388608").verdict == Verdict::good);
}

TEST_CASE("io_uring: the sysctl is told from a seccomp profile") {
  MadeUp made;
  CHECK(examine_io_uring(made.machine).verdict == Verdict::good);
  made.machine.io_uring_error = EPERM;
  CHECK_THAT(examine_io_uring(made.machine).remedy, Contains("seccomp"));
  made.file("/proc/sys/kernel/io_uring_disabled", "0\n");
  CHECK_THAT(examine_io_uring(made.machine).remedy, Contains("seccomp"));
  made.file("/proc/sys/kernel/io_uring_disabled", "1\n");
  CHECK_THAT(examine_io_uring(made.machine).remedy, Contains("io_uring_group"));
  made.file("/proc/sys/kernel/io_uring_disabled", "2\n");
  CHECK(examine_io_uring(made.machine).remedy == "sysctl -w kernel.io_uring_disabled=0");
  made.machine.io_uring_error = ENOSYS;
  CHECK_THAT(examine_io_uring(made.machine).remedy, Contains("seccomp") && Contains("5.1"));
  made.machine.io_uring_error = ENOMEM;
  CHECK_THAT(examine_io_uring(made.machine).remedy, Contains("ulimit"));
}

TEST_CASE("userfaultfd: refused, not built in, too old") {
  MadeUp made;
  CHECK(examine_userfaultfd(made.machine).verdict == Verdict::good);
  const auto remedy = [&](int error) {
    made.machine.userfaultfd_error = error;
    CHECK(examine_userfaultfd(made.machine).verdict == Verdict::partial);
    return examine_userfaultfd(made.machine).remedy;
  };
  CHECK_THAT(remedy(EPERM), Contains("seccomp"));
  CHECK_THAT(remedy(ENOSYS), Contains("CONFIG_USERFAULTFD"));
  CHECK_THAT(remedy(EINVAL), Contains("5.11"));
  CHECK_THAT(remedy(EMFILE), Contains("ulimit -n"));
}

TEST_CASE("An empty machine is examined whole; what is not good has a remedy, and the report says all of it") {
  MadeUp made;
  std::filesystem::remove_all(made.machine.root);
  for (const Machine& machine : {made.machine, this_machine()}) {
    const auto findings = examine(machine);
    const auto json = nlohmann::json::parse(describe(findings, Format::json));
    const std::string table = describe(findings, Format::table);
    CHECK(json["version"] == 1);
    REQUIRE(json["findings"].size() == findings.size());
    for (std::size_t i = 0; i < findings.size(); ++i) {
      const Finding& finding = findings[i];
      INFO(finding.subject << ": " << finding.seen);
      CHECK((finding.verdict == Verdict::good) == finding.remedy.empty());
      CHECK_FALSE(finding.seen.empty());
      CHECK(json["findings"][i]["subject"] == finding.subject);
      CHECK(json["findings"][i]["verdict"] == name(finding.verdict));
      CHECK(json["findings"][i]["remedy"] == finding.remedy);
      CHECK_THAT(table, Contains(finding.subject) && Contains(finding.seen) && Contains(finding.remedy));
    }
  }
}
