#pragma once
// A peer that speaks the protocol by hand, and therefore can break it anywhere.

#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "transport/shm/message.h"
#include "transport/shm/ring.h"

namespace rbt::test {

/// A sealed memfd, as an honest peer makes it.
[[nodiscard]] transport::shm::Descriptor sealed_memfd(std::size_t size);
[[nodiscard]] transport::shm::Descriptor unsealed_memfd(std::size_t size);

/// Steps are its own; `turn` lets the other side run while it waits for an answer.
class RawPeer {
 public:
  using Turn = std::function<void()>;
  explicit RawPeer(Turn turn) : turn_(std::move(turn)) {}

  /// False: nobody listens.
  [[nodiscard]] bool connect(const std::string& path);
  /// connect() and an honest handshake. False: it was refused or cut off.
  [[nodiscard]] bool establish(const std::string& path);
  [[nodiscard]] transport::shm::HelloMessage honest_hello() const;

  template <typename Message>
  transport::shm::Sent say(const Message& message, int fd = -1) {
    return transport::shm::send(socket_.get(), message, fd);
  }
  transport::shm::Sent say_bytes(const void* data, std::size_t size);
  /// `count` descriptors in one packet.
  bool say_with_descriptors(std::size_t count);
  /// The next message of `type`, letting the other side run; others are skipped. False: the end came first.
  [[nodiscard]] bool await(transport::shm::MessageType type, transport::shm::Packet& packet);
  /// The other side ends the connection within a bounded time. What it said as a farewell is in farewell.
  [[nodiscard]] bool cut_off();
  /// What the consumer at the other end gets.
  void put(const void* data, std::uint32_t size);
  void hang_up() { socket_.reset(); }

  [[nodiscard]] int socket() const noexcept { return socket_.get(); }
  [[nodiscard]] transport::shm::RingMemory& ring() const { return *ring_; }
  [[nodiscard]] transport::shm::SideControl& mine() const { return ring_->control(transport::shm::kConnector); }
  [[nodiscard]] transport::shm::SideControl& theirs() const { return ring_->control(transport::shm::kAcceptor); }
  [[nodiscard]] const transport::shm::Descriptor& ring_fd() const noexcept { return ring_fd_; }
  std::string farewell;

 private:
  Turn turn_;
  transport::shm::Descriptor socket_;
  transport::shm::Descriptor ring_fd_;
  std::shared_ptr<transport::shm::RingMemory> ring_;
  std::unique_ptr<transport::shm::Producer> producer_;
};

}  // namespace rbt::test
