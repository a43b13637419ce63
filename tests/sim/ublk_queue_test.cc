// The requests of a ublk device before a kernel that is a part of the test: each is carried out, and answered once.
#include "initiator/present/ublk_queue.h"

#include <array>
#include <cerrno>
#include <cstring>

#include "initiator_rig.h"

using namespace rbt;
using namespace rbt::test;
using namespace rbt::initiator;

namespace {

constexpr std::size_t kTags = 8;
constexpr std::size_t kSlot = 64 * kKiB;

/// The kernel's side: knows where each tag is, and keeps the answers.
struct FakeKernel final : UblkKernel {
  struct Answer {
    std::uint32_t tag;
    int result;
  };
  void fetch(std::uint32_t tag, std::span<std::byte> slot) override {
    REQUIRE_FALSE(with_server.at(tag));
    REQUIRE(slots.at(tag).empty());
    slots.at(tag) = slot;
    ++fetched;
  }
  void commit(std::uint32_t tag, int result, std::span<std::byte> slot) override {
    REQUIRE(with_server.at(tag));  // nothing is answered twice
    with_server.at(tag) = false;
    REQUIRE(slot.data() == slots.at(tag).data());
    answers.push_back({tag, result});
  }
  std::array<bool, kTags> with_server{};
  std::array<std::span<std::byte>, kTags> slots{};
  std::vector<Answer> answers;
  std::size_t fetched = 0;
};

/// A device of eight tags on a volume with a target that does what it is told.
struct Rig {
  explicit Rig(std::uint32_t requests = kTags, std::optional<Duration> on_loss = {}) {
    options.session.keep_alive = 2s;
    options.session.command_timeout = 1s;
    options.queue.buffers = Bytes(kTags * kSlot);
    options.requests = requests;
    options.on_loss = on_loss;
    auto opened = Volume::open(host.environment(), std::array{target.uri()}, *host.reactor, options);
    if (!opened) FAIL(opened.error().message());
    volume = std::move(*opened);
    std::array<std::span<std::byte>, kTags> slots;
    for (auto& slot : slots)
      slot = volume->buffers()->allocate(kSlot);
    queue = std::make_unique<UblkQueue>(volume->lane(0), kernel, slots);
    queue->fetch_all();
  }
  ~Rig() {
    queue->let_go();
    volume->close();
  }
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  void ask(std::uint32_t tag, std::uint32_t op_flags, std::uint64_t sector, std::uint32_t sectors) {
    kernel.with_server.at(tag) = true;
    queue->on_answer(tag, UBLK_IO_RES_OK,
                     {.op_flags = op_flags, .nr_sectors = sectors, .start_sector = sector, .addr = 0});
  }
  void take_back(std::uint32_t tag, int result) { queue->on_answer(tag, result, ublksrv_io_desc{}); }
  /// Until that many answers have come in all.
  [[nodiscard]] bool answered(std::size_t count, Duration within = 10s) {
    return volume->run_until(
        [&] {
          (void)queue->retry();
          return kernel.answers.size() >= count;
        },
        network.clock().now() + within);
  }
  [[nodiscard]] std::vector<std::uint8_t> opcodes() const {
    std::vector<std::uint8_t> seen;
    for (const auto& entry : target.commands)
      if (entry.opcode != 0x7f && entry.opcode < 0x0a) seen.push_back(entry.opcode);
    return seen;
  }

  transport::sim::Network network;
  RawTarget target{network};
  Host host{network};
  VolumeOptions options;
  std::unique_ptr<Volume> volume;
  FakeKernel kernel;
  std::unique_ptr<UblkQueue> queue;
};

bool is_io(const RawTarget::Capsule& capsule, nvme::IoOpcode opcode) {
  return capsule.sqe.opcode == static_cast<std::uint8_t>(opcode);
}

}  // namespace

TEST_CASE("Every tag is fetched once, with a slot of its own") {
  Rig rig;
  CHECK(rig.kernel.fetched == kTags);
  CHECK(rig.queue->with_kernel() == kTags);
  std::vector<std::byte*> starts;
  for (const auto& slot : rig.kernel.slots) {
    CHECK(slot.size() == kSlot);
    starts.push_back(slot.data());
  }
  std::sort(starts.begin(), starts.end());
  CHECK(std::adjacent_find(starts.begin(), starts.end()) == starts.end());
}

TEST_CASE("What is written through one tag is read through another") {
  Rig rig;
  const auto data = rig.kernel.slots[0].first(kSlot);
  rig.network.random().fill(data);
  rig.ask(0, UBLK_IO_OP_WRITE, 100, kSlot / 512);
  REQUIRE(rig.answered(1));
  CHECK(rig.kernel.answers[0].result == int{kSlot});
  rig.ask(3, UBLK_IO_OP_READ, 100, kSlot / 512);
  REQUIRE(rig.answered(2));
  CHECK(rig.kernel.answers[1].tag == 3);
  CHECK(rig.kernel.answers[1].result == int{kSlot});
  CHECK(std::equal(data.begin(), data.end(), rig.kernel.slots[3].begin()));
}

TEST_CASE("Flush, FUA, discard and write zeroes reach the target as one command each, and are answered with 0") {
  Rig rig;
  rig.target.commands.clear();
  rig.ask(0, UBLK_IO_OP_FLUSH, 0, 0);
  REQUIRE(rig.answered(1));
  rig.ask(0, UBLK_IO_OP_WRITE | UBLK_IO_F_FUA, 0, 8);
  REQUIRE(rig.answered(2));
  rig.ask(0, UBLK_IO_OP_DISCARD, 8, 4000);
  REQUIRE(rig.answered(3));
  rig.ask(0, UBLK_IO_OP_WRITE_ZEROES, 0, 4000);
  REQUIRE(rig.answered(4));
  rig.ask(0, UBLK_IO_OP_WRITE_ZEROES | UBLK_IO_F_NOUNMAP, 0, 4000);
  REQUIRE(rig.answered(5));
  CHECK(rig.opcodes() == std::vector<std::uint8_t>{0x00, 0x01, 0x09, 0x08, 0x08});
  const auto dword = [&](std::size_t i) { return rig.target.commands.at(i).cdw12.get(); };
  CHECK((dword(1) >> 30 & 1) == 1);  // FUA
  CHECK((dword(3) >> 25 & 1) == 1);  // DEAC
  CHECK((dword(4) >> 25 & 1) == 0);
  for (const auto& answer : rig.kernel.answers)
    CHECK(answer.result == (&answer == &rig.kernel.answers[1] ? 4096 : 0));
}

TEST_CASE("A request that the target refuses is answered with its errno, and the tag goes on") {
  struct Row {
    nvme::StatusCode status;
    std::uint32_t operation;
    int error;
  };
  const auto row = GENERATE(Row{nvme::StatusCode::lba_out_of_range, UBLK_IO_OP_WRITE, ENOSPC},
                            Row{nvme::StatusCode::lba_out_of_range, UBLK_IO_OP_READ, EINVAL},
                            Row{nvme::StatusCode::namespace_write_protected, UBLK_IO_OP_WRITE, EROFS},
                            Row{nvme::StatusCode::capacity_exceeded, UBLK_IO_OP_WRITE_ZEROES, ENOSPC},
                            Row{nvme::StatusCode::internal_error, UBLK_IO_OP_FLUSH, EIO});
  Rig rig;
  rig.target.script = [&](RawTarget::Link& link, const RawTarget::Capsule& capsule) {
    link.respond(capsule.sqe, row.status);
    return true;
  };
  rig.ask(5, row.operation, 0, 8);
  REQUIRE(rig.answered(1));
  CHECK(rig.kernel.answers[0].result == -row.error);
  rig.target.script = {};
  rig.ask(5, UBLK_IO_OP_READ, 0, 8);
  REQUIRE(rig.answered(2));
  CHECK(rig.kernel.answers[1].result == 4096);
}

TEST_CASE("What the device has not offered is answered at once, and nothing is sent") {
  Rig rig;
  rig.target.commands.clear();
  rig.ask(0, 10 /* a zone operation */, 0, 8);
  rig.ask(1, UBLK_IO_OP_WRITE_SAME, 0, 8);
  rig.ask(2, UBLK_IO_OP_READ, 0, 2 * kSlot / 512);
  REQUIRE(rig.kernel.answers.size() == 3);
  for (const auto& answer : rig.kernel.answers)
    CHECK(answer.result == -EOPNOTSUPP);
  rig.ask(3, UBLK_IO_OP_READ, RawTarget::kBlocks, 8);
  REQUIRE(rig.kernel.answers.size() == 4);
  CHECK(rig.kernel.answers[3].result == -EINVAL);
  CHECK(rig.target.commands.empty());
  CHECK(rig.queue->with_kernel() == kTags);
}

TEST_CASE("Requests beyond what the volume takes wait in line, and go in the order of their coming") {
  Rig rig(2);
  std::vector<std::uint64_t> seen;
  rig.target.script = [&](RawTarget::Link&, const RawTarget::Capsule& capsule) {
    if (is_io(capsule, nvme::IoOpcode::read)) seen.push_back(capsule.sqe.cdw10.get());
    return false;
  };
  const std::array<std::uint64_t, kTags> order = {70, 20, 50, 30, 60, 10, 40, 0};
  for (std::uint32_t tag = 0; tag < kTags; ++tag)
    rig.ask(tag, UBLK_IO_OP_READ, order.at(tag), 8);
  CHECK(rig.queue->with_volume() == 2);
  CHECK(rig.queue->waiting() == kTags - 2);
  CHECK(rig.queue->retry() == 0);
  REQUIRE(rig.answered(kTags));
  CHECK(seen == std::vector<std::uint64_t>(order.begin(), order.end()));
  CHECK(rig.queue->waiting() == 0);
  CHECK(rig.queue->with_kernel() == kTags);
}

TEST_CASE("While the path is lost requests wait, those in line too, and are answered once when it is back") {
  Rig rig(3);
  rig.target.script = [](RawTarget::Link&, const RawTarget::Capsule& capsule) {
    return is_io(capsule, nvme::IoOpcode::read);
  };
  for (std::uint32_t tag = 0; tag < kTags; ++tag)
    rig.ask(tag, UBLK_IO_OP_READ, tag, 1);
  REQUIRE_FALSE(rig.answered(1, 100ms));
  rig.target.link(Qid(1))->drop();
  rig.target.script = {};
  REQUIRE_FALSE(rig.answered(1, 2s));  // the old association is waited out
  REQUIRE(rig.answered(kTags, 30s));
  CHECK(rig.kernel.answers.size() == kTags);
  for (const auto& answer : rig.kernel.answers)
    CHECK(answer.result == 512);
}

TEST_CASE(
    "When the volume fails every request ends with EIO: those under way, those in line, and those that come later") {
  Rig rig(3, Duration::zero());
  rig.target.script = [](RawTarget::Link&, const RawTarget::Capsule& capsule) {
    return is_io(capsule, nvme::IoOpcode::read);
  };
  for (std::uint32_t tag = 0; tag < kTags - 1; ++tag)
    rig.ask(tag, UBLK_IO_OP_READ, tag, 1);
  REQUIRE_FALSE(rig.answered(1, 100ms));
  rig.target.link(Qid(1))->drop();
  REQUIRE(rig.answered(kTags - 1));
  rig.ask(kTags - 1, UBLK_IO_OP_WRITE, 0, 1);
  CHECK(rig.kernel.answers.size() == kTags);
  for (const auto& answer : rig.kernel.answers)
    CHECK(answer.result == -EIO);
}

TEST_CASE("Tags that the kernel takes back are over, and the first errno is kept") {
  Rig rig;
  CHECK(rig.queue->why_ended() == 0);
  rig.ask(2, UBLK_IO_OP_READ, 0, 1);
  for (std::uint32_t tag = 0; tag < kTags; ++tag)
    if (tag != 2) rig.take_back(tag, tag == 0 ? UBLK_IO_RES_ABORT : -EINVAL);
  CHECK(rig.queue->why_ended() == ENODEV);
  CHECK(rig.queue->ended() == kTags - 1);
  CHECK_FALSE(rig.queue->all_ended());
  REQUIRE(rig.answered(1));  // what was under way is carried out
  CHECK(rig.kernel.answers[0].result == 512);
  rig.take_back(2, UBLK_IO_RES_ABORT);
  CHECK(rig.queue->all_ended());
}

TEST_CASE("Once it lets go nothing is answered: the kernel keeps the requests for a successor") {
  Rig rig(2);
  for (std::uint32_t tag = 0; tag < 4; ++tag)
    rig.ask(tag, UBLK_IO_OP_READ, tag, 1);
  rig.queue->let_go();
  rig.volume->close();
  CHECK(rig.queue->retry() == 0);
  CHECK(rig.kernel.answers.empty());
  CHECK(rig.queue->with_volume() == 0);
}

TEST_CASE(
    "Whatever comes in whatever order, over a path that breaks: each request is answered once, with the disk's data") {
  const auto seed = GENERATE(range(1, 21));
  INFO(seed);
  Random random(static_cast<std::uint64_t>(seed));
  Rig rig(1 + static_cast<std::uint32_t>(random.below(kTags)));
  std::array<std::uint64_t, kTags> version{};  // of the blocks that belong to a tag
  std::array<std::uint64_t, kTags> asked{};
  const auto block_of = [](std::uint32_t tag) { return std::uint64_t{tag} * 4; };
  std::size_t count = 0;
  std::size_t looked = 0;
  const auto next = [&](std::uint32_t tag) {
    const std::uint64_t kind = random.below(4);
    asked[tag] = kind;
    ++count;
    if (kind == 0) return rig.ask(tag, UBLK_IO_OP_FLUSH, 0, 0);
    if (kind == 1) return rig.ask(tag, UBLK_IO_OP_READ, block_of(tag), 4);
    if (kind == 2) {
      version[tag] = 0;
      return rig.ask(tag, UBLK_IO_OP_WRITE_ZEROES, block_of(tag), 4);
    }
    version[tag] = count;
    for (std::size_t i = 0; i < 4; ++i)
      std::memcpy(rig.kernel.slots[tag].data() + i * 512, &version[tag], sizeof version[tag]);
    rig.ask(tag, UBLK_IO_OP_WRITE, block_of(tag), 4);
  };
  for (std::uint32_t tag = 0; tag < kTags; ++tag)
    next(tag);
  while (count < 400) {
    if (random.once_in(60) && rig.target.link(Qid(1)) != nullptr) rig.target.link(Qid(1))->drop();
    REQUIRE(rig.answered(looked + 1, 60s));
    while (looked < rig.kernel.answers.size()) {
      const auto [tag, result] = rig.kernel.answers[looked++];
      CHECK(result == (asked[tag] == 1 || asked[tag] == 3 ? 2048 : 0));
      for (std::size_t i = 0; asked[tag] == 1 && i < 4; ++i) {
        std::uint64_t found = 0;
        std::memcpy(&found, rig.kernel.slots[tag].data() + i * 512, sizeof found);
        CHECK(found == version[tag]);
      }
      next(tag);
    }
  }
  REQUIRE(rig.answered(count, 60s));
  CHECK(rig.kernel.answers.size() == count);
  CHECK(rig.queue->with_kernel() == kTags);
}
