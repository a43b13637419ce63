// Bytes that pretend to be a shadow image, or once were one.

#include "common/nvme/endian.h"
#include "shadow_images.h"
#include "store_files.h"
#include "target/store/thread_engine.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;

namespace {

/// An image that can be damaged, and what opening it says.
struct Victim {
  Victim() : layout(layout_of(100, 20)), bytes(empty_image(layout)) { rig.io = &threads; }
  [[nodiscard]] std::string open_error(const std::string& options = {}) {
    const ImageInMemory image(bytes);
    const auto opened = rig.try_open("map:" + image.path + ",readonly,atomic=shadow" + options);
    return opened ? std::string() : opened.error().message();
  }
  void set_entry(std::uint64_t lba, std::uint64_t value) {
    const nvme::Le64 wire(value);
    std::memcpy(bytes.data() + layout.entry_offset(Lba(lba)), &wire, sizeof wire);
  }
  void set_header(const ShadowLayout& other) {
    const auto header = encode_header(other);
    std::copy(header.begin(), header.end(), bytes.begin());
  }
  ThreadFactory threads;
  StoreRig rig{Bytes(2 * kMiB)};
  ShadowLayout layout;
  std::vector<std::byte> bytes;
};

bool says(const std::string& error, std::string_view what) {
  INFO(error);
  return error.find(what) != std::string::npos;
}

}  // namespace

TEST_CASE("A header comes back as it was written, and no bit of it can change unnoticed") {
  const ShadowLayout layout = layout_of(100, 20, 4096);
  ShadowHeader header = encode_header(layout);
  const auto parsed = parse_header(header);
  REQUIRE(parsed);
  CHECK(encode_header(*parsed) == header);
  for (std::size_t bit = 0; bit < header.size() * 8; ++bit) {
    header.at(bit / 8) ^= static_cast<std::byte>(1U << bit % 8);
    CHECK_FALSE(parse_header(header));
    header.at(bit / 8) ^= static_cast<std::byte>(1U << bit % 8);
  }
  for (std::size_t size = 0; size < header.size(); ++size)
    CHECK_FALSE(parse_header(std::span(header).first(size)));
}

TEST_CASE("What is no shadow image, or a damaged one, is refused with what was seen and what is allowed") {
  Victim victim;
  REQUIRE(victim.open_error() == "");
  CHECK(says(victim.open_error(",block=4096"), "its shadow image has blocks of 512 bytes: leave block= out"));
  SECTION("something else") {
    victim.bytes.at(3) = std::byte{'X'};
    CHECK(says(victim.open_error(), "no image in rbt's shadow format"));
  }
  SECTION("a changed header") {
    victim.bytes.at(70) ^= std::byte{1};
    CHECK(says(victim.open_error(), "its checksum is"));
  }
  SECTION("a header of a larger image") {
    ShadowLayout larger = victim.layout;
    larger.blocks = Blocks(1000);
    victim.set_header(larger);
    CHECK(says(victim.open_error(), "are there: it was cut short"));
  }
  SECTION("a header of more than can be") {
    ShadowLayout endless = victim.layout;
    endless.blocks = Blocks(~std::uint64_t{0});
    victim.set_header(endless);
    CHECK(says(victim.open_error(), "1 to 2147483647 are allowed"));
    endless.blocks = Blocks(1);
    endless.landing = Blocks(~std::uint64_t{0});
    victim.set_header(endless);
    CHECK(says(victim.open_error(), "landing blocks: 1 to 2147483647 are allowed"));
    endless.landing = Blocks(0);
    victim.set_header(endless);
    CHECK(says(victim.open_error(), "0 landing blocks"));
  }
  SECTION("a file that ends early") {
    victim.bytes.resize(victim.bytes.size() - 512);
    CHECK(says(victim.open_error(), "and only"));
  }
  SECTION("an entry beyond the places") {
    victim.set_entry(7, 7 ^ 120);
    CHECK(says(victim.open_error(), "the entry of block 7 is 000000000000007fh, which is none of its 120 places"));
  }
  SECTION("an entry with a bit that means nothing") {
    victim.set_entry(7, std::uint64_t{1} << 40);
    CHECK(says(victim.open_error(), "the entry of block 7"));
  }
  SECTION("two blocks at one place") {
    victim.set_entry(99, 99 ^ 7);
    CHECK(says(victim.open_error(), "block 99 lies at place 7, which another block has"));
  }
}

TEST_CASE("Whatever bytes a shadow image has, opening it ends in an error or in a disk that can be read") {
  Victim victim;
  const auto intact = victim.bytes;
  Random random(3);
  int opened = 0;
  int refused = 0;
  for (int round = 0; round < 1500; ++round) {
    victim.bytes = intact;
    ShadowLayout layout = victim.layout;
    if (round % 3 == 0) {  // fields that fit each other less and less, under a right checksum
      layout.blocks = Blocks(random.below(2) == 0 ? random.below(130) : random() >> random.below(64));
      layout.landing = Blocks(random.below(2) == 0 ? random.below(130) : random() >> random.below(64));
      victim.set_header(layout);
    }
    for (std::uint64_t i = random.below(4); i > 0; --i) {
      const std::uint64_t lba = random.below(100);
      const std::uint64_t value = random.below(3) == 0 ? random() : lba ^ random.below(125);
      victim.set_entry(lba, value | (random.below(2) << 63));
    }
    if (random.below(8) == 0) victim.bytes.at(random.below(victim.bytes.size())) ^= std::byte{4};
    if (random.below(8) == 0) victim.bytes.resize(random.below(victim.bytes.size()));
    if (victim.bytes.size() < 512) continue;
    victim.bytes.resize(victim.bytes.size() / 512 * 512);
    const ImageInMemory image(victim.bytes);
    auto store = victim.rig.try_open("map:" + image.path + ",readonly,atomic=shadow");
    if (!store) {
      ++refused;
      CHECK(store.error().message().starts_with("store 'map:/proc/self/fd/"));
      continue;
    }
    ++opened;
    victim.rig.store = std::move(*store);
    REQUIRE(victim.rig.store->prepare(victim.rig.domain, 4096));
    victim.rig.queue = victim.rig.open_queue();
    CHECK(victim.rig.must_read(0, victim.rig.store->geometry().blocks.value()).size() % 512 == 0);
    victim.rig.close();
  }
  CHECK(opened > 100);
  CHECK(refused > 100);
}

TEST_CASE(
    "A plain disk on which a host has written the beginning of a shadow image is served read-only, and not believed") {
  Victim victim;
  const ImageInMemory image(victim.bytes);
  victim.rig.open("map:" + image.path);
  CHECK(victim.rig.store->geometry().read_only);
  CHECK(victim.rig.store->geometry().blocks.value() == victim.bytes.size() / 512);
  CHECK(victim.rig.journal.count("begins like a shadow image") == 1);
  CHECK(victim.rig.must_read(0, 8) == std::vector<std::byte>(victim.bytes.begin(), victim.bytes.begin() + 4096));
  victim.rig.close();
  victim.rig.open("map:" + image.path + ",atomic=in-place");
  CHECK_FALSE(victim.rig.store->geometry().read_only);
}

TEST_CASE("Where no shadow image can be served the error says where") {
  StoreRig rig;
  TemporaryDirectory directory;
  const std::string path = directory.make("image", kMiB);
  CHECK(says(rig.open_error("map:" + path + ",atomic=shadow"),
             "serves images on tmpfs, hugetlbfs, in memfds and on devdax"));
  CHECK(says(rig.open_error("map:" + path + ",atomic=often"), "auto, in-place"));
}
