#include "target/opcodes.h"

#include <array>

#include "common/nvme/recovery.h"
#include "common/nvme/types.h"
#include "target/admin/admin.h"
#include "target/fabrics/fabrics.h"
#include "target/io/io.h"

namespace rbt::target {
namespace {

using nvme::AdminOpcode;
using nvme::FabricsType;
using nvme::IoOpcode;

constexpr std::uint32_t kSupported = NVME_CMD_EFFECTS_CSUPP;
constexpr std::uint32_t kChangesBlocks = NVME_CMD_EFFECTS_CSUPP | NVME_CMD_EFFECTS_LBCC;

constexpr std::uint32_t kAloneInItsNamespace = 1u << 16;  // CSE

constexpr Admission kConnect{.before_connect = true, .while_disabled = true, .on_discovery = true};
constexpr Admission kAuthentication{.while_disabled = true, .before_authentication = true};
constexpr Admission kProperty{.while_disabled = true, .on_io_queue = false, .on_discovery = true};
constexpr Admission kEveryController{.on_discovery = true};
constexpr Admission kIoController{};

constexpr Operation fabrics(FabricsType type, std::string_view name, nvme::Expected<Plan> (*plan)(Command&),
                            Step (*execute)(Command&), Admission admission) {
  return {QueueKind::fabrics, static_cast<std::uint8_t>(type), name, plan, execute, admission, 0};
}
constexpr Operation admin(AdminOpcode opcode, std::string_view name, nvme::Expected<Plan> (*plan)(Command&),
                          Step (*execute)(Command&), Admission admission) {
  return {QueueKind::admin, static_cast<std::uint8_t>(opcode), name, plan, execute, admission, kSupported};
}
constexpr Operation format(AdminOpcode opcode, std::string_view name, nvme::Expected<Plan> (*plan)(Command&),
                           Step (*execute)(Command&), Admission admission) {
  Operation operation = admin(opcode, name, plan, execute, admission);
  operation.access = BlockAccess::write;
  operation.effects = kChangesBlocks | NVME_CMD_EFFECTS_NCC | kAloneInItsNamespace;
  return operation;
}
/// What sets I/O commands apart: Operation's.
struct Io {
  BlockAccess access;
  std::uint32_t effects = kSupported;
  bool repeat = false;
  Counted counted = Counted::other;
  nvme::Fuse fuse = nvme::Fuse::none;
};
constexpr Operation io(IoOpcode opcode, std::string_view name, nvme::Expected<Plan> (*plan)(Command&),
                       Step (*execute)(Command&), Io io) {
  Operation operation{QueueKind::io, static_cast<std::uint8_t>(opcode), name, plan, execute, kIoController, io.effects};
  operation.access = io.access;
  operation.repeat = io.repeat;
  operation.counted = io.counted;
  operation.fuse = io.fuse;
  return operation;
}

constexpr std::array kOperations = {
    fabrics(FabricsType::property_set, "Property Set", plan_property, property_set, kProperty),
    fabrics(FabricsType::connect, "Connect", plan_connect, connect, kConnect),
    fabrics(FabricsType::property_get, "Property Get", plan_property, property_get, kProperty),
    fabrics(FabricsType::authentication_send, "Authentication Send", plan_authentication, authentication_send,
            kAuthentication),
    fabrics(FabricsType::authentication_receive, "Authentication Receive", plan_authentication, authentication_receive,
            kAuthentication),

    admin(AdminOpcode::get_log_page, "Get Log Page", plan_get_log_page, get_log_page, kEveryController),
    admin(AdminOpcode::identify, "Identify", plan_identify, identify, kEveryController),
    admin(AdminOpcode::abort, "Abort", plan_nothing, abort_command, kEveryController),
    admin(AdminOpcode::set_features, "Set Features", plan_set_features, set_features, kEveryController),
    admin(AdminOpcode::get_features, "Get Features", plan_get_features, get_features, kEveryController),
    admin(AdminOpcode::async_event_request, "Asynchronous Event Request", plan_nothing, async_event_request,
          kEveryController),
    admin(AdminOpcode::keep_alive, "Keep Alive", plan_nothing, keep_alive, kEveryController),
    format(AdminOpcode::format_nvm, "Format NVM", plan_format, format_nvm, kIoController),
    admin(nvme::kFenceOpcode, "Fence", plan_nothing, fence, kIoController),

    io(IoOpcode::flush, "Flush", plan_flush, flush, {.access = BlockAccess::write, .repeat = true}),
    io(IoOpcode::write, "Write", plan_write, write,
       {.access = BlockAccess::write,
        .effects = kChangesBlocks,
        .counted = Counted::write,
        .fuse = nvme::Fuse::second}),
    io(IoOpcode::read, "Read", plan_read, read, {.access = BlockAccess::read, .counted = Counted::read}),
    io(IoOpcode::compare, "Compare", plan_compare, compare,
       {.access = BlockAccess::read, .counted = Counted::read, .fuse = nvme::Fuse::first}),
    io(IoOpcode::write_zeroes, "Write Zeroes", plan_write_zeroes, write_zeroes,
       {.access = BlockAccess::write, .effects = kChangesBlocks}),
    io(IoOpcode::dataset_management, "Dataset Management", plan_dataset_management, dataset_management,
       {.access = BlockAccess::write, .effects = kChangesBlocks, .repeat = true}),
    io(IoOpcode::verify, "Verify", plan_verify, verify, {.access = BlockAccess::read, .counted = Counted::read}),
    io(IoOpcode::copy, "Copy", plan_copy, copy,
       {.access = BlockAccess::write, .effects = kChangesBlocks, .repeat = true, .counted = Counted::write}),

    // What these may do, they judge themselves.
    io(IoOpcode::reservation_register, "Reservation Register", plan_reservation_register, reservation_register,
       {.access = BlockAccess::none}),
    io(IoOpcode::reservation_report, "Reservation Report", plan_reservation_report, reservation_report,
       {.access = BlockAccess::none}),
    io(IoOpcode::reservation_acquire, "Reservation Acquire", plan_reservation_acquire, reservation_acquire,
       {.access = BlockAccess::none}),
    io(IoOpcode::reservation_release, "Reservation Release", plan_reservation_release, reservation_release,
       {.access = BlockAccess::none}),
};

// Opcode to place in kOperations, plus one; 0: not served.
using Lookup = std::array<std::array<std::uint8_t, 256>, 3>;
constexpr Lookup build_lookup() noexcept {
  Lookup lookup{};
  for (std::size_t i = 0; i < kOperations.size(); ++i)
    lookup[static_cast<std::size_t>(kOperations[i].kind)][kOperations[i].opcode] = static_cast<std::uint8_t>(i + 1);
  return lookup;
}
constexpr Lookup kLookup = build_lookup();

}  // namespace

const Operation* find_operation(QueueKind kind, std::uint8_t opcode) noexcept {
  const std::uint8_t place = kLookup[static_cast<std::size_t>(kind)][opcode];
  return place == 0 ? nullptr : &kOperations[place - 1u];
}

std::span<const Operation> operations() noexcept {
  return kOperations;
}

}  // namespace rbt::target
