// Namespaces that come, go and change their size while hosts use them, and what the hosts are told.

#include <catch2/catch.hpp>

#include "target/store/spec.h"
#include "tests/sim/changing_store.h"
#include "tests/sim/event_rig.h"

using namespace rbt;
using namespace rbt::test;
using nvme::AdminOpcode;
using nvme::from_le;
using nvme::IoOpcode;
using nvme::StatusCode;

namespace {

constexpr std::uint32_t kBlock = 512;
constexpr std::uint32_t kEvent = 2 | 0 << 8 | 0x04 << 16;  // Notice, Namespace Attribute Changed, log page 04h
constexpr std::uint32_t kNotices = 0x100;
using List = std::array<std::uint32_t, 1024>;

/// Connected, with an I/O queue on each reactor and events enabled.
struct NamespaceRig : EventRig {
  explicit NamespaceRig(RigOptions options = {})
      : EventRig(kEvent, std::move(options)),
        one(io_queue(association, Qid(1))),
        two(io_queue(association, Qid(2))),
        data(memory(one, 4096)) {
    enable(kNotices);
  }
  std::unique_ptr<target::Store> ram(const std::string& size = "1MiB") {
    return std::move(
        *target::make_store("ram:size=" + size, {.clock = network.clock(), .random = random, .logger = logger}));
  }
  Nsid add(std::unique_ptr<target::Store> store, std::optional<Nsid> nsid = {}) {
    auto added = target->add_namespace(nqn(kSubsystem), std::move(store), nsid);
    INFO((added ? "" : added.error().message()));
    REQUIRE(added.has_value());
    return *added;
  }
  /// Until it is gone.
  void remove(Nsid nsid) {
    bool gone = false;
    REQUIRE(target->remove_namespace(nqn(kSubsystem), nsid, [&](auto) { gone = true; }).has_value());
    expect([&] { return gone; }, "the namespace is gone");
  }
  nvme::SubmissionQueueEntry entry(IoOpcode opcode, Nsid nsid, std::uint64_t lba, std::uint32_t blocks = 1) {
    auto sqe = nvme::encode_block_command(opcode, {.nsid = nsid, .first = Lba(lba), .count = Blocks(blocks)});
    sqe.sgl = data->keyed(blocks * kBlock);
    return sqe;
  }
  StatusCode io(RawQueue& queue, IoOpcode opcode, Nsid nsid, std::uint64_t lba) {
    return execute(queue, entry(opcode, nsid, lba)).code();
  }
  std::vector<std::uint32_t> active(std::uint32_t after = 0) {
    const auto list = read_structure<List>(
        admin, nvme::encode_identify({.nsid = Nsid(after), .cns = NVME_IDENTIFY_CNS_NS_ACTIVE_LIST}));
    return nonzero(list);
  }
  std::vector<std::uint32_t> changed(nvme::RetainEvent retain = nvme::RetainEvent::no) {
    return nonzero(read_structure<List>(
        admin, nvme::encode_get_log_page(
                   {.nsid = nvme::kNsidAll, .lid = NVME_LOG_LID_CHANGED_NS, .retain = retain, .length = Bytes(4096)})));
  }
  static std::vector<std::uint32_t> nonzero(const List& list) {
    std::vector<std::uint32_t> found;
    for (const std::uint32_t each : list)
      if (each != 0) found.push_back(from_le(each));
    return found;
  }
  std::uint64_t blocks_of(Nsid nsid) {
    return from_le(
        read_structure<nvme_id_ns>(admin, nvme::encode_identify({.nsid = nsid, .cns = NVME_IDENTIFY_CNS_NS})).nsze);
  }
  RawQueue &one, &two;
  std::unique_ptr<HostMemory> data;
};

using Ids = std::vector<std::uint32_t>;

}  // namespace

TEST_CASE("A namespace that is added while hosts are connected is there at once, on every queue") {
  NamespaceRig rig;
  const auto event = rig.request_event();
  CHECK(rig.io(rig.one, IoOpcode::read, Nsid(2), 0) == StatusCode::invalid_namespace);
  CHECK(rig.add(rig.ram()) == Nsid(2));
  rig.expect_event(event);
  CHECK(rig.changed() == Ids{2});
  CHECK(rig.active() == Ids{1, 2});
  CHECK(rig.blocks_of(Nsid(2)) == 2048);
  std::fill_n(rig.data->bytes().begin(), kBlock, std::byte{7});
  CHECK(rig.io(rig.one, IoOpcode::write, Nsid(2), 5) == StatusCode::success);
  std::fill_n(rig.data->bytes().begin(), kBlock, std::byte{0});
  CHECK(rig.io(rig.two, IoOpcode::read, Nsid(2), 5) == StatusCode::success);
  CHECK(rig.data->bytes()[100] == std::byte{7});
}

TEST_CASE("A removed namespace is refused on every queue, and its neighbour serves on") {
  NamespaceRig rig;
  rig.add(rig.ram());
  const auto event = rig.request_event();
  rig.expect_event(event);
  CHECK(rig.changed() == Ids{2});
  const auto second = rig.request_event();
  rig.remove(Nsid(2));
  rig.expect_event(second);
  CHECK(rig.changed() == Ids{2});
  CHECK(rig.active() == Ids{1});
  for (RawQueue* const queue : {&rig.one, &rig.two}) {
    CHECK(rig.io(*queue, IoOpcode::read, Nsid(2), 0) == StatusCode::invalid_namespace);
    CHECK(rig.io(*queue, IoOpcode::write, Nsid(2), 0) == StatusCode::invalid_namespace);
    CHECK(rig.execute(*queue, nvme::encode_flush(Nsid(2))).code() == StatusCode::invalid_namespace);
    CHECK(rig.io(*queue, IoOpcode::read, Nsid(1), 0) == StatusCode::success);
  }
  CHECK(rig.blocks_of(Nsid(2)) == 0);  // an NSID that could be, and is not
  const auto identifiers = nvme::encode_identify({.nsid = Nsid(2), .cns = NVME_IDENTIFY_CNS_NS_DESC_LIST});
  CHECK(rig.transfer(rig.admin, identifiers, *rig.data, 4096).code() == StatusCode::invalid_namespace);
  CHECK(rig.target->remove_namespace(nqn(kSubsystem), Nsid(2), {}).error().kind() == ErrorKind::not_found);
  CHECK(rig.target->remove_namespace(nqn("nqn.2024-01.example:no"), Nsid(1), {}).error().kind() ==
        ErrorKind::not_found);
}

TEST_CASE("Commands in the store finish before their namespace goes, while its NSID serves another store") {
  Gate gate;
  StoreHand hand;
  NamespaceRig rig;
  rig.add(make_changing_store(make_gated_store(rig.ram(), gate), hand));
  const auto read = rig.one.submit(rig.entry(IoOpcode::read, Nsid(2), 0));
  const auto write = rig.two.submit(rig.entry(IoOpcode::write, Nsid(2), 1));
  rig.expect([&] { return gate.waiting() == 2; }, "the store is asked");
  std::unique_ptr<target::Store> store;
  REQUIRE(rig.target->remove_namespace(nqn(kSubsystem), Nsid(2), [&](auto gone) { store = std::move(gone); }));
  CHECK(rig.io(rig.one, IoOpcode::read, Nsid(2), 0) == StatusCode::invalid_namespace);
  CHECK(rig.target->statistics().namespaces_leaving == 1);
  CHECK(rig.add(rig.ram("2MiB")) == Nsid(2));
  CHECK(rig.io(rig.two, IoOpcode::read, Nsid(2), 4000) == StatusCode::success);
  rig.run_for(std::chrono::seconds(12));
  CHECK(store == nullptr);
  CHECK(rig.logger.said("have not come back from the store"));
  CHECK_FALSE(rig.one.ended());
  gate.let_all_through();  // the write commits behind the gate, too
  gate.let_all_through();
  rig.expect(
      [&] {
        gate.let_all_through();
        return store != nullptr;
      },
      "then it goes");
  CHECK(hand.queues == 0);
  CHECK(hand.exists);
  CHECK(rig.one.take(read)->status().ok());
  CHECK(rig.two.take(write)->status().ok());
  CHECK(rig.target->statistics().namespaces_leaving == 0);
  store.reset();
}

TEST_CASE("A connection that ends while its commands are in a removed namespace's store holds nobody else") {
  Gate gate;
  NamespaceRig rig;
  rig.add(make_gated_store(rig.ram(), gate));
  for (std::uint64_t i = 0; i < 4; ++i)
    rig.one.submit(rig.entry(IoOpcode::read, Nsid(2), i));
  rig.expect([&] { return gate.waiting() == 4; }, "the store is asked");
  bool gone = false;
  REQUIRE(rig.target->remove_namespace(nqn(kSubsystem), Nsid(2), [&](auto) { gone = true; }));
  rig.one.connection->close();
  rig.run_for(std::chrono::seconds(1));
  CHECK_FALSE(gone);
  CHECK(rig.io(rig.two, IoOpcode::read, Nsid(1), 0) == StatusCode::success);
  gate.let_all_through();
  rig.expect([&] { return gone; }, "the store's answers were the last thing missing");
}

TEST_CASE("A host that does not take its answers cannot keep a removed namespace") {
  NamespaceRig rig;
  rig.add(rig.ram());
  rig.network.faults().partition("host", "target");
  const auto cid = rig.one.submit(rig.entry(IoOpcode::read, Nsid(2), 0));
  rig.network.faults().join("host", "target");
  rig.network.faults().exhaust_receives("host", std::chrono::seconds(60));
  rig.run_for(std::chrono::milliseconds(100));
  bool gone = false;
  REQUIRE(rig.target->remove_namespace(nqn(kSubsystem), Nsid(2), [&](auto) { gone = true; }));
  rig.run_for(std::chrono::seconds(2));
  CHECK_FALSE(gone);
  rig.expect([&] { return gone; }, "its connection is closed for it");
  CHECK_FALSE(rig.one.take(cid).has_value());
  CHECK(rig.logger.said("has not let its commands end"));
}

TEST_CASE("A Flush of all namespaces goes on when the one it is in is removed") {
  Gate gate;
  NamespaceRig rig;
  rig.add(make_gated_store(rig.ram(), gate));
  rig.add(rig.ram());
  const auto cid = rig.one.submit(nvme::encode_flush(nvme::kNsidAll));
  rig.expect([&] { return gate.waiting() == 1; }, "the second namespace is flushed");
  bool gone = false;
  REQUIRE(rig.target->remove_namespace(nqn(kSubsystem), Nsid(2), [&](auto) { gone = true; }));
  rig.remove(Nsid(3));
  CHECK_FALSE(gone);
  gate.let_one_through();
  std::optional<Response> flushed;
  rig.expect([&] { return (flushed = rig.one.take(cid)).has_value(); }, "the Flush ends");
  CHECK(flushed->status().ok());
  rig.expect([&] { return gone; }, "and the namespace goes");
}

TEST_CASE("Hosts see a store grow, and may use what is new") {
  StoreHand hand{.blocks = 1000};
  NamespaceRig rig;
  rig.add(make_changing_store(rig.ram(), hand));
  CHECK(rig.changed() == Ids{2});
  CHECK(rig.io(rig.one, IoOpcode::write, Nsid(2), 1000) == StatusCode::lba_out_of_range);
  const auto event = rig.request_event();
  hand.resize(2048);
  rig.expect_event(event);
  CHECK(rig.changed() == Ids{2});
  CHECK(rig.blocks_of(Nsid(2)) == 2048);
  CHECK(rig.io(rig.one, IoOpcode::write, Nsid(2), 2047) == StatusCode::success);
  CHECK(rig.io(rig.two, IoOpcode::write, Nsid(2), 2048) == StatusCode::lba_out_of_range);
}

TEST_CASE("Behind the end of a store that shrank is LBA Out of Range, told by whoever notices first") {
  StoreHand hand{.blocks = 2048};
  NamespaceRig rig;
  rig.add(make_changing_store(rig.ram(), hand));
  CHECK(rig.io(rig.one, IoOpcode::read, Nsid(2), 2047) == StatusCode::success);
  hand.blocks = 100;  // nobody is told
  CHECK(rig.io(rig.one, IoOpcode::read, Nsid(2), 2047) == StatusCode::lba_out_of_range);
  CHECK(rig.blocks_of(Nsid(2)) == 2048);
  REQUIRE(rig.target->refresh_namespace(nqn(kSubsystem), Nsid(2)).has_value());
  CHECK(rig.blocks_of(Nsid(2)) == 100);
  CHECK(rig.io(rig.two, IoOpcode::read, Nsid(2), 100) == StatusCode::lba_out_of_range);
  CHECK(rig.io(rig.two, IoOpcode::read, Nsid(2), 99) == StatusCode::success);
  CHECK(rig.target->refresh_namespace(nqn(kSubsystem), Nsid(9)).error().kind() == ErrorKind::not_found);
}

TEST_CASE("A store that changes its block size is not followed") {
  StoreHand hand{.blocks = 128};
  NamespaceRig rig;
  rig.add(make_changing_store(rig.ram(), hand));
  hand.block_shift = BlockShift::of(4096);
  CHECK(rig.target->refresh_namespace(nqn(kSubsystem), Nsid(2)).error().kind() == ErrorKind::unsupported);
  hand.resize(64);
  rig.run_for(std::chrono::milliseconds(10));
  CHECK(rig.logger.said("its blocks have 4096 bytes now, and had 512"));
  CHECK(rig.blocks_of(Nsid(2)) == 128);
}

TEST_CASE("There is one event until its log is read, whatever else changes") {
  NamespaceRig rig;
  const auto first = rig.request_event(), second = rig.request_event();
  rig.add(rig.ram());
  rig.expect_event(first);
  rig.add(rig.ram());
  rig.remove(Nsid(2));
  CHECK(rig.no_event(second));
  CHECK(rig.changed(nvme::RetainEvent::yes) == Ids{2, 3});
  rig.add(rig.ram());
  CHECK(rig.no_event(second));
  CHECK(rig.changed() == Ids{2, 3});
  CHECK(rig.changed().empty());
  CHECK(rig.no_event(second));
  rig.remove(Nsid(3));
  rig.expect_event(second);
  CHECK(rig.changed() == Ids{3});
}

TEST_CASE("An event without a request waits for one, and one that is not wanted until it is") {
  NamespaceRig rig;
  rig.add(rig.ram());
  rig.expect_event(rig.request_event());
  const auto request = rig.request_event();
  CHECK(rig.no_event(request));  // one is enough until the log is read
  CHECK(rig.changed() == Ids{2});
  rig.enable(0);
  rig.remove(Nsid(2));
  CHECK(rig.no_event(request));
  rig.enable(kNotices);
  rig.expect_event(request);
  CHECK(rig.changed() == Ids{2});
}

TEST_CASE("A log that was read before the event was sent makes it superfluous") {
  NamespaceRig rig;
  rig.add(rig.ram());
  CHECK(rig.changed() == Ids{2});
  CHECK(rig.no_event(rig.request_event()));
}

TEST_CASE("A controller reset forgets changes; the host reads everything anew") {
  NamespaceRig rig;
  rig.add(rig.ram());
  TargetRig::require_ok(rig.set_configuration(rig.admin, nvme::Configuration{}));
  rig.expect([&] { return (rig.get_property(rig.admin, nvme::Property::status) & 1) == 0; },
             "the controller is disabled");
  TargetRig::require_ok(rig.set_configuration(rig.admin, TargetRig::enabled()));
  CHECK(rig.changed().empty());
  CHECK(rig.active() == Ids{1, 2});
}

TEST_CASE("Hosts of other subsystems are told nothing") {
  NamespaceRig rig;
  const auto discovery = rig.associate(std::string(nvme::kDiscoveryNqn));
  const auto request = discovery.admin->submit(nvme::encode_plain(AdminOpcode::async_event_request));
  rig.add(rig.ram());
  rig.run_for(std::chrono::milliseconds(100));
  CHECK_FALSE(discovery.admin->take(request).has_value());
  CHECK(rig.execute(*discovery.admin, nvme::encode_set_features({.fid = NVME_FEAT_FID_ASYNC_EVENT, .value = kNotices}))
            .code() == StatusCode::invalid_field);
}

TEST_CASE("A namespace that cannot be added everywhere is added nowhere: the n-th call fails") {
  NamespaceRig rig;
  const bool fail_open = GENERATE(true, false);
  for (std::uint32_t n = 0;; ++n) {
    REQUIRE(n < 20);
    StoreHand hand;
    (fail_open ? hand.fail_open_at : hand.fail_prepare_at) = n;
    auto added = rig.target->add_namespace(nqn(kSubsystem), make_changing_store(rig.ram(), hand));
    rig.run_for(std::chrono::milliseconds(1));
    if (added) {  // it makes no more calls than that
      CHECK(n >= 2);
      CHECK(rig.active() == Ids{1, 2});
      rig.remove(Nsid(2));
      CHECK_FALSE(hand.exists);
      break;
    }
    CHECK(added.error().message().find("as asked") != std::string::npos);
    CHECK_FALSE(hand.exists);
    static_cast<void>(rig.changed());  // a host that saw it in the moment between two reactors is told to look again
    CHECK(rig.active() == Ids{1});
    for (RawQueue* const queue : {&rig.one, &rig.two})
      CHECK(rig.io(*queue, IoOpcode::read, Nsid(2), 0) == StatusCode::invalid_namespace);
  }
}

TEST_CASE("A host that was told of no write cache has its writes made durable in one that comes later") {
  StoreHand hand{.write_cache = true};
  NamespaceRig rig;  // RAM has none
  rig.add(make_changing_store(rig.ram(), hand));
  CHECK(rig.io(rig.one, IoOpcode::write, Nsid(2), 0) == StatusCode::success);
  CHECK(hand.last_durability == target::Durability::durable);
  const auto later = rig.associate();
  const auto id =
      rig.read_structure<nvme_id_ctrl>(*later.admin, nvme::encode_identify({.cns = NVME_IDENTIFY_CNS_CTRL}));
  CHECK((id.vwc & 1) == 1);
  RawQueue& io = rig.io_queue(later, Qid(1));
  CHECK(rig.io(io, IoOpcode::write, Nsid(2), 0) == StatusCode::success);
  CHECK(hand.last_durability == target::Durability::cached);
}

TEST_CASE("More namespaces than a page has room are listed page by page") {
  NamespaceRig rig;
  for (std::uint32_t nsid = 2; nsid <= 1500; ++nsid)
    rig.add(rig.ram("64KiB"));
  const auto first = rig.active(), second = rig.active(first.back());
  CHECK(first.size() == 1024);
  CHECK(second.size() == 1500 - 1024);
  CHECK(second.front() == 1025);
  CHECK(second.back() == 1500);
  CHECK(rig.active(1500).empty());
  CHECK(rig.changed() == Ids{0xffffffff});  // 1499 changes: too many to list
  CHECK(rig.changed().empty());
  rig.remove(Nsid(700));
  CHECK(rig.changed() == Ids{700});
}

TEST_CASE("A target drains while a namespace leaves") {
  Gate gate;
  NamespaceRig rig;
  rig.add(make_gated_store(rig.ram(), gate));
  rig.one.submit(rig.entry(IoOpcode::read, Nsid(2), 0));
  rig.expect([&] { return gate.waiting() == 1; }, "the store is asked");
  bool gone = false;
  REQUIRE(rig.target->remove_namespace(nqn(kSubsystem), Nsid(2), [&](auto) { gone = true; }));
  rig.target->drain(std::chrono::seconds(1));
  CHECK(rig.target->add_namespace(nqn(kSubsystem), rig.ram()).error().kind() == ErrorKind::in_use);
  rig.expect([&] { return rig.one.ended(); }, "hosts are sent away");
  CHECK_FALSE(rig.target->drained());
  gate.let_all_through();
  rig.expect([&] { return rig.target->drained(); }, "the store's answer was the last thing missing");
  CHECK(gone);
}
