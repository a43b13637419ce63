#include "target/store/file_store.h"

#include <fmt/format.h>

#include <cerrno>
#include <fstream>
#include <utility>

#include "common/nvme/uuid.h"
#include "target/store/file_queue.h"
#include "target/store/thread_engine.h"
#include "target/store/uring_engine.h"

namespace rbt::target {

namespace {

std::unique_ptr<IoEngineFactory> choose_io(const std::string& spec, Logger& logger) {
  auto uring = UringFactory::probe();
  if (uring) return std::make_unique<UringFactory>(std::move(*uring));
  logger.warning("store '{}': {}; threads read and write instead, which is slower", spec, uring.error().message());
  return std::make_unique<ThreadFactory>();
}

std::optional<std::array<std::uint8_t, 16>> boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string text;
  if (!std::getline(file, text)) return std::nullopt;
  const auto uuid = nvme::Uuid::parse(text);
  if (!uuid) return std::nullopt;
  return uuid->bytes();
}

constexpr std::uint32_t bit(IoOperation::Kind kind) noexcept {
  return 1U << static_cast<unsigned>(kind);
}

}  // namespace

FileStore::FileStore(std::string spec, FileMedium medium, const StoreEnvironment& environment, ZeroPages zeroes)
    : spec_(std::move(spec)),
      boot_(boot_id()),
      medium_(std::move(medium)),
      clock_(environment.clock),
      logger_(environment.logger),
      own_io_(environment.io == nullptr ? choose_io(spec_, logger_) : nullptr),
      io_(environment.io == nullptr ? own_io_.get() : environment.io),
      zeroes_(std::move(zeroes)),
      range_lock_(medium_.geometry().blocks),
      size_(medium_.geometry().blocks.value() << medium_.geometry().block_shift.value()) {}

Result<std::unique_ptr<Store>> FileStore::create(std::string spec, const FileOptions& options,
                                                 const StoreEnvironment& environment) {
  auto medium = FileMedium::open(options, environment);
  if (!medium) return failure(std::move(medium.error()));
  return over(std::move(spec), std::move(*medium), environment);
}

Result<std::unique_ptr<FileStore>> FileStore::over(std::string spec, FileMedium medium,
                                                   const StoreEnvironment& environment) {
  auto zeroes = ZeroPages::create(spec);
  if (!zeroes) return failure(std::move(zeroes.error()));
  return std::unique_ptr<FileStore>(new FileStore(std::move(spec), std::move(medium), environment, std::move(*zeroes)));
}

std::uint64_t FileStore::refresh_size() const noexcept {
  const auto size = medium_.size_now();
  if (!size) return size_.load(std::memory_order_relaxed);
  const std::uint64_t before = size_.exchange(*size, std::memory_order_relaxed);
  if (before == *size) return *size;
  logger_.warning("store '{}': it had {} bytes and has {} now{}", spec_, before, *size,
                  *size < before ? ": what lies behind the end fails until it is that long again" : "");
  if (StoreObserver* const observer = observer_.load(std::memory_order_acquire); observer != nullptr)
    observer->on_geometry_changed();
  return *size;
}

void FileStore::look_at_size(Instant now) const noexcept {
  const Instant before = looked_.load(std::memory_order_relaxed);
  if (before != Instant::min() && now - before < kLookPeriod / 2) return;
  looked_.store(now, std::memory_order_relaxed);
  static_cast<void>(refresh_size());
}

Geometry FileStore::geometry() const {
  Geometry geometry = medium_.geometry();
  geometry.blocks = geometry.block_shift.blocks(Bytes(refresh_size()));
  geometry.atomic_write = geometry.block_shift.blocks(StagedQueue::kAtomicWrite);
  if (refuses(IoOperation::Kind::zero_range)) geometry.write_zeroes = Ability::emulated;
  return geometry;
}

std::string FileStore::explain() const {
  if (medium_.direct()) return "by way of buffers, past the page cache (O_DIRECT)";
  return fmt::format("by way of buffers, through the page cache: {}",
                     medium_.why_not_direct().empty() ? "direct=off" : medium_.why_not_direct());
}

bool FileStore::reaches(std::uint64_t end) const noexcept {
  return refresh_size() >= end;
}

bool FileStore::refuses(IoOperation::Kind kind) const noexcept {
  return (refusals_.load(std::memory_order_relaxed) & bit(kind)) != 0;
}

void FileStore::remember_refusal(IoOperation::Kind kind) noexcept {
  refusals_.fetch_or(bit(kind), std::memory_order_relaxed);
}

void FileStore::remember_lost_writes(int error) noexcept {
  if (lost_writes_.exchange(true, std::memory_order_acq_rel)) return;
  logger_.error("{}",
                Error::from_errno(error, fmt::format("store '{}': fdatasync", spec_),
                                  "writes that hosts believe to be cached may be lost, so that every flush fails from "
                                  "now on: look after the medium, then restart")
                    .message());
}

Result<std::unique_ptr<StoreQueue>> FileStore::open_queue(const StoreQueueContext& context) {
  // An engine that came with the environment is this store's alone: others did not ask for it.
  const bool shares = context.io != nullptr && own_io_ != nullptr;
  std::unique_ptr<IoEngine> own;
  std::unique_ptr<IoEngine>& engine = shares ? *context.io : own;
  if (engine == nullptr) {
    auto opened = io_->open(context.reactor, context.buffers);
    if (!opened) return failure(std::move(opened.error()).within(fmt::format("store '{}'", spec_)));
    engine = std::move(*opened);
  }
  IoEngine& used = *engine;
  return std::make_unique<FileQueue>(*this, context, used, std::move(own));
}

StoreStatus file_status(int error, Intent intent) noexcept {
  const StoreStatus failed = intent == Intent::read ? StoreStatus::read_error : StoreStatus::write_error;
  switch (error) {
    case ENOSPC:
    case EDQUOT: return StoreStatus::no_space;
    case EROFS:
    case EPERM:
    case EBADF:
    case EACCES: return intent == Intent::write ? StoreStatus::read_only : failed;
    case EOPNOTSUPP: return StoreStatus::unsupported;
    case EAGAIN:
    case EINTR:
    case ENOMEM:
    case EBUSY:
    case ECANCELED: return StoreStatus::unavailable;
    default: return failed;
  }
}

}  // namespace rbt::target
