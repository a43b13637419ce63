#include "tools/nbdkit-plugin/volume.h"

#include <fmt/format.h>

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

std::string identity(const initiator::Namespace& space) {
  return fmt::format("UUID {}, blocks of {} bytes", space.uuid.to_string(), space.block_size());
}

}  // namespace

Result<void> set_parameter(VolumeOptions& options, std::string_view key, std::string_view value) {
  auto& session = options.disk.session;
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
  if (key == "connect-timeout") return set_duration(session.connect_timeout, key, value);
  if (key == "command-timeout") return set_duration(session.command_timeout, key, value);
  if (key == "keep-alive") return set_duration(session.keep_alive, key, value);
  return failure(ErrorKind::invalid_argument,
                 fmt::format("there is no parameter '{}'; there are: uri, requests, connect-timeout, command-timeout, "
                             "keep-alive (man nbdkit-rbt-plugin)",
                             printable(key)));
}

Result<void> complete(VolumeOptions& options) {
  if (!options.uri)
    return failure(ErrorKind::invalid_argument,
                   "uri=… is missing: which namespace is to be served? For example uri=nvme+rdma://10.0.0.1/NQN/1 or "
                   "uri=nvme+shm:///NQN/1?socket=/run/rbt.sock");
  if (options.uri->scheme != Uri::Scheme::shm) return {};
  const auto socket = options.uri->options.find("socket");
  if (socket == options.uri->options.end()) return {};
  std::error_code error;
  const auto absolute = std::filesystem::absolute(socket->second, error);
  if (error) return errno_failure(error.value(), "asking for the directory of socket=" + socket->second);
  socket->second = absolute.string();
  return {};
}

Volume::Volume(VolumeOptions options, Logger& logger)
    : options_(std::move(options)), logger_(logger), random_(Random::from_entropy()) {
  // One host for the life of the process: a target can tell a session made anew from a stranger's.
  options_.disk.session.host.id = nvme::HostId(nvme::Uuid::generate(random_));
}

Result<void> Volume::probe() {
  Fabrics fabrics(logger_, random_);
  auto fabric = fabrics.open(options_.uri->scheme);
  if (!fabric) return failure(std::move(fabric.error()));
  auto reactor = transport::Reactor::create(clock_, logger_);
  if (!reactor) return failure(std::move(reactor.error()));
  initiator::SessionOptions options = options_.disk.session;
  options.management = reactor->get();
  auto session = initiator::Session::connect({**fabric, clock_, logger_, random_}, *options_.uri, options);
  if (!session) return failure(std::move(session.error()));
  auto space = (*session)->find(options_.uri->nsid);
  if (!space) return failure(std::move(space.error()));
  return {};
}

Result<std::unique_ptr<SharedDisk>> Volume::connect() {
  auto fabric = fabrics_->open(options_.uri->scheme);
  if (!fabric) return failure(std::move(fabric.error()));
  return SharedDisk::connect({**fabric, clock_, logger_, random_}, *options_.uri, options_.disk);
}

Result<void> Volume::start() {
  const std::lock_guard lock(mutex_);
  fabrics_.emplace(logger_, random_);
  auto disk = connect();
  if (!disk) return failure(std::move(disk.error()));
  disk_ = std::move(*disk);
  return {};
}

Result<std::shared_ptr<SharedDisk>> Volume::open() {
  const std::lock_guard lock(mutex_);
  if (disk_->failure()) {
    auto again = connect();
    if (!again) return failure(std::move(again.error()).within("connecting again"));
    if (!same_disk(disk_->space(), (*again)->space()))
      return failure(
          ErrorKind::mismatch,
          fmt::format("connecting again: {} is another disk now ({}; it was {}): what was written to the old "
                      "one is not in it; start nbdkit again to serve the new one",
                      options_.uri->to_string(), identity((*again)->space()), identity(disk_->space())));
    logger_.info("{}: connected again", options_.uri->to_string());
    disk_ = std::move(*again);
  } else if (disk_->changed()) {
    auto looked = disk_->look_again();
    if (!looked) return failure(std::move(looked.error()));
  }
  return disk_;
}

}  // namespace rbt::tools
