// What the verbs fabric says when it cannot work: on a machine without RDMA, natively.

#include <sys/resource.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string>

#include "transport/verbs/errors.h"
#include "transport/verbs/fabric.h"

using namespace rbt;
using namespace rbt::transport;
using Catch::Matchers::Contains;

namespace {

namespace fs = std::filesystem;

// A place that looks like /sys/class/infiniband and /dev/infiniband.
class FakeMachine {
 public:
  FakeMachine() : root_(fs::temp_directory_path() / ("rbt-verbs-errors." + std::to_string(::getpid()))) {
    fs::create_directories(sysfs());
    fs::create_directories(devices());
    fs::permissions(root_, fs::perms::all);
  }
  ~FakeMachine() { fs::remove_all(root_); }
  FakeMachine& with_device(const std::string& name) { return fs::create_directory(sysfs() + "/" + name), *this; }
  FakeMachine& with_node(const std::string& name, unsigned mode) {
    const std::string path = devices() + "/" + name;
    std::ofstream(path).put('x');
    fs::permissions(path, static_cast<fs::perms>(mode));
    return *this;
  }
  [[nodiscard]] std::string sysfs() const { return root_ / "sys"; }
  [[nodiscard]] std::string devices() const { return root_ / "dev"; }
  [[nodiscard]] Error explain(int error_number) const {
    return verbs::explain_no_rdma(error_number, sysfs(), devices());
  }

 private:
  fs::path root_;
};

// Root may do everything; be nobody for a while.
class AsNobody {
 public:
  AsNobody() : was_(::geteuid()) {
    if (was_ == 0) REQUIRE(::seteuid(65534) == 0);
  }
  ~AsNobody() {
    if (was_ == 0) (void)!::seteuid(0);
  }

 private:
  uid_t was_;
};

}  // namespace

TEST_CASE("Opening the fabric on a machine without RDMA says how to get it and what works without") {
  std::error_code none;
  if (!fs::is_empty("/sys/class/infiniband", none) && !none) {
    WARN("this machine has RDMA devices: nothing to see here");
    return;
  }
  auto fabric = verbs::Fabric::open(null_logger());
  REQUIRE_FALSE(fabric.has_value());
  CHECK(fabric.error().kind() == ErrorKind::not_found);
  CHECK(
      fabric.error().message() ==
      "no RDMA device on this machine: load rdma_rxe and `rdma link add rxe0 type rxe netdev DEV`, or use nvme+shm://");
}

TEST_CASE("A missing ib_uverbs, a container without the device nodes: the message names the node and the module") {
  FakeMachine machine;
  machine.with_device("mlx5_0");
  const Error error = machine.explain(ENODEV);
  CHECK(error.kind() == ErrorKind::not_found);
  CHECK_THAT(error.message(),
             Contains("mlx5_0") && Contains(machine.devices() + "/uverbs*") && Contains("modprobe ib_uverbs"));
}

TEST_CASE("A device node that this user may not open is named, with the permission it needs") {
  FakeMachine machine;
  machine.with_device("rxe0").with_node("uverbs0", 0600).with_node("rdma_cm", 0666);
  const AsNobody nobody;
  const Error error = machine.explain(ENODEV);
  CHECK(error.kind() == ErrorKind::permission);
  CHECK_THAT(error.message(), Contains(machine.devices() + "/uverbs0") && Contains("permission denied"));
}

TEST_CASE("A missing rdma_ucm module is named") {
  FakeMachine machine;
  machine.with_device("rxe0").with_node("uverbs0", 0666);
  const Error error = machine.explain(ENODEV);
  CHECK(error.kind() == ErrorKind::not_found);
  CHECK_THAT(error.message(), Contains("rdma_cm is missing") && Contains("modprobe rdma_ucm"));
}

TEST_CASE("An rdma_cm that this user may not open is named") {
  FakeMachine machine;
  machine.with_device("rxe0").with_node("uverbs0", 0666).with_node("rdma_cm", 0600);
  const AsNobody nobody;
  CHECK(machine.explain(EACCES).kind() == ErrorKind::permission);
  CHECK_THAT(machine.explain(EACCES).message(), Contains("/rdma_cm: permission denied"));
}

TEST_CASE("When all looks well the library's own errno is shown") {
  FakeMachine machine;
  machine.with_device("rxe0").with_node("uverbs0", 0666).with_node("rdma_cm", 0666);
  const AsNobody nobody;
  CHECK_THAT(machine.explain(EIO).message(), Contains("rxe0") && Contains("EIO"));
}

TEST_CASE("A registration that the memlock limit forbids says the limit, the need and the remedy") {
  rlimit before{};
  ::getrlimit(RLIMIT_MEMLOCK, &before);
  const rlimit low{64 * 1024, before.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_MEMLOCK, &low) == 0);
  const Error refused = verbs::registration_failed(ENOMEM, 256 << 20, "rxe0");
  const Error none_at_all = verbs::registration_failed(EPERM, 256 << 20, "rxe0");
  ::setrlimit(RLIMIT_MEMLOCK, &before);
  for (const Error& error : {refused, none_at_all}) {
    CHECK(error.kind() == ErrorKind::resource);
    CHECK_THAT(error.message(), Contains("256 MiB on rxe0") && Contains("RLIMIT_MEMLOCK is 64 KiB") &&
                                    Contains("ulimit -l") && Contains("LimitMEMLOCK="));
  }
}

TEST_CASE("Memory of a kind that no device takes is unsupported, not short") {
  for (const int error_number : {EFAULT, EOPNOTSUPP}) {
    const Error error = verbs::registration_failed(error_number, 4096, "rxe0");
    CHECK(error.kind() == ErrorKind::unsupported);
    CHECK_THAT(error.message(), Contains("memfd"));
  }
}

TEST_CASE("Listening on a loopback address says that this never works, on a wrong one what there is") {
  CHECK_THAT(
      verbs::listen_failed(EADDRNOTAVAIL, "rdma_bind_addr", "127.0.0.1:4420", true, "rxe1 (10.99.0.1)").message(),
      Contains("127.0.0.1:4420") && Contains("loopback") && Contains("nvme+shm://"));
  CHECK_THAT(verbs::listen_failed(ENODEV, "rdma_bind_addr", "10.0.0.9:4420", false, "rxe1 (10.99.0.1)").message(),
             Contains("not on an RDMA device") && Contains("rxe1 (10.99.0.1)"));
  const Error taken = verbs::listen_failed(EADDRINUSE, "rdma_listen", "10.99.0.1:4420", false, "");
  CHECK(taken.kind() == ErrorKind::in_use);
  CHECK_THAT(taken.message(), Contains("another listener"));
}

TEST_CASE("Connecting where no route leads says so") {
  const Error error =
      verbs::resolve_failed(ENETUNREACH, "rdma_resolve_addr", "192.0.2.1:4420", false, "rxe1 (10.99.0.1)");
  CHECK(error.kind() == ErrorKind::unreachable);
  CHECK_THAT(error.message(), Contains("192.0.2.1:4420") && Contains("no route") && Contains("ENETUNREACH"));
}
