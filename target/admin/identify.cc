// Identify (Base 2.0, 5.17; NVM 1.0, 4.1.5).

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "common/nvme/admin_command.h"
#include "common/nvme/text.h"
#include "common/nvme/types.h"
#include "target/admin/admin.h"
#include "target/connection.h"
#include "target/core.h"
#include "target/io/io.h"
#include "target/reactor_context.h"
#include "target/reservation/reservations.h"
#include "target/version.h"

namespace rbt::target {
namespace {

using nvme::Expected;
using nvme::IdentifyCommand;
using nvme::refuse;
using nvme::Status;
using nvme::StatusCode;
using nvme::to_le;

constexpr std::uint8_t kCommandSetNvm = 0;
constexpr std::uint8_t kMdts = 8;  // 2^8 pages of 4 KiB
static_assert(kTransferMax == 4096u << kMdts);
constexpr std::uint16_t kKeepAliveGranularity = 1;     // of 100 ms
constexpr std::uint8_t kFirmwareSlots = 1u << 1 | 1u;  // one slot, read only
constexpr std::uint32_t kSglsPlain = 1u << 0;          // no alignment or granularity asked for
constexpr std::uint32_t kSglsKeyed = 1u << 2;
constexpr std::uint32_t kSglsOffset = 1u << 20;  // in-capsule data
constexpr std::uint8_t kVwcPresent = 1u << 0;
constexpr std::uint8_t kVwcFlushAll = 3u << 1;  // Flush with NSID FFFFFFFFh flushes every namespace
constexpr std::uint8_t kLpaSmartPerNamespace = 1u << 0;
constexpr std::uint8_t kLpaEffects = 1u << 1;
constexpr std::uint8_t kAccessTransitionSeconds = 10;  // ANATT: more than any state is to last on its way to another
constexpr std::uint8_t kLpaOffset = 1u << 2;           // extended data: NUMDU, LPOL, LPOU

template <typename T>
Step answer(Command& command, const T& structure) {
  static_assert(sizeof(T) <= nvme::kIdentifyBytes && std::is_trivially_copyable_v<T>);
  std::fill(command.buffer().begin(), command.buffer().end(), std::byte{0});
  std::memcpy(command.buffer().data(), &structure, sizeof structure);
  return command.finish(Status());
}

// What holds as long as the controller lives, whichever namespaces come and go.
void describe_io_controller(nvme_id_ctrl& id, const Controller& controller) {
  id.cntrltype = NVME_CTRL_CNTRLTYPE_IO;
  // Every listener is a port, every host gets a controller of its own.
  id.cmic = NVME_CTRL_CMIC_MULTI_PORT | NVME_CTRL_CMIC_MULTI_CTRL | NVME_CTRL_CMIC_MULTI_ANA_REPORTING;
  id.anatt = kAccessTransitionSeconds;
  id.anacap = NVME_CTRL_ANACAP_OPT | NVME_CTRL_ANACAP_NON_OPT | NVME_CTRL_ANACAP_INACCESSIBLE |
              NVME_CTRL_ANACAP_PERSISTENT_LOSS | NVME_CTRL_ANACAP_CHANGE | NVME_CTRL_ANACAP_GRPID_NO_CHG;
  id.anagrpmax = to_le(kAccessGroup);
  id.nanagrpid = to_le(std::uint32_t{1});
  id.sqes = 0x66;
  id.cqes = 0x44;
  id.nn = id.mnan = to_le(Subsystem::kNsidMax);
  // A namespace that cannot write zeroes says so itself (Invalid Command Opcode).
  id.oncs = to_le(static_cast<std::uint16_t>(NVME_CTRL_ONCS_COMPARE | NVME_CTRL_ONCS_DSM | NVME_CTRL_ONCS_TIMESTAMP |
                                             NVME_CTRL_ONCS_WRITE_ZEROES | NVME_CTRL_ONCS_VERIFY | NVME_CTRL_ONCS_COPY |
                                             NVME_CTRL_ONCS_SAVE_FEATURES | NVME_CTRL_ONCS_RESERVATIONS));
  id.oacs = to_le(static_cast<std::uint16_t>(NVME_CTRL_OACS_FORMAT));
  id.fna = NVME_CTRL_FNA_NSID_FFFFFFFF;  // one namespace at a time
  id.fuses = to_le(static_cast<std::uint16_t>(NVME_CTRL_FUSES_COMPARE_AND_WRITE));
  id.ocfs = to_le(std::uint16_t{1});  // Copy descriptors of format 0
  id.vwc = static_cast<std::uint8_t>(kVwcFlushAll | (controller.offers_write_cache() ? kVwcPresent : 0));
  id.oaes = to_le(static_cast<std::uint32_t>(NVME_CTRL_OAES_NA | NVME_CTRL_OAES_ANA));
  id.lpa = kLpaSmartPerNamespace | kLpaEffects | kLpaOffset;
  // AWUN, AWUPF, ACWU: 0, one block, whatever namespaces come; NAWUN and NAWUPF may say more.
}

Step identify_controller(Command& command) {
  const Connection& connection = command.connection();
  const Controller& controller = command.controller();
  const Subsystem& subsystem = controller.subsystem();
  const std::uint32_t in_capsule = connection.fabric().in_capsule_bytes();
  nvme_id_ctrl id{};
  nvme::set_padded(id.sn, subsystem.serial());
  nvme::set_padded(id.mn, subsystem.model());
  nvme::set_padded(id.fr, kFirmwareRevision);
  id.mdts = kMdts;
  id.cntlid = to_le(controller.identity().cntlid.value());
  id.ver = to_le(Registers::version().raw);
  id.ctratt = to_le(static_cast<std::uint32_t>(NVME_CTRL_CTRATT_128_ID | NVME_CTRL_CTRATT_TBKAS));
  id.acl = Controller::kAbortsMax - 1;
  id.aerl = Controller::kHeldEventsMax - 1;
  id.frmw = kFirmwareSlots;
  id.elpe = ErrorLog::kEntries - 1;
  id.kas = to_le(kKeepAliveGranularity);
  id.sgls = to_le(kSglsPlain | kSglsKeyed | (in_capsule > 0 ? kSglsOffset : 0));
  std::copy(subsystem.nqn().text().begin(), subsystem.nqn().text().end(), std::begin(id.subnqn));
  id.ioccsz = to_le(static_cast<std::uint32_t>((sizeof(nvme::SubmissionQueueEntry) + in_capsule) / 16));
  id.iorcsz = to_le(static_cast<std::uint32_t>(sizeof(nvme::CompletionQueueEntry) / 16));
  id.msdbd = 1;
  // Of a discovery controller too, although it has no I/O queues: Linux warns if the depth that it would give one (128)
  // is more.
  id.maxcmd = to_le(static_cast<std::uint16_t>(connection.reactor().core().limits.queue_depth_max));
  if (subsystem.kind() == ControllerKind::io) {
    describe_io_controller(id, controller);
  } else {
    id.cntrltype = NVME_CTRL_CNTRLTYPE_DISCOVERY;
    id.lpa = kLpaOffset;
  }
  return answer(command, id);
}

std::uint16_t zero_based(Blocks blocks) {
  return to_le(static_cast<std::uint16_t>(std::clamp<std::uint64_t>(blocks.value(), 1, 65536) - 1));
}

nvme_id_ns describe_namespace(const ServedNamespace& ns) {
  const Geometry& geometry = ns.geometry();
  nvme_id_ns id{};
  id.nsze = id.ncap = id.nuse = to_le(geometry.blocks.value());
  id.nmic = NVME_NS_NMIC_SHARED;
  id.rescap = NVME_NS_RESCAP_WE | NVME_NS_RESCAP_EA | NVME_NS_RESCAP_WERO | NVME_NS_RESCAP_EARO | NVME_NS_RESCAP_WEAR |
              NVME_NS_RESCAP_EAAR | NVME_NS_RESCAP_IEK_13;
  id.fpi = static_cast<std::uint8_t>(NVME_NS_FPI_SUPPORTED | ns.shared().format_left());
  if (ns.shared().reservations().can_persist()) id.rescap |= NVME_NS_RESCAP_PTPL;
  id.anagrpid = to_le(kAccessGroup);
  if (geometry.optimal_io > Blocks(1) || geometry.discard_granularity > Blocks(1)) {
    id.nsfeat |= NVME_NS_FEAT_IO_OPT;
    id.npwg = id.npwa = id.nows = zero_based(geometry.optimal_io);
    id.npdg = id.npda = zero_based(geometry.discard_granularity);
  }
  id.nsfeat |= NVME_NS_FEAT_NATOMIC;
  id.nawun = zero_based(geometry.atomic_write);
  id.nawupf = zero_based(geometry.atomic_write_failing);
  id.nacwu = id.nawun;  // a fused Compare and Write, for whoever reads meanwhile
  // NABSN, NABSPF 0: no boundaries that an atomic write must not cross.
  // DLFEAT: 001b, deallocated blocks read as zeroes; bit 3, Write Zeroes deallocates if it may: where the medium does.
  if (geometry.discard != Ability::none && geometry.discard_reads_zero) id.dlfeat = 1u;
  if (geometry.discard == Ability::native && geometry.write_zeroes == Ability::native) id.dlfeat |= 1u << 3;
  if (geometry.read_only) id.nsattr = NVME_NS_NSATTR_WRITE_PROTECTED;
  if (const auto bytes = geometry.block_shift.bytes(geometry.blocks)) {
    const std::uint64_t le = to_le(bytes->value());
    std::memcpy(id.nvmcap, &le, sizeof le);
  }
  std::memcpy(id.nguid, ns.identity().data(), sizeof id.nguid);
  id.lbaf[0].ds = geometry.block_shift.value();
  const CopyLimits copy = copy_limits(geometry.block_shift);
  id.mssrl = to_le(static_cast<std::uint16_t>(copy.blocks.value()));
  id.mcl = to_le(static_cast<std::uint32_t>(copy.blocks.value()));
  id.msrc = static_cast<std::uint8_t>(copy.ranges - 1);
  return id;
}

// Namespaces beyond the one that was asked for.
Step list_namespaces(Command& command, const IdentifyCommand& wanted) {
  std::array<std::uint32_t, nvme::kIdentifyBytes / 4> list{};
  std::size_t used = 0;
  const NamespaceView& namespaces = command.namespaces();
  for (const ServedNamespace* ns = namespaces.after(wanted.nsid); ns != nullptr && used < list.size();
       ns = namespaces.after(ns->nsid()))
    list[used++] = to_le(ns->nsid().value());
  return answer(command, list);
}

// NGUID and UUID: the same sixteen bytes.
Step list_identifiers(Command& command, const ServedNamespace& ns) {
  constexpr std::size_t kHeader = 4;
  std::array<std::byte, 2 * (kHeader + sizeof(Identity))> list{};
  std::size_t at = 0;
  for (const auto type : {NVME_NIDT_NGUID, NVME_NIDT_UUID}) {
    list[at] = static_cast<std::byte>(type);
    list[at + 1] = static_cast<std::byte>(sizeof(Identity));
    std::memcpy(&list[at + kHeader], ns.identity().data(), sizeof(Identity));
    at += kHeader + sizeof(Identity);
  }
  return answer(command, list);
}

using Nothing = std::array<std::byte, nvme::kIdentifyBytes>;

}  // namespace

Expected<Plan> plan_identify(Command& command) {
  const IdentifyCommand wanted = nvme::parse_identify(command.sqe());
  const Subsystem& subsystem = command.controller().subsystem();
  const Plan plan{.memory = Plan::Memory::buffer, .bytes = nvme::kIdentifyBytes};
  if (wanted.cns == NVME_IDENTIFY_CNS_CTRL) return plan;
  if (subsystem.kind() == ControllerKind::discovery) return command.blame(40), refuse(StatusCode::invalid_field);
  switch (wanted.cns) {
    case NVME_IDENTIFY_CNS_CSI_NS:
      if (wanted.command_set != kCommandSetNvm) return command.blame(47), refuse(StatusCode::invalid_field);
      [[fallthrough]];
    case NVME_IDENTIFY_CNS_ALLOCATED_NS:
    case NVME_IDENTIFY_CNS_NS:
      // One that exists not now but could is described by zeroes; FFFFFFFFh needs namespace management.
      if (wanted.nsid == Nsid(0) || wanted.nsid.value() > Subsystem::kNsidMax)
        return refuse(StatusCode::invalid_namespace);
      return plan;
    case NVME_IDENTIFY_CNS_CSI_NS_ACTIVE_LIST:
      if (wanted.command_set != kCommandSetNvm) return command.blame(47), refuse(StatusCode::invalid_field);
      [[fallthrough]];
    case NVME_IDENTIFY_CNS_ALLOCATED_NS_LIST:
    case NVME_IDENTIFY_CNS_NS_ACTIVE_LIST:
      if (wanted.nsid.value() >= 0xfffffffe) return refuse(StatusCode::invalid_namespace);
      return plan;
    case NVME_IDENTIFY_CNS_NS_DESC_LIST:
      if (command.namespaces().find(wanted.nsid) == nullptr) return refuse(StatusCode::invalid_namespace);
      return plan;
    case NVME_IDENTIFY_CNS_CSI_CTRL:
      if (wanted.command_set != kCommandSetNvm) return command.blame(47), refuse(StatusCode::invalid_field);
      return plan;
    default: return command.blame(40), refuse(StatusCode::invalid_field);
  }
}

Step identify(Command& command) {
  const IdentifyCommand wanted = nvme::parse_identify(command.sqe());
  const ServedNamespace* const ns = command.namespaces().find(wanted.nsid);
  switch (wanted.cns) {
    case NVME_IDENTIFY_CNS_CTRL: return identify_controller(command);
    // Whatever is allocated here is active: what a host does not see (hosts.h) does not exist for it.
    case NVME_IDENTIFY_CNS_ALLOCATED_NS:
    case NVME_IDENTIFY_CNS_NS:
      return ns != nullptr ? answer(command, describe_namespace(*ns)) : answer(command, Nothing{});
    case NVME_IDENTIFY_CNS_ALLOCATED_NS_LIST:
    case NVME_IDENTIFY_CNS_NS_ACTIVE_LIST:
    case NVME_IDENTIFY_CNS_CSI_NS_ACTIVE_LIST: return list_namespaces(command, wanted);
    case NVME_IDENTIFY_CNS_NS_DESC_LIST:  // it may have gone since the command came
      return ns != nullptr ? list_identifiers(command, *ns)
                           : command.finish(Status::permanent(StatusCode::invalid_namespace));
    case NVME_IDENTIFY_CNS_CSI_CTRL: {
      nvme_id_ctrl_nvm id{};
      id.vsl = kMdts;  // no other limits besides MDTS and the specification's own
      return answer(command, id);
    }
    // No protection information.
    default: return answer(command, Nothing{});
  }
}

}  // namespace rbt::target
