#pragma once
// The commands that are served: one table, used to dispatch and to answer the effects log.

#include <cstdint>
#include <span>
#include <string_view>

#include "common/nvme/capsule.h"
#include "common/nvme/status.h"
#include "target/command.h"
#include "target/reservation/state.h"

namespace rbt::target {

enum class QueueKind : std::uint8_t { admin, io, fabrics };

/// Where and when a command is allowed.
struct Admission {
  bool before_connect = false;         ///< Connect alone
  bool while_disabled = false;         ///< Property and authentication commands, and Connect
  bool on_io_queue = true;             ///< of fabrics commands
  bool before_authentication = false;  ///< where the host has to prove itself first: nothing else is
  bool on_discovery = false;           ///< of admin commands: discovery controllers have it, too (Base 2.0, figure 28)
};

/// What a command is for its namespace's counters, if it succeeds (NVM 1.0, 4.1.4.2: SMART counts Compare and Verify with
/// the reads). Its blocks are Plan::range.
enum class Counted : std::uint8_t { other, read, write };

struct Operation {
  QueueKind kind;
  std::uint8_t opcode;  ///< fabrics: the type
  std::string_view name;
  /// Judges the entry: what it needs, or why it is refused.
  nvme::Expected<Plan> (*plan)(Command& command);
  /// Carries it out, its data (if it sends any) in memory. Called again when the store is done after Step::pending, with
  /// progress() as the operation left it; never after an error of the store.
  Step (*execute)(Command& command);
  Admission admission;
  std::uint32_t effects;  ///< of the Commands Supported and Effects log; 0: not listed there (fabrics)
  bool repeat = false;    ///< execute() again after Step::pending: there may be more to do
  Counted counted = Counted::other;
  BlockAccess access = BlockAccess::none;  ///< what reservations of others may forbid
  nvme::Fuse fuse = nvme::Fuse::none;      ///< which half of a fused pair it may be
};

/// Null: not served.
[[nodiscard]] const Operation* find_operation(QueueKind kind, std::uint8_t opcode) noexcept;
[[nodiscard]] std::span<const Operation> operations() noexcept;

}  // namespace rbt::target
