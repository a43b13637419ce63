// Reservations that survive: the file they are kept in, whatever happens to it.

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cerrno>
#include <fstream>

#include "common/nvme/endian.h"
#include "target/reservation/image.h"
#include "target/reservation/kept_file.h"
#include "target/store/spec.h"
#include "tests/sim/reservation_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::ChangePersistence;
using nvme::IoOpcode;
using nvme::ReservationRegister;
using nvme::ReservationRelease;
using nvme::ReservationType;
using nvme::StatusCode;
using target::encode_reservation_image;
using target::parse_reservation_image;
using target::ReservationImage;
using target::ReservationState;

namespace {

using Content = std::vector<std::byte>;

Content contents(const std::filesystem::path& path) {
  auto bytes = target::read_kept_file(path, target::kReservationImageMax);
  REQUIRE(bytes.has_value());
  REQUIRE(bytes->has_value());
  return std::move(**bytes);
}
void put(const std::filesystem::path& path, const Content& bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),  // NOLINT
             static_cast<std::streamsize>(bytes.size()));
}

ReservationImage some_image() {
  return {.identity = {std::byte{1}, std::byte{2}},
          .state = {.generation = 7,
                    .persists = true,
                    .type = ReservationType::write_exclusive,
                    .holder = host_id(2),
                    .registrants = {{host_id(1), 11}, {host_id(2), 22}}}};
}

/// A target whose namespace 2 keeps its reservations in a file, and is the same disk each time.
struct KeptRig : ReservationRig {
  explicit KeptRig(const std::filesystem::path& file, std::uint64_t disk = 7)
      : ReservationRig({.configure =
                            [&](target::Target& to) {
                              Random same(disk);
                              auto store =
                                  target::make_store("ram:size=1MiB,block=4096",
                                                     {.clock = network.clock(), .random = same, .logger = logger});
                              REQUIRE(store.has_value());
                              target::NamespaceOptions options(Nsid(2));
                              options.reservations = file;
                              REQUIRE(to.add_namespace(nqn(kSubsystem), std::move(*store), options).has_value());
                            }},
                       2) {}
  bool can_persist() {
    const auto id = read_structure<nvme_id_ns>(*association.admin,
                                               nvme::encode_identify({.nsid = Nsid(2), .cns = NVME_IDENTIFY_CNS_NS}));
    return (id.rescap & NVME_NS_RESCAP_PTPL) != 0;
  }
  Response persistence(const Host& by, std::optional<bool> set = {}, std::uint32_t of = 2) {
    return execute(*by.admin, set ? nvme::encode_set_features({.nsid = Nsid(of), .fid = 0x83, .value = *set ? 1u : 0u})
                                  : nvme::encode_get_features({.nsid = Nsid(of), .fid = 0x83}));
  }
};

/// Fails the `nth` call, from 0.
class FailingCalls final : public target::FileCalls {
 public:
  explicit FailingCalls(std::size_t nth) : left_(nth) {}
  int create(const char* path) override { return fails() ? -1 : FileCalls::create(path); }
  ssize_t write(int fd, std::span<const std::byte> bytes) override {  // in two parts
    return fails() ? -1 : FileCalls::write(fd, bytes.first((bytes.size() + 1) / 2));
  }
  int sync(int fd) override { return fails() ? -1 : FileCalls::sync(fd); }
  int rename(const char* from, const char* to) override { return fails() ? -1 : FileCalls::rename(from, to); }
  int open_directory(const char* path) override { return fails() ? -1 : FileCalls::open_directory(path); }
  bool failed = false;

 private:
  bool fails() {
    if (failed || left_-- > 0) return false;
    failed = true;
    errno = EIO;
    return true;
  }
  std::size_t left_;
};

}  // namespace

TEST_CASE("A kept image is read as it was written, and no damage to it goes unnoticed") {
  const ReservationImage image = some_image();
  const Content bytes = encode_reservation_image(image);
  REQUIRE(parse_reservation_image(bytes) == image);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    INFO("byte " << i);
    CHECK_FALSE(parse_reservation_image(std::span(bytes).first(i)).has_value());
    for (const unsigned bit : {0u, 7u}) {
      Content damaged = bytes;
      damaged[i] ^= std::byte{static_cast<unsigned char>(1u << bit)};
      CHECK_FALSE(parse_reservation_image(damaged).has_value());
    }
  }
  Content longer = bytes;
  longer.push_back(std::byte{0});
  CHECK_FALSE(parse_reservation_image(longer).has_value());
  ReservationImage forgotten = image;
  forgotten.state.persists = false;
  CHECK(parse_reservation_image(encode_reservation_image(forgotten))->state == ReservationState());
}

TEST_CASE("A file is replaced as a whole or not at all, whichever step fails") {
  const ScratchDirectory scratch;
  const auto path = scratch.path / "kept";
  const Content old_bytes(1000, std::byte{1}), new_bytes(3000, std::byte{2});
  std::size_t steps = 0;
  for (std::size_t nth = 0;; ++nth) {
    INFO("step " << nth);
    target::FileCalls good;
    REQUIRE(target::replace_kept_file(path, old_bytes, good).has_value());
    FailingCalls calls(nth);
    const auto replaced = target::replace_kept_file(path, new_bytes, calls);
    CHECK(replaced.has_value() == !calls.failed);
    const Content is = contents(path);
    CHECK((is == new_bytes || (!replaced.has_value() && is == old_bytes)));
    CHECK_FALSE(std::filesystem::exists(path.string() + ".new"));
    if (!calls.failed) break;
    CHECK(replaced.error().message().find(path) != std::string::npos);
    ++steps;
  }
  CHECK(steps > 6);
}

TEST_CASE("What hosts have registered and reserved is there after a restart if it was to persist, and else it is not") {
  const ScratchDirectory scratch;
  const auto file = scratch.path / "reservations";
  const bool persists = GENERATE(true, false);
  nvme::ReservationStatus before;
  {
    KeptRig rig(file);
    CHECK(rig.logger.said("is not there yet and begins now"));
    CHECK(rig.can_persist());
    const auto one = rig.add_host(1);
    const auto two = rig.add_host(2);
    REQUIRE(rig.add_key(one, 1, persists ? ChangePersistence::on : ChangePersistence::no) == StatusCode::success);
    REQUIRE(rig.add_key(two, 2) == StatusCode::success);
    REQUIRE(rig.acquire(two, 2, ReservationType::exclusive_access) == StatusCode::success);
    before = rig.report(one);
    CHECK(before.persists == persists);
    CHECK(rig.persistence(one).cqe.dw0() == (persists ? 1 : 0));
  }
  KeptRig rig(file);
  const auto one = rig.add_host(1);
  const auto after = rig.report(one);
  if (!persists) {
    CHECK(after == nvme::ReservationStatus());
    CHECK(rig.touch(one, IoOpcode::read) == StatusCode::success);
    return;
  }
  CHECK(after.generation == before.generation);
  CHECK(after.type == before.type);
  CHECK(after.persists);
  REQUIRE(after.entries.size() == 2);
  CHECK(after.entries[0] == nvme::ReservationStatus::Entry{one.cntlid.value(), false, 1, host_id(1)});
  CHECK(after.entries[1] == nvme::ReservationStatus::Entry{0xffff, true, 2, host_id(2)});
  CHECK(rig.touch(one, IoOpcode::read) == StatusCode::reservation_conflict);
  const auto two = rig.add_host(2);
  CHECK(rig.touch(two, IoOpcode::write) == StatusCode::success);
}

TEST_CASE("Reservation persistence is a feature of the namespace, and turned off it forgets") {
  const ScratchDirectory scratch;
  const auto file = scratch.path / "reservations";
  {
    KeptRig rig(file);
    const auto one = rig.add_host(1);
    CHECK(rig.persistence(one, true, 1).code() == StatusCode::invalid_field);  // that namespace has no file
    CHECK(rig.persistence(one, true, 3).code() == StatusCode::invalid_namespace);
    CHECK(rig.persistence(one, {}, 0xffffffff).code() == StatusCode::invalid_namespace);
    REQUIRE(rig.add_key(one, 1) == StatusCode::success);
    CHECK(rig.persistence(one, true, 0xffffffff).code() == StatusCode::success);
    CHECK(rig.persistence(one).cqe.dw0() == 1);
    CHECK(parse_reservation_image(contents(file))->state.registrants.size() == 1);
    CHECK(rig.ask(one, ReservationRegister{.persistence = ChangePersistence::off, .new_key = 1}) ==
          StatusCode::success);
    CHECK(rig.persistence(one).cqe.dw0() == 0);
    CHECK(parse_reservation_image(contents(file))->state == ReservationState());
  }
}

TEST_CASE("A file of reservations that is damaged, unreadable or another's is said, and the target starts") {
  const ScratchDirectory scratch;
  const auto file = scratch.path / "reservations";
  const auto keep_one = [&] {
    KeptRig rig(file);
    const auto one = rig.add_host(1);
    REQUIRE(rig.add_key(one, 1, ChangePersistence::on) == StatusCode::success);
    return rig.report(one).entries.size();
  };
  REQUIRE(keep_one() == 1);
  SECTION("damaged, wherever") {
    const Content good = contents(file);
    for (std::size_t at = 0; at < good.size(); at += 9) {
      Content damaged = good;
      damaged[at] ^= std::byte{0x10};
      if (at % 2 == 0) damaged.resize(at);
      put(file, damaged);
      KeptRig rig(file);
      CHECK(rig.logger.said("is damaged: "));
      CHECK(contents(file.string() + ".damaged") == damaged);
      CHECK(rig.can_persist());
      const auto one = rig.add_host(1);
      CHECK(rig.report(one).entries.empty());
      REQUIRE(rig.add_key(one, 1, ChangePersistence::on) == StatusCode::success);
      REQUIRE(parse_reservation_image(contents(file)).has_value());
    }
  }
  SECTION("another namespace's: it is left alone") {
    const Content good = contents(file);
    KeptRig rig(file, 8);
    CHECK(rig.logger.said("it belongs to another namespace"));
    CHECK_FALSE(rig.can_persist());
    const auto one = rig.add_host(1);
    CHECK(rig.add_key(one, 1, ChangePersistence::on) == StatusCode::invalid_field);
    CHECK(rig.add_key(one, 1) == StatusCode::success);
    CHECK(contents(file) == good);
  }
  SECTION("no file at all, but a directory") {
    std::filesystem::remove(file);
    std::filesystem::create_directory(file);
    KeptRig rig(file);
    CHECK(rig.logger.said("begins without registrations"));
    CHECK_FALSE(rig.can_persist());
  }
  SECTION("in a directory that is not there") {
    KeptRig rig(scratch.path / "nowhere" / "reservations");
    CHECK(rig.logger.said("make its directory writable"));
    CHECK_FALSE(rig.can_persist());
  }
}

TEST_CASE("A change of reservations that cannot be kept is refused, and has not happened") {
  const ScratchDirectory scratch;
  const auto folder = scratch.path / "there";
  std::filesystem::create_directory(folder);
  KeptRig rig(folder / "reservations");
  const auto one = rig.add_host(1);
  const auto two = rig.add_host(2);
  REQUIRE(rig.add_key(one, 1, ChangePersistence::on) == StatusCode::success);
  REQUIRE(rig.acquire(one, 1, ReservationType::write_exclusive) == StatusCode::success);
  const auto before = rig.report(one);
  std::filesystem::rename(folder, scratch.path / "away");
  CHECK(rig.add_key(two, 2) == StatusCode::internal_error);
  CHECK(rig.ask(one, ReservationRelease{.type = 1, .current_key = 1}) == StatusCode::internal_error);
  CHECK(rig.logger.said("is refused, as it could not be kept"));
  CHECK(rig.report(one) == before);
  CHECK(rig.touch(two, IoOpcode::write) == StatusCode::reservation_conflict);
  std::filesystem::rename(scratch.path / "away", folder);
  CHECK(rig.ask(one, ReservationRelease{.type = 1, .current_key = 1}) == StatusCode::success);
  CHECK(rig.touch(two, IoOpcode::write) == StatusCode::success);
}
