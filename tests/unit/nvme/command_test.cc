#include <catch2/catch.hpp>

#include "common/nvme/admin_command.h"
#include "common/nvme/io_command.h"
#include "common/nvme/types.h"
#include "tests/unit/nvme/bytes.h"

using namespace rbt;
using namespace rbt::nvme;
using rbt::test::bytes_of;
using rbt::test::from_hex;
using rbt::test::hex;

TEST_CASE("A write names its blocks, 0's based, and its durability") {
  const auto sqe =
      from_hex<SubmissionQueueEntry>("01 40 00 00 09 00 00 00 00*31 40  88 77 66 55 44 33 22 11  ff ff 00 40  00*12");
  const auto write = parse_block_command(sqe);
  CHECK(write.nsid == Nsid(9));
  CHECK(write.first == Lba(0x1122334455667788));
  CHECK(write.count == Blocks(65536));
  CHECK(write.fua == ForceUnitAccess::yes);
  CHECK(write.deallocate == Deallocate::no);
  CHECK(write.protection == 0);
  CHECK(bytes_of(encode_block_command(IoOpcode::write, write)) == bytes_of(sqe));
}

TEST_CASE("Write Zeroes may deallocate") {
  const BlockCommand command{.nsid = Nsid(1), .first = Lba(0), .count = Blocks(1), .deallocate = Deallocate::yes};
  const auto sqe = encode_block_command(IoOpcode::write_zeroes, command);
  CHECK(sqe.cdw12.get() == 0x0200'0000);
  CHECK(parse_block_command(sqe).deallocate == Deallocate::yes);
}

TEST_CASE("Protection information bits are kept") {
  SubmissionQueueEntry sqe;
  sqe.cdw12 = std::uint32_t{0x3c00'0000};
  CHECK(parse_block_command(sqe).protection == 15);
}

TEST_CASE("Blocks beyond the namespace, wrapping ones included, are out of range") {
  BlockCommand command{.nsid = Nsid(1), .first = Lba(90), .count = Blocks(10)};
  REQUIRE(command.within(Blocks(100)));
  CHECK(command.within(Blocks(100))->end() == Lba(100));
  CHECK(command.within(Blocks(99)).error() == Status::permanent(StatusCode::lba_out_of_range));
  command.first = Lba(~0ULL);
  CHECK_FALSE(command.within(Blocks(100)));
  command.first = Lba(~0ULL - 4);
  CHECK_FALSE(command.within(Blocks(~0ULL)));
}

TEST_CASE("Flush is an opcode, a namespace and an empty keyed descriptor") {
  CHECK(bytes_of(encode_flush(Nsid(1))) == hex("00 40 00 00 01 00 00 00 00*16 00*15 40 00*24"));
}

TEST_CASE("Copy names up to 128 ranges of 1 to 65536 blocks, of format 0") {
  const auto sqe =
      encode_copy({.nsid = Nsid(3), .first = Lba(0x123456789a), .ranges = 128, .fua = ForceUnitAccess::yes});
  CHECK(sqe.opcode == 0x19);
  CHECK(sqe.cdw10.get() == 0x3456789a);
  CHECK(sqe.cdw11.get() == 0x12);
  CHECK(sqe.cdw12.get() == (127u | 1u << 30));
  const auto command = parse_copy(sqe);
  REQUIRE(command.has_value());
  CHECK(command->nsid == Nsid(3));
  CHECK(command->first == Lba(0x123456789a));
  CHECK(command->ranges == 128);
  CHECK(command->data_bytes() == 4096);
  CHECK(command->fua == ForceUnitAccess::yes);
  auto odd = sqe;
  odd.cdw12 = 128u;
  CHECK(parse_copy(odd).error().code() == kCommandSizeLimitExceeded);
  for (std::uint32_t format = 1; format < 16; ++format) {
    odd.cdw12 = format << 8;
    CHECK(parse_copy(odd).error().code() == StatusCode::invalid_field);
  }
  const auto wire = bytes_of(encode_copy_range({Lba(0x10), Blocks(65536)}));
  CHECK(wire == hex("00 00 00 00 00 00 00 00 10 00 00 00 00 00 00 00 ff ff 00 00 00 00 00 00 00 00 00 00 00 00 00 00"));
  const auto ranges = CopyRanges::parse({.nsid = Nsid(1), .ranges = 1}, wire);
  REQUIRE(ranges.has_value());
  CHECK((*ranges)[0].first == Lba(0x10));
  CHECK((*ranges)[0].count == Blocks(65536));
  CHECK((*ranges)[0].within(Blocks(0x10010)).has_value());
  CHECK((*ranges)[0].within(Blocks(0x1000f)).error().code() == StatusCode::lba_out_of_range);
  CHECK(CopyRanges::parse({.nsid = Nsid(1), .ranges = 2}, wire).error().code() == StatusCode::sgl_invalid_length);
}

TEST_CASE("Dataset Management names up to 256 ranges") {
  SubmissionQueueEntry sqe;
  sqe.cdw10 = std::uint32_t{255};
  sqe.cdw11 = std::uint32_t{4};
  const auto command = parse_dataset_management(sqe);
  CHECK(command.ranges == 256);
  CHECK(command.data_bytes() == 4096);
  CHECK(command.deallocate == Deallocate::yes);
  const auto encoded = encode_dataset_management(command);
  CHECK(encoded.cdw10.get() == 255);
  CHECK(encoded.cdw11.get() == 4);
}

TEST_CASE("Ranges are read where they lie and counted as the command says") {
  const auto data = hex("00 00 00 00 08 00 00 00 10 00 00 00 00 00 00 00  00*4 ff*4 ff*8");
  const auto ranges = DatasetRanges::parse({.nsid = Nsid(1), .ranges = 2}, data);
  REQUIRE(ranges);
  CHECK(ranges->size() == 2);
  const DatasetRange first = (*ranges)[0];
  CHECK(first.first == Lba(16));
  CHECK(first.count == Blocks(8));
  CHECK(first.within(Blocks(24)));
  CHECK_FALSE(first.within(Blocks(23)));
  CHECK((*ranges)[1].within(Blocks(24)).error().code() == StatusCode::lba_out_of_range);
  CHECK(bytes_of(encode_dataset_range(first)) == hex("00 00 00 00 08 00 00 00 10 00 00 00 00 00 00 00"));
}

TEST_CASE("Fewer bytes than ranges are refused, more are tolerated") {
  const auto data = hex("00*31");
  CHECK(DatasetRanges::parse({.nsid = Nsid(1), .ranges = 2}, data).error().code() == StatusCode::sgl_invalid_length);
  CHECK(DatasetRanges::parse({.nsid = Nsid(1), .ranges = 1}, data)->size() == 1);
  CHECK_FALSE(DatasetRanges::parse({.nsid = Nsid(1), .ranges = 1}, {}));
}

TEST_CASE("Get Log Page reads dwords from an offset") {
  const auto sqe = from_hex<SubmissionQueueEntry>(
      "02 40 00 00 ff ff ff ff 00*16 00*15 40  70 8a ff 03  01 00 22 11  00 04 00 00 02 00 00 00 00 00 00 01 "
      "00*4");
  const auto command = parse_get_log_page(sqe);
  REQUIRE(command);
  CHECK(command->nsid == kNsidAll);
  CHECK(command->lid == NVME_LOG_LID_DISCOVER);
  CHECK(command->lsp == 10);
  CHECK(command->lsi == 0x1122);
  CHECK(command->retain == RetainEvent::yes);
  CHECK(command->length == Bytes(0x10400 * 4));
  CHECK(command->offset == Bytes(0x2'0000'0400));
  CHECK(command->command_set == 1);
  CHECK(bytes_of(encode_get_log_page(*command)) == bytes_of(sqe));
}

TEST_CASE("The largest log length does not wrap around") {
  SubmissionQueueEntry sqe;
  sqe.cdw10 = std::uint32_t{0xffff0000};
  sqe.cdw11 = std::uint32_t{0x0000ffff};
  CHECK(parse_get_log_page(sqe)->length == Bytes(std::uint64_t{1} << 34));
  CHECK(bytes_of(encode_get_log_page(*parse_get_log_page(sqe))).size() == 64);
}

TEST_CASE("Log offsets that are unaligned or an index are refused") {
  SubmissionQueueEntry sqe;
  for (const std::uint32_t offset : {1u, 2u, 3u, 1023u}) {
    sqe.cdw12 = offset;
    CHECK(parse_get_log_page(sqe).error() == Status::permanent(StatusCode::invalid_field));
  }
  sqe.cdw12 = std::uint32_t{0};
  sqe.cdw14 = std::uint32_t{1} << 23;
  CHECK_FALSE(parse_get_log_page(sqe));
}

TEST_CASE("A log page ends in zeroes behind the log, and an offset beyond it is refused") {
  const auto log = hex("01 02 03 04 05 06 07 08");
  std::vector<std::byte> out = hex("ff*8");
  CHECK(copy_log_page(log, Bytes(4), out));
  CHECK(out == hex("05 06 07 08 00 00 00 00"));
  CHECK(copy_log_page(log, Bytes(8), out));
  CHECK(out == hex("00*8"));
  out = hex("ff*8");
  CHECK_FALSE(copy_log_page(log, Bytes(12), out));
  CHECK(out == hex("00*8"));
  CHECK_FALSE(copy_log_page(log, Bytes(~0ULL - 3), out));
}

TEST_CASE("Identify names structure, controller and command set") {
  const IdentifyCommand command{.nsid = Nsid(7),
                                .cns = NVME_IDENTIFY_CNS_CSI_NS,
                                .cntlid = Cntlid(0x1234),
                                .cns_specific = 0x5678,
                                .command_set = 2};
  const auto sqe = encode_identify(command);
  CHECK(bytes_of(sqe) == hex("06 40 00 00 07 00 00 00 00*16 00*15 40 05 00 34 12 78 56 00 02 00*16"));
  const auto parsed = parse_identify(sqe);
  CHECK(parsed.nsid == Nsid(7));
  CHECK(parsed.cns == 5);
  CHECK(parsed.cntlid == Cntlid(0x1234));
  CHECK(parsed.cns_specific == 0x5678);
  CHECK(parsed.command_set == 2);
}

TEST_CASE("Features are set, saved and selected") {
  const auto set = encode_set_features(
      {.nsid = Nsid(0), .fid = NVME_FEAT_FID_NUM_QUEUES, .save = SaveFeature::yes, .value = 0x00030003});
  CHECK(set.cdw10.get() == 0x8000'0007);
  CHECK(parse_set_features(set).value == 0x00030003);
  CHECK(parse_set_features(set).save == SaveFeature::yes);
  const auto get =
      encode_get_features({.nsid = Nsid(0), .fid = NVME_FEAT_FID_KATO, .select = FeatureSelect::supported});
  CHECK(get.cdw10.get() == 0x030f);
  CHECK(parse_get_features(get)->select == FeatureSelect::supported);
  SubmissionQueueEntry strange;
  strange.cdw10 = std::uint32_t{0x0400};
  CHECK(parse_get_features(strange).error() == Status::permanent(StatusCode::invalid_field));
}

TEST_CASE("Queue counts are 0's based and FFFFh is none") {
  CHECK(parse_queue_counts(0x0003'0007)->submission == 8);
  CHECK(parse_queue_counts(0x0003'0007)->completion == 4);
  CHECK(encode_queue_counts({8, 4}) == 0x0003'0007);
  CHECK_FALSE(parse_queue_counts(0x0000'ffff));
  CHECK_FALSE(parse_queue_counts(0xffff'0000));
}

TEST_CASE("Abort names queue and command, an event its type, detail and log") {
  CHECK(encode_abort({Qid(1), Cid(0x1234)}).cdw10.get() == 0x1234'0001);
  CHECK(parse_abort(encode_abort({Qid(1), Cid(0x1234)})).cid == Cid(0x1234));
  // discovery log change: notice, F0h, log 70h
  CHECK(encode_async_event({NVME_AER_NOTICE, 0xf0, NVME_LOG_LID_DISCOVER}) == 0x0070'f002);
  CHECK(parse_async_event(0x0070'f002).info == 0xf0);
  CHECK(bytes_of(encode_plain(AdminOpcode::keep_alive)) == hex("18 40 00*22 00*15 40 00*24"));
}
