#include "target/target.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "common/check.h"
#include "common/nvme/uuid.h"
#include "target/acceptor.h"
#include "target/core.h"
#include "target/host.h"

namespace rbt::target {

namespace {

constexpr std::uint32_t kQueueDepthMax = 1024;
constexpr std::uint32_t kIoQueuesMax = 1024;
constexpr std::uint32_t kInCapsuleMax = 16 * 1024;
constexpr unsigned kReactorsMax = 256;
constexpr std::size_t kSerialMax = 20;  // SN of Identify Controller
constexpr std::size_t kModelMax = 40;   // MN

Result<void> in_range(std::string_view what, std::uint64_t value, std::uint64_t least, std::uint64_t most) {
  if (value >= least && value <= most) return {};
  return failure(ErrorKind::invalid_argument, fmt::format("{} is {}, allowed are {} to {}", what, value, least, most));
}

Result<void> check_limits(const TargetLimits& limits) {
  if (auto ok = in_range("the queue depth", limits.queue_depth_max, 2, kQueueDepthMax); !ok) return ok;
  if (auto ok = in_range("the number of I/O queues", limits.io_queues_max, 1, kIoQueuesMax); !ok) return ok;
  if (auto ok = in_range("the number of connections", limits.connections_max, 1, 1u << 20); !ok) return ok;
  if (auto ok = in_range("the number of connections per host", limits.connections_per_host, 1, 1u << 20); !ok)
    return ok;
  if (auto ok = in_range("the number of half-open connections", limits.half_open_max, 1, 1u << 20); !ok) return ok;
  if (auto ok = in_range("the number of half-open connections per host", limits.half_open_per_host, 1, 1u << 20); !ok)
    return ok;
  if (auto ok = in_range("the number of RDMA READs", limits.reads_max, 1, 255); !ok) return ok;
  if (auto ok = in_range("the number of receive buffers", limits.receive_depth, 1, 1u << 16); !ok) return ok;
  if (auto ok = in_range("the buffer memory", limits.buffers.value(), 4 * kMiB, kTiB); !ok) return ok;
  const auto stalled = std::chrono::duration_cast<std::chrono::milliseconds>(limits.stalled).count();
  if (auto ok = in_range("the time for a stalled connection in ms", static_cast<std::uint64_t>(stalled), 1, 1u << 31);
      !ok)
    return ok;
  const std::uint32_t in_capsule = limits.in_capsule_bytes.value_or(0);
  if (in_capsule % 16 != 0)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("in-capsule data of {} bytes: not a multiple of 16", in_capsule));
  return in_range("in-capsule data", in_capsule, 0, kInCapsuleMax);
}

bool is_ascii_text(std::string_view text) noexcept {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c <= 0x7e; });
}

Result<void> check_text(std::string_view what, std::string_view text, std::size_t most) {
  if (text.size() > most)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("the {} \"{}\" has {} characters, {} are allowed", what, text, text.size(), most));
  if (!is_ascii_text(text))
    return failure(ErrorKind::invalid_argument,
                   fmt::format("the {} \"{}\" has characters outside printable ASCII", what, printable(text)));
  return {};
}

}  // namespace

struct Target::Impl {
  explicit Impl(const TargetOptions& given) : options(given), core(given.clock, given.logger, given.limits) {
    core.own_reactors = own_reactors();
  }

  [[nodiscard]] bool own_reactors() const noexcept { return options.given_reactors.empty(); }
  [[nodiscard]] bool running() const noexcept { return core.threads_running.load(std::memory_order_acquire); }
  /// Of I/O; null if there is none.
  [[nodiscard]] const Subsystem* find(const nvme::Nqn& nqn) const noexcept {
    return nqn.is_discovery() ? nullptr : core.find(nqn);
  }

  [[nodiscard]] bool authenticates() const noexcept {
    for (const auto& subsystem : core.subsystems)
      for (const auto& host : subsystem->hosts())
        if (host->allowed.authentication.secret != nullptr) return true;
    return false;
  }

  TargetOptions options;
  std::vector<std::unique_ptr<transport::Reactor>> reactors;  // our own; outlive the contexts in `core`
  Core core;
  std::vector<std::unique_ptr<Acceptor>> acceptors;
  std::vector<std::thread> threads;
  bool started = false;
};

Result<std::unique_ptr<Target>> Target::open(const TargetOptions& options) {
  if (auto ok = check_limits(options.limits); !ok) return failure(std::move(ok.error()).within("opening a target"));
  auto impl = std::make_unique<Impl>(options);
  std::vector<transport::Reactor*> reactors = options.given_reactors;
  if (reactors.empty()) {
    if (auto ok = in_range("the number of reactors", options.reactors, 1, kReactorsMax); !ok)
      return failure(std::move(ok.error()).within("opening a target"));
    for (unsigned i = 0; i < options.reactors; ++i) {
      auto reactor = transport::Reactor::create(options.clock, options.logger, options.reactor_options);
      if (!reactor) return failure(std::move(reactor.error()));
      reactors.push_back(reactor->get());
      impl->reactors.push_back(std::move(*reactor));
    }
  }
  for (std::size_t i = 0; i < reactors.size(); ++i) {
    auto context = ReactorContext::create(impl->core, *reactors[i], i);
    if (!context) return failure(std::move(context.error()));
    impl->core.reactors.push_back(std::move(*context));
  }
  impl->core.started = options.clock.now();
  impl->core.instance = nvme::Uuid::generate(options.random).bytes();
  impl->core.subsystems.push_back(
      std::make_unique<Subsystem>(0, Subsystem::Description{.nqn = nvme::Nqn::discovery(),
                                                            .kind = ControllerKind::discovery,
                                                            .allow_any_host = true,
                                                            .allowed_hosts = {},
                                                            .serial = "rbt",
                                                            .model = "rbt discovery"}));
  return std::unique_ptr<Target>(new Target(std::move(impl)));
}

Target::Target(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Target::~Target() {
  if (impl_->own_reactors()) stop();
  check(drained(), "a target on given reactors is destroyed only when drained");
  impl_->acceptors.clear();
}

Result<void> Target::add_subsystem(const nvme::Nqn& nqn, const SubsystemOptions& options) {
  const auto fail_with = [&](Error error) { return failure(std::move(error).within("subsystem " + nqn.text())); };
  if (impl_->started) return fail_with(Error(ErrorKind::in_use, "subsystems are added before the target starts"));
  if (nqn.is_discovery())
    return fail_with(Error(ErrorKind::invalid_argument, "that is the discovery subsystem's name; it is there already"));
  if (impl_->core.find(nqn) != nullptr) return fail_with(Error(ErrorKind::in_use, "there is one of this name already"));
  if (auto ok = check_text("serial number", options.serial, kSerialMax); !ok) return fail_with(std::move(ok.error()));
  for (const AllowedHost& host : options.allowed_hosts)
    if (host.authentication.controller_secret != nullptr && host.authentication.secret == nullptr)
      return fail_with(Error(ErrorKind::invalid_argument,
                             fmt::format("host {} has a controller secret and no secret of its own: who does not prove "
                                         "himself is not proved anything either (Base 2.0, 8.13.5)",
                                         host.nqn.text())));
  if (auto ok = check_text("model", options.model, kModelMax); !ok) return fail_with(std::move(ok.error()));
  std::string serial = options.serial;
  if (serial.empty()) serial = fmt::format("{:016x}", impl_->options.random());
  impl_->core.subsystems.push_back(std::make_unique<Subsystem>(
      impl_->core.subsystems.size(), Subsystem::Description{.nqn = nqn,
                                                            .kind = ControllerKind::io,
                                                            .allow_any_host = options.allow_any_host,
                                                            .allowed_hosts = options.allowed_hosts,
                                                            .serial = std::move(serial),
                                                            .model = options.model}));
  return {};
}

Result<Nsid> Target::add_namespace(const nvme::Nqn& nqn, std::unique_ptr<Store> store,
                                   const NamespaceOptions& options) {
  const Subsystem* const subsystem = impl_->find(nqn);
  if (subsystem == nullptr)
    return failure(ErrorKind::not_found,
                   fmt::format("adding namespace {}: no subsystem {}; add it first", store->spec(), nqn.text()));
  return impl_->core.namespaces.add(*subsystem, std::move(store), options);
}

Result<void> Target::remove_namespace(const nvme::Nqn& nqn, Nsid nsid, NamespaceGone on_gone) {
  const Subsystem* const subsystem = impl_->find(nqn);
  if (subsystem == nullptr)
    return failure(ErrorKind::not_found,
                   fmt::format("removing namespace {}: no subsystem {}", nsid.value(), nqn.text()));
  return impl_->core.namespaces.remove(*subsystem, nsid, std::move(on_gone));
}

Result<void> Target::refresh_namespace(const nvme::Nqn& nqn, Nsid nsid) {
  const Subsystem* const subsystem = impl_->find(nqn);
  if (subsystem == nullptr)
    return failure(ErrorKind::not_found,
                   fmt::format("refreshing namespace {}: no subsystem {}", nsid.value(), nqn.text()));
  return impl_->core.namespaces.refresh(*subsystem, nsid);
}

Result<void> Target::show_namespaces(const nvme::Nqn& nqn, const nvme::Nqn& host,
                                     const std::optional<std::vector<Nsid>>& namespaces) {
  const auto fail_with = [&](std::string_view what) {
    return failure(ErrorKind::not_found,
                   fmt::format("showing namespaces of {} to {}: {}", nqn.text(), host.text(), what));
  };
  const Subsystem* const subsystem = impl_->find(nqn);
  if (subsystem == nullptr) return fail_with("there is no such subsystem");
  bool found = false;
  for (const auto& each : subsystem->hosts()) {
    if (each->allowed.nqn != host) continue;
    found = true;
    const auto changed = each->mask.show(namespaces);
    for (const auto& reactor : impl_->core.reactors)
      reactor->post([reactor = reactor.get(), subsystem, each = each.get(), changed] {
        reactor->note_shown(*subsystem, *each, changed);
      });
  }
  if (!found) return fail_with("that host is not on its list");
  return {};
}

Result<std::string> Target::listen(transport::Fabric& fabric, const Uri& address) {
  const auto where = [&] { return fmt::format("listening on {}", address.to_string()); };
  if (impl_->started)
    return failure(ErrorKind::in_use, fmt::format("{}: listeners are added before the target starts", where()));
  auto acceptor = Acceptor::listen(impl_->core, fabric, address);
  if (!acceptor) return failure(std::move(acceptor.error()).within(where()));
  std::string actual = (*acceptor)->address();
  auto uri = Uri::parse(actual);
  impl_->core.addresses.push_back({std::string(fabric.name()), uri ? std::move(*uri) : address});
  impl_->acceptors.push_back(std::move(*acceptor));
  return actual;
}

Result<void> Target::set_access(const Uri& address, nvme::AccessState state) {
  const auto found = std::find_if(impl_->acceptors.begin(), impl_->acceptors.end(),
                                  [&](const auto& acceptor) { return acceptor->listens_at(address); });
  if (found == impl_->acceptors.end())
    return failure(ErrorKind::not_found, fmt::format("making {} {}: nothing listens at that address",
                                                     address.to_string(), nvme::name(state)));
  Port& port = (*found)->port();
  port.set_access(state);
  for (const auto& reactor : impl_->core.reactors)
    reactor->post([reactor = reactor.get(), &port] { reactor->note_access_change(port); });
  return {};
}

Result<void> Target::start() {
  if (impl_->started) return failure(ErrorKind::in_use, "starting a target: it has been started before");
  Core& core = impl_->core;
  if (impl_->own_reactors() && impl_->authenticates()) {
    if (auto begun = core.authenticating.start(); !begun) return begun;
  }
  impl_->started = true;
  core.namespaces.start();
  core.serving.store(true, std::memory_order_release);
  if (!impl_->own_reactors()) return {};
  // None runs before all of this is written.
  for (const auto& reactor : impl_->reactors)
    core.threads.push_back(impl_->threads
                               .emplace_back([&core, &reactor] {
                                 core.threads_running.wait(false, std::memory_order_acquire);
                                 reactor->run();
                               })
                               .get_id());
  core.threads_running.store(true, std::memory_order_release);
  core.threads_running.notify_all();
  return {};
}

void Target::drain(Duration bound) {
  impl_->core.namespaces.close();
  if (impl_->own_reactors() && !impl_->running()) return;  // nobody can have connected
  impl_->core.draining.store(true, std::memory_order_relaxed);
  const Instant deadline = impl_->options.clock.now() + bound;
  impl_->core.reactors.front()->post([this] {
    for (const auto& acceptor : impl_->acceptors)
      acceptor->close();
  });
  for (const auto& reactor : impl_->core.reactors)
    reactor->post([reactor = reactor.get(), deadline] { reactor->drain(deadline); });
}

bool Target::drained() const noexcept {
  return impl_->core.gate.empty();
}

void Target::stop() {
  drain(Duration::zero());
  if (!impl_->running()) return;
  impl_->core.gate.wait_until_empty();
  // What belongs to a reactor's thread is freed there.
  impl_->core.on_each_reactor([](ReactorContext& reactor) { reactor.close_stores(); });
  for (const auto& reactor : impl_->reactors)
    reactor->stop();
  for (auto& thread : impl_->threads)
    thread.join();
  impl_->threads.clear();
  impl_->core.threads_running.store(false, std::memory_order_release);
}

TargetStatistics Target::statistics() const {
  Core& core = impl_->core;
  TargetStatistics statistics;
  statistics.controllers = core.controllers.size();
  statistics.connections_accepted = core.connections_accepted.load(std::memory_order_relaxed);
  statistics.connections_refused = core.connections_refused.load(std::memory_order_relaxed);
  statistics.reactors.resize(core.reactors.size());
  core.on_each_reactor([&](ReactorContext& reactor) { statistics.reactors[reactor.index()] = reactor.statistics(); });
  core.namespaces.append_to(statistics.namespaces);
  statistics.namespaces_leaving = core.namespaces.leaving();
  return statistics;
}

}  // namespace rbt::target
