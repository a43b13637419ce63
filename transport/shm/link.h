#pragma once
// What one side of a connection tells the other about its memory, and how it makes sure that it was heard.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <variant>

#include "transport/reactor/reactor.h"
#include "transport/shm/descriptor.h"
#include "transport/shm/message.h"
#include "transport/shm/ring.h"

namespace rbt::transport::shm {

/// The outgoing region messages of one connection. Thread-safe: regions come and go on any thread. Messages that the
/// socket does not take wait here, in order; as long as any wait, the connection sends no capsule, so that no key
/// arrives before its announcement.
class Link {
 public:
  /// More than this waiting: the peer does not read its socket, and the connection ends.
  static constexpr std::size_t kWaitingMax = 4096;

  /// `socket` stays the connection's and outlives the link.
  Link(int socket, std::shared_ptr<RingMemory> ring, unsigned side, Reactor& reactor)
      : socket_(socket), side_(side), reactor_(reactor), ring_(std::move(ring)) {}

  void announce(const AnnounceMessage& message, int fd);
  /// Counts the revocation in shared memory, so that the peer begins no copy before it has read the message.
  void revoke(std::uint32_t key);
  /// From now on the peer begins no copy at all.
  void fence_all() noexcept;
  /// The reactor: sends what waits. True if nothing waits any more.
  bool flush();
  /// Data path: true if flush() has something to do.
  [[nodiscard]] bool waiting() const noexcept { return waiting_.load(std::memory_order_acquire); }
  /// Ends the connection: its reactor sees a lost peer.
  void cut() noexcept;

  /// The peer is in the middle of a copy that began before the last revoke() or fence_all(), or, if it is dishonest,
  /// says so. Odd: the value to wait for the end of.
  [[nodiscard]] std::uint32_t copying() const noexcept;
  [[nodiscard]] const std::shared_ptr<RingMemory>& ring() const noexcept { return ring_; }
  [[nodiscard]] int socket() const noexcept { return socket_; }
  [[nodiscard]] unsigned side() const noexcept { return side_; }

 private:
  struct Item {
    std::variant<AnnounceMessage, RevokeMessage> message;
    Descriptor descriptor;
  };
  void say(Item item, int fd);
  Sent try_send(const Item& item, int fd) noexcept;

  const int socket_;
  const unsigned side_;
  Reactor& reactor_;
  const std::shared_ptr<RingMemory> ring_;
  std::atomic<bool> waiting_{false};  // set after an item is in queue_, by any thread; acquired by the reactor
  std::mutex mutex_;
  std::deque<Item> queue_;  // guarded by mutex_
};

}  // namespace rbt::transport::shm
