#include "initiator/present/nbd_connection.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace rbt::initiator::nbd {

namespace {

// Bytes of one turn, so that others get theirs.
constexpr std::size_t kTurnMax = 2 * kMiB;
constexpr std::size_t kRepliesAtOnce = 32;

bool again(int error) noexcept {
  return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

}  // namespace

std::string_view name(Connection::End end) noexcept {
  switch (end) {
    case Connection::End::none: return "connected";
    case Connection::End::disconnect: return "it has disconnected";
    case Connection::End::hung_up: return "it has hung up";
    case Connection::End::protocol: return "what it says is not NBD";
  }
  return "?";
}

Connection::Connection(int fd, Jobs& jobs, std::uint32_t jobs_max, const Export* about, Instant now)
    : fd_(fd), jobs_(jobs), arena_(jobs.enter_arena()), jobs_max_(jobs_max), since_(now) {
  if (about != nullptr) handshake_.emplace(*about);
}

Connection::~Connection() {
  jobs_.abandon(*this);
  jobs_.leave_arena(arena_);
  ::close(fd_);
}

std::uint32_t Connection::interest() const noexcept {
  const bool reads = !waits_ && !leaving_;
  const bool writes = first_reply_ != nullptr || (handshake_ && !handshake_->output().empty());
  return (reads ? std::uint32_t{EPOLLIN} : 0U) | (writes ? std::uint32_t{EPOLLOUT} : 0U);
}

bool Connection::still_open() noexcept {
  if (end_ != End::none) return false;
  if (receiving_now_ && open_) return *open_;
  pollfd look{fd_, 0, 0};
  open_ = ::poll(&look, 1, 0) == 0;  // POLLHUP and POLLERR come unasked
  if (!*open_) hang_up(End::hung_up);
  return *open_;
}

// ---- what it says

std::size_t Connection::receive() {
  std::size_t work = 0;
  receiving_now_ = true;
  open_.reset();
  waits_ = false;
  for (std::size_t taken = 0; end_ == End::none;) {
    work += take_staged();
    if (end_ != End::none || waits_ || leaving_ || taken >= kTurnMax) break;
    const std::size_t more = read_socket();
    if (more == 0) break;
    taken += more;
    ++work;
  }
  receiving_now_ = false;
  return work;
}

std::size_t Connection::take_staged() {
  std::size_t work = 0;
  while (staged() != 0 && end_ == End::none && !leaving_) {
    if (handshake_) {
      if (!take_handshake()) break;
    } else if (skip_ != 0) {
      const std::size_t skipped = std::min<std::uint64_t>(skip_, staged());
      skip_ -= skipped;
      staged_begin_ += skipped;
    } else if (filling_ != nullptr) {
      const std::size_t piece = std::min(filling_->length - filled_, staged());
      std::memcpy(filling_->buffer.data() + filled_, staging_.data() + staged_begin_, piece);
      staged_begin_ += piece;
      filled_ += piece;
    } else if (!take_command()) {
      break;
    }
    if (filling_ != nullptr && filled_ == filling_->length) jobs_.submit(*std::exchange(filling_, nullptr));
    ++work;
  }
  return work;
}

// False: there is nothing to be done before its next bytes.
bool Connection::take_handshake() {
  staged_begin_ += handshake_->feed(std::span(staging_).subspan(staged_begin_, staged()));
  switch (handshake_->state()) {
    case Handshake::State::client_flags:
    case Handshake::State::option:
    case Handshake::State::option_data: return false;
    case Handshake::State::aborted: leaving_ = true; return false;
    case Handshake::State::failed: hang_up(End::protocol); return false;
    case Handshake::State::transmission: break;
  }
  // Requests are looked at when the last word of the handshake has gone out.
  send();
  waits_ = handshake_.has_value();
  return !waits_;
}

bool Connection::take_command() {
  if (staged() < Command::kSize) return false;
  const auto command =
      Command::parse(std::span(staging_).subspan(staged_begin_, Command::kSize).first<Command::kSize>());
  if (!command || (command->type == CommandType::write && command->length > kPayloadMax)) {
    hang_up(End::protocol);
    return false;
  }
  if (command->type == CommandType::disconnect) {
    leaving_ = true;
    return false;
  }
  waits_ = !begin(*command);
  if (waits_) return false;
  staged_begin_ += Command::kSize;
  return true;
}

// False: not now.
bool Connection::begin(const Command& command) {
  if (held_jobs_ >= jobs_max_) return false;
  Job* const job = jobs_.take(*this);
  if (job == nullptr) return false;
  ++held_jobs_;
  job->cookie = command.cookie;
  if (const std::uint32_t error = jobs_.prepare(*job, command); error != 0) {
    end_command(*job, command, error);
    return true;
  }
  const bool carries_data = command.type == CommandType::read || command.type == CommandType::write;
  if (carries_data && !jobs_.allocate(*job, arena_, command.length)) {
    give_back(*job);
    return false;
  }
  if (command.type == CommandType::write) {
    filling_ = job;
    filled_ = 0;
  } else {
    jobs_.submit(*job);
  }
  return true;
}

void Connection::end_command(Job& job, const Command& command, std::uint32_t error) {
  if (command.type == CommandType::write) skip_ = command.length;
  job.error = error;
  job.state = Job::State::replying;
  reply(job);
}

// What comes next goes where it belongs: data into its job, the rest is staged. Returns how many bytes came.
std::size_t Connection::read_socket() {
  if (staged_begin_ != 0) {
    std::memmove(staging_.data(), staging_.data() + staged_begin_, staged());
    staged_end_ -= std::exchange(staged_begin_, 0);
  }
  std::array<iovec, 2> places{};
  std::size_t count = 0;
  const std::size_t data = filling_ != nullptr ? filling_->length - filled_ : 0;
  if (data != 0) places[count++] = {filling_->buffer.data() + filled_, data};
  places[count++] = {staging_.data() + staged_end_, staging_.size() - staged_end_};
  msghdr message{};
  message.msg_iov = places.data();
  message.msg_iovlen = count;
  const ssize_t got = ::recvmsg(fd_, &message, MSG_DONTWAIT);
  if (got <= 0) {
    if (got == 0 || !again(errno)) hang_up(End::hung_up);
    return 0;
  }
  open_.reset();
  const auto bytes = static_cast<std::size_t>(got);
  const std::size_t of_data = std::min(bytes, data);
  filled_ += of_data;
  staged_end_ += bytes - of_data;
  if (data != 0 && of_data == data) jobs_.submit(*std::exchange(filling_, nullptr));
  return bytes;
}

// ---- what it is told

void Connection::reply(Job& job) noexcept {
  job.header = Reply::make(job.error, job.cookie);
  job.next = nullptr;
  (first_reply_ == nullptr ? first_reply_ : last_reply_->next) = &job;
  last_reply_ = &job;
}

std::size_t Connection::send() {
  std::size_t work = 0;
  if (handshake_) {
    auto& words = handshake_->output();
    if (!words.empty()) {
      const ssize_t sent = ::send(fd_, words.data(), words.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent < 0 && !again(errno)) hang_up(End::hung_up);
      if (sent > 0) words.erase(words.begin(), words.begin() + sent);
      if (sent > 0) ++work;
    }
    if (words.empty() && handshake_->state() == Handshake::State::transmission) handshake_.reset();
  }
  while (first_reply_ != nullptr && end_ == End::none) {
    std::array<iovec, 2 * kRepliesAtOnce> pieces{};
    std::size_t count = 0;
    std::size_t skip = sent_;
    std::size_t all = 0;
    const auto add = [&](void* from, std::size_t size) {
      const std::size_t skipped = std::min(skip, size);
      skip -= skipped;
      if (skipped == size) return;
      pieces[count++] = {static_cast<std::byte*>(from) + skipped, size - skipped};
      all += size - skipped;
    };
    for (Job* job = first_reply_; job != nullptr && count + 2 <= pieces.size(); job = job->next) {
      add(job->header.data(), job->header.size());
      if (job->request.operation == Operation::read && job->error == 0 && job->length != 0)
        add(job->buffer.data(), job->length);
    }
    msghdr message{};
    message.msg_iov = pieces.data();
    message.msg_iovlen = count;
    const ssize_t sent = ::sendmsg(fd_, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      if (!again(errno)) hang_up(End::hung_up);
      break;
    }
    ++work;
    sent_ += static_cast<std::size_t>(sent);
    finish_reply();
    if (static_cast<std::size_t>(sent) < all) break;
  }
  if (leaving_ && held_jobs_ == 0 && (!handshake_ || handshake_->output().empty())) hang_up(End::disconnect);
  return work;
}

// Replies that have gone out completely.
void Connection::finish_reply() noexcept {
  while (first_reply_ != nullptr) {
    Job& job = *first_reply_;
    const bool data = job.request.operation == Operation::read && job.error == 0;
    const std::size_t size = job.header.size() + (data ? job.length : 0);
    if (sent_ < size) return;
    sent_ -= size;
    first_reply_ = job.next;
    give_back(job);
  }
}

void Connection::give_back(Job& job) noexcept {
  --held_jobs_;
  jobs_.give_back(job);
}

}  // namespace rbt::initiator::nbd
