#include "target/store/nbd_link.h"

#include <fmt/format.h>
#include <libnbd.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "common/check.h"
#include "common/sizes.h"
#include "transport/memory/buffer_pool.h"

namespace rbt::target {

namespace {

using Kind = NbdOperation::Kind;

// The first attempt comes at once, the next ones after 10 ms, 20 ms, … up to a second.
constexpr Duration kBackoffMin = std::chrono::milliseconds(10);
constexpr Duration kBackoffMax = std::chrono::seconds(1);
// A server that accepts and says nothing is given up, and tried again.
constexpr Duration kHandshakeMax = std::chrono::seconds(10);
constexpr Duration kLogInterval = std::chrono::seconds(10);
// Replies of one turn, so that others get theirs.
constexpr std::size_t kRepliesMax = 64;
// Trim and zero carry no data and so have no limit of the server's; pieces keep one from taking forever.
constexpr std::uint64_t kRangeMax = 128 * kMiB;

std::string why_it_ended(nbd_handle* handle) {
  const char* const text = ::nbd_get_error();
  const bool says = ::nbd_aio_is_dead(handle) > 0 && text != nullptr;
  return says ? printable(text) : "the server has closed it";
}

}  // namespace

NbdLink::NbdLink(NbdServer& server, transport::Reactor& reactor, Sharing sharing)
    : server_(server),
      reactor_(reactor),
      sharing_(sharing),
      inbox_(reactor),
      connector_(reactor, server.uri(), kHandshakeMax),
      retry_timer_(reactor.timers(), [this] { connect(); }),
      patience_timer_(reactor.timers(), [this] { on_patience_over(); }),
      silence_timer_(reactor.timers(), [this] { on_silence(); }),
      log_limit_(kLogInterval) {
  for (Slot& slot : slots_) {
    slot.link = this;
    slot.next_free = std::exchange(free_, &slot);
  }
}

Result<std::unique_ptr<NbdLink>> NbdLink::open(NbdServer& server, transport::Reactor& reactor, Sharing sharing) {
  std::unique_ptr<NbdLink> link(new NbdLink(server, reactor, sharing));
  if (auto started = link->start(); !started) return failure(std::move(started.error()));
  return link;
}

Result<void> NbdLink::start() {
  if (auto opened = connector_.open(); !opened) return opened;
  if (sharing_ == Sharing::other_reactors)
    if (auto opened = inbox_.open([this] { want_turn(); }); !opened) return opened;
  epoll_fd_ = ::epoll_create1(EPOLL_CLOEXEC);
  if (epoll_fd_ < 0) return errno_failure(errno, "epoll_create1", "raise the limit of open files (`ulimit -n`)");
  auto watched = reactor_.watch(epoll_fd_, EPOLLIN, [this](std::uint32_t) {
    receive();
    want_turn();
  });
  if (!watched) return watched;
  away_since_ = reactor_.now();
  NbdConnected first = server_.take_first();
  if (first.handle != nullptr) {
    adopt(std::move(first));
  } else {
    connect();
  }
  // Who serves others looks into the inbox every turn.
  if (sharing_ == Sharing::other_reactors) want_turn();
  return {};
}

NbdLink::~NbdLink() {
  const State state = std::exchange(state_, State::down);
  Operations left = std::exchange(done_, {});
  for (Slot& slot : slots_) {
    NbdOperation* const operation = std::exchange(slot.operation, nullptr);
    if (operation == nullptr || operation->pieces == 0) continue;
    operation->pieces = 0;
    if (operation->complete) left.push(*operation);
  }
  left.take(waiting_);
  inbox_.take(left);
  if (state == State::up) ::nbd_aio_disconnect(handle_.get(), 0);
  handle_.reset();  // from here on nobody touches the operations' memory
  while (!left.empty()) {
    NbdOperation& operation = left.pop();
    operation.error = ENOTCONN;
    operation.client->on_nbd_done(operation);
  }
  if (listed_) reactor_.remove(*this);
  if (epoll_fd_ < 0) return;
  reactor_.unwatch(epoll_fd_);
  ::close(epoll_fd_);
}

void NbdLink::submit(NbdOperation& operation) {
  operation.begun = 0;
  operation.pieces = 0;
  operation.error = 0;
  operation.complete = false;
  waiting_.push(operation);
  if (state_ == State::up) return want_turn();
  // It may have waited already, behind another that waited for this server.
  start_waiting(operation, std::max(operation.waits_since, away_since_));
}

// ---- turns of the reactor ----

void NbdLink::want_turn() {
  if (!std::exchange(listed_, true)) reactor_.add(*this);
}

std::size_t NbdLink::poll() {
  if (sharing_ == Sharing::other_reactors) {
    Operations fresh;
    inbox_.take(fresh);
    while (!fresh.empty())
      submit(fresh.pop());
  }
  std::size_t work = issue();
  if (under_way_ != 0) work += receive();      // else the socket's descriptor tells
  Operations done = std::exchange(done_, {});  // what ends meanwhile is for the next turn
  for (; !done.empty(); ++work) {
    NbdOperation& operation = done.pop();
    operation.client->on_nbd_done(operation);
  }
  if (sharing_ == Sharing::none && idle()) {
    set_interest();
    listed_ = false;
    reactor_.remove(*this);
  }
  return work;
}

bool NbdLink::idle() const noexcept {
  return done_.empty() && under_way_ == 0 && (waiting_.empty() || state_ != State::up);
}

bool NbdLink::arm() {
  if (!done_.empty() || (state_ == State::up && !waiting_.empty() && free_ != nullptr)) return false;
  set_interest();
  return sharing_ == Sharing::none || inbox_.arm();
}

/// The connection's epoll says what libnbd waits for.
void NbdLink::set_interest() {
  if (state_ != State::up) return;
  const bool writes = (::nbd_aio_get_direction(handle_.get()) & LIBNBD_AIO_DIRECTION_WRITE) != 0;
  const std::uint32_t wanted = EPOLLIN | (writes ? std::uint32_t{EPOLLOUT} : 0U);
  if (wanted == interest_) return;
  epoll_event event{};
  event.events = wanted;
  const int fd = ::nbd_aio_get_fd(handle_.get());
  check(::epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, fd, &event) == 0, "a connection is watched while it is up");
  interest_ = wanted;
}

// ---- commands ----

/// As many as there are slots for; the one at the head may go out in pieces.
std::size_t NbdLink::issue() {
  std::size_t sent = 0;
  while (state_ == State::up && !waiting_.empty() && free_ != nullptr) {
    NbdOperation& operation = waiting_.front();
    if (operation.error == 0 && issue_piece(operation)) ++sent;
    if (state_ != State::up) break;
    if (operation.error != 0) operation.complete = true;  // the rest of it is not asked for
    if (!operation.complete) continue;
    waiting_.pop();
    if (operation.pieces == 0) done_.push(operation);
  }
  return sent;
}

/// False: nothing was sent. Either the operation has ended (it is complete, or has an error), or the connection has.
bool NbdLink::issue_piece(NbdOperation& operation) {
  if (operation.offset > about_.size || operation.length > about_.size - operation.offset) {
    operation.error = ERANGE;
    return false;
  }
  const bool advice_not_taken =
      (operation.kind == Kind::trim && !about_.can_trim) || (operation.kind == Kind::flush && !about_.can_flush);
  if (advice_not_taken) {
    operation.complete = true;
    return false;
  }
  if ((operation.kind == Kind::zero && !about_.can_zero) || (operation.fua && !about_.can_fua)) {
    operation.error = EOPNOTSUPP;
    return false;
  }
  Slot& slot = *free_;
  free_ = slot.next_free;
  slot.operation = &operation;
  if (under_way_++ == 0) watch_silence();
  ++operation.pieces;
  const bool carries_data = operation.kind == Kind::read || operation.kind == Kind::write;
  const std::uint64_t whole = std::min<std::uint64_t>(about_.block_max, transport::BufferPool::kBlockMax);
  const std::uint64_t data_max = operation.repeats ? std::min(whole, NbdOperation::kRepeatMax) : whole;
  const std::uint64_t most = carries_data ? data_max : kRangeMax;
  const std::uint64_t bytes = std::min(operation.length - operation.begun, most - most % about_.block_min);
  if (send(slot, bytes) >= 0) {
    operation.begun += bytes;
    operation.complete = operation.begun == operation.length;
    return true;
  }
  if (connection_ended()) {
    lost(why_it_ended(handle_.get()));
    return false;
  }
  operation.error = static_cast<std::int16_t>(std::max(::nbd_get_errno(), 1));
  --operation.pieces;
  --under_way_;
  slot.operation = nullptr;
  slot.next_free = std::exchange(free_, &slot);
  return false;
}

std::int64_t NbdLink::send(Slot& slot, std::uint64_t bytes) {
  const NbdOperation& operation = *slot.operation;
  nbd_handle* const handle = handle_.get();
  const nbd_completion_callback done{on_command, &slot, nullptr};
  const std::uint64_t offset = operation.offset + operation.begun;
  std::byte* const data = operation.repeats ? operation.data : operation.data + operation.begun;
  const std::uint32_t fua = operation.fua ? LIBNBD_CMD_FLAG_FUA : 0U;
  switch (operation.kind) {
    case Kind::read: return ::nbd_aio_pread(handle, data, bytes, offset, done, 0);
    case Kind::write: return ::nbd_aio_pwrite(handle, data, bytes, offset, done, fua);
    case Kind::trim: return ::nbd_aio_trim(handle, bytes, offset, done, fua);
    case Kind::flush: return ::nbd_aio_flush(handle, done, 0);
    case Kind::zero:
      return ::nbd_aio_zero(handle, bytes, offset, done, fua | (operation.may_trim ? 0U : LIBNBD_CMD_FLAG_NO_HOLE));
  }
  return -1;
}

bool NbdLink::connection_ended() const {
  return ::nbd_aio_is_dead(handle_.get()) > 0 || ::nbd_aio_is_closed(handle_.get()) > 0;
}

/// What the socket has. Asking it when it has nothing costs one system call and does no harm.
std::size_t NbdLink::receive() {
  if (state_ != State::up) return 0;
  const std::size_t before = replies_;
  for (std::size_t seen = before - 1; replies_ != seen && replies_ - before < kRepliesMax;) {
    seen = replies_;
    if ((::nbd_aio_get_direction(handle_.get()) & LIBNBD_AIO_DIRECTION_WRITE) != 0)
      ::nbd_aio_notify_write(handle_.get());
    if ((::nbd_aio_get_direction(handle_.get()) & LIBNBD_AIO_DIRECTION_READ) != 0) ::nbd_aio_notify_read(handle_.get());
  }
  if (connection_ended()) {
    lost(why_it_ended(handle_.get()));
  } else if (leaving_) {
    lost("it says that it shuts down");
  }
  return replies_ - before;
}

/// From inside of libnbd, which must not be called from here.
int NbdLink::on_command(void* slot, int* error) {
  auto& answered = *static_cast<Slot*>(slot);
  answered.link->on_reply(answered, *error);
  return 1;  // libnbd forgets the command
}

void NbdLink::on_reply(Slot& slot, int error) {
  if (error == ESHUTDOWN) leaving_ = true;
  if (error == ESHUTDOWN || error == ENOTCONN) return;  // it stays in its slot, from where lost() takes it
  NbdOperation& operation = *slot.operation;
  slot.operation = nullptr;
  slot.next_free = std::exchange(free_, &slot);
  --under_way_;
  ++replies_;
  if (std::exchange(silent_, false)) server_.logger().info("store '{}': the server answers again", server_.spec());
  --operation.pieces;
  if (error != 0 && operation.error == 0) operation.error = static_cast<std::int16_t>(error);
  if (operation.pieces == 0 && operation.complete) done_.push(operation);
}

void NbdLink::end(NbdOperation& operation, int error) {
  operation.error = static_cast<std::int16_t>(error);
  done_.push(operation);
  want_turn();
}

// ---- losing the server and finding it again ----

void NbdLink::lost(const std::string& why) {
  state_ = State::down;
  leaving_ = false;
  handle_.reset();  // from here on nobody touches the operations' memory
  const Instant now = reactor_.now();
  // One that was of use is looked for at once. One that ends as soon as it is there must not keep us busy.
  const bool was_of_use = replies_ != replies_before_ || now - up_since_ >= kBackoffMax;
  if (was_of_use) backoff_ = {};
  const std::size_t unanswered = take_back();
  if (was_of_use || log_limit_.allow(now)) {
    complained_ = true;
    server_.logger().warning(
        "store '{}': the connection to the server is lost ({}) with {} commands unanswered; they and others wait up to "
        "{} "
        "for it to come back",
        server_.spec(), why, unanswered, format_duration(server_.patience()));
  }
  server_.on_lost();
  away_since_ = was_of_use ? now : away_since_;
  if (was_of_use) return connect();
  wait_to_retry();
}

/// What is under way waits again, all of it, before what waits already. Returns how many commands that were.
std::size_t NbdLink::take_back() {
  Operations all;
  free_ = nullptr;
  for (Slot& slot : slots_) {
    NbdOperation* const operation = std::exchange(slot.operation, nullptr);
    slot.next_free = std::exchange(free_, &slot);
    if (operation == nullptr || operation->pieces == 0) continue;
    operation->pieces = 0;
    if (operation->complete) all.push(*operation);  // the others wait already
  }
  all.take(waiting_);
  while (!all.empty()) {
    NbdOperation& operation = all.pop();
    operation.begun = 0;
    operation.error = 0;
    operation.complete = false;
    waiting_.push(operation);
    start_waiting(operation, reactor_.now());
  }
  return std::exchange(under_way_, 0);
}

void NbdLink::wait_to_retry() {
  state_ = State::down;
  backoff_ = std::clamp(backoff_ * 2, kBackoffMin, kBackoffMax);
  retry_timer_.arm(reactor_.now() + backoff_);
}

void NbdLink::connect() {
  state_ = State::connecting;
  connector_.start([this](Result<NbdConnected> connected) { on_connected(std::move(connected)); });
}

void NbdLink::on_connected(Result<NbdConnected> connected) {
  if (connected)
    if (auto admitted = server_.admit(connected->about); !admitted) connected = failure(std::move(admitted.error()));
  if (connected) {
    if (std::exchange(complained_, false))
      server_.logger().info("store '{}': connected to the server again after {}", server_.spec(),
                            format_duration(reactor_.now() - away_since_));
    return adopt(std::move(*connected));
  }
  if (log_limit_.allow(reactor_.now())) {
    complained_ = true;
    server_.logger().warning("store '{}': still without its server: {}", server_.spec(), connected.error().message());
  }
  wait_to_retry();
}

void NbdLink::adopt(NbdConnected connected) {
  handle_ = std::move(connected.handle);
  about_ = connected.about;
  state_ = State::up;
  up_since_ = reactor_.now();
  replies_before_ = replies_;
  patience_timer_.cancel();
  interest_ = EPOLLIN;
  epoll_event event{};
  event.events = interest_;
  const int added = ::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, ::nbd_aio_get_fd(handle_.get()), &event);
  if (added != 0) return lost(Error::from_errno(errno, "watching its connection").message());
  want_turn();
}

/// Anew with every loss of the server: what is bounded is how long it is away.
void NbdLink::start_waiting(NbdOperation& operation, Instant since) {
  operation.waits_since = since;
  const Instant over = since + server_.patience();
  if (patience_timer_.armed() && patience_over_ <= over) return;
  patience_over_ = over;
  patience_timer_.arm(over);
}

/// Fails those who have waited long enough; the timer goes on for the others.
void NbdLink::on_patience_over() {
  if (state_ == State::up) return;
  Operations all = std::exchange(waiting_, {});
  while (!all.empty()) {
    NbdOperation& operation = all.pop();
    if (reactor_.now() - operation.waits_since >= server_.patience()) {
      end(operation, ETIMEDOUT);
    } else {
      waiting_.push(operation);
      start_waiting(operation, operation.waits_since);
    }
  }
}

// ---- a server that is there and does not answer ----

/// Not moved by every command: an armed timer looks when it fires whether anything has been answered since.
void NbdLink::watch_silence() {
  if (silence_timer_.armed()) return;
  replies_watched_ = replies_;
  silence_timer_.arm(reactor_.now() + server_.patience());
}

void NbdLink::on_silence() {
  if (state_ != State::up || under_way_ == 0) return;
  if (replies_ == replies_watched_ && !std::exchange(silent_, true))
    server_.logger().warning(
        "store '{}': the server has {} commands and has answered none for {}; they wait for it, as for a disk: look "
        "after "
        "the server",
        server_.spec(), under_way_, format_duration(server_.patience()));
  watch_silence();
}

}  // namespace rbt::target
