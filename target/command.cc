#include "target/command.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "common/nvme/fabrics.h"
#include "target/connection.h"
#include "target/core.h"
#include "target/opcodes.h"
#include "target/reactor_context.h"
#include "target/status.h"

namespace rbt::target {

using nvme::InCapsuleData;
using nvme::KeyedData;
using nvme::refuse;
using nvme::Status;
using nvme::StatusCode;

void Command::bind(Connection& connection, std::uint32_t index, std::span<std::byte> response) noexcept {
  connection_ = &connection;
  index_ = index;
  response_ = response;
}

// ---- The life of a command: receive, decode, validate, acquire, pull, commit, push, respond ----

void Command::start(const transport::ReceivedMessage& message) {
  message_ = message;
  owns_message_ = true;
  owns_cid_ = false;
  compared_ = false;
  stop_ = StatusCode::success;
  blamed_ = kNotSaid;
  ++ticket_;
  fetched_ = Fetched::nothing;
  status_ = Status();
  result_ = 0;
  progress_ = 0;
  operation_ = nullptr;
  data_ = nvme::NoData{};
  plan_ = Plan{};
  transfer_ = Transfer{};
  advance(CommandState::decoding);

  const auto sqe = nvme::parse_command_capsule(message.bytes);
  if (!sqe) {  // no CID to answer to
    connection_->fail(fmt::format("a command capsule of {} bytes came, 64 is the least", message.bytes.size()));
    return;
  }
  sqe_ = *sqe;
  const FusedFirst before = connection_->take_first();
  auto plan = decode();
  // Whatever is in the capsule besides in-capsule data has been read.
  if (!plan || !std::holds_alternative<InCapsuleData>(data_)) release_message();
  if (!fuse(before, plan)) return;
  if (!plan) {
    status_ = plan.error();
    respond();
    return;
  }
  plan_ = *plan;
  hold(plan_.ns);
  acquire();
}

nvme::Expected<Plan> Command::decode() {
  owns_cid_ = connection_->take_cid(sqe_.command_id());
  if (!owns_cid_) return refuse(StatusCode::command_id_conflict);
  if (!sqe_.reserved_flags_clear()) return blame(1, 2), refuse(StatusCode::invalid_field);
  if (!sqe_.uses_sgl()) blame(1, 6);
  const auto data = nvme::parse_data_pointer(sqe_, message_.bytes.size(), {connection_->fabric().in_capsule_bytes()});
  if (!data) return tl::unexpected(data.error());
  data_ = *data;

  Controller* const controller = connection_->controller();
  if (controller != nullptr && connection_->authenticated()) controller->note_traffic();
  const bool admin_queue = connection_->wanted().qid == Qid(0);
  if (sqe_.is_fabrics()) {
    operation_ = find_operation(QueueKind::fabrics, static_cast<std::uint8_t>(sqe_.fabrics_type()));
  } else {
    operation_ = find_operation(admin_queue ? QueueKind::admin : QueueKind::io, sqe_.opcode);
  }
  if (controller == nullptr && (operation_ == nullptr || !operation_->admission.before_connect))
    return refuse(StatusCode::command_sequence_error);
  // Nothing is learned before that, not even what there is.
  if (!connection_->authenticated() && (operation_ == nullptr || !operation_->admission.before_authentication))
    return refuse(StatusCode::authentication_required);
  if (operation_ == nullptr) return refuse(StatusCode::invalid_opcode);
  if (sqe_.fuse() != nvme::Fuse::none && sqe_.fuse() != operation_->fuse)
    return blame(1), refuse(StatusCode::invalid_field);
  const Admission& admission = operation_->admission;
  if (!admin_queue && !admission.on_io_queue) return refuse(StatusCode::invalid_opcode);
  if (controller != nullptr) {
    if (admission.before_connect) return refuse(StatusCode::command_sequence_error);  // a second Connect
    if (!admission.while_disabled && !controller->ready()) return refuse(StatusCode::command_sequence_error);
    if (controller->kind() == ControllerKind::discovery && !admission.on_discovery)
      return refuse(StatusCode::invalid_opcode);
  }

  if (!admin_queue && !sqe_.is_fabrics())
    if (const Status status = nvme::access_status(connection_->port().access()); !status.ok())
      return tl::unexpected(status);
  auto plan = operation_->plan(*this);
  if (!plan) return plan;
  if (operation_->access != BlockAccess::none)
    if (const Status status = judge_access(*plan); !status.ok()) return tl::unexpected(status);
  const std::uint32_t offered = nvme::length(data_);
  if (offered < plan->bytes || (offered > plan->bytes && !plan->more_tolerated))
    return refuse(StatusCode::sgl_invalid_length);
  return plan;
}

/// Success if neither a reservation nor a Format NVM is against it: the one place where that is decided, for every command that
/// touches blocks. What was admitted before a reservation came is carried out, unless Preempt and Abort stops it.
Status Command::judge_access(const Plan& plan) const noexcept {
  const nvme::HostId& host = controller().identity().host_id;
  const auto judge = [&](const ServedNamespace& ns) -> Status {
    if (!ns.admits(host, operation_->access)) return Status::permanent(StatusCode::reservation_conflict);
    if (ns.shared().format_left() != 0) return StatusCode::format_in_progress;
    return {};
  };
  if (plan.ns != nullptr) return judge(*plan.ns);
  // Flush of all of them
  for (const auto* each = namespaces().after(Nsid(0)); each; each = namespaces().after(each->nsid()))
    if (const Status status = judge(*each); !status.ok()) return status;
  return {};
}

void Command::acquire() {
  advance(CommandState::acquiring);
  // First what is asked for with nothing in hand, then the turn, then what a store may have to wait for.
  if (plan_.memory == Plan::Memory::side_buffer)
    on_buffer_available();
  else if (enter_blocks())
    find_memory();
}

void Command::find_memory() {
  if (stopped()) return;
  switch (plan_.memory) {
    case Plan::Memory::none: acquired(StoreStatus::ok); return;
    case Plan::Memory::buffer:
    case Plan::Memory::side_buffer: on_buffer_available(); return;
    case Plan::Memory::blocks: break;
  }
  lease_ = Lease{};
  lease_.domain = &connection_->domain();
  lease_.range = plan_.range;
  lease_.path_mtu = connection_->limits().path_mtu;
  lease_.intent = nvme::data_direction(sqe_) == nvme::Direction::to_host ? Intent::read : Intent::write;
  const Progress progress = plan_.ns->queue().acquire(lease_, *this);
  if (progress.pending) {
    store_call_ = StoreCall::acquire;
    return;
  }
  owns_lease_ = progress.status == StoreStatus::ok;
  acquired(progress.status);
}

void Command::on_buffer_available() {
  if (connection_->ended()) return;
  const bool side = plan_.memory == Plan::Memory::side_buffer;
  buffer_ = pool().allocate(plan_.bytes + plan_.extra_bytes);
  if (buffer_.empty()) {
    pool().wait(*this);
    return;
  }
  const std::uint32_t lkey = side ? connection_->side_buffers_lkey() : connection_->buffers_lkey();
  buffer_segment_ = {buffer_.data(), plan_.bytes, lkey};
  extra_segment_ = {extra().data(), plan_.extra_bytes, lkey};
  if (!side || enter_blocks()) acquired(StoreStatus::ok);
}

void Command::acquired(StoreStatus status) {
  if (status != StoreStatus::ok) {
    status_ = status_of(status);
    respond();
    return;
  }
  if (!stopped()) pull();
}

void Command::pull() {
  if (first_ != nullptr && fetched_ == Fetched::nothing) {
    fetched_ = Fetched::firsts;
    if (fetch(*first_, {&extra_segment_, 1})) return;
  }
  if (fetched_ != Fetched::own) {
    fetched_ = Fetched::own;
    const bool comes_here = plan_.bytes > 0 && nvme::data_direction(sqe_) == nvme::Direction::to_controller;
    if (comes_here && fetch(*this, segments())) return;
  }
  execute();
}

/// True: the data of `from`, which is this command or its first half, is on its way, and pull() goes on when it is there.
bool Command::fetch(Command& from, std::span<const transport::Segment> to) {
  if (const auto* keyed = std::get_if<KeyedData>(&from.data_)) {
    transfer_ = Transfer(to, plan_.bytes, keyed->address, keyed->key);
    advance(CommandState::awaiting_read_credit);
    connection_->request_read_credit(*this);
    return true;
  }
  if (const auto* in_capsule = std::get_if<InCapsuleData>(&from.data_)) {
    copy_in(from.message_.bytes.subspan(sizeof(nvme::SubmissionQueueEntry) + in_capsule->offset, plan_.bytes), to);
    from.release_message();
  }
  return false;
}

// The one copy of in-capsule data: at 4 KiB it is cheaper than a round trip for an RDMA READ.
void Command::copy_in(std::span<const std::byte> from, std::span<const transport::Segment> to) noexcept {
  for (const transport::Segment& segment : to) {
    const std::size_t length = std::min<std::size_t>(segment.length, from.size());
    std::memcpy(segment.data, from.data(), length);
    from = from.subspan(length);
  }
  check(from.empty(), "a lease holds all of its range");
  if (plan_.memory == Plan::Memory::blocks) connection_->reactor().count_copy(plan_.bytes);
}

bool Command::post_reads() {
  while (!transfer_.done()) {
    const std::uint32_t credits = std::min(connection_->read_credits(), connection_->send_credits());
    if (credits == 0) return false;
    Batch batch;
    Transfer rest = transfer_;
    rest.fill(batch, transport::Opcode::rdma_read, connection_->limits(), credits);
    if (!connection_->post(*this, batch, batch.size())) return false;
    posted_sends_ += batch.size();
    posted_reads_ += batch.size();
    transfer_ = rest;
  }
  advance(CommandState::pulling);
  return true;
}

void Command::execute() {
  release_message();
  advance(CommandState::executing);
  if (stopped()) return;
  executed(operation_->execute(*this));
}

void Command::executed(Step step) {
  switch (step) {
    case Step::pending: return;
    case Step::held: advance(CommandState::held); return;
    case Step::done: respond(); return;
  }
}

void Command::respond() {
  release_message();  // before the response: the host may send its next command as soon as it has this one's
  settle_first();
  account();
  if (sends_data()) {
    const auto& keyed = std::get<KeyedData>(data_);
    transfer_ = Transfer(segments(), plan_.bytes, keyed.address, keyed.key);
  } else {
    transfer_ = Transfer{};
    release_memory();
  }
  advance(CommandState::awaiting_send_credit);
  connection_->request_send_credit(*this);
}

bool Command::post_response() {
  while (true) {
    const std::uint32_t credits = connection_->send_credits();
    if (credits == 0) return false;
    Batch batch;
    Transfer rest = transfer_;
    rest.fill(batch, transport::Opcode::rdma_write, connection_->limits(), credits);
    const bool with_response =
        rest.done() && batch.size() < credits && batch.requests_free() > 0 && batch.segments_free() > 0;
    if (with_response) {
      const auto* keyed = std::get_if<KeyedData>(&data_);
      const bool invalidate = keyed != nullptr && keyed->invalidate == nvme::RemoteInvalidate::yes;
      auto& send = batch.add(invalidate ? transport::Opcode::send_with_invalidate : transport::Opcode::send);
      if (invalidate) send.rkey = keyed->key;
      write_response();
      batch.add_segment({response_.data(), static_cast<std::uint32_t>(response_.size()), connection_->buffers_lkey()});
    }
    if (!connection_->post(*this, batch, 0)) return false;
    posted_sends_ += batch.size();
    transfer_ = rest;
    if (with_response) break;
  }
  // The host may use the CID again before we hear of the SEND's completion.
  if (owns_cid_) connection_->give_cid(sqe_.command_id());
  owns_cid_ = false;
  connection_->count_response();
  advance(CommandState::responding);
  return true;
}

void Command::on_posted_done(std::uint32_t sends, std::uint32_t reads) {
  posted_sends_ -= sends;
  posted_reads_ -= reads;
  if (posted_sends_ > 0) return;
  if (state_ == CommandState::pulling) {
    pull();
  } else if (state_ == CommandState::responding) {
    finished();
  }
}

void Command::finished() {
  release_memory();
  hold(nullptr);
  advance(CommandState::free);
  connection_->reuse(*this);
}

// ---- What comes from outside ----

void Command::on_store_done(StoreStatus status) {
  const StoreCall call = std::exchange(store_call_, StoreCall::none);
  const bool leased = call == StoreCall::acquire || call == StoreCall::take_blocks;
  if (leased && status == StoreStatus::ok) owns_lease_ = true;
  if (state_ == CommandState::abandoned) {
    release_memory();
    hold(nullptr);
    advance(CommandState::free);
    connection_->forget(*this);
    return;
  }
  if (connection_->ended()) return;  // abandon() comes
  if (state_ == CommandState::acquiring) {
    call == StoreCall::turn ? find_memory() : acquired(status);
  } else if ((call == StoreCall::turn || call == StoreCall::turns) && stopped()) {
    return;
  } else if (status == StoreStatus::ok && (operation_->repeat || call != StoreCall::execute)) {
    executed(operation_->execute(*this));
  } else {
    executed(finish(status_of(status)));
  }
}

void Command::complete_held(Status status, std::uint64_t result) {
  check(state_ == CommandState::held, "only a held command is completed from outside");
  result_ = result;
  status_ = status;
  respond();
}

bool Command::abandon() {
  if (posted_reads_ > 0) connection_->reactor().count_cut_off();
  advance(CommandState::abandoned);
  pool().cancel(*this);
  connection_->return_credits(std::exchange(posted_sends_, 0), std::exchange(posted_reads_, 0));
  release_message();
  if (store_call_ != StoreCall::none) return true;
  release_memory();
  hold(nullptr);
  advance(CommandState::free);
  return false;
}

// ---- Small things ----

Controller& Command::controller() const noexcept {
  return *connection_->controller();
}

const NamespaceView& Command::namespaces() const noexcept {
  return connection_->namespaces();
}

void Command::hold(ServedNamespace* ns) noexcept {
  if (ns != nullptr) ns->enter();
  if (ServedNamespace* const before = std::exchange(held_, ns)) before->leave();
}

Step Command::store(Progress progress) noexcept {
  if (!progress.pending) return finish(status_of(progress.status));
  store_call_ = StoreCall::execute;
  return Step::pending;
}

std::optional<Step> Command::take_blocks(BlockRange range, Intent intent) {
  lease_ = Lease{};  // no domain, no path: nothing but the CPU comes there
  lease_.range = range;
  lease_.intent = intent;
  const Progress progress = plan_.ns->queue().acquire(lease_, *this);
  if (progress.pending) {
    store_call_ = StoreCall::take_blocks;
    return Step::pending;
  }
  if (progress.status != StoreStatus::ok) return finish(status_of(progress.status));
  owns_lease_ = true;
  return std::nullopt;
}

void Command::give_back_blocks() noexcept {
  if (std::exchange(owns_lease_, false)) plan_.ns->queue().release(lease_);
}

void Command::advance(CommandState next) noexcept {
  check(may_follow(state_, next), "a command goes only where its state table says");
  state_ = next;
}

bool Command::sends_data() const noexcept {
  return status_.ok() && plan_.bytes > 0 && nvme::data_direction(sqe_) == nvme::Direction::to_host;
}

std::span<const transport::Segment> Command::segments() const noexcept {
  if (plan_.memory == Plan::Memory::blocks) return lease_.segments;
  return {&buffer_segment_, 1};
}

void Command::release_message() noexcept {
  if (!std::exchange(owns_message_, false)) return;
  connection_->release_receive(message_.buffer_id);
}

void Command::release_memory() noexcept {
  give_back_blocks();
  end_turn();
  // Others may be waiting for it and run from within free(): this command must not look as if it had it still.
  if (!buffer_.empty()) pool().free(std::exchange(buffer_, {}));
}

transport::BufferPool& Command::pool() const noexcept {
  ReactorContext& reactor = connection_->reactor();
  return plan_.memory == Plan::Memory::side_buffer ? reactor.side_buffers() : reactor.buffers();
}

void Command::write_response() noexcept {
  nvme::CompletionQueueEntry cqe;
  cqe.result = result_;
  cqe.sqhd = connection_->next_head();
  cqe.cid = sqe_.cid;
  cqe.status_field = status_.to_completion();
  check(nvme::write_wire(response_, cqe), "every slot has room for its completion entry");
}

}  // namespace rbt::target
