// Fused pairs (Base 2.0, 3.4.2; NVM 1.0, 3.3), and turns: what a command does for them.
//
// The first half, a Compare, waits for the very next command of its queue. If that is its second half, a Write of the same
// blocks, the Write does everything for both: fetches the data of both, waits for its turn, compares, writes; then both are
// answered, the first one first. If it is not, the first half has nobody to wait for.

#include <utility>

#include "common/check.h"
#include "target/command.h"
#include "target/connection.h"
#include "target/io/io.h"
#include "target/opcodes.h"

namespace rbt::target {

using nvme::Expected;
using nvme::Fuse;
using nvme::refuse;
using nvme::Status;
using nvme::StatusCode;

namespace {

constexpr Operation kCompareAndWrite{QueueKind::io,
                                     static_cast<std::uint8_t>(nvme::IoOpcode::write),
                                     "Compare and Write",
                                     plan_write,
                                     compare_and_write,
                                     Admission{},
                                     0,
                                     true,
                                     Counted::write,
                                     BlockAccess::write,
                                     Fuse::second};

}  // namespace

// ---- Pairs

/// `before`: what has come before on this queue. False: this is a first half, and waits.
bool Command::fuse(const FusedFirst& before, Expected<Plan>& plan) {
  if (sqe_.fuse() == Fuse::second) {
    join(before, plan);
    return true;
  }
  if (before.command != nullptr) before.command->complete_first(StatusCode::fused_missing);
  if (sqe_.fuse() != Fuse::first) return true;
  if (!plan) {
    connection_->note_failed_first();
    return true;
  }
  plan_ = *plan;
  hold(plan_.ns);
  advance(CommandState::awaiting_second);
  connection_->await_second(*this);
  return false;
}

/// This is a second half, and becomes the whole pair; or `plan` says why not, and the first one has been answered.
void Command::join(const FusedFirst& before, Expected<Plan>& plan) {
  Command* const first = before.command;
  if (first == nullptr) {
    if (plan) plan = tl::unexpected(Status(before.failed ? StatusCode::fused_failed : StatusCode::fused_missing));
    return;
  }
  if (!plan) return first->complete_first(StatusCode::fused_failed);
  if (plan->ns != first->plan_.ns || plan->range != first->plan_.range) {
    plan = refuse(StatusCode::invalid_field);
    return first->complete_first(plan.error());
  }
  if (plan->range.count > plan->ns->geometry().atomic_write) {  // NACWU
    plan = tl::unexpected(Status(StatusCode::fused_failed));
    return first->complete_first(Status::permanent(StatusCode::atomic_write_unit_exceeded));
  }
  first_ = first;
  first->hold(nullptr);  // this one does
  operation_ = &kCompareAndWrite;
  plan->memory = Plan::Memory::side_buffer;
  plan->extra_bytes = plan->bytes;
  plan->changes = Plan::Changes::nothing;  // it takes its turn when the data of both is there
}

void Command::complete_first(Status status) {
  check(state_ == CommandState::awaiting_second, "only a first half is completed as one");
  status_ = status;
  respond();
}

/// Before its own answer. Whatever goes wrong until the blocks are compared is the first half's, and fails the second.
void Command::settle_first() {
  Command* const first = std::exchange(first_, nullptr);
  if (first == nullptr) return;
  first->complete_first(compared_ ? Status() : std::exchange(status_, StatusCode::fused_failed));
}

// ---- Turns

/// It is about to change blocks. False: on_turn() comes.
bool Command::enter_blocks() {
  if (plan_.changes == Plan::Changes::nothing) return true;
  if (plan_.ns->goes_freely()) {
    plan_.ns->enter_freely();
    turn_ = Turn::freely;
    return true;
  }
  // In pieces: a turn for each.
  return plan_.changes == Plan::Changes::pieces || !take_turn(plan_.range).has_value();
}

std::optional<Step> Command::take_turn(BlockRange range) {
  if (turn_ == Turn::freely) return std::nullopt;
  check(turn_ == Turn::none, "one turn at a time");
  claim_ = TurnClaim{};
  claim_.command = this;
  claim_.range = range;
  claim_.intent = Intent::write;
  if (plan_.ns->take_turn(claim_)) {
    turn_ = Turn::taken;
    return std::nullopt;
  }
  store_call_ = StoreCall::turn;
  return Step::pending;
}

std::optional<Step> Command::await_turns() {
  if (plan_.ns->await_turns(*this)) return std::nullopt;
  store_call_ = StoreCall::turns;
  return Step::pending;
}

void Command::on_turn() {
  if (store_call_ == StoreCall::turn) turn_ = Turn::taken;
  on_store_done(StoreStatus::ok);
}

void Command::end_turn() noexcept {
  switch (std::exchange(turn_, Turn::none)) {
    case Turn::none: return;
    case Turn::freely: return plan_.ns->leave_freely();
    case Turn::taken: return plan_.ns->end_turn(claim_);
  }
}

}  // namespace rbt::target
