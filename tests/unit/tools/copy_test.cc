#include "tools/rbt-connect/copy.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "common/log.h"
#include "common/random.h"

using namespace rbt;
using namespace rbt::tools;

namespace {

// A disk in memory whose transfers finish late and out of order, and fail where they are told to.
class SlowDisk final : public Endpoint {
 public:
  SlowDisk(std::size_t size, std::uint64_t seed) : bytes(size), random_(seed) {}
  const std::string& name() const noexcept override { return name_; }
  std::optional<std::uint64_t> size() const noexcept override { return bytes.size(); }
  std::uint32_t block_size() const noexcept override { return 512; }
  void read(Transfer& t) override {
    t.data = t.data.first(std::min(t.data.size(), bytes.size() - t.offset));
    begin(t, false);
  }
  void write(Transfer& t) override {
    REQUIRE(t.data.size() % 512 == 0);
    begin(t, true);
  }
  Result<void> begin_writing(std::optional<std::uint64_t> size) override {
    if (size && *size > bytes.size()) return failure(ErrorKind::invalid_argument, "too small");
    return {};
  }
  Result<void> zero(std::uint64_t offset, std::uint64_t length) override {
    std::fill_n(bytes.begin() + std::ptrdiff_t(offset), length, std::byte{0});
    return {};
  }
  Result<void> finish_writing(std::uint64_t) override {
    ++flushes;
    return {};
  }
  bool due() const noexcept override { return !pending_.empty(); }
  void progress() override {
    if (pending_.empty()) return;
    const std::size_t which = random_.below(pending_.size());
    auto [transfer, write] = pending_[which];
    pending_.erase(pending_.begin() + std::ptrdiff_t(which));
    if (operations++ == fail_at) {
      transfer->error = Error(ErrorKind::io, "media error");
    } else if (write) {
      std::copy(transfer->data.begin(), transfer->data.end(), bytes.begin() + std::ptrdiff_t(transfer->offset));
      if (corrupt_writes) bytes[transfer->offset + 1] ^= std::byte{1};
    } else {
      std::copy_n(bytes.begin() + std::ptrdiff_t(transfer->offset), transfer->data.size(), transfer->data.begin());
    }
    transfer->done(*transfer);
  }

  std::vector<std::byte> bytes;
  int flushes = 0;
  std::uint64_t operations = 0;
  std::uint64_t fail_at = ~0ULL;
  bool corrupt_writes = false;

 private:
  void begin(Transfer& t, bool write) { pending_.emplace_back(&t, write); }
  std::string name_ = "disk";
  Random random_;
  std::vector<std::pair<Transfer*, bool>> pending_;
};

struct Folder {
  Folder() { REQUIRE(mkdtemp(path.data()) != nullptr); }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string file(const char* name) const { return path + "/" + name; }
  std::string path = "/tmp/rbt-copy-XXXXXX";
};

std::vector<std::byte> content(std::size_t size, std::uint64_t seed) {
  std::vector<std::byte> bytes(size);
  Random random(seed);
  random.fill(bytes);
  // A stretch of zeroes in the middle: what copy need not move.
  if (size > 64 * 1024) std::fill_n(bytes.begin() + 16 * 1024, 32 * 1024, std::byte{0});
  return bytes;
}

void write_file(const std::string& path, std::span<const std::byte> bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), std::streamsize(bytes.size()));
}

std::vector<std::byte> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  std::vector<std::byte> bytes(text.size());
  std::transform(text.begin(), text.end(), bytes.begin(), [](char c) { return std::byte(c); });
  return bytes;
}

constexpr CopyOptions kSmall{.depth = 4, .chunk = 8192};

// What a copy runs on.
struct Machine {
  SystemClock clock;
  std::unique_ptr<Logger> logger = make_stderr_logger(LogLevel::warning);
  std::unique_ptr<transport::Reactor> reactor = *transport::Reactor::create(clock, *logger);
  Interrupt interrupt;
};

}  // namespace

TEST_CASE("A copy is the same bytes, whatever order its transfers finish in") {
  const std::uint64_t seed = GENERATE(range(std::uint64_t{1}, std::uint64_t{20}));
  SlowDisk from(300 * 512, seed), to(400 * 512, seed + 1000);
  from.bytes = content(from.bytes.size(), seed);
  std::fill(to.bytes.begin(), to.bytes.end(), std::byte{0xee});
  Machine machine;
  auto options = kSmall;
  options.verify = true;
  auto done = copy(from, to, options, *machine.reactor, machine.interrupt);
  if (!done) FAIL(done.error().message());
  CHECK(std::equal(from.bytes.begin(), from.bytes.end(), to.bytes.begin()));
  CHECK(to.bytes[from.bytes.size()] == std::byte{0xee});  // what lies behind is left alone
  CHECK(to.flushes == 1);
  CHECK(done->zeroes >= 24 * 1024);
  CHECK(done->bytes == from.bytes.size());
  CHECK(done->verified == from.bytes.size());
}

TEST_CASE("Whichever transfer of a copy fails, the copy says so and nothing hangs") {
  Machine machine;
  bool clean = false;
  for (std::uint64_t n = 0; !clean; ++n) {
    REQUIRE(n < 1000);
    SlowDisk from(100 * 512, 1), to(100 * 512, 2);
    from.bytes = content(from.bytes.size(), 5);
    (n % 2 == 0 ? from : to).fail_at = n / 2;
    auto done = copy(from, to, kSmall, *machine.reactor, machine.interrupt);
    clean = n % 2 == 0 ? from.operations <= from.fail_at : false;
    if (from.operations > from.fail_at || to.operations > to.fail_at) {
      REQUIRE_FALSE(done);
      CHECK(done.error().message() == "media error");
    } else {
      CHECK(done);
    }
  }
}

namespace {

struct Pipe {
  Pipe() { REQUIRE(::pipe(ends.data()) == 0); }
  ~Pipe() {
    close(0);
    close(1);
  }
  void close(std::size_t end) {
    if (ends[end] >= 0) ::close(std::exchange(ends[end], -1));
  }
  std::string path(std::size_t end) const { return "/dev/fd/" + std::to_string(ends[end]); }
  std::array<int, 2> ends{};
};

}  // namespace

TEST_CASE("Whichever transfer into a pipe fails, the copy says so and nothing hangs") {
  for (std::uint64_t n = 0; n < 7; ++n) {
    Machine machine;
    const Pipe pipe;
    SlowDisk from(100 * 512, n);  // less than a pipe holds
    from.bytes = content(from.bytes.size(), 5);
    from.fail_at = n;
    auto to = open_destination(pipe.path(1), *machine.reactor);
    REQUIRE(to);
    auto done = copy(from, **to, kSmall, *machine.reactor, machine.interrupt);
    REQUIRE_FALSE(done);
    CHECK(done.error().message() == "media error");
  }
}

TEST_CASE("While a pipe is not read, or says nothing, whatever else is on the reactor goes on") {
  const bool reading = GENERATE(false, true);
  Machine machine;
  Pipe pipe;
  SlowDisk disk(2048 * 512, 1);  // far more than a pipe holds
  disk.bytes = content(disk.bytes.size(), 6);
  const auto before = disk.bytes;
  const auto said = content(20000, 7);
  std::vector<std::byte> seen(before.size());
  auto end = reading ? open_source(pipe.path(0), *machine.reactor) : open_destination(pipe.path(1), *machine.reactor);
  REQUIRE(end);
  std::thread other;
  int ticks = 0;
  // The other end of the pipe does nothing until the timer has fired a few times.
  transport::Timer timer(machine.reactor->timers(), [&] {
    if (++ticks < 5) return timer.arm(machine.clock.now() + std::chrono::milliseconds(1));
    other = std::thread([&] {
      if (reading) {
        (void)!::write(pipe.ends[1], said.data(), said.size());
        return pipe.close(1);
      }
      for (std::size_t at = 0; at < seen.size();) {
        const ssize_t got = ::read(pipe.ends[0], &seen[at], seen.size() - at);
        if (got <= 0) return;
        at += std::size_t(got);
      }
    });
  });
  timer.arm(machine.clock.now());
  auto done = reading ? copy(**end, disk, kSmall, *machine.reactor, machine.interrupt)
                      : copy(disk, **end, kSmall, *machine.reactor, machine.interrupt);
  REQUIRE(ticks == 5);
  other.join();
  if (!done) FAIL(done.error().message());
  if (reading)
    CHECK(std::equal(said.begin(), said.end(), disk.bytes.begin()));
  else
    CHECK(seen == before);
}

TEST_CASE("Verification notices a destination that stores something else") {
  SlowDisk from(64 * 512, 1), to(64 * 512, 2);
  from.bytes = content(from.bytes.size(), 9);
  to.corrupt_writes = true;
  Machine machine;
  auto options = kSmall;
  options.verify = true;
  auto done = copy(from, to, options, *machine.reactor, machine.interrupt);
  REQUIRE_FALSE(done);
  CHECK(done.error().kind() == ErrorKind::mismatch);
}

TEST_CASE("A sparse file is copied with its holes, and an odd size fills the last block with zeroes") {
  const Folder folder;
  const auto path = folder.file("sparse");
  write_file(path, content(5000, 3));
  REQUIRE(truncate(path.c_str(), 1'000'000) == 0);
  {
    std::ofstream tail(path, std::ios::binary | std::ios::app);
    tail << "the end";
  }
  SlowDisk to(2048 * 512, 7);
  std::fill(to.bytes.begin(), to.bytes.end(), std::byte{0xee});
  Machine machine;
  auto from = open_source(path, *machine.reactor);
  REQUIRE(from);
  auto done = copy(**from, to, kSmall, *machine.reactor, machine.interrupt);
  if (!done) FAIL(done.error().message());
  const auto wanted = read_file(path);
  CHECK(std::equal(wanted.begin(), wanted.end(), to.bytes.begin()));
  const std::size_t padded = (wanted.size() + 511) / 512 * 512;
  for (std::size_t i = wanted.size(); i < padded; ++i)
    REQUIRE(to.bytes[i] == std::byte{0});
  CHECK(to.bytes[padded] == std::byte{0xee});
  CHECK(done->transferred < 100'000);
}

TEST_CASE("A file that a disk is copied to has the disk's size and bytes, whatever it held before") {
  const Folder folder;
  const auto path = folder.file("copy");
  write_file(path, content(500'000, 1));
  SlowDisk from(256 * 512, 3);
  from.bytes = content(from.bytes.size(), 4);
  Machine machine;
  auto to = open_destination(path, *machine.reactor);
  REQUIRE(to);
  auto options = kSmall;
  options.verify = true;
  auto done = copy(from, **to, options, *machine.reactor, machine.interrupt);
  if (!done) FAIL(done.error().message());
  CHECK(read_file(path) == from.bytes);
}

TEST_CASE("A source that does not fit is refused before anything is written") {
  SlowDisk from(100 * 512, 1), to(99 * 512, 2);
  Machine machine;
  auto done = copy(from, to, kSmall, *machine.reactor, machine.interrupt);
  REQUIRE_FALSE(done);
  CHECK(to.operations == 0);
}
