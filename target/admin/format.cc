#include "target/admin/format.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "common/nvme/admin_command.h"
#include "target/admin/admin.h"
#include "target/connection.h"
#include "target/core.h"
#include "target/io/io.h"
#include "target/reactor_context.h"
#include "target/status.h"

namespace rbt::target {

using nvme::Expected;
using nvme::refuse;
using nvme::Status;
using nvme::StatusCode;

namespace {

// As much as one Write Zeroes, so that other work of the reactor comes in between.
constexpr std::uint64_t kPieceBlocks = 65536;

}  // namespace

Expected<Plan> plan_format(Command& command) {
  const auto wanted = nvme::parse_format(command.sqe());
  if (!wanted) return command.blame(41), tl::unexpected(wanted.error());
  if (wanted->nsid == nvme::kNsidAll) return command.blame(4), refuse(StatusCode::invalid_field);  // FNA
  const auto ns = find_writable(command);
  if (!ns) return tl::unexpected(ns.error());
  // A store has one block size for life, no metadata and no protection information.
  if (wanted->format != 0 || wanted->protection != 0) return command.blame(40), refuse(StatusCode::invalid_format);
  if (wanted->erase == nvme::Erase::cryptographic) return command.blame(41), refuse(StatusCode::invalid_field);
  if ((*ns)->geometry().write_zeroes == Ability::none) return refuse(StatusCode::operation_denied);
  return Plan{.ns = *ns};
}

Step format_nvm(Command& command) {
  ServedNamespace& ns = *command.plan().ns;
  if (!ns.shared().begin_format()) return command.finish(StatusCode::format_in_progress);
  ReactorContext& here = command.connection().reactor();
  here.begin_format(std::make_unique<FormatJob>(here, ns, here.later_answer(command)));
  return Step::held;
}

FormatJob::FormatJob(ReactorContext& home, ServedNamespace& ns, std::function<void(Status)> answer)
    : home_(home),
      ns_(ns),
      answer_(std::move(answer)),
      missing_(home.core().reactors.size()),
      blocks_(ns.geometry().blocks) {
  home_.core().gate.enter();
  ns_.enter();
}

void FormatJob::start() {
  home_.core().logger.info("{}: is being formatted", ns_.shared().who());
  const Namespace& ns = ns_.shared();
  for (const auto& each : home_.core().reactors)
    each->post([this, reactor = each.get(), &ns] { reactor->when_quiet(ns, [this] { arrive(); }); });
}

void FormatJob::arrive() {
  if (missing_.fetch_sub(1, std::memory_order_acq_rel) == 1) home_.post([this] { erase_next(); });
}

void FormatJob::erase_next() {
  if (home_.core().draining.load(std::memory_order_relaxed)) return finish(StatusCode::command_interrupted);
  if (ns_.leaving()) return finish(Status::permanent(StatusCode::invalid_namespace));
  const std::uint64_t left = blocks_.value() - at_.value();
  if (left == 0 && flushing_) return finish(Status());
  Progress progress;
  if (left == 0) {
    flushing_ = true;
    progress = ns_.queue().flush(*this);
  } else {
    ns_.shared().set_format_left(static_cast<std::uint8_t>(std::max<std::uint64_t>(left * 100 / blocks_.value(), 1)));
    const BlockRange piece{at_, Blocks(std::min(left, kPieceBlocks))};
    at_ = piece.end();
    progress = ns_.queue().write_zeroes(piece, StoreQueue::Deallocate::yes, Durability::cached, *this);
  }
  if (!progress.pending) on_store_done(progress.status);
}

void FormatJob::on_store_done(StoreStatus status) {
  if (status != StoreStatus::ok) return finish(status_of(status));
  home_.post([this] { erase_next(); });
}

void FormatJob::finish(Status status) {
  Namespace& ns = ns_.shared();
  const std::string who = ns.who();
  status.ok() ? home_.core().logger.info("{}: has been formatted", who)
              : home_.core().logger.warning("{}: formatting it ended with {}; what its blocks hold is anybody's guess",
                                            who, nvme::describe(status));
  ns.set_format_left(0);
  for (const auto& each : home_.core().reactors)
    each->post([reactor = each.get(), &subsystem = ns.subsystem(), nsid = ns.nsid()] {
      reactor->note_change(subsystem, nsid);
    });
  answer_(status);
  home_.end_format(*this);
  ns_.leave();
  home_.core().gate.leave();
}

}  // namespace rbt::target
