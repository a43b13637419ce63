#include "tools/rbt-connect/copy.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <vector>

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
  void progress(int) override {
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

}  // namespace

TEST_CASE("A copy is the same bytes, whatever order its transfers finish in") {
  const std::uint64_t seed = GENERATE(range(std::uint64_t{1}, std::uint64_t{20}));
  SlowDisk from(300 * 512, seed), to(400 * 512, seed + 1000);
  from.bytes = content(from.bytes.size(), seed);
  std::fill(to.bytes.begin(), to.bytes.end(), std::byte{0xee});
  const SystemClock clock;
  const Interrupt interrupt;
  auto options = kSmall;
  options.verify = true;
  auto done = copy(from, to, options, clock, interrupt);
  if (!done) FAIL(done.error().message());
  CHECK(std::equal(from.bytes.begin(), from.bytes.end(), to.bytes.begin()));
  CHECK(to.bytes[from.bytes.size()] == std::byte{0xee});  // what lies behind is left alone
  CHECK(to.flushes == 1);
  CHECK(done->zeroes >= 24 * 1024);
  CHECK(done->bytes == from.bytes.size());
  CHECK(done->verified == from.bytes.size());
}

TEST_CASE("Whichever transfer of a copy fails, the copy says so and nothing hangs") {
  const SystemClock clock;
  const Interrupt interrupt;
  bool clean = false;
  for (std::uint64_t n = 0; !clean; ++n) {
    REQUIRE(n < 1000);
    SlowDisk from(100 * 512, 1), to(100 * 512, 2);
    from.bytes = content(from.bytes.size(), 5);
    (n % 2 == 0 ? from : to).fail_at = n / 2;
    auto done = copy(from, to, kSmall, clock, interrupt);
    clean = n % 2 == 0 ? from.operations <= from.fail_at : false;
    if (from.operations > from.fail_at || to.operations > to.fail_at) {
      REQUIRE_FALSE(done);
      CHECK(done.error().message() == "media error");
    } else {
      CHECK(done);
    }
  }
}

TEST_CASE("Verification notices a destination that stores something else") {
  SlowDisk from(64 * 512, 1), to(64 * 512, 2);
  from.bytes = content(from.bytes.size(), 9);
  to.corrupt_writes = true;
  const SystemClock clock;
  const Interrupt interrupt;
  auto options = kSmall;
  options.verify = true;
  auto done = copy(from, to, options, clock, interrupt);
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
  const Interrupt interrupt;
  auto from = open_source(path, interrupt);
  REQUIRE(from);
  const SystemClock clock;
  auto done = copy(**from, to, kSmall, clock, interrupt);
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
  const Interrupt interrupt;
  auto to = open_destination(path, interrupt);
  REQUIRE(to);
  const SystemClock clock;
  auto options = kSmall;
  options.verify = true;
  auto done = copy(from, **to, options, clock, interrupt);
  if (!done) FAIL(done.error().message());
  CHECK(read_file(path) == from.bytes);
}

TEST_CASE("A source that does not fit is refused before anything is written") {
  SlowDisk from(100 * 512, 1), to(99 * 512, 2);
  const SystemClock clock;
  const Interrupt interrupt;
  auto done = copy(from, to, kSmall, clock, interrupt);
  REQUIRE_FALSE(done);
  CHECK(to.operations == 0);
}
