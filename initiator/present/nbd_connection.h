#pragma once
// One NBD client: its socket, what it is saying, and the replies it has not been sent yet.

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "common/clock.h"
#include "initiator/present/nbd_handshake.h"
#include "initiator/present/nbd_jobs.h"

namespace rbt::initiator::nbd {

/// The reactor's thread. Nothing is allocated per request.
class Connection {
 public:
  enum class End : std::uint8_t {
    none,
    disconnect,  ///< it asked for that, and has its replies
    hung_up,
    protocol,  ///< it does not speak NBD (any more)
  };

  /// Owns `fd`, a stream socket. Has `jobs_max` jobs at a time, at most. With `about` the handshake comes first.
  Connection(int fd, Jobs& jobs, std::uint32_t jobs_max, const Export* about, Instant now);
  /// Hangs up. Its jobs that are with the volume end there.
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// Takes what the socket has, as far as there is room for it. Returns how many things it did.
  std::size_t receive();
  /// Sends what the socket takes.
  std::size_t send();
  /// A job of its is done.
  void reply(Job& job) noexcept;

  /// False: the other end has been shut down, nobody will read a reply. Asked once per receive(), else each time.
  [[nodiscard]] bool still_open() noexcept;
  void hang_up(End why) noexcept {
    if (end_ == End::none) end_ = leaving_ ? End::disconnect : why;
  }

  [[nodiscard]] End end() const noexcept { return end_; }
  [[nodiscard]] bool shaking_hands() const noexcept { return handshake_.has_value(); }
  [[nodiscard]] Instant since() const noexcept { return since_; }
  [[nodiscard]] int fd() const noexcept { return fd_; }
  /// The epoll events that are of use now, and those that are being watched for.
  [[nodiscard]] std::uint32_t interest() const noexcept;
  std::uint32_t watched = 0;

 private:
  [[nodiscard]] std::size_t take_staged();
  [[nodiscard]] bool take_handshake();
  [[nodiscard]] bool take_command();
  [[nodiscard]] bool begin(const Command& command);
  void end_command(Job& job, const Command& command, std::uint32_t error);
  [[nodiscard]] std::size_t read_socket();
  [[nodiscard]] std::size_t staged() const noexcept { return staged_end_ - staged_begin_; }
  void finish_reply() noexcept;
  void give_back(Job& job) noexcept;

  static constexpr std::size_t kStaging = 16 * kKiB;
  const int fd_;
  Jobs& jobs_;
  Arena& arena_;
  const std::uint32_t jobs_max_;
  const Instant since_;
  std::optional<Handshake> handshake_;
  End end_ = End::none;
  bool waits_ = false;    // the next request needs what others hold
  bool leaving_ = false;  // it said that it disconnects
  bool receiving_now_ = false;
  std::optional<bool> open_;  // what still_open() has found in this receive()
  // What the socket has given: requests, and the beginnings of data.
  std::array<std::byte, kStaging> staging_;
  std::size_t staged_begin_ = 0;
  std::size_t staged_end_ = 0;
  Job* filling_ = nullptr;  // its data is being received
  std::size_t filled_ = 0;
  std::uint64_t skip_ = 0;  // bytes of data that nobody wants
  std::uint32_t held_jobs_ = 0;
  Job* first_reply_ = nullptr;
  Job* last_reply_ = nullptr;
  std::size_t sent_ = 0;  // of the first reply
};

[[nodiscard]] std::string_view name(Connection::End end) noexcept;

}  // namespace rbt::initiator::nbd
