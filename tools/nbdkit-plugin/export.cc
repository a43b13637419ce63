#include "tools/nbdkit-plugin/export.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <utility>

#include "common/sizes.h"

namespace rbt::tools {

namespace {

using initiator::SharedDisk;

Result<void> set_duration(Duration& out, std::string_view key, std::string_view value) {
  const auto duration = parse_duration(value);
  if (!duration) return failure(Error(duration.error()).within(fmt::format("{}={}", key, printable(value))));
  if (*duration <= Duration::zero())
    return failure(ErrorKind::invalid_argument, fmt::format("{}={}: it must be longer than that", key, value));
  out = *duration;
  return {};
}

Result<void> set_requests(std::uint32_t& out, std::string_view value) {
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), out);
  if (error != std::errc() || end != value.data() + value.size() || out < 1 || out > SharedDisk::kRequestsMax)
    return failure(ErrorKind::invalid_argument, fmt::format("requests={}: a number from 1 to {} is allowed",
                                                            printable(value), SharedDisk::kRequestsMax));
  return {};
}

// As `rbt-connect map` has it: hold, fail, or how long; a number alone is seconds.
Result<void> set_on_loss(std::optional<Duration>& out, std::string_view value) {
  if (value == "hold") {
    out.reset();
    return {};
  }
  const bool bare =
      !value.empty() && std::all_of(value.begin(), value.end(), [](char c) { return c >= '0' && c <= '9'; });
  const auto duration = value == "fail" ? Result<Duration>(Duration::zero())
                                        : parse_duration(bare ? std::string(value) + "s" : std::string(value));
  if (!duration || *duration < Duration::zero())
    return failure(
        ErrorKind::invalid_argument,
        fmt::format("on-loss={}: it is hold (requests wait as long as it takes), fail (they fail at once) or how "
                    "long they wait until they fail: seconds, or a duration (30, 1.5s, 2min)",
                    printable(value)));
  out = *duration;
  return {};
}

}  // namespace

Result<void> set_parameter(ExportOptions& options, std::string_view key, std::string_view value) {
  auto& volume = options.disk.volume;
  if (key == "uri") {
    if (options.uri)
      return failure(ErrorKind::invalid_argument,
                     fmt::format("a second uri, {}: one nbdkit serves one namespace", printable(value)));
    auto uri = Uri::parse(value);
    if (!uri) return failure(std::move(uri.error()));
    options.uri = std::move(*uri);
    return {};
  }
  if (key == "requests") return set_requests(options.disk.requests, value);
  if (key == "connect-timeout") return set_duration(volume.attempt_timeout, key, value);
  if (key == "command-timeout") return set_duration(volume.session.command_timeout, key, value);
  if (key == "keep-alive") return set_duration(volume.session.keep_alive, key, value);
  if (key == "on-loss") return set_on_loss(volume.on_loss, value);
  return failure(ErrorKind::invalid_argument,
                 fmt::format("there is no parameter '{}'; there are: uri, requests, on-loss, connect-timeout, "
                             "command-timeout, keep-alive (man nbdkit-rbt-plugin)",
                             printable(key)));
}

Result<void> complete(ExportOptions& options) {
  if (!options.uri)
    return failure(ErrorKind::invalid_argument,
                   "uri=… is missing: which namespace is to be served? For example uri=nvme+rdma://10.0.0.1/NQN/1 or "
                   "uri=nvme+shm:///NQN/1?socket=/run/rbt.sock");
  options.uri->options.erase("queues");  // there is one: what has not been flushed is kept in one order
  if (options.uri->scheme != Uri::Scheme::shm) return {};
  const auto socket = options.uri->options.find("socket");
  if (socket == options.uri->options.end()) return {};
  std::error_code error;
  const auto absolute = std::filesystem::absolute(socket->second, error);
  if (error) return errno_failure(error.value(), "asking for the directory of socket=" + socket->second);
  socket->second = absolute.string();
  return {};
}

Export::Export(ExportOptions options, Logger& logger)
    : options_(std::move(options)), logger_(logger), random_(Random::from_entropy()) {
  // One host for the life of the process: a target can tell a session made anew from a stranger's.
  options_.disk.volume.session.host.id = nvme::HostId(nvme::Uuid::generate(random_));
}

Result<void> Export::probe() {
  Fabrics fabrics(logger_, random_);
  auto fabric = fabrics.open(options_.uri->scheme);
  if (!fabric) return failure(std::move(fabric.error()));
  auto reactor = transport::Reactor::create(clock_, logger_);
  if (!reactor) return failure(std::move(reactor.error()));
  initiator::SessionOptions options = options_.disk.volume.session;
  options.connect_timeout = options_.disk.volume.attempt_timeout;
  options.management = reactor->get();
  auto session = initiator::Session::connect({**fabric, clock_, logger_, random_}, *options_.uri, options);
  if (!session) return failure(std::move(session.error()));
  auto space = (*session)->find(options_.uri->nsid);
  if (!space) return failure(std::move(space.error()));
  const initiator::ControllerInfo& controller = (*session)->controller();
  description_ = fmt::format("{}, namespace {}: {}, serial {}", options_.uri->nqn->text(), (*space)->nsid.value(),
                             controller.model, controller.serial);
  return {};
}

Result<std::shared_ptr<SharedDisk>> Export::connect() {
  auto fabric = fabrics_->open(options_.uri->scheme);
  if (!fabric) return failure(std::move(fabric.error()));
  auto disk = SharedDisk::connect({**fabric, clock_, logger_, random_}, *options_.uri, options_.disk);
  if (!disk) return failure(std::move(disk.error()));
  return std::shared_ptr<SharedDisk>(std::move(*disk));
}

Result<void> Export::start() {
  const std::lock_guard lock(mutex_);
  fabrics_.emplace(logger_, random_);
  auto& patience = options_.disk.volume.open_patience;
  patience = options_.disk.volume.attempt_timeout;  // probe() has just been there
  auto disk = connect();
  patience = Duration::zero();  // a client need not wait for what may never come
  if (!disk) return failure(std::move(disk.error()));
  disk_ = std::move(*disk);
  return {};
}

Result<std::shared_ptr<SharedDisk>> Export::open() {
  const std::lock_guard lock(mutex_);
  if (ending_) return failure(ErrorKind::disconnected, "nbdkit ends: there are no more clients");
  if (!disk_->failure()) return disk_;
  disk_->close();
  auto [succession, unflushed] = disk_->remains();
  owing_ = owing_ || unflushed;
  if (!owing_) succession.memory = initiator::MemoryKind::off;  // nothing can have been lost with it
  options_.disk.volume.predecessor = std::move(succession);
  auto again = connect();
  if (!again) {
    const bool another = again.error().kind() == ErrorKind::mismatch;
    return failure(
        std::move(again.error())
            .within(another ? "connecting again (nbdkit started anew serves it as it is)" : "connecting again"));
  }
  logger_.info("{}: connected again", options_.uri->to_string());
  disk_ = std::move(*again);
  return disk_;
}

void Export::give_up_when_lost() {
  const std::lock_guard lock(mutex_);
  ending_ = true;
  if (disk_) disk_->give_up_when_lost();
}

void Export::close() {
  const std::lock_guard lock(mutex_);
  ending_ = true;
  if (disk_) disk_->close();
}

}  // namespace rbt::tools
