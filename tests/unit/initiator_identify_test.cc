#include <catch2/catch.hpp>
#include <cstring>

#include "initiator/identify.h"
#include "tests/sim/block_model.h"

using namespace rbt;
using namespace rbt::initiator;

namespace {

nvme_id_ctrl honest() {
  nvme_id_ctrl id{};
  id.cntlid = nvme::to_le(std::uint16_t{1});
  id.cntrltype = NVME_CTRL_CNTRLTYPE_IO;
  id.sgls = nvme::to_le(std::uint32_t{NVME_CTRL_SGLS_KEYED | NVME_CTRL_SGLS_OFFSET | 1});
  id.sqes = 0x66;
  id.cqes = 0x44;
  id.ioccsz = nvme::to_le(std::uint32_t{4});
  id.iorcsz = nvme::to_le(std::uint32_t{1});
  return id;
}

IdentifyContext context() {
  return {
      .capabilities = {}, .version = {}, .cntlid = Cntlid(1), .subsystem_nqn = "nqn.x", .in_capsule_preferred = 4096};
}

std::vector<std::byte> descriptor(std::uint8_t type, std::size_t length, std::byte fill) {
  std::vector<std::byte> out(4 + length, fill);
  out[0] = std::byte{type};
  out[1] = static_cast<std::byte>(length);
  return out;
}

}  // namespace

TEST_CASE("In-capsule data is what IOCCSZ leaves behind the entry, what the fabric likes and what SGLS allows") {
  auto id = honest();
  CHECK(parse_identify_controller(id, context())->in_capsule_max == 0);
  id.ioccsz = nvme::to_le(std::uint32_t{5});
  CHECK(parse_identify_controller(id, context())->in_capsule_max == 16);
  id.ioccsz = nvme::to_le(std::uint32_t{(64 + 8192) / 16});
  CHECK(parse_identify_controller(id, context())->in_capsule_max == 4096);
  auto none = context();
  none.in_capsule_preferred = 0;
  CHECK(parse_identify_controller(id, none)->in_capsule_max == 0);
  id.sgls = nvme::to_le(std::uint32_t{NVME_CTRL_SGLS_KEYED});
  CHECK(parse_identify_controller(id, context())->in_capsule_max == 0);
}

TEST_CASE("MDTS counts pages of CAP.MPSMIN, 0 is no limit, and nothing exceeds our own") {
  auto id = honest();
  auto with = context();
  id.mdts = 3;
  CHECK(parse_identify_controller(id, with)->transfer_max == Bytes(32 * kKiB));
  with.capabilities.raw = std::uint64_t{2} << 48;
  CHECK(parse_identify_controller(id, with)->transfer_max == Bytes(128 * kKiB));
  for (const int mdts : {0, 8, 20, 52, 63, 64, 255}) {
    id.mdts = static_cast<std::uint8_t>(mdts);
    CHECK(parse_identify_controller(id, context())->transfer_max == Bytes(kTransferMax));
  }
}

TEST_CASE("A discovery controller needs no I/O capsules") {
  auto id = honest();
  id.cntrltype = NVME_CTRL_CNTRLTYPE_DISCOVERY;
  id.ioccsz = id.iorcsz = 0;
  id.sqes = id.cqes = 0;
  auto with = context();
  with.kind = ControllerKind::discovery;
  CHECK(parse_identify_controller(id, with).has_value());
}

TEST_CASE("Command limits: zero is none, whatever else is bounded") {
  nvme_id_ctrl_nvm data{};
  auto limits = parse_command_limits(data, {});
  CHECK(limits.write_zeroes_max == Bytes(0));
  CHECK(limits.discard_ranges_max == 256);
  data.wzsl = 1;
  data.dmrl = 7;
  data.dmrsl = nvme::to_le(std::uint32_t{100});
  data.dmsl = nvme::to_le(std::uint64_t{200});
  limits = parse_command_limits(data, {});
  CHECK(limits.write_zeroes_max == Bytes(8192));
  CHECK(limits.discard_ranges_max == 7);
  CHECK(limits.discard_range_blocks_max == 100);
  CHECK(limits.discard_blocks_max == 200);
  data.wzsl = 255;
  CHECK(parse_command_limits(data, {}).write_zeroes_max == Bytes(std::uint64_t{1} << 62));
}

TEST_CASE("A list of namespaces ends at its zero or goes on with the next page") {
  nvme_ns_list list{};
  std::vector<Nsid> out;
  CHECK(parse_namespace_list(list, Nsid(0), out).value() == false);
  CHECK(out.empty());
  for (std::uint32_t i = 0; i < std::size(list.ns); ++i)
    list.ns[i] = nvme::to_le(i + 10);
  CHECK(parse_namespace_list(list, Nsid(0), out).value() == true);
  CHECK(out.size() == 1024);
  CHECK_FALSE(parse_namespace_list(list, Nsid(10), out).has_value());
}

TEST_CASE("Descriptors fill in what they name; unknown ones are passed over; lies end the list") {
  std::vector<std::byte> list;
  const auto append = [&](const std::vector<std::byte>& more) { list.insert(list.end(), more.begin(), more.end()); };
  append(descriptor(9, 200, std::byte{0xee}));
  append(descriptor(NVME_NIDT_UUID, 16, std::byte{0xaa}));
  append(descriptor(NVME_NIDT_NGUID, 16, std::byte{0xbb}));
  append(descriptor(NVME_NIDT_EUI64, 8, std::byte{0xcc}));
  append(descriptor(NVME_NIDT_CSI, 1, std::byte{0}));
  Namespace space;
  CHECK(parse_namespace_descriptors(list, space));
  CHECK(space.uuid.bytes()[0] == 0xaa);
  CHECK(space.nguid[15] == 0xbb);
  CHECK(space.eui64[7] == 0xcc);
  for (std::size_t cut = 0; cut < list.size(); ++cut) {
    Namespace other;
    (void)parse_namespace_descriptors(std::span(list).first(cut),
                                      other);  // any prefix: no crash, nothing out of bounds
  }
  const auto zns = descriptor(NVME_NIDT_CSI, 1, std::byte{2});
  CHECK_FALSE(parse_namespace_descriptors(zns, space));
}

TEST_CASE("The block model allows what could be there, and nothing else") {
  test::BlockModel model(1);
  CHECK(model.may_read(0, 0, 1));
  model.begin_write(0, 7, 2);
  CHECK(model.may_read(0, 0, 3));  // not yet, perhaps
  CHECK(model.may_read(0, 7, 3));  // or already
  model.end_write(0, 7, 2, 4);
  CHECK(model.may_read(0, 0, 3));        // that read had begun before
  CHECK_FALSE(model.may_read(0, 0, 5));  // this one not
  CHECK(model.may_read(0, 7, 5));
  CHECK_FALSE(model.may_read(0, 8, 5));  // never written
  model.begin_write(0, 9, 6);            // fails: its fate is unknown
  model.begin_write(0, 10, 7);
  model.end_write(0, 10, 7, 8);
  CHECK(model.may_read(0, 9, 20));  // it may land at any time
  CHECK(model.may_read(0, 10, 20));
  CHECK_FALSE(model.may_read(0, 7, 20));
}

TEST_CASE("A disk is known by its UUID, else by its NGUID, else by its EUI-64, else by nothing") {
  Namespace disk;
  CHECK(identity(disk).empty());
  disk.eui64 = {0x01, 0xab};
  CHECK(identity(disk) == "01ab000000000000");
  disk.nguid = {0x02, 0xcd};
  CHECK(identity(disk) == "02cd0000000000000000000000000000");
  disk.uuid = nvme::Uuid({5, 4, 3});
  CHECK(identity(disk) == disk.uuid.to_string());
}
