// What ublk is told about a disk, and what it asks of it: no kernel here.
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <string>

#include "common/clock.h"
#include "initiator/present/ublk.h"
#include "initiator/present/ublk_queue.h"

using namespace rbt;
using namespace rbt::initiator;

namespace {

constexpr std::uint32_t kAllAttributes =
    UBLK_ATTR_READ_ONLY | UBLK_ATTR_ROTATIONAL | UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA;

Namespace disk_of(std::uint64_t block_size, std::uint64_t blocks) {
  Namespace disk;
  disk.nsid = Nsid(1);
  disk.block_shift = *BlockShift::of(block_size);
  disk.blocks = Blocks(blocks);
  disk.optimal_io = Blocks(1);
  return disk;
}

ublksrv_io_desc ask(std::uint32_t op_flags, std::uint64_t start_sector, std::uint32_t sectors) {
  return {.op_flags = op_flags, .nr_sectors = sectors, .start_sector = start_sector, .addr = 0};
}

const BlockShift k512 = *BlockShift::of(512);
const BlockShift k4096 = *BlockShift::of(4096);
constexpr Bytes kIoMax(256 * kKiB);

}  // namespace

TEST_CASE("Sizes are the disk's, in the units that ublk has for each") {
  struct Row {
    std::uint64_t block_size, blocks, optimal, io_max;
    std::uint64_t sectors, max_sectors;
    int block_shift, optimal_shift;
  };
  const auto row = GENERATE(Row{512, 8192, 1, 256 * kKiB, 8192, 512, 9, 9}, Row{512, 8192, 8, kMiB, 8192, 2048, 9, 12},
                            Row{4096, 1000, 1, 4096, 8000, 8, 12, 12}, Row{4096, 1000, 3, 4096, 8000, 8, 12, 13},
                            Row{4096, std::uint64_t{1} << 40, 65537, kMiB, std::uint64_t{1} << 43, 2048, 12, 28},
                            Row{512, 7, 0, 4096, 7, 8, 9, 9});
  Namespace disk = disk_of(row.block_size, row.blocks);
  disk.optimal_io = Blocks(row.optimal);
  const auto params = ublk_params_of(disk, Bytes(row.io_max), false);
  CHECK(params.len == sizeof params);
  CHECK(params.basic.dev_sectors == row.sectors);
  CHECK(params.basic.max_sectors == row.max_sectors);
  CHECK(params.basic.logical_bs_shift == row.block_shift);
  CHECK(params.basic.physical_bs_shift == row.block_shift);
  CHECK(params.basic.io_opt_shift == row.optimal_shift);
}

TEST_CASE("The flags of a device say that it is rbt's, and give back the tag it was made with") {
  const std::uint32_t tag = GENERATE(0U, 1U, 0x016b6c62U, 0x80000000U, ~0U);
  CHECK(ublk::is_ours(ublk::flags_of(tag)));
  CHECK(ublk::tag_of(ublk::flags_of(tag)) == tag);
}

TEST_CASE("A device with other flags is not rbt's, whatever else they have") {
  const std::uint64_t flags = GENERATE(std::uint64_t{0}, ~std::uint64_t{0}, std::uint64_t{ublk::kMark} << 32,
                                       ublk::flags_of(7) ^ 1, ublk::flags_of(7) << 8);
  CHECK_FALSE(ublk::is_ours(flags));
}

TEST_CASE("Flush and FUA come with a volatile write cache only, and then both") {
  Namespace disk = disk_of(512, 100);
  CHECK((ublk_params_of(disk, kIoMax, false).basic.attrs & kAllAttributes) == 0);
  disk.volatile_write_cache = true;
  CHECK(ublk_params_of(disk, kIoMax, false).basic.attrs == (UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA));
}

TEST_CASE("A device is read-only if it is asked to be or its disk is, and then discards nothing") {
  const bool asked = GENERATE(false, true), locked = GENERATE(false, true);
  Namespace disk = disk_of(512, 100);
  disk.abilities = {.compare = true, .discard = true, .write_zeroes = true};
  disk.read_only = locked;
  const auto params = ublk_params_of(disk, kIoMax, asked);
  CHECK(((params.basic.attrs & UBLK_ATTR_READ_ONLY) != 0) == (asked || locked));
  CHECK(((params.types & UBLK_PARAM_TYPE_DISCARD) != 0) == (!asked && !locked));
}

TEST_CASE("Discard and write zeroes are offered as the disk has them, within what the kernel accepts") {
  const bool discard = GENERATE(false, true), zeroes = GENERATE(false, true);
  const std::uint64_t block_size = GENERATE(std::uint64_t{512}, std::uint64_t{4096});
  Namespace disk = disk_of(block_size, 100);
  disk.abilities = {.compare = false, .discard = discard, .write_zeroes = zeroes};
  const auto params = ublk_params_of(disk, kIoMax, false);
  CHECK(((params.types & UBLK_PARAM_TYPE_DISCARD) != 0) == (discard || zeroes));
  CHECK((params.discard.max_discard_sectors != 0) == discard);
  CHECK(params.discard.max_write_zeroes_sectors == (zeroes ? 65536 * block_size / 512 : 0));
  if (discard || zeroes) {
    CHECK(params.discard.discard_granularity == block_size);  // 0 is refused
    CHECK(params.discard.max_discard_segments == 1);          // anything else is refused
  }
}

TEST_CASE("A read and a write name blocks and bytes") {
  const auto read = decode(ask(UBLK_IO_OP_READ, 16, 8), k512, kIoMax);
  REQUIRE(read);
  CHECK(read->operation == Operation::read);
  CHECK(read->range == BlockRange{Lba(16), Blocks(8)});
  CHECK(read->bytes == 4096);
  const auto write = decode(ask(UBLK_IO_OP_WRITE, 16, 512), k4096, kIoMax);
  REQUIRE(write);
  CHECK(write->operation == Operation::write);
  CHECK(write->range == BlockRange{Lba(2), Blocks(64)});
  CHECK(write->bytes == 256 * kKiB);
  CHECK(write->fua == nvme::ForceUnitAccess::no);
}

TEST_CASE("FUA and NOUNMAP are looked for where the kernel puts them") {
  CHECK(decode(ask(UBLK_IO_OP_WRITE | 1U << 13, 0, 8), k512, kIoMax)->fua == nvme::ForceUnitAccess::yes);
  // what failfast, meta and swap say changes nothing
  CHECK(decode(ask(UBLK_IO_OP_WRITE | 0xf00 | 1U << 16, 0, 8), k512, kIoMax)->fua == nvme::ForceUnitAccess::no);
  CHECK(decode(ask(UBLK_IO_OP_READ | 1U << 13, 0, 8), k512, kIoMax)->fua == nvme::ForceUnitAccess::no);
  CHECK(decode(ask(UBLK_IO_OP_WRITE_ZEROES, 0, 8), k512, kIoMax)->deallocate == nvme::Deallocate::yes);
  CHECK(decode(ask(UBLK_IO_OP_WRITE_ZEROES | 1U << 15, 0, 8), k512, kIoMax)->deallocate == nvme::Deallocate::no);
}

TEST_CASE("Flush, discard and write zeroes have no data, and their sizes no bound but the range's") {
  CHECK(decode(ask(UBLK_IO_OP_FLUSH, 0, 0), k512, kIoMax)->operation == Operation::flush);
  const auto discard = decode(ask(UBLK_IO_OP_DISCARD, 8, ~std::uint32_t{7}), k4096, kIoMax);
  REQUIRE(discard);
  CHECK(discard->operation == Operation::discard);
  CHECK(discard->range == BlockRange{Lba(1), Blocks(0x1fffffff)});
  CHECK(discard->bytes == 0);
  CHECK(decode(ask(UBLK_IO_OP_WRITE_ZEROES, 0, 1U << 20), k512, kIoMax)->bytes == 0);
}

TEST_CASE(
    "What a device does not offer is no request: other operations, parts of blocks, nothing, too much, places beyond "
    "64 bits") {
  for (std::uint32_t operation = 0; operation < 256; ++operation) {
    const bool known = operation <= 3 || operation == 5;
    CHECK(decode(ask(operation, 0, 8), k512, kIoMax).has_value() == known);
  }
  CHECK_FALSE(decode(ask(UBLK_IO_OP_READ, 1, 8), k4096, kIoMax));
  CHECK_FALSE(decode(ask(UBLK_IO_OP_READ, 0, 7), k4096, kIoMax));
  CHECK_FALSE(decode(ask(UBLK_IO_OP_READ, 0, 0), k512, kIoMax));
  CHECK_FALSE(decode(ask(UBLK_IO_OP_WRITE, 0, 513), k512, kIoMax));
  CHECK_FALSE(decode(ask(UBLK_IO_OP_WRITE, std::uint64_t{1} << 55, 1), k512, kIoMax));
}

TEST_CASE("A volume's buffers and requests are as many as the device has tags") {
  const DeviceOptions few{.queues = 2, .depth = 128, .io_max = Bytes(256 * kKiB)};
  CHECK(ublk_buffers(few) == Bytes(64 * kMiB));
  CHECK(ublk_lanes(few) * ublk_requests(few) == 256);
  const DeviceOptions most{.queues = 64, .depth = 1024, .io_max = Bytes(4096)};
  const std::uint32_t lanes = ublk_lanes(most);  // no more than there are processors
  CHECK(lanes * ublk_requests(most) >= 32768);
  CHECK((lanes - 1) * ublk_requests(most) < 32768);
  CHECK(ublk_buffers(most) == Bytes(128 * kMiB));
}

TEST_CASE("What the kernel says of a device is what its successor asks for") {
  ublksrv_ctrl_dev_info info{};
  info.nr_hw_queues = 3;
  info.queue_depth = 64;
  info.max_io_buf_bytes = 524288;
  info.dev_id = 7;
  const auto options = ublk_options_of(info, true);
  CHECK(options.queues == 3);
  CHECK(options.depth == 64);
  CHECK(options.io_max == Bytes(524288));
  CHECK(options.read_only);
  CHECK(options.recover == 7U);
}

TEST_CASE("On a machine without ublk there are no devices, and whoever wants one hears which module to load") {
  if (::access("/dev/ublk-control", F_OK) == 0) return;  // a machine that has it: the rig's tests are for those
  const SystemClock clock;
  const auto all = list_ublk(clock.now() + std::chrono::seconds(1), clock);
  REQUIRE(all);
  CHECK(all->empty());
  const auto one = find_ublk(0, clock.now() + std::chrono::seconds(1), clock);
  REQUIRE_FALSE(one);
  CHECK(one.error().kind() == ErrorKind::not_found);
  CHECK(one.error().message().find("modprobe ublk_drv") != std::string::npos);
}
