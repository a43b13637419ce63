// Thousands of namespaces: what hosts are told of them, and what they cost.

#include <dirent.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdio>
#include <fstream>
#include <numeric>
#include <set>

#include "target/store/shared_arena.h"
#include "target/store/spec.h"
#include "tests/sim/target_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::from_le;
using nvme::IoOpcode;
using nvme::StatusCode;

namespace {

using Ids = std::vector<std::uint32_t>;
using List = std::array<std::uint32_t, 1024>;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

/// first, first + 1, … last
Ids counted(std::uint32_t first, std::uint32_t last) {
  Ids ids(last + 1 - first);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  DIR* const folder = ::opendir("/proc/self/fd");
  REQUIRE(folder != nullptr);
  while (::readdir(folder) != nullptr)
    ++count;
  ::closedir(folder);
  return count;
}

std::size_t mappings() {
  std::ifstream maps("/proc/self/maps");
  std::string line;
  std::size_t count = 0;
  while (std::getline(maps, line))
    ++count;
  return count;
}

std::uint64_t resident_bytes() {
  std::uint64_t size = 0, pages = 0;
  std::ifstream("/proc/self/statm") >> size >> pages;
  return pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
}

/// A target with many namespaces from the start, in one arena, and a host.
struct ScaleRig : private target::SharedArena, TargetRig {
  explicit ScaleRig(std::function<void(ScaleRig&, target::Target&)> configure)
      : TargetRig({.limits = {.buffers = Bytes(4 * kMiB)},
                   .store = "null:size=1MiB",
                   .configure = [this, configure](target::Target& before) { configure(*this, before); }}) {}

  std::unique_ptr<target::Store> store(const std::string& spec) {
    auto made = target::make_store(
        spec, {.clock = network.clock(), .random = random, .logger = logger, .arena = static_cast<SharedArena*>(this)});
    if (!made) FAIL(made.error().message());
    return std::move(*made);
  }
  void add(target::Target& to, const std::string& subsystem, const std::string& spec, std::uint32_t count) {
    const nvme::Nqn name = nqn(subsystem);
    for (std::uint32_t i = 0; i < count; ++i) {
      auto added = to.add_namespace(name, store(spec));
      if (!added) FAIL(added.error().message());
    }
  }
  void remove(Nsid nsid) {
    bool gone = false;
    REQUIRE(target->remove_namespace(nqn(kSubsystem), nsid, [&](auto) { gone = true; }).has_value());
    expect([&] { return gone; }, "the namespace is gone");
  }

  static Ids nonzero(const List& list) {
    Ids found;
    for (const std::uint32_t each : list) {
      if (each == 0) break;
      found.push_back(from_le(each));
    }
    return found;
  }
  /// One page of it.
  Ids listed(RawQueue& admin, std::uint32_t after, std::uint8_t cns = NVME_IDENTIFY_CNS_NS_ACTIVE_LIST) {
    return nonzero(read_structure<List>(admin, nvme::encode_identify({.nsid = Nsid(after), .cns = cns})));
  }
  /// As a host reads it: each page from the last of the one before.
  Ids all(RawQueue& admin, std::uint8_t cns = NVME_IDENTIFY_CNS_NS_ACTIVE_LIST) {
    Ids found;
    for (Ids page = listed(admin, 0, cns); !page.empty(); page = listed(admin, page.back(), cns))
      found.insert(found.end(), page.begin(), page.end());
    return found;
  }
  Ids changed(RawQueue& admin) {
    return nonzero(read_structure<List>(
        admin, nvme::encode_get_log_page(
                   {.nsid = nvme::kNsidAll, .lid = NVME_LOG_LID_CHANGED_NS, .length = Bytes(sizeof(List))})));
  }
  nvme_id_ns describe(RawQueue& admin, std::uint32_t nsid, std::uint8_t cns = NVME_IDENTIFY_CNS_NS) {
    return read_structure<nvme_id_ns>(admin, nvme::encode_identify({.nsid = Nsid(nsid), .cns = cns}));
  }
  /// The UUID out of its descriptors.
  std::string uuid(RawQueue& admin, std::uint32_t nsid) {
    const auto list = read_structure<std::array<char, 4096>>(
        admin, nvme::encode_identify({.nsid = Nsid(nsid), .cns = NVME_IDENTIFY_CNS_NS_DESC_LIST}));
    for (std::size_t at = 0; list.at(at) != 0; at += 4 + static_cast<std::uint8_t>(list.at(at + 1)))
      if (list.at(at) == NVME_NIDT_UUID) return {&list.at(at + 4), 16};
    FAIL("no UUID of namespace " << nsid);
    return {};
  }
  /// One block, written and read back.
  void use(RawQueue& io, std::uint32_t nsid, HostMemory& data) {
    for (const IoOpcode opcode : {IoOpcode::write, IoOpcode::read}) {
      std::fill_n(data.bytes().begin(), 512, opcode == IoOpcode::write ? static_cast<std::byte>(nsid) : std::byte{0});
      auto sqe = nvme::encode_block_command(opcode, {.nsid = Nsid(nsid), .first = Lba(1), .count = Blocks(1)});
      sqe.sgl = data.keyed(512);
      require_ok(execute(io, sqe));
    }
    CHECK(data.bytes()[511] == static_cast<std::byte>(nsid));
  }
};

/// A subsystem as full as one can be: 4,096 namespaces, of which the rig makes the first.
struct FullRig : ScaleRig {
  FullRig() : ScaleRig([](ScaleRig& rig, target::Target& to) { rig.add(to, kSubsystem, "null:size=1MiB", 4095); }) {}
  Association association = associate();
  RawQueue& admin = *association.admin;
};

}  // namespace

TEST_CASE("A list of namespaces has 1,024 to a page, and each page begins behind the last of the one before") {
  FullRig rig;
  for (const auto cns : {NVME_IDENTIFY_CNS_NS_ACTIVE_LIST, NVME_IDENTIFY_CNS_ALLOCATED_NS_LIST}) {
    CHECK(rig.listed(rig.admin, 0, cns) == counted(1, 1024));
    CHECK(rig.listed(rig.admin, 1023, cns) == counted(1024, 2047));
    CHECK(rig.listed(rig.admin, 1024, cns) == counted(1025, 2048));
    CHECK(rig.listed(rig.admin, 3071, cns) == counted(3072, 4095));
    CHECK(rig.listed(rig.admin, 3072, cns) == counted(3073, 4096));
    CHECK(rig.listed(rig.admin, 3073, cns) == counted(3074, 4096));
    CHECK(rig.listed(rig.admin, 4095, cns) == Ids{4096});
    CHECK(rig.listed(rig.admin, 4096, cns).empty());
    CHECK(rig.all(rig.admin, cns) == counted(1, 4096));
  }
  rig.remove(Nsid(1024));
  rig.remove(Nsid(1025));
  rig.remove(Nsid(4096));
  CHECK(rig.listed(rig.admin, 0).back() == 1026);
  CHECK(rig.listed(rig.admin, 1023).front() == 1026);
  CHECK(rig.listed(rig.admin, 1024).front() == 1026);
  CHECK(rig.listed(rig.admin, 4095).empty());
  CHECK(rig.all(rig.admin).size() == 4093);
}

TEST_CASE("The first and the last of 4,096 namespaces are described, and no two are the same") {
  FullRig rig;
  std::set<std::string> uuids;
  for (const std::uint32_t nsid : {1u, 2u, 1024u, 1025u, 4095u, 4096u}) {
    const auto id = rig.describe(rig.admin, nsid);
    CHECK(from_le(id.nsze) == 2048);
    const std::string uuid = rig.uuid(rig.admin, nsid);
    CHECK(std::memcmp(id.nguid, uuid.data(), uuid.size()) == 0);
    uuids.insert(uuid);
    const auto allocated = rig.describe(rig.admin, nsid, NVME_IDENTIFY_CNS_ALLOCATED_NS);
    CHECK(std::memcmp(&allocated, &id, sizeof id) == 0);
  }
  CHECK(uuids.size() == 6);
  auto& io = rig.io_queue(rig.association, Qid(1));
  auto data = rig.memory(io, 4096);
  const auto sqe = [&](std::uint32_t nsid) {
    auto entry = nvme::encode_block_command(IoOpcode::read, {.nsid = Nsid(nsid), .first = Lba(0), .count = Blocks(8)});
    entry.sgl = data->keyed(4096);
    return entry;
  };
  CHECK(rig.execute(io, sqe(1)).code() == StatusCode::success);
  CHECK(rig.execute(io, sqe(4096)).code() == StatusCode::success);
  CHECK(rig.execute(io, sqe(4097)).code() == StatusCode::invalid_namespace);
}

TEST_CASE("A 4,097th namespace is refused, and what was freed is given again, the lowest first") {
  FullRig rig;
  const auto add = [&] { return rig.target->add_namespace(nqn(kSubsystem), rig.store("null:size=1MiB")); };
  const auto refused = add();
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().kind() == ErrorKind::resource);
  CHECK(refused.error().message().find("all 4096 NSIDs are in use") != std::string::npos);
  for (const std::uint32_t nsid : {3000u, 7u, 4096u})
    rig.remove(Nsid(nsid));
  for (const std::uint32_t nsid : {7u, 3000u, 4096u})
    CHECK(add().value() == Nsid(nsid));
  CHECK_FALSE(add().has_value());
}

TEST_CASE("1,024 changes are listed one by one, and one more is told as too many to list") {
  FullRig rig;
  for (std::uint32_t nsid = 2001; nsid < 2001 + 1024; ++nsid)
    rig.remove(Nsid(nsid));
  rig.run_for(std::chrono::milliseconds(1));
  CHECK(rig.changed(rig.admin) == counted(2001, 3024));
  CHECK(rig.changed(rig.admin).empty());
  rig.add(*rig.target, kSubsystem, "null:size=1MiB", 1024);
  rig.remove(Nsid(1));
  rig.run_for(std::chrono::milliseconds(1));
  CHECK(rig.changed(rig.admin) == Ids{0xffffffff});
  CHECK(rig.changed(rig.admin).empty());
  CHECK(rig.all(rig.admin) == counted(2, 4096));
}

// What it measures is in docs/architecture.md.
TEST_CASE("64 subsystems of 1,000 RAM disks each are served with a handful of descriptors") {
  constexpr std::uint32_t kSubsystems = 64, kEach = 1000;
  const auto name = [](std::uint32_t i) { return fmt::format("nqn.2024-01.example:disks{}", i); };
  std::uint64_t resident = 0;
  std::size_t descriptors = 0, mapped = 0;
  ScaleRig rig([&](ScaleRig& before, target::Target& to) {
    resident = resident_bytes();
    descriptors = open_descriptors();
    mapped = mappings();
    for (std::uint32_t i = 0; i < kSubsystems; ++i) {
      REQUIRE(to.add_subsystem(nqn(name(i)), {.allow_any_host = true}).has_value());
      before.add(to, name(i), "ram:size=64KiB", kEach);
    }
  });
  const auto each = [&] { return (resident_bytes() - resident) / (kSubsystems * kEach); };
  const std::uint64_t served = each();
  const std::size_t more_descriptors = open_descriptors() - descriptors, more_mappings = mappings() - mapped;
  for (std::uint32_t i = 0; i < kSubsystems; ++i) {
    const auto association = rig.associate(name(i));
    CHECK(rig.all(*association.admin) == counted(1, kEach));
    auto& io = rig.io_queue(association, Qid(1), 8, name(i));
    auto data = rig.memory(io, 4096);
    rig.use(io, 1, *data);
    rig.use(io, kEach, *data);
    io.connection->close();
    association.admin->connection->close();
    rig.run_for(std::chrono::milliseconds(1));
  }
  std::printf(
      "%u namespaces: %llu bytes resident each, %llu when hosts have connected; %zu descriptors, %zu mappings\n",
      kSubsystems * kEach, static_cast<unsigned long long>(served), static_cast<unsigned long long>(each()),
      more_descriptors, more_mappings);
  CHECK(more_descriptors <= 17);  // 64,000 of 64 KiB fill 16 memfds of 256 MiB; the admin buffers are in one
  CHECK(more_mappings < (kSanitized ? 1000 : 100));  // a sanitizer's heap has many of its own
  if (!kSanitized) CHECK(each() < 20'000);
}
