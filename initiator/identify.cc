#include "initiator/identify.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "common/nvme/capsule.h"
#include "common/nvme/text.h"

namespace rbt::initiator {

namespace {

using nvme::from_le;

constexpr std::uint32_t kSqeUnits = 4;  // IOCCSZ and IORCSZ count 16 bytes
constexpr unsigned kSqeSizeShift = 6;
constexpr unsigned kCqeSizeShift = 4;
constexpr std::uint32_t kInCapsuleMax = 8 * kKiB;  // more is not worth a copy, whatever is offered
constexpr std::size_t kLbaFormats = std::size(nvme_id_ns{}.lbaf);

tl::unexpected<Error> lie(ErrorKind kind, std::string_view field, std::string seen_and_allowed) {
  return failure(kind, fmt::format("Identify Controller: {} is {}", field, seen_and_allowed));
}

std::string subsystem_nqn(const nvme_id_ctrl& data) {
  return nvme::get_padded(std::span<const char>(data.subnqn, sizeof data.subnqn));
}

// 2^shift pages, no more than `limit` bytes; the shift is the peer's and may be 255.
std::uint64_t pages(unsigned shift, nvme::Capabilities capabilities, std::uint64_t limit) noexcept {
  const unsigned total = shift + 12 + capabilities.page_shift_min();  // at most 255 + 12 + 15
  return total >= 63 ? limit : std::min(limit, std::uint64_t{1} << total);
}

Result<void> check_entry_sizes(const nvme_id_ctrl& data) {
  // Low nibble: the size that must be used at least; high: at most (Base 2.0, 5.17.2.1).
  const auto holds = [](unsigned field, unsigned shift) { return (field & 0xf) <= shift && shift <= field >> 4; };
  if (!holds(data.sqes, kSqeSizeShift))
    return lie(ErrorKind::protocol, "SQES",
               fmt::format("{:02x}h; entries of 64 bytes (66h) must be possible", data.sqes));
  if (!holds(data.cqes, kCqeSizeShift))
    return lie(ErrorKind::protocol, "CQES",
               fmt::format("{:02x}h; entries of 16 bytes (44h) must be possible", data.cqes));
  const std::uint32_t ioccsz = from_le(data.ioccsz);
  if (ioccsz < kSqeUnits)
    return lie(ErrorKind::protocol, "IOCCSZ", fmt::format("{}; a capsule has at least 4 units of 16 bytes", ioccsz));
  if (from_le(data.iorcsz) < 1)
    return lie(ErrorKind::protocol, "IORCSZ", "0; a response has at least 1 unit of 16 bytes");
  return {};
}

// What a host cannot do without, whichever the controller.
Result<void> check_always(const nvme_id_ctrl& data, const IdentifyContext& context) {
  if (from_le(data.cntlid) != context.cntlid.value())
    return lie(ErrorKind::mismatch, "CNTLID",
               fmt::format("{}, but Connect gave controller {}", from_le(data.cntlid), context.cntlid.value()));
  const bool discovery = context.kind == ControllerKind::discovery;
  const unsigned type = data.cntrltype;  // 0: a controller older than the field
  if (type != 0 && type != (discovery ? NVME_CTRL_CNTRLTYPE_DISCOVERY : NVME_CTRL_CNTRLTYPE_IO))
    return lie(
        ErrorKind::mismatch, "CNTRLTYPE",
        fmt::format("{}; {} was asked for", type, discovery ? "a discovery controller (2)" : "an I/O controller (1)"));
  if ((from_le(data.sgls) & NVME_CTRL_SGLS_KEYED) == 0)
    return lie(ErrorKind::unsupported, "SGLS",
               fmt::format("{:08x}h; bit 2 (keyed SGLs) is what RDMA needs", from_le(data.sgls)));
  if (from_le(data.icdoff) != 0)
    return lie(ErrorKind::unsupported, "ICDOFF", fmt::format("{}; only 0 is supported", from_le(data.icdoff)));
  if (context.keep_alive_wanted && from_le(data.kas) == 0)
    return lie(ErrorKind::unsupported, "KAS", "0: no keep-alive; connect with a keep-alive of 0 if you can do without");
  return {};
}

}  // namespace

Result<ControllerInfo> parse_identify_controller(const nvme_id_ctrl& data, const IdentifyContext& context) {
  auto checked = check_always(data, context);
  if (!checked) return failure(std::move(checked.error()));
  ControllerInfo info;
  info.model = nvme::get_padded(data.mn);
  info.serial = nvme::get_padded(data.sn);
  info.firmware = nvme::get_padded(data.fr);
  info.subsystem_nqn = subsystem_nqn(data);
  info.cntlid = context.cntlid;
  info.version = context.version;
  info.transfer_max = Bytes(data.mdts == 0 ? kTransferMax : pages(data.mdts, context.capabilities, kTransferMax));
  info.queue_entries_max = context.capabilities.queue_entries_max();
  info.keep_alive = from_le(data.kas) != 0;
  info.async_events_max = std::uint32_t{data.aerl} + 1;
  info.async_events = from_le(data.oaes);
  if (context.kind == ControllerKind::discovery) return info;

  checked = check_entry_sizes(data);
  if (!checked) return failure(std::move(checked.error()));
  if (!info.subsystem_nqn.empty() && info.subsystem_nqn != context.subsystem_nqn)
    return lie(ErrorKind::mismatch, "SUBNQN",
               fmt::format("\"{}\", but \"{}\" was connected to", info.subsystem_nqn, context.subsystem_nqn));
  info.commands_max = from_le(data.maxcmd);
  if ((data.cmic & NVME_CTRL_CMIC_MULTI_ANA_REPORTING) != 0) info.access_groups = from_le(data.nanagrpid);
  info.namespaces_max = from_le(data.nn);
  info.volatile_write_cache = (data.vwc & NVME_CTRL_VWC_PRESENT) != 0;
  const unsigned oncs = from_le(data.oncs);
  info.abilities = {.compare = (oncs & NVME_CTRL_ONCS_COMPARE) != 0,
                    .discard = (oncs & NVME_CTRL_ONCS_DSM) != 0,
                    .write_zeroes = (oncs & NVME_CTRL_ONCS_WRITE_ZEROES) != 0};
  const std::uint64_t capsule = std::uint64_t{from_le(data.ioccsz)} * 16;  // 64 bits: the field may be 2^32 - 1
  if ((from_le(data.sgls) & NVME_CTRL_SGLS_OFFSET) != 0)
    info.in_capsule_max = static_cast<std::uint32_t>(std::min<std::uint64_t>(
        {capsule - sizeof(nvme::SubmissionQueueEntry), context.in_capsule_preferred, kInCapsuleMax}));
  return info;
}

CommandLimits parse_command_limits(const nvme_id_ctrl_nvm& data, nvme::Capabilities capabilities) noexcept {
  CommandLimits limits;
  if (data.wzsl != 0) limits.write_zeroes_max = Bytes(pages(data.wzsl, capabilities, std::uint64_t{1} << 62));
  if (data.dmrl != 0) limits.discard_ranges_max = data.dmrl;
  if (const std::uint32_t blocks = from_le(data.dmrsl); blocks != 0) limits.discard_range_blocks_max = blocks;
  if (const std::uint64_t blocks = from_le(std::uint64_t{data.dmsl}); blocks != 0) limits.discard_blocks_max = blocks;
  return limits;
}

Result<bool> parse_namespace_list(const nvme_ns_list& data, Nsid after, std::vector<Nsid>& out) {
  Nsid last = after;
  for (const auto& field : data.ns) {
    const Nsid nsid(from_le(field));
    if (nsid == Nsid(0)) return false;
    if (nsid <= last || nsid.value() > Uri::kNsidMax)
      return failure(ErrorKind::protocol, fmt::format("the list of namespaces does not ascend: {} comes after {}",
                                                      nsid.value(), last.value()));
    out.push_back(nsid);
    last = nsid;
  }
  return true;
}

Result<Namespace> parse_identify_namespace(const nvme_id_ns& data, Nsid nsid, const ControllerInfo& controller) {
  const auto unusable = [nsid](std::string why) {
    return failure(ErrorKind::unsupported, fmt::format("namespace {} cannot be used: {}", nsid.value(), why));
  };
  const unsigned formats = std::min<unsigned>(data.nlbaf + 1u + data.nulbaf, kLbaFormats);
  const unsigned format =
      (data.flbas & 0xfu) | (formats > 16 ? (data.flbas >> 5 & 3u) << 4 : 0);  // FLBAS: NVM 1.0, 4.1.5.1
  if (format >= formats) return unusable(fmt::format("its LBA format {} is none of the {} it has", format, formats));
  const nvme_lbaf& lbaf = data.lbaf[format];
  const auto shift = lbaf.ds < 63 ? BlockShift::of(std::uint64_t{1} << lbaf.ds) : std::nullopt;
  if (!shift) return unusable(fmt::format("its blocks have 2^{} bytes; 512 to 4096 are supported", lbaf.ds));
  if (from_le(lbaf.ms) != 0)
    return unusable(fmt::format("it has {} bytes of metadata per block; 0 are supported", from_le(lbaf.ms)));
  if ((data.dps & 7) != 0) return unusable(fmt::format("it has protection information of type {}", data.dps & 7));
  const Blocks blocks(from_le(data.nsze));
  if (!shift->bytes(blocks))
    return unusable(fmt::format("its size of {} blocks does not fit 64 bits of bytes", blocks.value()));

  Namespace out;
  out.nsid = nsid;
  out.block_shift = *shift;
  out.blocks = blocks;
  std::copy(std::begin(data.nguid), std::end(data.nguid), out.nguid.begin());
  std::copy(std::begin(data.eui64), std::end(data.eui64), out.eui64.begin());
  out.read_only = (data.nsattr & 1) != 0;
  out.volatile_write_cache = controller.volatile_write_cache;
  out.thin = (data.nsfeat & NVME_NS_FEAT_THIN) != 0;
  out.discarded_reads_zero = (data.dlfeat & NVME_NS_DLFEAT_RB) == NVME_NS_DLFEAT_RB_ALL_0S;
  out.abilities = controller.abilities;
  out.transfer_max = controller.transfer_max;
  out.access_group = from_le(data.anagrpid);
  out.optimal_io = Blocks(1);
  if ((data.nsfeat & NVME_NS_FEAT_IO_OPT) != 0)  // both fields 0's based
    out.optimal_io = Blocks(std::max(from_le(data.nows), from_le(data.npwg)) + std::uint64_t{1});
  return out;
}

bool parse_namespace_descriptors(std::span<const std::byte> list, Namespace& out) noexcept {
  constexpr std::size_t kHeader = 4;
  while (list.size() >= kHeader) {
    const auto type = std::to_integer<unsigned>(list[0]);
    const auto length = std::to_integer<std::size_t>(list[1]);
    if (length == 0) return true;  // the end
    if (length > list.size() - kHeader) return false;
    const auto value = list.subspan(kHeader, length);
    const auto take = [value](auto& into) {
      if (value.size() != sizeof into) return false;
      std::memcpy(&into, value.data(), sizeof into);
      return true;
    };
    std::array<std::uint8_t, 16> uuid{};
    std::uint8_t command_set = 0;
    bool good = true;
    if (type == NVME_NIDT_EUI64)
      good = take(out.eui64);
    else if (type == NVME_NIDT_NGUID)
      good = take(out.nguid);
    else if (type == NVME_NIDT_UUID)
      good = take(uuid);
    else if (type == NVME_NIDT_CSI)
      good = take(command_set);
    if (!good || command_set != 0) return false;
    if (type == NVME_NIDT_UUID) out.uuid = nvme::Uuid(uuid);
    list = list.subspan(kHeader + length);
  }
  return true;
}

}  // namespace rbt::initiator
