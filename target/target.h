#pragma once
// librbt-target: serves block storage over NVMe/RDMA (NVMe Base 2.0, NVMe RDMA Transport 1.0) from within any program.
//
//   auto target = Target::open({.clock = clock, .logger = logger, .random = random, .reactors = 2});
//   target->add_subsystem(nqn, {.allow_any_host = true});
//   target->add_namespace(nqn, std::move(store));
//   target->listen(fabric, uri);
//   target->start();  …  target->drain(5s);  target->stop();
//
// Subsystems and listeners are configured before the start. Namespaces come, go and change their size at any time.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/log.h"
#include "common/nvme/access.h"
#include "common/nvme/nqn.h"
#include "common/random.h"
#include "common/result.h"
#include "common/units.h"
#include "common/uri.h"
#include "target/hosts.h"
#include "target/limits.h"
#include "target/store/store.h"
#include "transport/fabric.h"
#include "transport/reactor/reactor.h"

namespace rbt::target {

struct TargetOptions {
  const Clock& clock;
  Logger& logger;
  /// For serial numbers that are not given and the target's instance; used only by open() and add_subsystem().
  Random& random;
  /// Threads of the target's own, each with one reactor. Ignored if `given_reactors` is not empty.
  unsigned reactors = 1;
  transport::ReactorOptions reactor_options = {};
  /// For simulations and programs with a loop of their own: everything happens on these. They outlive the target and are
  /// all turned by the one thread that also calls the target.
  std::vector<transport::Reactor*> given_reactors = {};
  TargetLimits limits = {};
};

/// Who may connect to a subsystem, and what it calls itself.
struct SubsystemOptions {
  bool allow_any_host = false;
  std::vector<AllowedHost> allowed_hosts =
      {};                     ///< with allow_any_host, too: what these see; nobody else is one of them
  std::string serial = {};    ///< at most 20 ASCII characters; empty: 16 random hexadecimal digits
  std::string model = "rbt";  ///< at most 40 ASCII characters
};

struct NamespaceOptions {
  NamespaceOptions() = default;
  NamespaceOptions(std::optional<Nsid> nsid_) : nsid(nsid_) {}  // NOLINT(google-explicit-constructor): for most, all
  NamespaceOptions(Nsid nsid_) : nsid(nsid_) {}                 // NOLINT(google-explicit-constructor)
  std::optional<Nsid> nsid = {};                                ///< 1 to 4096; none: the lowest free one
  std::string reservations =
      {};  ///< file that keeps them through a power loss (docs/reservations.md); empty: none does
};

/// Commands of one namespace since start, all hosts and reactors together.
struct NamespaceStatistics {
  nvme::Nqn subsystem;
  Nsid nsid;
  std::string store;  ///< its spec
  std::uint64_t reads = 0;
  std::uint64_t writes = 0;
  std::uint64_t other = 0;  ///< Flush, Write Zeroes, Dataset Management
  std::uint64_t bytes_read = 0;
  std::uint64_t bytes_written = 0;
  std::uint64_t errors = 0;              ///< commands that the store could not carry out
  std::vector<std::string> report = {};  ///< what the store itself has counted: Store::counts()
};

/// One reactor's share.
struct ReactorStatistics {
  std::size_t connections = 0;
  Bytes buffers_free;
  Bytes buffers_size;
  /// By rbt's own code, of blocks' data: in-capsule data, and what stores copy in memory. The fabrics' copies, if there
  /// are any, are counted by them (PollGroupCounters::bytes_copied).
  std::uint64_t bytes_copied = 0;
  std::uint64_t writes_cut_off = 0;  ///< whose connection ended while their data was being fetched
  struct Group {
    std::string fabric;
    transport::PollGroupCounters counters;
  };
  std::vector<Group> groups;
};

struct TargetStatistics {
  std::size_t controllers = 0;             ///< discovery controllers included
  std::uint64_t connections_accepted = 0;  ///< since start
  std::uint64_t connections_refused = 0;
  std::vector<ReactorStatistics> reactors;
  std::vector<NamespaceStatistics> namespaces;
  std::size_t namespaces_leaving = 0;  ///< removed, and not gone yet
  [[nodiscard]] std::size_t connections() const noexcept {
    std::size_t sum = 0;
    for (const auto& reactor : reactors)
      sum += reactor.connections;
    return sum;
  }
};

/// A removed namespace is gone: no reactor uses its store any more. Let it go and it is destroyed here; move it to another
/// thread if unmapping or closing it takes long.
using NamespaceGone = std::function<void(std::unique_ptr<Store>)>;

/// An NVMe-oF target. One thread calls it, except where noted. Fabrics, clock, logger and given reactors outlive it.
class Target {
 public:
  /// Errors: `invalid_argument` for limits out of range, `resource` for what the machine does not give.
  [[nodiscard]] static Result<std::unique_ptr<Target>> open(const TargetOptions& options);
  /// stop()s first. With given reactors: only when drained() is true.
  ~Target();
  Target(const Target&) = delete;
  Target& operator=(const Target&) = delete;

  /// Before start(). Errors: `invalid_argument` (the discovery NQN, texts too long or not ASCII), `in_use` (NQN known).
  [[nodiscard]] Result<void> add_subsystem(const nvme::Nqn& nqn, const SubsystemOptions& options);
  /// Takes the store. Returns its NSID; from then on hosts can use the namespace,
  /// and those that are connected are told of it (Base 2.0, 5.2: Namespace Attribute Changed). Thread-safe between start()
  /// and drain(), while I/O runs. Own reactors: registers the store's memory on this thread and waits for every reactor to
  /// open its queue, so not on a reactor's thread (nor in NamespaceGone). Errors, after which nothing is left of it:
  /// `not_found` (no such subsystem), `in_use` (NSID taken; another namespace has the same identity: hosts refuse that; the
  /// target drains), `invalid_argument`, `resource`, what the store says.
  [[nodiscard]] Result<Nsid> add_namespace(const nvme::Nqn& subsystem, std::unique_ptr<Store> store,
                                           const NamespaceOptions& options = {});
  /// Thread-safe, on any thread, while I/O runs; returns at once. Reactors let no new command in as the message reaches
  /// them (Invalid Namespace or Format); then hosts are told; commands in flight finish. When the last one has,
  /// `on_gone` (may be empty) has the store, on the reactor where that happened or within this call. A host that does not
  /// take its answers within 5 s loses the connection. A store that does not return from an operation keeps its namespace
  /// "leaving", which is logged, and its commands unanswered; nothing else waits for it but stop(). The NSID is free at
  /// once: the next namespace of that number is another one. Errors: `not_found`, `in_use` (it is being added).
  [[nodiscard]] Result<void> remove_namespace(const nvme::Nqn& subsystem, Nsid nsid, NamespaceGone on_gone);
  /// Thread-safe, on any thread. The store's geometry has changed: uses it from now on, and tells hosts. Stores that call
  /// StoreObserver have this done by themselves. A namespace that has shrunk answers commands behind its new end with LBA
  /// Out of Range. Errors: `not_found`, `unsupported` (another block size: nothing was changed).
  [[nodiscard]] Result<void> refresh_namespace(const nvme::Nqn& subsystem, Nsid nsid);
  /// Thread-safe, one caller at a time. What `host` sees of the subsystem's namespaces from now on (AllowedHost): it is told of
  /// those that come and go by it. Commands in flight are carried out. Errors: `not_found` (subsystem, host not on its list).
  [[nodiscard]] Result<void> show_namespaces(const nvme::Nqn& subsystem, const nvme::Nqn& host,
                                             const std::optional<std::vector<Nsid>>& namespaces);
  /// Before start(). From now on the fabric queues connection requests; they are answered after start(). Returns the
  /// address with the port that was chosen. Every subsystem is reachable through every listener; the discovery log
  /// names a listener to those who come through the same kind of fabric. Errors: those of PollGroup::listen().
  [[nodiscard]] Result<std::string> listen(transport::Fabric& fabric, const Uri& address);

  /// Thread-safe between listen() and stop(), one caller at a time. What hosts that came through the listener at `address` (with
  /// the port that was chosen) can do with the namespaces: they are told (Base 2.0, 5.2: Asymmetric Namespace Access Change),
  /// and where that is nothing, their I/O commands end with a path related status, for them to use another listener.
  /// Commands that have come before are carried out. `optimized` until set. Errors: `not_found`.
  [[nodiscard]] Result<void> set_access(const Uri& address, nvme::AccessState state);

  /// Serves. Own reactors: their threads run from now on. Given reactors: they serve whenever they are turned.
  [[nodiscard]] Result<void> start();

  /// Thread-safe. Accepts nobody any more, lets commands in flight finish for at most `bound`, then closes every
  /// connection. Returns at once; drained() tells.
  void drain(Duration bound);
  /// Thread-safe. No connection is left and nothing of the target's is on its way between reactors.
  [[nodiscard]] bool drained() const noexcept;
  /// Closes whatever is left. Own reactors: returns when all is gone and the threads have ended: 5 s at the most, unless
  /// a store does not return from an operation, which is waited for. Given reactors: as drain(0).
  void stop();

  /// Own reactors: thread-safe, asks each of them and waits for the answers. Given: on their thread.
  [[nodiscard]] TargetStatistics statistics() const;

 private:
  struct Impl;
  explicit Target(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace rbt::target
