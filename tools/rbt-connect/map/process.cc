#include "tools/rbt-connect/map/process.h"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>

#include "common/sizes.h"
#include "tools/program/options.h"
#include "tools/rbt-connect/map/modules.h"
#include "tools/rbt-connect/map/succession_json.h"
#include "tools/rbt-connect/map/surroundings.h"
#include "tools/rbt-connect/map/volume_process.h"

namespace rbt::tools::map {

using initiator::VolumeState;

Result<int> serve(const World& world, const RunFolder& folder, NameLock lock, const Job& job, Starter& starter) {
  return Process(world, folder, std::move(lock), job, starter).run();
}

namespace {

initiator::DeviceOptions device_options(const MapOptions& options, const std::optional<State>& predecessor) {
  if (!predecessor)
    return {.queues = options.queues, .depth = options.depth, .io_max = options.io_max, .read_only = options.read_only};
  return {.queues = predecessor->queues,
          .depth = predecessor->depth,
          .io_max = Bytes(predecessor->io_max),
          .read_only = predecessor->read_only,
          .recover = predecessor->number};
}

}  // namespace

// The device is destroyed before its volume, both before what they run on. What was not taken away stays for a successor.
Process::~Process() {
  control_.reset();
  device_.reset();
  volume_.reset();
  last_resort_.reset();
  watchdog_.reset();
  if (signals_ < 0) return;
  reactor_->unwatch(signals_);
  ::close(signals_);
}

// ---- begin

Result<int> Process::run() {
  if (auto begun = begin(); !begun) {
    if (job_.predecessor) return failure(std::move(begun.error()));
    if (device_)
      if (auto removed = device_->remove(in(kOrderly)); !removed)
        world_.logger.warning("{}", removed.error().message());
    forget();
    return failure(std::move(begun.error()));
  }
  while (!over_) {
    if (stopped_ == 0) static_cast<void>(volume_->run_until([this] { return called(); }, in(kLong)));
    if (const Error* const why = device_->ended()) return ended(*why);
    if (resized_) resize();
    if (unmap_) unmap();
    if (stop_ != 0 && !over_)
      if (const auto status = stop()) return *status;
  }
  return kSuccess;
}

Result<void> Process::begin() {
  begun_ = changed_ = world_.clock.now();
  state_ = job_.predecessor.value_or(State{});
  if (!job_.predecessor) {
    state_.name = job_.options.name;
    for (const Uri& uri : job_.options.uris)
      state_.uris.push_back(uri.to_string());
    state_.options = written(job_.options);
    state_.since = world_.clock.unix_time_ms();
  }
  state_.pid = ::getpid();
  auto reactor = transport::Reactor::create(world_.clock, world_.logger);
  if (!reactor) return failure(std::move(reactor.error()));
  reactor_ = std::move(*reactor);
  if (auto watched = watch_signals(); !watched) return watched;

  const Via via = job_.predecessor ? parse_via(job_.predecessor->via).value_or(Via::automatic) : job_.options.via;
  load_modules(via);
  auto choice = choose(via, presenters(), doctor::this_machine());
  if (!choice) return failure(std::move(choice.error()));
  for (const std::string& each : choice->skipped)
    fmt::print(stderr, "rbt-connect: not by {}\n", each);
  for (std::size_t i = 0;; ++i) {
    auto opened = open(*choice->candidates[i]);
    if (opened) break;
    // Another way of presenting helps if the volume is there and the device is what failed.
    if (!volume_ || i + 1 == choice->candidates.size()) return opened;
    fmt::print(stderr, "rbt-connect: not by {}: {}\n", name(choice->candidates[i]->via), opened.error().message());
    volume_.reset();
  }
  return tell();
}

Result<void> Process::watch_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP})
    sigaddset(&set, signal);
  if (const int error = ::pthread_sigmask(SIG_BLOCK, &set, nullptr); error != 0)
    return errno_failure(error, "blocking signals");
  ::signal(SIGPIPE, SIG_IGN);
  signals_ = ::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signals_ < 0) return errno_failure(errno, "signalfd");
  return reactor_->watch(signals_, EPOLLIN, [this](std::uint32_t) { on_signal(); });
}

Result<void> Process::open(const Presenter& presenter) {
  opening_ = true;
  presenter_ = &presenter;
  state_.via = name(presenter.via);
  auto fabric = world_.fabrics.open(job_.options.uris.front().scheme);
  if (!fabric) return failure(std::move(fabric.error()));
  if (auto opened = open_volume(presenter, {**fabric, world_.clock, world_.logger, world_.random}); !opened)
    return opened;
  state_.uuid = initiator::identity(volume_->disk());
  if (auto alone = nobody_else_has_it(); !alone) {
    volume_.reset();
    return alone;
  }
  opening_ = false;
  return make_device();
}

Result<void> Process::open_volume(const Presenter& presenter, const initiator::Environment& environment) {
  const initiator::DeviceOptions device = device_options(job_.options, job_.predecessor);
  initiator::VolumeOptions options;
  options.session.host = job_.options.host;
  options.session.connect_timeout = job_.options.timeout;
  if (job_.options.keep_alive) options.session.keep_alive = *job_.options.keep_alive;
  const std::uint32_t requests = presenter.requests(device);
  options.queue.buffers = presenter.buffers(device);
  options.queue.depth = std::clamp<std::uint32_t>(requests, 1, 1023);
  options.requests = requests;
  if (presenter.lanes != nullptr) options.lanes = presenter.lanes(device);
  options.on_loss = job_.options.on_loss;
  options.accept_loss = job_.accept_loss;
  if (job_.predecessor) {
    auto succession = parse_succession(job_.predecessor->succession);
    if (!succession) return failure(std::move(succession.error()));
    options.predecessor = std::move(*succession);
  }
  options.open_patience = job_.patience;
  options.on_succession = [this](const initiator::Succession& succession) {
    state_.succession = to_json(succession);
    return folder_.write(state_);
  };
  options.on_change = [this](initiator::DiskChange change) { on_change(change); };
  options.on_state = [this](VolumeState state, const Error* why) { on_state(state, why); };
  auto volume = initiator::Volume::open(environment, job_.options.uris, *reactor_, options);
  if (!volume) return failure(std::move(volume.error()));
  volume_ = std::move(*volume);
  world_.logger.debug("{}: connected after {}", state_.name, format_duration(world_.clock.now() - begun_));
  return {};
}

Result<void> Process::make_device() {
  const initiator::Namespace& disk = volume_->disk();
  const initiator::DeviceOptions options = device_options(job_.options, job_.predecessor);
  // From here on there are children that outlive whoever waits for us. Why the device could not be made is in the error.
  if (starter_.detached())
    if (auto redirected = errors_.redirect(fmt::format("rbt-{}", state_.name), folder_.log(state_.name)); !redirected)
      return redirected;
  if (!job_.predecessor) {
    state_.mark = presenter_->intend(disk, world_.random);
    if (auto written = folder_.write(state_); !written) return written;
  }
  auto device = presenter_->present({*volume_, *reactor_, options, folder_, state_.mark});
  if (!device) {
    errors_.restore();
    return failure(std::move(device.error()));
  }
  device_ = std::move(*device);
  const initiator::DeviceOptions& made = device_->options();
  state_.device = device_->path();
  state_.number = device_->number();
  if (presenter_->mark != nullptr) state_.mark = presenter_->mark(state_.number);
  state_.queues = made.queues;
  state_.depth = made.depth;
  state_.io_max = made.io_max.value();
  state_.read_only = made.read_only;
  state_.block_size = 1U << disk.block_shift.value();
  state_.size = disk.blocks.value() << disk.block_shift.value();
  return {};
}

// Two volumes would write behind each other's back: what one of them writes again would be older than what the other wrote.
Result<void> Process::nobody_else_has_it() const {
  if (state_.uuid.empty() || job_.options.read_only) return {};
  for (const std::string& each : folder_.names()) {
    if (each == state_.name) continue;
    const auto other = folder_.read(each);
    if (other && other->uuid == state_.uuid && !other->read_only && folder_.holder(each))
      return failure(
          ErrorKind::in_use,
          fmt::format("this disk (UUID {}) is mapped as '{}' ({}): two volumes would write behind each other's "
                      "back; unmap that one, or map this one --read-only",
                      state_.uuid, each, other->device));
  }
  return {};
}

// The device is usable: everybody is told, whoever waits last.
Result<void> Process::tell() {
  if (auto written = folder_.write(state_); !written) return written;
  auto control =
      ControlServer::listen(*reactor_, folder_.control(state_.name),
                            [this](auto client, const Json& request) { return on_request(client, request); });
  if (!control) return failure(std::move(control.error()));
  control_ = std::move(*control);
  announce();
  world_.logger.info("{}: there after {}", state_.device, format_duration(world_.clock.now() - begun_));
  errors_.keep();
  starter_.ready(state_.device);
  lock_memory(world_.logger);  // takes a while; whoever waits for the device need not
  keep_watchdog();
  ::sd_notifyf(0, "READY=1\nSTATUS=%s: %s", state_.device.c_str(), std::string(name(volume_->state())).c_str());
  return {};
}

}  // namespace rbt::tools::map
