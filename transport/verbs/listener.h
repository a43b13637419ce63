#pragma once
// Listening, and the requests that come of it.

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/log.h"
#include "transport/connection.h"
#include "transport/verbs/address.h"
#include "transport/verbs/cm.h"

namespace rbt::transport::verbs {

/// Requests of one listener that nobody has answered yet, on whatever thread they are.
using Backlog = std::atomic<int>;  // relaxed: a limit, not a lock

/// A peer that knocks. Belongs to whoever holds it; moves between threads.
class Request final : public ConnectionRequest {
 public:
  Request(CmId id, std::shared_ptr<EventChannel> channel, std::shared_ptr<Backlog> backlog, const CmEvent& event,
          Duration half_open);
  ~Request() override;

  [[nodiscard]] std::span<const std::byte> private_data() const noexcept override { return private_data_; }
  [[nodiscard]] const std::string& peer() const noexcept override { return peer_; }
  [[nodiscard]] std::string peer_host() const override { return peer_.substr(0, peer_.rfind(':')); }  // no port
  [[nodiscard]] std::uint32_t peer_incoming_reads() const noexcept override { return peer_incoming_reads_; }
  void reject(std::span<const std::byte> private_data) override;

  /// RDMA READs that the peer wants to have outstanding.
  [[nodiscard]] std::uint32_t peer_outgoing_reads() const noexcept { return peer_outgoing_reads_; }
  [[nodiscard]] Duration half_open() const noexcept { return half_open_; }
  [[nodiscard]] rdma_cm_id* id() const noexcept { return id_.get(); }
  /// The identifier moves to `channel`. From now on its events come there.
  [[nodiscard]] Result<void> migrate(const std::shared_ptr<EventChannel>& channel);
  /// Accepted: the identifier is the connection's, nothing is left to reject.
  [[nodiscard]] CmId take() noexcept;

 private:
  std::shared_ptr<EventChannel> channel_;  // before id_: the identifier goes first
  CmId id_;
  std::shared_ptr<Backlog> backlog_;
  std::vector<std::byte> private_data_;
  std::string peer_;
  std::uint32_t peer_incoming_reads_;
  std::uint32_t peer_outgoing_reads_;
  Duration half_open_;
};

class VerbsListener;

/// The living listeners of one poll group, which hears of addresses that go away.
using Listeners = std::vector<VerbsListener*>;

/// On the reactor of its poll group.
class VerbsListener final : public Listener, public CmEndpoint {
 public:
  [[nodiscard]] static Result<std::unique_ptr<VerbsListener>> create(
      const SocketAddress& address, std::shared_ptr<EventChannel> channel, std::shared_ptr<Listeners> siblings,
      const ListenOptions& options, ListenerHandler& handler, Logger& logger, const std::string& devices);
  ~VerbsListener() override;
  [[nodiscard]] std::string address() const override { return address_; }
  void on_cm_event(const CmEvent& event) override;
  /// Its identifier; null once it has failed.
  [[nodiscard]] rdma_cm_id* id() const noexcept { return id_.get(); }
  /// Tells the handler, which may destroy the listener.
  void fail(std::string_view why);

 private:
  VerbsListener(std::shared_ptr<EventChannel> channel, std::shared_ptr<Listeners> siblings,
                const ListenOptions& options, ListenerHandler& handler, Logger& logger);
  void on_request(const CmEvent& event);

  std::shared_ptr<EventChannel> channel_;
  std::shared_ptr<Listeners> siblings_;
  CmId id_;
  ListenOptions options_;
  ListenerHandler& handler_;
  Logger& logger_;
  std::string address_;
  std::shared_ptr<Backlog> backlog_;
};

}  // namespace rbt::transport::verbs
