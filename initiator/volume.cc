// A volume's public face, and its lanes: threads, and what it has them do.

#include "initiator/volume.h"

#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "common/check.h"
#include "common/quiet_thread.h"
#include "initiator/recovery.h"
#include "transport/reactor/run_on.h"

namespace rbt::initiator {

namespace {

constexpr std::uint32_t kRequestsMax = 65536;
constexpr std::size_t kLanesMax = 64;
constexpr std::uint64_t kUnflushedMin = 4 * kMiB;

Result<void> check_options(std::span<const Uri> uris, const VolumeOptions& options) {
  if (uris.empty()) return rbt::failure(ErrorKind::invalid_argument, "a volume needs a URI");
  if (options.requests < 1 || options.requests > kRequestsMax)
    return rbt::failure(ErrorKind::invalid_argument,
                        fmt::format("{} requests at a time: 1 to {} are allowed", options.requests, kRequestsMax));
  const std::size_t lanes = options.lane_reactors.empty() ? options.lanes : options.lane_reactors.size() + 1;
  if (lanes < 1 || lanes > kLanesMax)
    return rbt::failure(ErrorKind::invalid_argument, fmt::format("{} lanes: 1 to {} are allowed", lanes, kLanesMax));
  if (options.unflushed != Bytes(0) && options.unflushed < Bytes(kUnflushedMin))
    return rbt::failure(
        ErrorKind::invalid_argument,
        fmt::format("{} bytes for unflushed writes: 0, or 4 MiB and more, are allowed", options.unflushed.value()));
  return options.predecessor ? check_predecessor(*options.predecessor) : Result<void>();
}

}  // namespace

Bytes unflushed_of_lane(const VolumeOptions& options) noexcept {
  if (options.unflushed == Bytes(0)) return Bytes(0);
  return Bytes(std::max(options.unflushed.value() / std::max(options.lanes, 1U), kUnflushedMin));
}

Bytes request_max_of(const VolumeOptions& options) noexcept {
  return options.unflushed == Bytes(0) ? Bytes(kGiB) : Bytes(unflushed_of_lane(options).value() / 4);
}

Volume::Implementation::Implementation(const Environment& environment, std::span<const Uri> uris,
                                       transport::Reactor& reactor, const VolumeOptions& options)
    : environment_(environment),
      uris_(uris.begin(), uris.end()),
      reactor_(reactor),
      options_(options),
      wake_(reactor.timers(), [] {}) {  // the sleeper looks at progress_due() by itself
  if (!options_.lane_reactors.empty()) options_.lanes = static_cast<std::uint32_t>(options_.lane_reactors.size() + 1);
}

Volume::Implementation::~Implementation() {
  close();
  drop_lanes(0);
}

void Volume::Implementation::close() {
  if (state_ == VolumeState::closed) return;
  advance(VolumeState::closed, nullptr);
  wake_.cancel();
  take_down();
  on_lanes([](Lane& lane) { lane.close(); });
}

std::uint32_t Volume::Implementation::in_flight() const noexcept {
  std::uint32_t sum = 0;
  for (const auto& lane : lanes_)
    sum += lane->in_flight();
  return sum;
}

const VolumeStatistics& Volume::Implementation::statistics() noexcept {
  summed_ = statistics_;
  for (const auto& lane : lanes_)
    lane->add_to(summed_);
  return summed_;
}

// ---- lanes

Result<void> Volume::Implementation::make_lanes() {
  lanes_.push_back(std::make_unique<Lane>(environment_.clock, reactor_, options_, shared_, 0, nullptr));
  for (std::size_t i = 1; i < options_.lanes; ++i) {
    transport::Reactor* reactor = nullptr;
    if (options_.lane_reactors.empty()) {
      auto created = transport::Reactor::create(environment_.clock, environment_.logger);
      if (!created) return rbt::failure(std::move(created.error()));
      reactor = created->get();
      auto thread = start_quiet_thread([reactor, i] {
        ::pthread_setname_np(::pthread_self(), fmt::format("rbt-lane-{}", i).c_str());  // at most 15 bytes
        reactor->run();
      });
      if (!thread)
        return rbt::failure(std::move(thread.error()).within(fmt::format("lane {} of {}", i, options_.lanes)));
      threads_.push_back({std::move(*created), std::move(*thread)});
    } else {
      reactor = options_.lane_reactors[i - 1];
    }
    lanes_.push_back(std::make_unique<Lane>(environment_.clock, *reactor, options_, shared_, i, &reactor_));
  }
  return {};
}

// Nothing is asked of them any more.
void Volume::Implementation::drop_lanes(std::size_t left) {
  for (; threads_.size() > (left == 0 ? 0 : left - 1); threads_.pop_back()) {
    threads_.back().reactor->stop();
    threads_.back().thread.join();
    lanes_.pop_back();
  }
  lanes_.resize(left);
}

void Volume::Implementation::on_lanes(const std::function<void(Lane&)>& what) {
  std::vector<transport::Reactor*> reactors;
  for (const auto& lane : lanes_)
    reactors.push_back(&lane->reactor());
  transport::run_on(reactor_, reactors, [&](std::size_t which) { what(*lanes_[which]); });
}

// ---- the public face

Volume::Volume(std::unique_ptr<Implementation> implementation) noexcept : implementation_(std::move(implementation)) {}
Volume::~Volume() = default;

Result<std::unique_ptr<Volume>> Volume::open(const Environment& environment, std::span<const Uri> uris,
                                             transport::Reactor& reactor, const VolumeOptions& options) {
  if (auto allowed = check_options(uris, options); !allowed) return rbt::failure(std::move(allowed.error()));
  auto implementation = std::make_unique<Implementation>(environment, uris, reactor, options);
  auto opened = implementation->make_lanes();
  if (opened) opened = implementation->open();
  if (!opened) return rbt::failure(std::move(opened.error()));
  return std::unique_ptr<Volume>(new Volume(std::move(implementation)));
}

void Volume::close() {
  implementation_->close();
}

Submitted Volume::read(Request& request, Lba first, std::span<const iovec> data) {
  request.operation = Operation::read;
  request.range = {first, Blocks(0)};
  request.data = data;
  request.fua = nvme::ForceUnitAccess::no;
  return submit(request);
}

Submitted Volume::write(Request& request, Lba first, std::span<const iovec> data, nvme::ForceUnitAccess fua) {
  request.operation = Operation::write;
  request.range = {first, Blocks(0)};
  request.data = data;
  request.fua = fua;
  return submit(request);
}

Submitted Volume::compare(Request& request, Lba first, std::span<const iovec> data) {
  request.operation = Operation::compare;
  request.range = {first, Blocks(0)};
  request.data = data;
  request.fua = nvme::ForceUnitAccess::no;
  return submit(request);
}

Submitted Volume::flush(Request& request) {
  request.operation = Operation::flush;
  return submit(request);
}

Submitted Volume::discard(Request& request, std::span<const BlockRange> ranges) {
  request.operation = Operation::discard;
  request.ranges = ranges;
  return submit(request);
}

Submitted Volume::write_zeroes(Request& request, BlockRange range, nvme::Deallocate deallocate,
                               nvme::ForceUnitAccess fua) {
  request.operation = Operation::write_zeroes;
  request.range = range;
  request.deallocate = deallocate;
  request.fua = fua;
  return submit(request);
}

Submitted Volume::submit(Request& request) {
  return implementation_->lane(0).submit(request);
}

std::size_t Volume::lanes() const noexcept {
  return implementation_->lanes();
}
VolumeLane& Volume::lane(std::size_t which) noexcept {
  return implementation_->lane(which);
}

bool Volume::run_until(const std::function<bool()>& done, Instant deadline) {
  while (true) {
    implementation_->progress();
    if (done()) return true;
    const auto wake = [&] { return done() || implementation_->progress_due(); };
    if (!implementation_->reactor().run_until(wake, deadline)) return done();
  }
}

bool Volume::progress_due() const noexcept {
  return implementation_->progress_due();
}
void Volume::progress() {
  implementation_->progress();
}
VolumeState Volume::state() const noexcept {
  return implementation_->state();
}
const Error* Volume::failure() const noexcept {
  return implementation_->failure();
}
const Namespace& Volume::disk() const noexcept {
  return implementation_->disk();
}
Bytes Volume::request_max() const noexcept {
  return implementation_->request_max();
}
std::uint32_t Volume::in_flight() const noexcept {
  return implementation_->in_flight();
}
const VolumeStatistics& Volume::statistics() const noexcept {
  return implementation_->statistics();
}
Succession Volume::succession() const {
  return implementation_->succession();
}
transport::BufferPool* Volume::buffers() noexcept {
  return implementation_->buffers();
}

}  // namespace rbt::initiator
