#pragma once
// The fabric seam: reliable-connection semantics and nothing else. Three fabrics stand behind it: verbs (librdmacm and
// libibverbs), shm (two processes on one machine) and sim (deterministic, for tests). What holds for all three:
//
//  * Work requests of one connection are carried out in order; a SEND is seen by the peer after every RDMA WRITE posted
//    before it on the same connection. Completions of one connection come in order. An unsignaled request that
//    succeeds has no completion; the next signaled one of its connection covers it.
//  * Any completion with a status other than `success`, a bad key, an access out of bounds or a lost peer kills that
//    connection and no other. The consumer then calls close().
//  * Memory named by a posted request belongs to the fabric until its completion, or until on_closed().
//  * Everything of a PollGroup happens on its reactor's thread, callbacks included. Fabric and ProtectionDomain are
//    thread-safe.
//
// The words are those of the InfiniBand Architecture Specification, Volume 1, chapters 9 to 12, and of verbs(7).

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "common/result.h"
#include "transport/connection.h"
#include "transport/reactor/reactor.h"

namespace rbt {
struct Uri;  // common/uri.h
}

namespace rbt::transport {

/// Where completions go, a batch at a time.
class CompletionHandler {
 public:
  virtual ~CompletionHandler() = default;
  virtual void on_completions(std::span<const Completion> batch) = 0;
};

struct PollGroupOptions {
  std::uint32_t receive_depth = 1024;  ///< receive buffers shared by all connections of the group, per device
  std::uint32_t receive_size = 4160;   ///< bytes each: a 64-byte capsule and 4 KiB of in-capsule data
};

/// Work done so far, for statistics and for tests that gate on counts. Written by the reactor only.
struct PollGroupCounters {
  std::uint64_t work_requests = 0;
  std::uint64_t doorbells = 0;  ///< hand-overs of a batch to the device
  std::uint64_t completions = 0;
  std::uint64_t wake_ups = 0;          ///< doorbells rung for a sleeping peer, completion events taken
  std::uint64_t bytes_copied = 0;      ///< by rbt's own code (shm: every payload once)
  std::uint64_t receives_stalled = 0;  ///< a message waited because no receive buffer was free
};

/// One reactor's share of a fabric: per device one completion queue and one shared receive queue, and the connections
/// that live here. It is a Source of its reactor. Destroy it only when it has no connections left.
class PollGroup : public Source {
 public:
  ~PollGroup() override = default;
  [[nodiscard]] virtual Result<std::unique_ptr<Listener>> listen(const Uri& address, const ListenOptions& options,
                                                                 ListenerHandler& handler) = 0;
  /// Begins; the handler hears on_established() or on_disconnected(). An error at once means: nothing begun, no callback.
  [[nodiscard]] virtual Result<Connection*> connect(const Uri& address, const ConnectOptions& options,
                                                    ConnectionHandler& handler) = 0;
  /// Takes a request that any poll group of this fabric received. On error the request was rejected.
  [[nodiscard]] virtual Result<Connection*> accept(std::unique_ptr<ConnectionRequest> request,
                                                   const AcceptOptions& options, ConnectionHandler& handler) = 0;
  /// Gives a receive buffer back. Every message received must be, also after its connection has gone.
  virtual void release(std::uint32_t buffer_id) = 0;
  /// Hands over everything queued by post(). poll() ends with it; call it before sleeping by other means.
  virtual void flush() = 0;
  [[nodiscard]] virtual std::size_t connections() const noexcept = 0;
  [[nodiscard]] virtual const PollGroupCounters& counters() const noexcept = 0;
};

/// One kind of transport, opened once by main() or the session that needs it. Outlives its poll groups. Thread-safe.
class Fabric {
 public:
  virtual ~Fabric() = default;
  [[nodiscard]] virtual Result<std::unique_ptr<PollGroup>> open_poll_group(Reactor& reactor,
                                                                           const PollGroupOptions& options,
                                                                           CompletionHandler& handler) = 0;
  /// Bytes of in-capsule data worth offering here: 4 KiB over verbs, 0 over shm, where fetching is cheaper than a copy.
  [[nodiscard]] virtual std::uint32_t in_capsule_data_preferred() const noexcept = 0;
  /// "rdma", "shm", "sim".
  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
};

}  // namespace rbt::transport
