// Images into the shadow format and out of it: every byte, holes stay holes, and half an image is none.

#include <fcntl.h>

#include <fstream>

#include "shadow_images.h"
#include "store_files.h"
#include "target/store/convert_image.h"
#include "target/store/thread_engine.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;

namespace {

struct Patient final : ConvertObserver {
  bool on_converted(Bytes done, Bytes) override { return --left != 0 || (seen = done, false); }
  int left = -1;
  Bytes seen{};
};

struct Converting {
  Result<ConvertResult> convert(const std::string& from, const std::string& to, ImageForm form,
                                std::optional<BlockShift> block_shift = std::nullopt) {
    return convert_image(
        {.from = directory.file(from), .to = directory.file(to), .form = form, .block_shift = block_shift},
        rig.environment(), patient);
  }
  std::string error(const std::string& from, const std::string& to, ImageForm form) {
    const auto done = convert(from, to, form);
    REQUIRE_FALSE(done);
    return done.error().message();
  }
  void make(const std::string& name, std::uint64_t size) const {
    CHECK(directory.make(name, size) == directory.file(name));
  }
  [[nodiscard]] std::string contents(const std::string& name) const {
    std::ifstream file(directory.file(name), std::ios::binary);
    std::string bytes(file_size(directory.file(name)), '\0');
    REQUIRE(file.read(bytes.data(), static_cast<std::streamsize>(bytes.size())));
    return bytes;
  }
  [[nodiscard]] bool exists(const std::string& name) const { return std::filesystem::exists(directory.file(name)); }
  void put(const std::string& name, std::uint64_t offset, std::span<const std::byte> bytes) const {
    std::fstream file(directory.file(name), std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(offset));
    file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    REQUIRE(file.good());
  }
  TemporaryDirectory directory{"/dev/shm"};  // where nobody waits for a disk
  StoreRig rig{Bytes(2 * kMiB)};
  Patient patient;
};

}  // namespace

TEST_CASE("A plain image becomes a shadow image and a plain one again, with every byte and every hole") {
  Converting converting;
  converting.make("plain", 64 * kMiB);
  converting.put("plain", 0, pattern(5000, 1));
  converting.put("plain", 10 * kMiB + 512, pattern(2 * kMiB, 2));
  converting.put("plain", 64 * kMiB - 512, pattern(512, 3));
  const auto shift = GENERATE(BlockShift::of(512), BlockShift::of(4096));
  const auto in = converting.convert("plain", "image", ImageForm::shadow, shift);
  if (!in) FAIL(in.error().message());
  CHECK(in->size == Bytes(64 * kMiB));
  CHECK(in->needed.value() == file_size(converting.directory.file("image")));
  CHECK(allocated_bytes(converting.directory.file("image")) < 3 * kMiB);
  const auto out = converting.convert("image", "again", ImageForm::raw);
  if (!out) FAIL(out.error().message());
  const bool same = converting.contents("again") == converting.contents("plain");  // nobody wants to see 64 MiB
  CHECK(same);
  CHECK(allocated_bytes(converting.directory.file("again")) < 3 * kMiB);
  CHECK_FALSE(converting.exists("image.part"));
}

TEST_CASE("What was written to a shadow image comes out of it, and what was zeroed is a hole") {
  Converting converting;
  converting.make("plain", kMiB);
  converting.put("plain", 100 * kKiB, pattern(200 * kKiB, 4));
  REQUIRE(converting.convert("plain", "image", ImageForm::shadow, BlockShift::of(4096)));
  const std::string served = converting.directory.file("image");
  StoreRig& rig = converting.rig;
  rig.open("map:" + served + ",atomic=shadow");
  Random random(5);
  for (int i = 0; i < 200; ++i)
    REQUIRE(rig.write(random.below(250), pattern(4096 * (1 + random.below(6)), random())) == StoreStatus::ok);
  REQUIRE(rig.discard({rig.range(64, 128)}) == StoreStatus::ok);
  REQUIRE(rig.write(100, pattern(4096, 6)) == StoreStatus::ok);
  const auto model = rig.must_read(0, 256);
  CHECK(converting.error("image", "early", ImageForm::raw).find("locked by another program") != std::string::npos);
  rig.close();
  REQUIRE(converting.convert("image", "out", ImageForm::raw));
  const std::string out = converting.contents("out");
  REQUIRE(out.size() == model.size());
  CHECK(std::memcmp(out.data(), model.data(), model.size()) == 0);
  CHECK(allocated_bytes(converting.directory.file("out")) <= 640 * kKiB);
}

TEST_CASE("A conversion overwrites nothing, and one that is interrupted leaves nothing") {
  Converting converting;
  converting.make("plain", 8 * kMiB);
  converting.put("plain", 0, pattern(8 * kMiB, 7));
  REQUIRE(converting.convert("plain", "image", ImageForm::shadow));
  CHECK(converting.error("plain", "image", ImageForm::shadow).find("is there already") != std::string::npos);
  converting.make("other.part", 10);
  CHECK(converting.error("plain", "other", ImageForm::shadow).find("one was killed: remove it then") !=
        std::string::npos);
  CHECK(file_size(converting.directory.file("other.part")) == 10);
  converting.patient.left = 3;
  CHECK(converting.error("plain", "third", ImageForm::shadow).find("interrupted after") != std::string::npos);
  CHECK_FALSE(converting.exists("third"));
  CHECK_FALSE(converting.exists("third.part"));
}

TEST_CASE("What is not in the form that it should have is not converted, and the error says what it is") {
  Converting converting;
  converting.make("plain", kMiB);
  REQUIRE(converting.convert("plain", "image", ImageForm::shadow));
  CHECK(converting.error("image", "x", ImageForm::shadow).find("begins like a shadow image already") !=
        std::string::npos);
  CHECK(converting.error("plain", "x", ImageForm::raw).find("no image in rbt's shadow format") != std::string::npos);
  CHECK(converting.error("none", "x", ImageForm::raw).find("No such file") != std::string::npos);
  converting.make("odd", 1000);
  CHECK(converting.error("odd", "x", ImageForm::shadow).find("its 1000 bytes are not whole blocks of 512") !=
        std::string::npos);
  std::filesystem::resize_file(converting.directory.file("image"), kMiB);
  CHECK(converting.error("image", "x", ImageForm::raw).find("it was cut short") != std::string::npos);
  CHECK_FALSE(converting.exists("x"));
}
