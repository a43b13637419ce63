// The nbd store without its server: killed, cut off, gone for long, back with another disk.

#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <filesystem>
#include <map>
#include <optional>

#include "nbd_servers.h"
#include "store_files.h"
#include "store_rig.h"
#include "target/store/nbd_handshake.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;

namespace {

class LossRig : public StoreRig {
 public:
  LossRig() : socket(directory.file("nbd.sock")), image(directory.make("image", 4 * kMiB)) {}
  ~LossRig() { close(); }
  NbdServerProcess& nbdkit(std::vector<std::string> words) {
    return server.emplace(socket, NbdServerProcess::nbdkit(socket, std::move(words)));
  }
  NbdServerProcess& file() { return nbdkit({"file", image}); }
  [[nodiscard]] std::string spec(const std::string& options = "") const {
    return "nbd:nbd+unix:///?socket=" + socket + options;
  }
  TemporaryDirectory directory;
  std::string socket;
  std::string image;
  std::optional<NbdServerProcess> server;
};

/// One request after another, forever, each a write or a read of 8 blocks; every read is checked against what was
/// acknowledged.
class Load {
 public:
  Load(LossRig& rig, std::uint64_t first) : rig_(rig), first_(first) {}
  ~Load() {
    stopping_ = true;
    rig_.run_until([&] { return !busy_; });
  }
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;
  void start() { next(); }
  std::uint64_t ended = 0;
  int failed = 0;
  int wrong = 0;

 private:
  void next() {
    if (stopping_) {
      busy_ = false;
      return;
    }
    busy_ = true;
    ++number_;
    lease_ = rig_.lease(StoreRig::range(first_ + number_ % 4 * 8, 8), number_ % 8 < 4 ? Intent::write : Intent::read);
    step_ = Step::acquire;
    go_on([&](StoreRequest& request) { return rig_.queue->acquire(lease_, request); });
  }
  void go_on(const std::function<Progress(StoreRequest&)>& operation) {
    request_.calls = 0;
    request_.then = [this] { on_done(); };
    const Progress progress = operation(request_);
    if (!progress.pending) request_.on_store_done(progress.status);
  }
  void on_done() {
    if (request_.status != StoreStatus::ok) {
      ++failed;
      stopping_ = true;
    }
    const bool holds = request_.status == StoreStatus::ok || step_ == Step::commit;
    if (holds && step_ == Step::acquire && lease_.intent == Intent::write) {
      StoreRig::fill(lease_, pattern(8 * 512, seed(number_)));
      step_ = Step::commit;
      return go_on([&](StoreRequest& request) { return rig_.queue->commit(lease_, Durability::cached, request); });
    }
    if (holds && lease_.intent == Intent::read && StoreRig::contents(lease_) != pattern(8 * 512, seed(number_ - 4)))
      ++wrong;
    if (holds) rig_.queue->release(lease_);
    ++ended;
    next();
  }
  [[nodiscard]] std::uint64_t seed(std::uint64_t number) const { return first_ * 1'000'000 + number; }
  enum class Step { acquire, commit };
  LossRig& rig_;
  std::uint64_t first_;
  std::uint64_t number_ = 7;  // so that it begins with writes
  Lease lease_;
  Waited request_;
  Step step_ = Step::acquire;
  bool busy_ = false;
  bool stopping_ = false;
};

void qemu_img(const std::string& arguments) {
  REQUIRE(std::system(("qemu-img " + arguments + " >/dev/null").c_str()) == 0);  // NOLINT: paths of our own
}

}  // namespace

TEST_CASE("A server that is killed and comes back under load is found again: no error, no byte lost") {
  LossRig rig;
  const std::string kind = GENERATE("nbdkit", "nbdkit without FUA", "qemu-nbd qcow2");
  if (kind == "nbdkit") rig.file();
  if (kind == "nbdkit without FUA") rig.nbdkit({"--filter=fua", "file", rig.image});
  if (kind == "qemu-nbd qcow2") {
    // What qemu knows of a qcow2 it keeps in its own memory until a flush: a write that is not durable is lost with it.
    rig.image = rig.directory.file("image.qcow2");
    qemu_img("create -q -f qcow2 " + rig.image + " 4M");
    rig.server.emplace(rig.socket, NbdServerProcess::qemu(rig.socket, rig.image));
  }
  rig.open(rig.spec());
  std::vector<std::unique_ptr<Load>> loads;
  for (std::uint64_t i = 0; i < 16; ++i)
    loads.push_back(std::make_unique<Load>(rig, i * 128));
  for (const auto& load : loads)
    load->start();
  const auto ended = [&] {
    std::uint64_t sum = 0;
    for (const auto& load : loads)
      sum += load->ended;
    return sum;
  };
  for (int kills = 0; kills < 5; ++kills) {
    const std::uint64_t before = ended();
    rig.run_until([&] { return ended() >= before + 200; });
    rig.server->kill();
    // The store notices while nobody is there.
    const auto lost = static_cast<std::size_t>(kills) + 1;
    if (lost == 1) rig.run_until([&] { return rig.journal.count("is lost") >= lost; });
    rig.server->start();
  }
  const std::uint64_t before = ended();
  rig.run_until([&] { return ended() >= before + 500; });
  for (const auto& load : loads) {
    CHECK(load->failed == 0);
    CHECK(load->wrong == 0);
  }
  CHECK(rig.journal.count("connected to the server again") == 5);
}

TEST_CASE("A connection that is cut after any number of bytes costs nothing but time") {
  LossRig rig;
  if (GENERATE(true, false)) {
    rig.file();
  } else {
    rig.nbdkit({"--filter=fua", "file", rig.image});  // without FUA
  }
  const std::string relay_socket = rig.directory.file("relay.sock");
  bool cut = true;
  std::uint64_t runs = 0;
  // In the handshake it would be a failure to open, which is another test.
  for (std::uint64_t after = 100; cut; after += 997, ++runs) {
    CuttingRelay relay(relay_socket, rig.socket, after);
    auto opened = rig.try_open("nbd:nbd+unix:///?socket=" + relay_socket);
    if (!opened) {
      CHECK(after < 200);  // that was the handshake
      continue;
    }
    rig.store = std::move(*opened);
    rig.queue = rig.open_queue();
    const auto data = pattern(16 * 512, after);
    CHECK(rig.write(8, data) == StoreStatus::ok);
    CHECK(rig.write_zeroes(StoreRig::range(10, 2)) == StoreStatus::ok);
    CHECK(rig.flush() == StoreStatus::ok);
    auto expected = data;
    std::fill_n(expected.begin() + 2 * 512, 2 * 512, std::byte{0});
    CHECK(rig.must_read(8, 16) == expected);
    CHECK(rig.discard({StoreRig::range(100, 8)}) == StoreStatus::ok);
    cut = relay.has_cut();
    rig.close();
  }
  CHECK(runs > 8);
}

TEST_CASE("Requests wait for a server that is away as long as timeout= says, and are not answered before") {
  LossRig rig;
  rig.file();
  rig.open(rig.spec(",timeout=300ms"));
  CHECK(rig.write(0, pattern(512, 1)) == StoreStatus::ok);
  rig.server->kill();
  const auto begun = rig.clock.now();
  std::vector<std::byte> bytes;
  CHECK(rig.read(0, 1, bytes) == StoreStatus::unavailable);
  CHECK(rig.clock.now() - begun >= std::chrono::milliseconds(300));
  CHECK(rig.clock.now() - begun < std::chrono::seconds(10));
  CHECK(rig.write(8, pattern(512, 2)) == StoreStatus::unavailable);
  CHECK(rig.journal.count("no server for 300 ms") >= 1);
  rig.server->start();
  rig.run_until([&] { return rig.journal.count("connected to the server again") == 1; });
  CHECK(rig.must_read(0, 1) == pattern(512, 1));
}

TEST_CASE("A server that says that it shuts down is asked again when it is back") {
  LossRig rig;
  const std::string trigger = rig.directory.file("trigger");
  rig.nbdkit(
      {"--filter=error", "file", rig.image, "error=ESHUTDOWN", "error-pread-rate=100%", "error-file=" + trigger});
  rig.open(rig.spec());
  CHECK(rig.write(0, pattern(512, 1)) == StoreStatus::ok);
  { const std::ofstream create(trigger); }
  Waited request;
  Lease lease = rig.lease(StoreRig::range(0, 1), Intent::read);
  request.began(rig.queue->acquire(lease, request));
  rig.run_until([&] { return rig.journal.count("it says that it shuts down") == 1; });
  CHECK_FALSE(request.done());
  std::filesystem::remove(trigger);
  rig.run_until([&] { return request.done(); });
  REQUIRE(request.status == StoreStatus::ok);
  CHECK(StoreRig::contents(lease) == pattern(512, 1));
  rig.queue->release(lease);
}

TEST_CASE("An export that comes back with another size is told, and what lies behind its end fails") {
  LossRig rig;
  rig.file();
  rig.open(rig.spec());
  rig.queue.reset();
  CountingObserver observer;
  rig.store->observe(&observer);
  rig.queue = rig.open_queue();
  for (const std::uint64_t size : {8 * kMiB, 2 * kMiB}) {
    rig.server->kill();
    std::filesystem::resize_file(rig.image, size);
    rig.server->start();
    const int before = observer.calls;
    rig.run_until([&] { return observer.calls > before; });
    CHECK(rig.store->geometry().blocks == Blocks(size / 512));
  }
  CHECK(rig.must_read(4095, 1).size() == 512);
  std::vector<std::byte> bytes;
  CHECK(rig.read(4096, 1, bytes) == StoreStatus::out_of_range);
  CHECK(rig.write(4095, pattern(1024, 1)) == StoreStatus::out_of_range);
  CHECK(std::filesystem::file_size(rig.image) == 2 * kMiB);
  rig.queue.reset();
  rig.store->observe(nullptr);
}

TEST_CASE("An export that does not fit any more is not served, and found again when it does") {
  LossRig rig;
  rig.file();
  rig.open(rig.spec(",timeout=200ms"));
  const auto good = rig.server->command();
  rig.server->kill();
  rig.nbdkit(
      {"--filter=blocksize-policy", "file", rig.image, "blocksize-minimum=4096", "blocksize-error-policy=error"});
  rig.run_until([&] { return rig.journal.count("takes multiples of 4096 bytes now") == 1; });
  CHECK(rig.write(0, pattern(512, 1)) == StoreStatus::unavailable);
  rig.file();
  rig.run_until([&] { return rig.journal.count("connected to the server again") == 1; });
  CHECK(rig.write(0, pattern(512, 1)) == StoreStatus::ok);
}

TEST_CASE("With writes=cached a loss is told by every later flush, if there was something to lose") {
  LossRig rig;
  rig.file();
  rig.open(rig.spec(",writes=cached"));
  CHECK(rig.write(0, pattern(512, 1)) == StoreStatus::ok);
  CHECK(rig.flush() == StoreStatus::ok);
  const auto restart = [&](std::size_t times_back) {
    rig.server->kill();
    rig.server->start();
    rig.run_until([&] { return rig.journal.count("connected to the server again") == times_back; });
  };
  restart(1);
  CHECK(rig.flush() == StoreStatus::ok);
  CHECK(rig.write(8, pattern(512, 2)) == StoreStatus::ok);
  restart(2);
  CHECK(rig.journal.count("1 writes had been answered out of the server's cache") == 1);
  CHECK(rig.flush() == StoreStatus::write_error);
  CHECK(rig.flush() == StoreStatus::write_error);
  CHECK(rig.write(8, pattern(512, 3)) == StoreStatus::ok);
  CHECK(rig.flush() == StoreStatus::write_error);
}

TEST_CASE("A server that ends every connection as soon as it is there is asked less and less often") {
  LossRig rig;
  const std::string log = rig.directory.file("log");
  const std::string trigger = rig.directory.file("trigger");
  { const std::ofstream create(trigger); }
  rig.nbdkit({"--filter=error", "--filter=log", "file", rig.image, "error=ESHUTDOWN", "error-pread-rate=100%",
              "error-file=" + trigger, "logfile=" + log});
  rig.open(rig.spec());
  Waited request;
  Lease lease = rig.lease(StoreRig::range(0, 1), Intent::read);
  request.began(rig.queue->acquire(lease, request));
  const auto until = rig.clock.now() + std::chrono::milliseconds(1500);
  CHECK_FALSE(rig.reactor().run_until([&] { return request.done(); }, until));
  const std::size_t connections = times(text_of(log), " Connect ");
  CHECK(connections > 2);
  CHECK(connections < 12);  // without a pause it would be hundreds
  CHECK(rig.journal.count("is lost") == 1);
  std::filesystem::remove(trigger);
  rig.run_until([&] { return request.done(); });
  REQUIRE(request.status == StoreStatus::ok);
  rig.queue->release(lease);
}

TEST_CASE("A store may be closed while its server is away") {
  LossRig rig;
  rig.file();
  rig.open(rig.spec());
  rig.server->kill();
  rig.run_until([&] { return rig.journal.count("is lost") == 1; });
  rig.close();
}

TEST_CASE("Requests for the same blocks do not wait for an absent server one after the other") {
  LossRig rig;
  rig.file();
  rig.open(rig.spec(",timeout=1s"));
  constexpr std::size_t kWrites = 6;
  std::array<Lease, kWrites> leases;
  std::array<Waited, kWrites> writes;
  for (Lease& lease : leases) {
    lease = rig.lease(StoreRig::range(0, 8), Intent::write);
    REQUIRE(rig.acquire(lease) == StoreStatus::ok);
    rig.fill(lease, pattern(4096, 1));
  }
  rig.server->kill();
  rig.run_until([&] { return rig.journal.count("is lost") == 1; });
  const Instant began = rig.clock.now();
  for (std::size_t i = 0; i < kWrites; ++i)
    writes.at(i).began(rig.queue->commit(leases.at(i), Durability::cached, writes.at(i)));
  rig.run_until([&] { return std::all_of(writes.begin(), writes.end(), [](Waited& one) { return one.done(); }); });
  CHECK(rig.clock.now() - began < std::chrono::seconds(4));  // and not 6
  for (std::size_t i = 0; i < kWrites; ++i) {
    CHECK(writes.at(i).status == StoreStatus::unavailable);
    rig.queue->release(leases.at(i));
  }
}

TEST_CASE("A server that takes commands and answers none is named in the log, and waited for") {
  LossRig rig;
  rig.nbdkit({"--filter=delay", "file", rig.image, "rdelay=2"});
  rig.open(rig.spec(",timeout=500ms"));
  Waited request;
  Lease lease = rig.lease(StoreRig::range(0, 1), Intent::read);
  request.began(rig.queue->acquire(lease, request));
  rig.run_until([&] { return rig.journal.count("the server has 1 commands and has answered none for 500 ms") == 1; });
  CHECK_FALSE(request.done());
  rig.run_until([&] { return request.done(); });
  REQUIRE(request.status == StoreStatus::ok);
  CHECK(rig.journal.count("the server answers again") == 1);
  CHECK(rig.journal.count("is lost") == 0);
  rig.queue->release(lease);
}

TEST_CASE("A TCP server that takes connections and says nothing is given up, and the error says what it did not do") {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ::sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ::socklen_t length = sizeof address;
  REQUIRE(::bind(listener, reinterpret_cast<const ::sockaddr*>(&address), length) == 0);
  REQUIRE(::listen(listener, 8) == 0);
  REQUIRE(::getsockname(listener, reinterpret_cast<::sockaddr*>(&address), &length) == 0);
  const std::string uri = "nbd://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  const auto connected = nbd_connect(uri, std::chrono::milliseconds(200), -1);
  REQUIRE_FALSE(connected);
  CHECK(connected.error().kind() == ErrorKind::timed_out);
  CHECK(connected.error().message().find("the server does not shake hands") != std::string::npos);
  ::close(listener);
}

TEST_CASE("What goes over TLS is read back, also after the server was away, and a client without the key is refused") {
  LossRig rig;
  const std::string keys = rig.directory.file("keys.psk");
  std::ofstream(keys) << "alice:" << std::string(64, '7') << '\n';
  rig.nbdkit({"--tls=require", "--tls-psk=" + keys, "file", rig.image});
  const std::string uri = "nbds+unix://alice@/?socket=" + rig.socket + "&tls-psk-file=" + keys;
  rig.open("nbd:" + uri);
  const auto data = pattern(kMiB, 1);
  REQUIRE(rig.write(0, data) == StoreStatus::ok);
  rig.server->kill();
  rig.server->start();
  CHECK(rig.must_read(0, kMiB / 512) == data);
  const std::string others = rig.directory.file("others.psk");
  std::ofstream(others) << "alice:" << std::string(64, '8') << '\n';
  CHECK_FALSE(nbd_connect("nbds+unix://alice@/?socket=" + rig.socket + "&tls-psk-file=" + others,
                          std::chrono::seconds(10), -1));
  CHECK_FALSE(nbd_connect("nbd+unix:///?socket=" + rig.socket, std::chrono::seconds(10), -1));
}
