#include "target/connection.h"

#include <utility>

#include "common/check.h"
#include "target/authentication.h"
#include "target/core.h"
#include "target/reactor_context.h"

namespace rbt::target {

using transport::Completion;
using transport::CompletionStatus;

namespace {

// A slot is free again when its SEND is complete, which we may see after the host's next command has come: twice the
// depth makes waiting for a slot rare.
constexpr std::uint32_t kSlotsPerEntry = 2;
// Longer than any loss of packets delays the second half of a fused pair, shorter than hosts wait for answers.
constexpr Duration kSecondLate = std::chrono::seconds(5);
// For a host that has failed to authenticate itself to hear of it and to leave by itself.
constexpr Duration kFailedStays = std::chrono::seconds(1);
constexpr std::size_t kResponseBytes = sizeof(nvme::CompletionQueueEntry);
constexpr std::size_t kCidWords = 65536 / 64;

// What a work request's completion needs to know: which slot, and how many requests it stands for.
constexpr std::uint64_t make_wr_id(std::uint32_t slot, std::uint32_t requests) noexcept {
  return std::uint64_t{requests} << 32 | slot;
}

}  // namespace

void CommandList::push_back(Command& command) noexcept {
  command.next_ = nullptr;
  (tail_ != nullptr ? tail_->next_ : head_) = &command;
  tail_ = &command;
}

Command* CommandList::pop_front() noexcept {
  Command* const command = head_;
  if (command == nullptr) return nullptr;
  head_ = std::exchange(command->next_, nullptr);
  if (head_ == nullptr) tail_ = nullptr;
  return command;
}

void CommandList::remove(Command& command) noexcept {
  Command* before = nullptr;
  for (Command* each = head_; each != &command; each = each->next_)
    before = each;
  Command* const after = std::exchange(command.next_, nullptr);
  (before != nullptr ? before->next_ : head_) = after;
  if (tail_ == &command) tail_ = before;
}

Result<std::unique_ptr<Connection>> Connection::create(ReactorContext& reactor, FabricGroup& fabric, const Port& port,
                                                       std::uint64_t id, const nvme::CmRequest& wanted,
                                                       std::string peer, HostTable::Admission admission) {
  std::unique_ptr<Connection> connection(
      new Connection(reactor, fabric, port, id, wanted, std::move(peer), std::move(admission)));
  const std::size_t bytes = connection->command_count_ * kResponseBytes;
  connection->response_memory_ = reactor.buffers().allocate(bytes);
  if (connection->response_memory_.empty())
    return failure(ErrorKind::resource,
                   fmt::format("{} bytes of response memory for a queue of {} entries: {} of {} bytes of registered "
                               "buffers are free; raise the target's buffer memory",
                               bytes, wanted.host_sends, reactor.buffers().free_bytes().value(),
                               reactor.buffers().size().value()));
  for (std::uint32_t i = connection->command_count_; i-- > 0;) {
    connection->commands_[i].bind(*connection, i,
                                  connection->response_memory_.subspan(i * kResponseBytes, kResponseBytes));
    connection->free_.push_back(connection->commands_[i]);
  }
  return connection;
}

Connection::Connection(ReactorContext& reactor, FabricGroup& fabric, const Port& port, std::uint64_t id,
                       const nvme::CmRequest& wanted, std::string peer, HostTable::Admission admission)
    : reactor_(reactor),
      fabric_(fabric),
      port_(port),
      id_(id),
      wanted_(wanted),
      peer_(std::move(peer)),
      admission_(std::move(admission)),
      command_count_(wanted.host_sends * kSlotsPerEntry),
      commands_(std::make_unique<Command[]>(command_count_)),
      cids_(kCidWords),
      waiting_(wanted.host_sends),
      half_open_(reactor.reactor().timers(), [this] { on_late(); }),
      second_late_(reactor.reactor().timers(),
                   [this] {
                     if (Command* const first = take_first().command)
                       first->complete_first(nvme::StatusCode::fused_missing);
                   }),
      stalled_(reactor.reactor().timers(), [this] { judge_progress(); }) {
  terms_.qid = wanted.qid;
  terms_.entries = wanted.host_sends;
}

Connection::~Connection() {
  if (!response_memory_.empty()) reactor_.buffers().free(response_memory_);
}

Result<void> Connection::attach(transport::Connection& connection) {
  transport_ = &connection;
  half_open_.arm(reactor_.reactor().now() + reactor_.core().limits.half_open);
  const auto& granted = connection.limits();
  if (granted.send_depth == 0 || granted.read_depth == 0 || granted.segments_max == 0 || granted.message_max == 0)
    return failure(ErrorKind::unsupported,
                   fmt::format("the fabric grants {} sends, {} reads, {} segments and {} bytes per message: at least "
                               "one of each is needed",
                               granted.send_depth, granted.read_depth, granted.segments_max, granted.message_max));
  send_credits_ = Credits(granted.send_depth);
  read_credits_ = Credits(std::min(granted.read_depth, reactor_.core().limits.reads_max));
  const auto lkey = [&](transport::RegisteredMemory& memory, std::uint32_t& key) -> Result<void> {
    if (auto ensured = memory.ensure(connection.domain()); !ensured) return ensured;
    key = memory.in(connection.domain())->lkey();
    return {};
  };
  if (auto registered = lkey(reactor_.buffers().memory(), buffers_lkey_); !registered) return registered;
  return lkey(reactor_.side_buffers().memory(), side_buffers_lkey_);
}

// ---- The fabric's calls ----

void Connection::on_established(std::span<const std::byte>) {
  if (state_ == ConnectionState::accepting) state_ = ConnectionState::waiting;
}

void Connection::on_disconnected(const transport::Disconnect& disconnect) {
  if (ended()) return;
  using Reason = transport::Disconnect::Reason;
  if (disconnect.reason == Reason::peer_closed) {
    reactor_.log(LogCause::peer_gone, LogLevel::info, "{}: the host disconnected", who());
    close();
  } else {
    const auto& message = disconnect.error.message();
    fail(message.empty() ? std::string("the connection was lost") : message);
  }
}

void Connection::on_closed() {
  if (!ended()) close();
  state_ = ConnectionState::closed;
  transport_ = nullptr;
  half_open_.cancel();
  for (Command& command : commands()) {
    if (command.state() == CommandState::free) continue;
    if (command.abandon()) ++abandoned_;
  }
  check(send_credits_.whole() && read_credits_.whole(), "every credit is back at the end of a connection");
  go_if_done();
}

void Connection::on_completion(const Completion& completion) {
  const bool success = completion.status == CompletionStatus::success;
  if (completion.type == Completion::Type::receive) {
    if (success) {
      on_receive(completion.message);
    } else if (!ended()) {
      fail(fmt::format("receiving failed: {}", transport::name(completion.status)));
    }
    return;
  }
  if (ended()) return;  // abandon() returns what it stands for
  ++completions_;
  if (!success) {
    fail(fmt::format("{} failed: {}",
                     completion.type == Completion::Type::rdma_read    ? "an RDMA READ of the host's memory"
                     : completion.type == Completion::Type::rdma_write ? "an RDMA WRITE to the host's memory"
                                                                       : "the SEND of a response",
                     transport::name(completion.status)));
    return;
  }
  const auto slot = static_cast<std::uint32_t>(completion.wr_id & 0xffffffff);
  const auto requests = static_cast<std::uint32_t>(completion.wr_id >> 32);
  const std::uint32_t reads = completion.type == Completion::Type::rdma_read ? requests : 0;
  return_credits(requests, reads);
  commands_[slot].on_posted_done(requests, reads);
  serve_credits();
}

// ---- Receiving ----

void Connection::on_receive(const transport::ReceivedMessage& message) {
  if (ended()) {
    release_receive(message.buffer_id);
    return;
  }
  if (outstanding_ >= terms_.entries) {
    release_receive(message.buffer_id);
    fail(fmt::format("a command more than the {} of its submission queue is in flight", terms_.entries));
    return;
  }
  ++outstanding_;
  if (!free_.empty() && waiting_count_ == 0) {
    begin(message);
    return;
  }
  waiting_[(waiting_first_ + waiting_count_++) % waiting_.size()] = message;
}

void Connection::begin(const transport::ReceivedMessage& message) {
  free_.pop_front()->start(message);
}

void Connection::begin_waiting() {
  while (waiting_count_ > 0 && !free_.empty() && !ended()) {
    const auto message = waiting_[waiting_first_];
    waiting_first_ = (waiting_first_ + 1) % waiting_.size();
    --waiting_count_;
    begin(message);
  }
}

void Connection::drop_waiting_messages() noexcept {
  for (; waiting_count_ > 0; --waiting_count_) {
    release_receive(waiting_[waiting_first_].buffer_id);
    waiting_first_ = (waiting_first_ + 1) % waiting_.size();
  }
}

void Connection::release_receive(std::uint32_t buffer_id) noexcept {
  fabric_.group().release(buffer_id);
}

bool Connection::take_cid(Cid cid) noexcept {
  std::uint64_t& word = cids_[cid.value() / 64u];
  const std::uint64_t bit = std::uint64_t{1} << (cid.value() % 64u);
  if ((word & bit) != 0) return false;
  word |= bit;
  return true;
}

void Connection::give_cid(Cid cid) noexcept {
  cids_[cid.value() / 64u] &= ~(std::uint64_t{1} << (cid.value() % 64u));
}

// ---- Sending ----

std::uint32_t Connection::read_credits() const noexcept {
  return read_credits_.free();
}

void Connection::request_read_credit(Command& command) {
  awaiting_read_.push_back(command);
  serve_credits();
}

void Connection::request_send_credit(Command& command) {
  awaiting_send_.push_back(command);
  serve_credits();
}

// Responses first: they end commands, READs begin more work. Posting runs no command's code beyond its own posting, so
// one level of this is enough.
void Connection::serve_credits() {
  if (serving_) return;
  serving_ = true;
  while (!ended() && !awaiting_send_.empty() && awaiting_send_.front()->post_response())
    awaiting_send_.pop_front();
  while (!ended() && !awaiting_read_.empty() && awaiting_read_.front()->post_reads())
    awaiting_read_.pop_front();
  serving_ = false;
}

bool Connection::post(Command& command, Batch& batch, std::uint32_t reads) {
  if (ended()) return false;
  const auto slot = static_cast<std::uint32_t>(&command - commands_.get());
  batch.finish(make_wr_id(slot, batch.size()));
  switch (transport_->post(batch.requests())) {
    case transport::PostResult::posted:
      send_credits_.take(batch.size());
      read_credits_.take(reads);
      if (!stalled_.armed()) watch_progress();
      return true;
    case transport::PostResult::full:
      // A completion will make room, unless nothing is on its way.
      if (send_credits_.whole())
        fail(fmt::format("the fabric takes no {} work requests although it grants {}", batch.size(),
                         send_credits_.total()));
      return false;
    case transport::PostResult::dead:
      // on_disconnected() or an error completion says why.
      return false;
  }
  return false;
}

void Connection::watch_progress() {
  completions_before_ = completions_;
  seems_stalled_ = false;
  stalled_.arm(reactor_.reactor().now() + reactor_.core().limits.stalled);
}

void Connection::judge_progress() {
  if (ended() || send_credits_.whole()) return;  // the next request begins anew
  if (completions_ != completions_before_) return watch_progress();
  // Timers come before completions in a turn: what this thread has slept through is looked at first.
  if (!std::exchange(seems_stalled_, true))
    return stalled_.arm(reactor_.reactor().now() + std::chrono::milliseconds(1));
  fail(
      fmt::format("the host has taken nothing of what was sent to it, and given nothing that was asked of it, for {} s",
                  std::chrono::duration_cast<std::chrono::seconds>(reactor_.core().limits.stalled).count()));
}

void Connection::return_credits(std::uint32_t sends, std::uint32_t reads) noexcept {
  send_credits_.give(sends);
  read_credits_.give(reads);
}

std::uint16_t Connection::next_head() const noexcept {
  if (!terms_.flow_control) return 0xffff;
  return static_cast<std::uint16_t>((head_ + 1u) % terms_.entries);
}

void Connection::count_response() noexcept {
  --outstanding_;
  head_ = static_cast<std::uint16_t>((head_ + 1u) % terms_.entries);
}

void Connection::reuse(Command& command) {
  free_.push_back(command);
  begin_waiting();
}

// ---- Joining and leaving ----

void Connection::join(Controller& controller, const QueueTerms& terms) {
  controller_ = &controller;
  namespaces_ = NamespaceView(reactor_.namespaces(controller.subsystem()),
                              controller.host() != nullptr ? &controller.host()->mask : nullptr);
  terms_ = terms;
  state_ = ConnectionState::live;
  half_open_.cancel();
  const Host* const host = controller.host();
  if (host == nullptr || host->allowed.authentication.secret == nullptr) return admission_.connected();
  authentication_ = std::make_unique<Authentication>(host->allowed.authentication, controller.identity().host_nqn,
                                                     controller.subsystem().nqn());
  authenticated_ = false;
  half_open_.arm(reactor_.reactor().now() + reactor_.core().limits.half_open);
}

void Connection::note_authentication() {
  const bool before = std::exchange(authenticated_, authentication_->authenticated());
  switch (authentication_->state()) {
    case AuthState::failed:
      if (std::exchange(told_failed_, true)) return;  // it does not stay longer for asking again
      reactor_.warn(LogCause::connect_failed, "{}: authentication failed: {}; closing the connection", who(),
                    authentication_->why());
      half_open_.arm(reactor_.reactor().now() + kFailedStays);
      return;
    case AuthState::idle:
      half_open_.cancel();
      if (!before) admission_.connected();
      if (!before && terms_.qid == Qid(0))
        reactor_.core().logger.info("{}: authenticated ({})", who(), authentication_->terms());
      return;
    case AuthState::making_key:
    case AuthState::challenge_due:
    case AuthState::reply_due:
    case AuthState::deriving:
    case AuthState::success1_due:
    case AuthState::success2_due:
    case AuthState::failure1_due:  // also one that begins anew has to come to an end
      if (!half_open_.armed()) half_open_.arm(reactor_.reactor().now() + reactor_.core().limits.half_open);
      return;
  }
}

void Connection::on_late() {
  const auto bound = std::chrono::duration_cast<std::chrono::milliseconds>(reactor_.core().limits.half_open).count();
  if (authentication_ == nullptr) return fail(fmt::format("no Connect within {} ms of the connection request", bound));
  if (authentication_->state() == AuthState::failed) return close();  // it was said why
  fail(fmt::format("the host has not authenticated itself within {} ms ({})", bound, name(authentication_->state())));
}

bool Connection::quiet() const noexcept {
  const bool admin = controller_ != nullptr && terms_.qid == Qid(0);
  // An answer has arrived when its completion has.
  return outstanding_ == (admin ? controller_->held_events().size() : 0) && send_credits_.whole();
}

void Connection::fail(std::string_view reason) {
  if (ended()) return;
  reactor_.warn(LogCause::connection_failed, "{}: {}; closing the connection", who(), reason);
  close();
}

void Connection::close() noexcept {
  if (ended()) return;
  state_ = ConnectionState::closing;
  half_open_.cancel();
  stalled_.cancel();
  static_cast<void>(take_first());
  drop_waiting_messages();
  close_controller();
  if (transport_ != nullptr) transport_->close();
}

void Connection::close_controller() noexcept {
  if (controller_ == nullptr || terms_.qid != Qid(0)) return;
  controller_->stop_keep_alive();
  controller_->held_events().clear();
  for (const ConnectionRef& queue : reactor_.core().controllers.close(*controller_))
    queue.reactor->close_connection(queue.id, "the admin queue of its controller ended");
}

FusedFirst Connection::take_first() noexcept {
  if (first_.command != nullptr) second_late_.cancel();
  return std::exchange(first_, {});
}

void Connection::await_second(Command& first) {
  first_ = {&first, false};
  second_late_.arm(reactor_.reactor().now() + kSecondLate);
}

bool Connection::abort(Cid cid) {
  for (Command& each : commands())
    if (!ended() && each.is_live(cid)) return each.abort();
  return false;
}

void Connection::forget(Command&) {
  --abandoned_;
  go_if_done();
}

void Connection::go_if_done() {
  if (abandoned_ > 0) return;
  if (controller_ != nullptr) reactor_.core().controllers.detach(*std::exchange(controller_, nullptr), terms_.qid);
  reactor_.bury(*this);
}

std::string Connection::who() const {
  if (controller_ == nullptr) return fmt::format("queue {} at {}", wanted_.qid.value(), printable(peer_));
  const auto& identity = controller_->identity();
  return fmt::format("host {} cntlid {} qid {} at {}", printable(identity.host_nqn.text()), identity.cntlid.value(),
                     terms_.qid.value(), printable(peer_));
}

}  // namespace rbt::target
