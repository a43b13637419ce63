// A device's life: make (or take over) → open /dev/ublkcN → fetch every tag → start → … → stop → let go → delete.

#include "initiator/present/ublk.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <functional>
#include <span>
#include <thread>
#include <utility>

#include "common/check.h"
#include "common/sizes.h"
#include "initiator/present/io_flusher.h"
#include "initiator/present/ublk_control.h"
#include "initiator/present/ublk_ring.h"
#include "transport/reactor/run_on.h"

namespace rbt::initiator {

namespace {

using namespace std::chrono_literals;

constexpr Duration kPatience = 30s;       // for all of making or taking over
constexpr Duration kDyingPatience = 10s;  // for the process before us: it has memory and connections to give back
constexpr Duration kNodePatience = 5s;    // for a node in /dev: udev may be busy
constexpr Duration kNodeInterval = 10ms;  // between two looks
constexpr std::uint32_t kQueuesMax = 64;
constexpr std::uint32_t kDepthMax = 1024;  // kernels before 6.3 overflow beyond 2728
constexpr unsigned kSectorShift = 9;

Result<void> check_options(const DeviceOptions& options) {
  if (options.queues < 1 || options.queues > kQueuesMax)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{} queues: 1 to {} are allowed", options.queues, kQueuesMax));
  if (options.depth < 1 || options.depth > kDepthMax)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("{} requests per queue: 1 to {} are allowed", options.depth, kDepthMax));
  const std::uint64_t io_max = options.io_max.value();
  if (!std::has_single_bit(io_max) || io_max < 4 * kKiB || io_max > kMiB)
    return failure(ErrorKind::invalid_argument,
                   fmt::format("requests of {} bytes at most: a power of two from 4 KiB to 1 MiB is allowed", io_max));
  return {};
}

std::uint32_t depth_of(const DeviceOptions& options) noexcept {
  return std::min(options.depth, UblkRing::kTagsMax / std::max(options.queues, 1U));
}

class UblkDevice final : public Device {
 public:
  UblkDevice(Volume& volume, transport::Reactor& reactor) : volume_(volume), reactor_(reactor) {}
  ~UblkDevice() override;

  [[nodiscard]] Result<void> open(const DeviceOptions& options);

  [[nodiscard]] const std::string& path() const noexcept override { return path_; }
  [[nodiscard]] std::string_view kind() const noexcept override { return "ublk"; }
  [[nodiscard]] std::uint32_t number() const noexcept override { return info_.dev_id; }
  [[nodiscard]] const DeviceOptions& options() const noexcept override { return options_; }
  [[nodiscard]] const Error* ended() const noexcept override;
  [[nodiscard]] Result<void> resize() override;
  [[nodiscard]] Result<void> remove(Instant deadline) override;

 private:
  /// What one lane of the volume serves; all but the first three is that lane's thread's.
  struct Worker {
    VolumeLane* lane = nullptr;
    std::uint32_t first = 0;  // of the hardware queues
    std::uint32_t queues = 0;
    Result<void> begun{};  // written there, read here when that is over
    std::unique_ptr<IoFlusher> flusher{};
    std::unique_ptr<UblkRing> ring{};
    std::unique_ptr<UblkQueue> queue{};  // its counters: any thread's
  };
  [[nodiscard]] Result<void> make();
  [[nodiscard]] Result<void> take_over(std::uint32_t number);
  [[nodiscard]] Result<void> check_same(const ublk_params& params) const;
  [[nodiscard]] Result<void> serve();
  [[nodiscard]] Result<void> take_slots();
  [[nodiscard]] Result<int> open_character_device();
  [[nodiscard]] Result<void> wait_for_node();
  [[nodiscard]] Result<void> open_rings(int device);
  [[nodiscard]] Result<void> fetch();
  void on_workers(const std::function<void(Worker&)>& what);
  [[nodiscard]] bool all_ended() const noexcept;
  [[nodiscard]] std::uint32_t tags_ended() const noexcept;
  [[nodiscard]] int why_ended() const noexcept;
  void give_up_requests();
  [[nodiscard]] bool pass(const std::function<bool()>& done, Instant deadline);
  [[nodiscard]] bool pass_without_patience(const std::function<bool()>& done, Instant patience, Instant deadline);
  [[nodiscard]] UblkControl::Pass passing() {
    return [this](const std::function<bool()>& done, Instant deadline) { return pass(done, deadline); };
  }
  [[nodiscard]] Instant now() const noexcept { return reactor_.clock().now(); }

  Volume& volume_;
  transport::Reactor& reactor_;
  IoFlusher flusher_;  // of the volume's thread
  DeviceOptions options_;
  ublksrv_ctrl_dev_info info_{};
  std::uint64_t sectors_ = 0;  // that the kernel's device has
  std::string path_;
  std::unique_ptr<UblkControl> control_;
  std::vector<std::span<std::byte>> slots_;
  std::vector<Worker> workers_;  // the first is on the volume's thread
  Instant deadline_{};
  bool made_ = false;      // by us; while open() has not succeeded, nobody misses it
  bool removing_ = false;  // that tags are taken back is our doing
  mutable std::optional<Error> ended_;
};

// ---- letting go

UblkDevice::~UblkDevice() {
  give_up_requests();
  on_workers([](Worker& worker) {
    worker.ring.reset();
    worker.queue.reset();
    worker.flusher.reset();
  });
  for (const auto& slot : slots_)
    volume_.buffers()->free(slot);
}

// Their memory is ours. A volume ends single requests only with its path.
void UblkDevice::give_up_requests() {
  on_workers([](Worker& worker) {
    if (worker.queue) worker.queue->let_go();
  });
  if (std::any_of(workers_.begin(), workers_.end(),
                  [](const Worker& worker) { return worker.queue && worker.queue->with_volume() != 0; }))
    volume_.close();
}

void UblkDevice::on_workers(const std::function<void(Worker&)>& what) {
  std::vector<transport::Reactor*> reactors;
  for (const Worker& worker : workers_)
    reactors.push_back(&worker.lane->reactor());
  transport::run_on(reactor_, reactors, [&](std::size_t which) { what(workers_[which]); });
}

// ---- making one

Result<void> UblkDevice::open(const DeviceOptions& options) {
  options_ = options;
  deadline_ = now() + kPatience;
  if (auto flushing = flusher_.begin(); !flushing) return flushing;
  auto control = UblkControl::open(reactor_.clock(), deadline_, [&reactor = reactor_] { reactor.wake(); });
  if (!control) return failure(std::move(control.error()));
  control_ = std::move(*control);
  auto there = options.recover ? take_over(*options.recover) : make();
  if (there) there = serve();
  if (there) there = wait_for_node();
  if (there) return there;
  give_up_requests();
  on_workers([](Worker& worker) {
    if (worker.ring) worker.ring->close();
  });
  if (!made_) return there;  // what was to be taken over stays for the next one who tries
  auto gone = control_->remove(info_.dev_id, now() + kPatience, {});
  if (!gone)
    return failure(
        Error(there.error().kind(), fmt::format("{}; besides, {}", there.error().message(), gone.error().message())));
  return there;
}

Result<void> UblkDevice::make() {
  ublksrv_ctrl_dev_info wanted{};
  wanted.nr_hw_queues = static_cast<std::uint16_t>(options_.queues);
  wanted.queue_depth = static_cast<std::uint16_t>(depth_of(options_));
  wanted.max_io_buf_bytes = static_cast<std::uint32_t>(options_.io_max.value());
  wanted.dev_id = ~std::uint32_t{0};  // any
  wanted.flags = ublk::kFeatureRecovery | ublk::kFeatureReissue | (control_->features() & ublk::kFeatureIoctlEncode);
  wanted.ublksrv_flags = ublk::flags_of(options_.tag);
  auto made = control_->add(wanted, deadline_);
  if (!made) return failure(std::move(made.error()));
  info_ = *made;
  made_ = true;
  if ((info_.flags & ublk::kFeatureRecovery) == 0 || (info_.flags & ublk::kFeatureReissue) == 0)
    return failure(ErrorKind::unsupported,
                   "this kernel's ublk cannot hold requests for a successor of a dead process (UBLK_F_USER_RECOVERY): "
                   "Linux 6.1 can");
  const bool read_only = options_.read_only || volume_.disk().read_only;
  options_ = ublk_options_of(info_, read_only);
  options_.recover.reset();
  const ublk_params params = ublk_params_of(volume_.disk(), Bytes(info_.max_io_buf_bytes), read_only);
  sectors_ = params.basic.dev_sectors;
  return control_->set_params(info_.dev_id, params, deadline_);
}

// ---- taking one over

Result<void> UblkDevice::take_over(std::uint32_t number) {
  auto info = control_->info(number, deadline_);
  if (!info) return failure(std::move(info.error()));
  if (!ublk::is_ours(info->ublksrv_flags))
    return failure(ErrorKind::mismatch, fmt::format("ublk device {} is not one of rbt's: it is not touched", number));
  auto params = control_->params(number, deadline_);
  if (!params) return failure(std::move(params.error()));
  if (auto same = check_same(*params); !same) return same;
  if (info->state == UBLK_S_DEV_DEAD)
    return failure(
        ErrorKind::not_found,
        fmt::format("ublk device {} was stopped: there is nothing to take over; remove it and map anew", number));
  auto begun = control_->begin_recovery(number, now() + kDyingPatience, deadline_, passing());
  if (!begun) {
    // A successor that began and died before it had fetched every tag: the kernel waits for them, and begins no second time.
    const bool began_before = begun.error().kind() == ErrorKind::invalid_argument && info->state == UBLK_S_DEV_QUIESCED;
    if (!began_before) return begun;
  }
  info = control_->info(number, deadline_);  // once more: it may have changed until its process was dead
  if (!info) return failure(std::move(info.error()));
  info_ = *info;
  options_ = ublk_options_of(info_, (params->basic.attrs & UBLK_ATTR_READ_ONLY) != 0);
  sectors_ = params->basic.dev_sectors;
  return {};
}

Result<void> UblkDevice::check_same(const ublk_params& params) const {
  const Namespace& disk = volume_.disk();
  const auto differs = [&](std::string how) {
    return failure(ErrorKind::mismatch,
                   fmt::format("ublk device {} was made for another disk: {}", *options_.recover, how));
  };
  if ((params.types & UBLK_PARAM_TYPE_BASIC) == 0) return differs("it has no parameters yet");
  if (params.basic.logical_bs_shift != disk.block_shift.value())
    return differs(fmt::format("it has blocks of {} bytes, the disk of {}", 1U << params.basic.logical_bs_shift,
                               disk.block_size()));
  if (params.basic.dev_sectors > disk.size().value() >> kSectorShift)
    return differs(
        fmt::format("it has {} bytes, the disk {}", params.basic.dev_sectors << kSectorShift, disk.size().value()));
  if (disk.volatile_write_cache && (params.basic.attrs & UBLK_ATTR_VOLATILE_CACHE) == 0)
    return differs("the disk has a write cache, and the device was made without flushes");
  return {};
}

// ---- from a device without a process to one with us

Result<void> UblkDevice::serve() {
  if (auto taken = take_slots(); !taken) return taken;
  auto device = open_character_device();
  if (!device) return failure(std::move(device.error()));
  auto begun = open_rings(*device);
  ::close(*device);  // each ring has its own descriptor of it
  if (begun) begun = fetch();
  if (!begun) return begun;
  return options_.recover ? control_->end_recovery(info_.dev_id, deadline_, passing())
                          : control_->start(info_.dev_id, deadline_, passing());
}

// Hardware queues are shared out among the volume's lanes: one for each, if there are as many.
Result<void> UblkDevice::open_rings(int device) {
  const std::uint32_t queues = info_.nr_hw_queues;
  const auto lanes = static_cast<std::uint32_t>(std::min<std::size_t>(volume_.lanes(), queues));
  for (std::uint32_t i = 0; i < lanes; ++i) {
    const std::uint32_t first = i * queues / lanes;
    workers_.push_back({.lane = &volume_.lane(i), .first = first, .queues = (i + 1) * queues / lanes - first});
  }
  on_workers([&](Worker& worker) {
    worker.flusher = std::make_unique<IoFlusher>();
    worker.begun = worker.flusher->begin();
    if (!worker.begun) return;
    const int own = ::fcntl(device, F_DUPFD_CLOEXEC, 0);
    if (own < 0) {
      worker.begun = errno_failure(errno, "duplicating a descriptor", "raise the limit of open files (`ulimit -n`)");
      return;
    }
    auto ring = UblkRing::open(worker.lane->reactor(),
                               {.number = info_.dev_id,
                                .first = worker.first,
                                .queues = worker.queues,
                                .depth = info_.queue_depth,
                                .encoded = (control_->features() & ublk::kFeatureIoctlEncode) != 0},
                               own);
    if (!ring) {
      worker.begun = failure(std::move(ring.error()));
      return;
    }
    worker.ring = std::move(*ring);
    worker.queue =
        std::make_unique<UblkQueue>(*worker.lane, *worker.ring,
                                    std::span(slots_).subspan(std::size_t{worker.first} * info_.queue_depth,
                                                              std::size_t{worker.queues} * info_.queue_depth));
  });
  for (Worker& worker : workers_)
    if (!worker.begun) return std::move(worker.begun);
  return {};
}

// Each thread becomes the daemon of its queues. They enter the kernel at the same moment, and stay there until it is done: a kernel that a
// dead process has left with the tags of some queues only oopses when the next one takes over.
Result<void> UblkDevice::fetch() {
  std::atomic<std::size_t> ready{0};  // all threads'
  on_workers([&](Worker& worker) {
    worker.ring->serve(*worker.queue, [&reactor = reactor_] { reactor.wake(); });
    worker.queue->fetch_all();
    ready.fetch_add(1, std::memory_order_acq_rel);
    while (ready.load(std::memory_order_acquire) != workers_.size())
      std::this_thread::yield();
    worker.begun = worker.ring->begin();
  });
  for (Worker& worker : workers_)
    if (!worker.begun) return std::move(worker.begun);
  if (tags_ended() == 0) return {};
  return errno_failure(why_ended(), fmt::format("fetching the requests of ublk device {}", info_.dev_id),
                       "the kernel's log may say more");
}

Result<void> UblkDevice::take_slots() {
  transport::BufferPool* const pool = volume_.buffers();
  const std::size_t size = std::bit_ceil(std::size_t{info_.max_io_buf_bytes});
  const std::uint32_t tags = std::uint32_t{info_.nr_hw_queues} * info_.queue_depth;
  check(tags <= UblkRing::kTagsMax || options_.recover, "more tags than a ring has entries were not asked for");
  if (tags > UblkRing::kTagsMax)
    return failure(ErrorKind::unsupported, fmt::format("ublk device {} has {} requests: {} are allowed", info_.dev_id,
                                                       tags, UblkRing::kTagsMax));
  slots_.reserve(tags);
  while (pool != nullptr && slots_.size() < tags) {
    const auto slot = pool->allocate(size);
    if (slot.empty()) break;
    slots_.push_back(slot);
    // Now: where there is no page the driver finds none under memory pressure either, and requests stand still.
    if (::madvise(slot.data(), slot.size(), MADV_POPULATE_WRITE) != 0)
      return errno_failure(errno, "filling a volume's buffers with memory");
  }
  if (slots_.size() == tags) return {};
  return failure(
      ErrorKind::resource,
      fmt::format("{} requests of {} each need {} of the volume's buffers, which are {}: open it with ublk_buffers()",
                  tags, format_bytes(Bytes(size)), format_bytes(Bytes(tags * size)),
                  format_bytes(pool != nullptr ? pool->size() : Bytes(0))));
}

// devtmpfs makes the node at once, udev when it gets to it.
Result<int> UblkDevice::open_character_device() {
  const std::string path = fmt::format("/dev/ublkc{}", info_.dev_id);
  const Instant end = std::min(deadline_, now() + kNodePatience);
  while (true) {
    const int device = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (device >= 0) return device;
    const int error = errno;
    if ((error != ENOENT && error != EBUSY) || now() >= end)
      return errno_failure(error, fmt::format("opening {}", path),
                           error == ENOENT  ? "is /dev a devtmpfs, or udev running?"
                           : error == EBUSY ? "another process serves it"
                                            : "");
    (void)pass([] { return false; }, now() + kNodeInterval);
  }
}

Result<void> UblkDevice::wait_for_node() {
  path_ = fmt::format("/dev/ublkb{}", info_.dev_id);
  const Instant end = now() + kNodePatience;
  while (::access(path_.c_str(), F_OK) != 0) {
    if (now() >= end)
      return failure(ErrorKind::not_found,
                     fmt::format("{} has not appeared: is /dev a devtmpfs, or udev running?", path_));
    (void)pass([] { return false; }, now() + kNodeInterval);
  }
  return {};
}

bool UblkDevice::pass(const std::function<bool()>& done, Instant deadline) {
  return volume_.run_until(done, deadline);
}

// ---- while it lives

std::uint32_t UblkDevice::tags_ended() const noexcept {
  std::uint32_t sum = 0;
  for (const Worker& worker : workers_)
    if (worker.queue) sum += worker.queue->ended();
  return sum;
}

bool UblkDevice::all_ended() const noexcept {
  return tags_ended() == slots_.size();
}

int UblkDevice::why_ended() const noexcept {
  for (const Worker& worker : workers_)
    if (worker.queue && worker.queue->ended() != 0) return worker.queue->why_ended();
  return 0;
}

const Error* UblkDevice::ended() const noexcept {
  if (removing_ || tags_ended() == 0) return nullptr;
  if (!ended_)
    ended_.emplace(ErrorKind::disconnected,
                   why_ended() == ENODEV ? fmt::format("{} was stopped by somebody else: its requests fail", path_)
                                         : fmt::format("{}: the kernel has taken requests back ({})", path_,
                                                       strerrorname_np(why_ended())));
  return &*ended_;
}

Result<void> UblkDevice::resize() {
  const std::uint64_t sectors = volume_.disk().size().value() >> kSectorShift;
  if (sectors == sectors_) return {};
  if ((control_->features() & ublk::kFeatureUpdateSize) == 0)
    return failure(
        ErrorKind::unsupported,
        fmt::format("{} keeps its size: this kernel cannot change it (UBLK_F_UPDATE_SIZE, Linux 6.16); unmap it and "
                    "map it again",
                    path_));
  auto changed = control_->update_size(info_.dev_id, sectors, now() + kPatience, passing());
  if (changed) sectors_ = sectors;
  return changed;
}

// ---- the end

// While the volume has its path, what is under way is carried out; without one, nobody waits for one. A volume whose requests do not
// end by `patience` loses its path here.
bool UblkDevice::pass_without_patience(const std::function<bool()>& done, Instant patience, Instant deadline) {
  const auto lost = [this] { return volume_.progress_due() || volume_.state() != VolumeState::live; };
  if (reactor_.run_until([&] { return done() || lost(); }, std::min(patience, deadline)) && done()) return true;
  volume_.close();  // what comes later finds it closed
  return reactor_.run_until(done, deadline);
}

Result<void> UblkDevice::remove(Instant deadline) {
  const Instant patience = now() + (deadline - now()) / 2;
  removing_ = true;
  if (!workers_.empty()) {
    auto stopped = control_->stop(info_.dev_id, deadline, [&](const std::function<bool()>& done, Instant) {
      return pass_without_patience(done, patience, deadline);
    });
    if (!stopped && stopped.error().kind() != ErrorKind::not_found) return stopped;
    if (!reactor_.run_until([this] { return all_ended(); }, deadline))
      return failure(ErrorKind::timed_out,
                     fmt::format("{} is stopped, but the kernel has not taken back {} of its {} requests", path_,
                                 slots_.size() - tags_ended(), slots_.size()));
    on_workers([](Worker& worker) { worker.ring->close(); });
  }
  auto gone = control_->remove(info_.dev_id, deadline, [this](const std::function<bool()>& done, Instant end) {
    return reactor_.run_until(done, end);
  });
  return !gone && gone.error().kind() == ErrorKind::not_found ? Result<void>{} : gone;  // deleted by another: gone
}

}  // namespace

Bytes ublk_buffers(const DeviceOptions& options) noexcept {
  return Bytes(std::uint64_t{options.queues} * depth_of(options) * options.io_max.value());
}

std::uint32_t ublk_lanes(const DeviceOptions& options) noexcept {
  return std::clamp(std::min(options.queues, std::thread::hardware_concurrency()), 1U, kQueuesMax);
}

std::uint32_t ublk_requests(const DeviceOptions& options) noexcept {
  const std::uint32_t lanes = ublk_lanes(options);
  return std::max((options.queues + lanes - 1) / lanes * depth_of(options), 1U);
}

Result<std::unique_ptr<Device>> present_ublk(Volume& volume, transport::Reactor& reactor,
                                             const DeviceOptions& options) {
  if (auto allowed = check_options(options); !allowed) return failure(std::move(allowed.error()));
  auto device = std::make_unique<UblkDevice>(volume, reactor);
  auto opened = device->open(options);
  if (!opened) return failure(std::move(opened.error()));
  return device;
}

}  // namespace rbt::initiator
