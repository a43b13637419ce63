#pragma once
// librbt-initiator: block storage over NVMe/RDMA, from userspace.
//
//   auto session = Session::connect(environment, uri, {});          one association with one controller
//   auto queue = (*session)->open_queue_pair(reactor, {});          one per thread that does I/O
//   (*queue)->read(request, *(*session)->find(Nsid(1)).value(), Lba(0), iovecs);
//
// docs/examples/read_blocks.cc is a whole program. Errors say what was tried, on what, what was seen and what
// to do.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/auth/secret.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/nvme/admin_command.h"
#include "common/nvme/nqn.h"
#include "common/random.h"
#include "common/result.h"
#include "common/uri.h"
#include "initiator/buffer_cache.h"
#include "initiator/namespace.h"
#include "initiator/queue_pair.h"
#include "transport/fabric.h"

namespace rbt::transport::coherence {
class Monitor;  // transport/coherence/monitor.h
}

namespace rbt::initiator {

/// What a session lives in. All outlive it.
struct Environment {
  transport::Fabric& fabric;  ///< of the URI's scheme
  const Clock& clock;
  Logger& logger;
  Random& random;  ///< used within the calls below only, on the caller's thread
  /// Hears of munmap() and its like over memory that requests use; one per program, for all sessions. Null: memory that
  /// is not registered explicitly is copied, and a RegisteredBuffer must stay mapped as it is.
  transport::coherence::Monitor* monitor = nullptr;
};

/// Who we are: Connect (Base 2.0, 6.3). The URI's hostnqn= and hostid= go before these.
struct HostOptions {
  std::optional<nvme::HostId> id{};        ///< none: a random one
  std::optional<nvme::Nqn> nqn{};          ///< none: made from the id, "nqn.2014-08.org.nvmexpress:uuid:…"
  auth::SharedSecret secret{};             ///< what we prove it by (DH-HMAC-CHAP), if asked to. URI: secret-file=
  auth::SharedSecret controller_secret{};  ///< what the subsystem has to prove itself by. URI: ctrl-secret-file=
};

/// One record of the discovery log page (Base 2.0, 5.16.1.23). Printable ASCII only.
struct DiscoveryEntry {
  std::uint8_t transport_type = 0;  ///< 1 RDMA, 3 TCP, …; 254 and more: not the specification's
  std::uint8_t address_family = 0;  ///< 1 IPv4, 2 IPv6
  std::uint8_t subtype = 0;         ///< 1 referral, 2 NVM subsystem, 3 this discovery subsystem
  std::uint8_t requirements = 0;    ///< TREQ
  std::uint16_t port_id = 0;
  Cntlid cntlid;  ///< FFFFh: dynamic
  std::uint16_t admin_queue_entries = 0;
  std::string address;
  std::string service;
  std::string subsystem_nqn;
};
struct DiscoveryLog {
  std::uint64_t generation = 0;
  std::vector<DiscoveryEntry> entries;
};
struct DiscoverOptions {
  HostOptions host{};
  Duration timeout = std::chrono::seconds(10);  ///< for all of it
  transport::Reactor* management = nullptr;     ///< as in SessionOptions
};
/// Asks the discovery controller at `uri` (whose NQN, if any, names a discovery subsystem). The log is read
/// again until its generation stands still, at most 8 times; more than 4096 records are refused. Blocks.
[[nodiscard]] Result<DiscoveryLog> discover(const Environment& environment, const Uri& uri,
                                            const DiscoverOptions& options);

/// States of a session. `lost` and `closed` are final (volume.h: what replaces a lost session).
enum class SessionState : std::uint8_t {
  live,    ///< the admin queue answers
  lost,    ///< the association has ended against our will: failure() says how; every queue pair is failing its
           ///< requests
  closed,  ///< we ended it
};
[[nodiscard]] std::string_view name(SessionState state) noexcept;

struct SessionOptions {
  HostOptions host{};
  std::uint32_t io_queues = 1;  ///< to ask for, 0 (info only) to 1024; granted: Session::io_queues(). URI: queues=
  Duration keep_alive = std::chrono::seconds(
      15);  ///< KATO: one is sent at half of it, and has all of it to be answered; 0: off. URI: keep-alive=SECONDS
  Duration connect_timeout = std::chrono::seconds(10);  ///< for all of connect(), and for all of open_queue_pair()
  /// For the first of its steps, the fabric's connection of the admin queue; 0: connect_timeout. Fabrics that have lost a
  /// packet of it repeat it after seconds.
  Duration reach_timeout{0};
  Duration command_timeout = std::chrono::seconds(30);  ///< for each command, unless its request says otherwise
  BufferCacheOptions buffer_cache{};
  /// Who drives admin queue and keep-alive. Null: a thread of the session's own. Otherwise the caller turns
  /// this reactor, often enough for the keep-alive, and calls every member function of the session on its
  /// thread, but for open_queue_pair(); it outlives the session.
  transport::Reactor* management = nullptr;
  /// Asynchronous events (Base 2.0, 5.2), after the session has read the log page that acknowledges them; at
  /// most 400 a second. On the management reactor's thread; may be empty; must not call into the session.
  std::function<void(const nvme::AsyncEvent&)> on_event{};
  /// The session has become `lost`. On the management reactor's thread; must not destroy the session.
  std::function<void(const Error&)> on_lost{};
};

/// Memory of the caller's that every queue pair of the session may move data into and out of. Destroy it when
/// no request uses it and before the session; then no peer can reach the memory any more. With a monitor its mapping may
/// change meanwhile, as that of any memory (QueuePair): the next use registers what is mapped there then.
class RegisteredBuffer {
 public:
  virtual ~RegisteredBuffer() = default;
  [[nodiscard]] virtual const transport::MemorySpan& span() const noexcept = 0;
};

/// An association with one controller: its admin queue, its identity and its namespaces. Thread-safe, except
/// with a management reactor of the caller's.
class Session {
 public:
  /// Blocks until the controller is enabled, identified and its namespaces are listed, or until the timeout.
  /// The order of commands is the Linux host's. `uri` without an NQN is refused: discover()
  /// first.
  [[nodiscard]] static Result<std::unique_ptr<Session>> connect(const Environment& environment, const Uri& uri,
                                                                const SessionOptions& options);
  /// close(). Every queue pair and registered buffer must be gone.
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// Shuts the controller down in order (CC.SHN, at most 2 s), disconnects and waits for the fabric: 8 s at
  /// most.
  void close();

  [[nodiscard]] SessionState state() const noexcept;
  /// Why the session is lost; nothing while it is not.
  [[nodiscard]] std::optional<Error> failure() const;

  [[nodiscard]] const Uri& uri() const noexcept;
  [[nodiscard]] const nvme::Nqn& host_nqn() const noexcept;
  [[nodiscard]] const nvme::HostId& host_id() const noexcept;
  [[nodiscard]] const ControllerInfo& controller() const noexcept;
  /// Active namespaces with whole blocks of 512 to 4096 bytes and no metadata, ascending; others were logged
  /// and left out. As they were when the session connected.
  [[nodiscard]] std::span<const Namespace> namespaces() const noexcept;
  /// The same list as it is now: namespaces come, go, grow and shrink (SessionOptions::on_event tells when: type
  /// NVME_AER_NOTICE, info 0). The copies are the caller's, who keeps those that its requests name. Requests for
  /// a namespace that has gone fail with invalid_namespace, those behind a new end with lba_out_of_range. Blocks
  /// for command_timeout per command, two for each namespace; not from a callback. Errors: as admin().
  [[nodiscard]] Result<std::vector<Namespace>> rescan();
  /// One of them as it is now; nothing if it has gone, or cannot be used any more.
  [[nodiscard]] Result<std::optional<Namespace>> look_at(Nsid nsid);
  /// `nsid`, or the only one there is if none is given. Error: not_found, with those there are.
  [[nodiscard]] Result<const Namespace*> find(std::optional<Nsid> nsid) const;
  /// As the controller was told: the option's, or the URI's.
  [[nodiscard]] Duration keep_alive() const noexcept;
  /// I/O queues that the controller granted: how many queue pairs may be open at a time.
  [[nodiscard]] std::uint32_t io_queues() const noexcept;
  [[nodiscard]] BufferCacheCounters buffer_cache() const;

  /// On the caller's thread and on `reactor`, which that thread turns and which is turned here until the queue is
  /// connected. Errors: resource if all granted queues are open; in_use if the target has not noticed yet that the
  /// connection of an earlier queue pair was lost (then a new session is the way, as for Linux); what connect() can say.
  [[nodiscard]] Result<std::unique_ptr<QueuePair>> open_queue_pair(transport::Reactor& reactor,
                                                                   const QueuePairOptions& options);

  /// Makes `memory` reachable for the peer, on every queue pair, open or to come. Over shm it must be a
  /// memfd's. Errors: unsupported (leave it unregistered then: it will be copied), resource, in_use (overlaps
  /// another one, or the same pages are being used).
  [[nodiscard]] Result<std::unique_ptr<RegisteredBuffer>> register_buffer(const transport::MemorySpan& memory);

  /// Authenticates the admin queue again, or `queue`, on its reactor's thread, as who connected; what is in flight goes on. Blocks as
  /// admin(). Errors: `permission` (the target then ends the association), `unsupported`.
  [[nodiscard]] Result<void> authenticate(QueuePair* queue = nullptr);

  /// Any admin command: `command` without cid and data pointer; `data` (at most 128 KiB) goes to or comes
  /// from the controller as the opcode says. Blocks for command_timeout at most. A status other than success
  /// is not an Error.
  [[nodiscard]] Result<nvme::CompletionQueueEntry> admin(nvme::SubmissionQueueEntry command, std::span<std::byte> data);

 private:
  class Implementation;
  explicit Session(std::unique_ptr<Implementation> implementation) noexcept;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace rbt::initiator
