#include <fmt/format.h>

#include <algorithm>

#include "common/nvme/text.h"
#include "initiator/controller.h"
#include "initiator/initiator.h"

namespace rbt::initiator {

namespace {

constexpr unsigned kRoundsMax = 8;
constexpr std::uint64_t kRecordsMax = 4096;
constexpr std::uint64_t kHeaderBytes = sizeof(nvmf_discovery_log);
constexpr std::size_t kChunkRecords =
    4;  // 4 KiB at a time: what every discovery controller can send (MDTS may be 0 or 1)
constexpr Duration kShutdownBound = std::chrono::seconds(2);

/// The log up to its first record: libnvme's structure ends in an array of no size, which clang does not initialise.
struct HeaderWire {
  nvme::Le64 generation;
  nvme::Le64 records;
  nvme::Le16 record_format;
  std::array<std::byte, 1006> reserved{};
};
static_assert(sizeof(HeaderWire) == kHeaderBytes && nvme::WireType<HeaderWire>);
static_assert(offsetof(HeaderWire, records) == 8 && offsetof(HeaderWire, record_format) == 16);

struct Header {
  std::uint64_t generation = 0;
  std::uint64_t records = 0;
  friend bool operator==(const Header&, const Header&) = default;
};

Result<Header> read_header(Controller& controller, Instant deadline) {
  HeaderWire log{};
  auto read = controller.read_log(NVME_LOG_LID_DISCOVER, Bytes(0), bytes_of(log), deadline);
  if (!read) return failure(std::move(read.error()));
  if (log.record_format.get() != 0)
    return failure(ErrorKind::unsupported,
                   fmt::format("the discovery log has record format {}; 0 is known", log.record_format.get()));
  const Header header{log.generation.get(), log.records.get()};
  if (header.records > kRecordsMax)
    return failure(ErrorKind::protocol,
                   fmt::format("the discovery log claims {} records; {} are accepted", header.records, kRecordsMax));
  return header;
}

DiscoveryEntry parse_entry(const nvmf_disc_log_entry& wire) {
  return {.transport_type = wire.trtype,
          .address_family = wire.adrfam,
          .subtype = wire.subtype,
          .requirements = wire.treq,
          .port_id = nvme::from_le(wire.portid),
          .cntlid = Cntlid(nvme::from_le(wire.cntlid)),
          .admin_queue_entries = nvme::from_le(wire.asqsz),
          .address = nvme::get_padded(wire.traddr),
          .service = nvme::get_padded(wire.trsvcid),
          .subsystem_nqn = nvme::get_padded(wire.subnqn)};
}

Result<std::vector<DiscoveryEntry>> read_entries(Controller& controller, std::uint64_t count, Instant deadline) {
  std::vector<DiscoveryEntry> entries;
  std::array<nvmf_disc_log_entry, kChunkRecords> chunk{};
  while (entries.size() < count) {
    const std::size_t records = std::min<std::uint64_t>(kChunkRecords, count - entries.size());
    const Bytes offset(kHeaderBytes + entries.size() * sizeof(nvmf_disc_log_entry));
    auto read = controller.read_log(NVME_LOG_LID_DISCOVER, offset,
                                    std::as_writable_bytes(std::span(chunk).first(records)), deadline);
    if (!read) return failure(std::move(read.error()));
    for (std::size_t i = 0; i < records; ++i)
      entries.push_back(parse_entry(chunk[i]));
  }
  return entries;
}

// Base 2.0, 5.16.1.23: header, entries, header again; the same generation means that nothing changed in between.
Result<DiscoveryLog> read_stable_log(Controller& controller, Instant deadline) {
  auto header = read_header(controller, deadline);
  for (unsigned round = 0; header && round < kRoundsMax; ++round) {
    const Header before = *header;
    auto entries = read_entries(controller, before.records, deadline);
    if (!entries) return failure(std::move(entries.error()));
    header = read_header(controller, deadline);
    if (header && *header == before) return DiscoveryLog{before.generation, std::move(*entries)};
  }
  if (!header) return failure(std::move(header.error()));
  return failure(
      ErrorKind::io,
      fmt::format("the discovery log changed each of the {} times it was read (generation {} now); try again later",
                  kRoundsMax, header->generation));
}

}  // namespace

Result<DiscoveryLog> discover(const Environment& environment, const Uri& uri, const DiscoverOptions& options) {
  auto association = make_association(uri, uri.nqn.value_or(nvme::Nqn::discovery()), options.host, environment.random);
  if (!association) return failure(std::move(association.error()));
  association->controller_secret.reset();  // a discovery controller has none to prove itself by
  std::unique_ptr<transport::Reactor> own;
  if (options.management == nullptr) {
    auto created = transport::Reactor::create(environment.clock, environment.logger);
    if (!created) return failure(std::move(created.error()));
    own = std::move(*created);
  }
  transport::Reactor& reactor = own ? *own : *options.management;
  const Instant deadline = environment.clock.now() + options.timeout;
  auto controller =
      Controller::connect(environment.fabric, reactor, *association, {.kind = ControllerKind::discovery}, deadline);
  if (!controller) return failure(std::move(controller.error()));
  auto log = read_stable_log(**controller, deadline);
  if (!log) log = failure(std::move(log.error()).within((*controller)->admin().label()));
  (*controller)->shut_down(environment.clock.now() + kShutdownBound);
  return log;
}

}  // namespace rbt::initiator
